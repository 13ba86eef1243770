"""The registry of tasks. A family is a file with `TASKS` and, if it has some, `ALIASES`; a task is a `TaskSpec`."""

from __future__ import annotations

from kdbert.errors import UserError, near_miss
from kdbert.tasks import blurb, glue, hate_speech, intent, quickstart, sentiment
from kdbert.tasks.corpus import CORPUS, corpus_task
from kdbert.tasks.spec import Split, TaskSpec

__all__ = ["CORPUS", "CUSTOM", "Split", "TaskSpec", "get_task", "task_names"]

CUSTOM = "custom"
_FAMILIES = (quickstart, glue, intent, sentiment, hate_speech, blurb)
_LISTED: dict[str, TaskSpec] = {spec.name: spec for family in _FAMILIES for spec in family.TASKS}
_TASKS = _LISTED | {spec.name: spec for spec in intent.MORE}
_ALIASES = {alias: name for family in _FAMILIES for alias, name in getattr(family, "ALIASES", {}).items()}


def task_names() -> list[str]:
    """Registered names, in the order in which they are listed (but for MASSIVE's further locales)."""
    return list(_LISTED)


def task_name(name: str) -> str:
    """The registered name of `name` (any case, or an alias such as `STS-B` or `clinc150/small`)."""
    key = name.lower().replace("/", "-")  # clinc150/small, as a data set and its configuration are often written
    key = _ALIASES.get(key, key)
    if key.startswith("massive-") and key not in _TASKS:
        raise UserError(f"MASSIVE has no locale {name[len('massive-') :]!r}; it has: {', '.join(intent.LOCALES)}")
    if key not in (*_TASKS, CUSTOM, CORPUS):
        known = f" (known: {', '.join([*_LISTED, CUSTOM, CORPUS])})"
        raise UserError(f"unknown task {name!r}{near_miss(key, [*_TASKS, CUSTOM, CORPUS]) or known}")
    return key


def get_task(name: str, kind: str | None = None) -> TaskSpec:
    """The registered task of that name; `kind` says how plain text is read (see `corpus_task`)."""
    key = task_name(name)
    if key == CUSTOM:
        raise UserError("task 'custom' is your own files; it exists only with --train-file")
    return corpus_task("a person's own", kind) if key == CORPUS else _TASKS[key]
