"""The registry of methods: every module of this package that defines a `Method` is one."""

from __future__ import annotations

import pkgutil
from functools import cache
from importlib import import_module

from kdbert.errors import UserError, near_miss
from kdbert.methods.contract import LossTerms, Method, MethodOptions, Needs, Outputs, Paper

__all__ = ["LossTerms", "Method", "MethodOptions", "Needs", "Outputs", "Paper", "all_methods", "get_method"]


@cache
def all_methods() -> dict[str, type[Method]]:
    """Registered name -> class, in alphabetical order of their files."""
    found: dict[str, type[Method]] = {}
    for module in pkgutil.iter_modules(__path__):
        for value in vars(import_module(f"{__name__}.{module.name}")).values():
            if isinstance(value, type) and issubclass(value, Method) and value is not Method:
                found[value.name] = value
    return found


def get_method(name: str) -> type[Method]:
    """The method of that name or alias.

    Raises:
        UserError: unknown, with the nearest known name.
    """
    methods = all_methods()
    by_alias = {alias: method.name for method in methods.values() for alias in method.aliases}
    key = by_alias.get(name.lower(), name.lower())
    if key not in methods:
        raise UserError(f"unknown method {name!r}{near_miss(key, [*methods, *by_alias])} (known: {', '.join(methods)})")
    return methods[key]
