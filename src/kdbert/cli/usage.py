"""What is wrong with a command line, in one sentence with the cure. Imports the recipe only once something is wrong."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Mapping
from typing import Any

import typer

from kdbert.cli import flags
from kdbert.errors import near_miss, nearest

UsageError: Any = typer.BadParameter.__base__  # click's, which may be typer's own copy
TABLE = [flag for _, group in inspect.getmembers(flags, lambda one: isinstance(one, tuple)) for flag in group]
EVERYTHING = ("distill", "sweep")  # commands whose recipe has a use for every key
NAMED = {"methods": ("method", "show"), "data": ("task", "describe")}  # what a group's commands are about


def sentence(error: Any) -> str:
    """What `UsageError` found wrong."""
    context = error.ctx
    help_ = f"; see `{context.command_path} --help`" if context is not None else ""
    if type(error).__name__ == "NoSuchOption":
        return _no_flag(error.option_name, context)
    if unknown := re.match(r"No such command '(.+?)'", error.message):
        return _no_command(unknown[1], context)
    if hasattr(error.__cause__, "errors"):  # pydantic's, by which typer reads values
        return _wrong_value(error.__cause__.errors()[0], error.param, context)
    if isinstance(error, typer.BadParameter) and error.param_hint:  # our own
        return f"{error.param_hint} {error.message}"
    told = error.format_message().rstrip(".")
    return told[0].lower() + told[1:] + help_


def _no_flag(name: str, context: Any) -> str:
    """A flag that a command lacks: what sets it here, which commands have it, which flag is near."""
    here, command = _spelled(context.command), context.command.name
    elsewhere = [one.name for one in context.find_root().command.commands.values() if name in _spelled(one)]
    word = name.lstrip("-").replace("-", "_")
    keys: dict[str, str] = {}
    cures = []
    if "--set" in here and (command in EVERYTHING or not elsewhere):
        from kdbert.recipe import known_keys

        by_key = {flag.key: flag.name for flag in TABLE if flag.name in here}
        keys = {key: key.rpartition(".")[2] for key in known_keys() if "." in key}
        cures = [by_key.get(key) or f"--set {key}=…" for key, last in keys.items() if last == word]
    if cures:
        return f"no flag {name}; it is set with {' or '.join(cures)}"
    of_others = f"; it is a flag of {', '.join(elsewhere)}" if elsewhere else ""
    return f"no flag {name} here{of_others}{_near_flag(name, here, keys)}"


def _near_flag(name: str, here: Iterable[str], keys: Mapping[str, str]) -> str:
    """The flag, or the key of a recipe that has none, that a word is nearest to; keys with their last parts."""
    as_flags = {f"--{last.replace('_', '-')}": key for key, last in keys.items()}
    near = nearest(name, [*here, *as_flags])
    if near is None:
        return ""
    return f"; did you mean {near!r}?" if near in here else f"; did you mean --set {as_flags[near]}=…?"


def _spelled(command: Any) -> set[str]:
    """The flags that a command takes."""
    return {name for one in command.params for name in (*one.opts, *one.secondary_opts) if name[0] == "-"}


def _no_command(word: str, context: Any) -> str:
    known, group = context.command.commands, context.command.name
    told = f"no command `{context.command_path} {word}`"
    if group in NAMED:
        from kdbert.recipe import is_name

        section, verb = NAMED[group]
        if is_name(section, word):
            return f"{told}; did you mean `{context.command_path} {verb} {word}`?"
    return told + (near_miss(word, known) or f"; there are {', '.join(known)}")


def _wrong_value(problem: Any, parameter: Any, context: Any) -> str:
    """A value that is not of its flag's type, as the recipe tells it of a key."""
    from kdbert.recipe import plain

    value, told = problem["input"], plain(problem).rstrip(".")
    flag = next((name for name in parameter.opts if name.startswith("--")), parameter.opts[0])
    key = next((one.key for one in TABLE if one.name == flag), None)
    several = key and context.command.name == "sweep" and "," in str(value)
    cure = f"; several values go into --grid {key}={value}" if several else ""
    return f"{flag}{'' if repr(value) in told else f'={value!r}'}: {told}{cure}"
