"""`kdbert methods`: the objectives, their papers and their options."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from typing import Annotated

import typer

from kdbert.cli import options as o


def list_methods(plugin: o.Plugin = None) -> None:
    """List all methods with their aliases.

    kdbert methods list
    """
    o.load_plugins(plugin)
    from kdbert.methods import all_methods

    for method in all_methods().values():
        also = f"  (also: {', '.join(method.aliases)})" if method.aliases else ""
        print(f"{method.name:<14} {method.summary}{also}")
    print("\n`kdbert methods show NAME` gives formula, paper, options and defaults")


def show(name: Annotated[str, typer.Argument(help="Method or alias.")], plugin: o.Plugin = None) -> None:
    """Show formula, paper, options and quirks of a method.

    kdbert methods show cka-ilg
    """
    o.load_plugins(plugin)
    from kdbert.methods import get_method

    method = get_method(name)
    options = method.Options(name=method.name)
    original = method.Options(name=method.name, variant="original")
    needs = method.needs(options, None)
    least, most = needs.teachers
    print(f"{method.name}: {method.summary}")
    print("\n" + textwrap.fill(f"loss: {method.formula}", 100, subsequent_indent="  ", break_on_hyphens=False))
    print(f"teachers: {least or 'none'}{' or more' if most is None else ''}")
    if method.stages:
        print(f"stages: {', then '.join(method.stages)}, a run each (method.stage=NAME runs one of them alone)")
    if needs.reads_centroids:
        print("memory: made on the way, or by `kdbert train-memory`")
    for paper in method.papers:
        print(textwrap.fill(f"paper: {paper}", 100, subsequent_indent="  ", break_on_hyphens=False))
    print("\noptions (--set method.NAME=VALUE):")
    for key, field in method.Options.model_fields.items():
        if key == "name":
            continue
        text = field.description or (
            "corrected: what the method means; original: the published code, quirks included"
            if method.published
            else "kdbert's own, so there is no original"
        )
        published = getattr(original, key)
        other = f" (variant original: {published})" if key != "variant" and published != field.default else ""
        print(f"  {key} = {field.default}{other}")
        print(textwrap.fill(text, 100, initial_indent="      ", subsequent_indent="      "))
    if method.differences:
        print("\nthe published code:")
        print(textwrap.fill(method.differences, 100, initial_indent="  ", subsequent_indent="  "))


COMMANDS: dict[str, Callable[..., None]] = {"list": list_methods, "show": show}
