"""The registry of methods: those of this package, of installed packages, and of files that a person names.

Every class of this package that derives from `Method` is one, unless its name starts with "_" (what a family shares).
Another package registers its methods by the entry point group `kdbert.methods`, whose value is a `Method` class or a
module with such classes:

    [project.entry-points."kdbert.methods"]
    my-method = "my_package.my_module"

A single file is named by `--plugin path.py`.
"""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import logging
import pkgutil
import sys
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import get_args

from kdbert.errors import UserError, near_miss
from kdbert.methods.contract import (
    Context,
    HiddenStates,
    LossTerms,
    MaskedLMOutputs,
    Method,
    MethodOptions,
    Models,
    Needs,
    Outputs,
    Paper,
    Reduced,
    Shape,
    Share,
    Weight,
)

__all__ = [
    "Context",
    "HiddenStates",
    "LossTerms",
    "MaskedLMOutputs",
    "Method",
    "MethodOptions",
    "Models",
    "Needs",
    "Outputs",
    "Paper",
    "Reduced",
    "Shape",
    "Share",
    "Weight",
    "all_methods",
    "get_method",
    "load_plugin",
    "plugins",
    "source_of",
]
log = logging.getLogger("kdbert")
ENTRY_POINTS = "kdbert.methods"
NAMED = ("name", "variant")  # options that every method has
_plugins: dict[Path, list[type[Method]]] = {}


@cache
def _built_in() -> dict[str, type[Method]]:
    """Registered name -> class, in alphabetical order."""
    found: dict[str, type[Method]] = {}
    for module in pkgutil.iter_modules(__path__):
        for method in _methods_of(import_module(f"{__name__}.{module.name}")):
            _check(method, found)
            found[method.name] = method
    return dict(sorted(found.items()))


@cache
def _installed() -> dict[str, type[Method]]:
    """Methods of other packages; one that cannot be loaded, or whose name is taken, is left out with a warning."""
    found: dict[str, type[Method]] = {}
    for point in entry_points(group=ENTRY_POINTS):
        try:
            loaded = point.load()
            methods = _methods_of(loaded) if isinstance(loaded, ModuleType) else [loaded]
            for method in methods:
                _check(method, {**_built_in(), **found})
                found[method.name] = method
        except (Exception, SystemExit) as error:  # another package's fault must not stop kdbert
            log.warning("method %r of package %s is left out: %s", point.name, getattr(point.dist, "name", "?"), error)
    return found


def _methods_of(module: ModuleType) -> list[type[Method]]:
    """The methods that a module defines (not those that it imports)."""
    return [
        value
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, Method) and value.__module__ == module.__name__
        and value is not Method and not value.__name__.startswith("_")
    ]  # fmt: skip


def _check(method: type[Method], taken: dict[str, type[Method]]) -> None:
    """Refuse an incomplete method, and a name that another method has.

    Raises:
        UserError: with what is missing or taken.
    """
    if not (isinstance(method, type) and issubclass(method, Method)):
        raise UserError(f"{method!r} is not a kdbert.methods.Method")
    missing = [key for key in ("name", "summary", "formula", "papers", "Options") if not hasattr(method, key)]
    if missing:
        raise UserError(f"class {method.__name__} lacks {', '.join(missing)}")
    names = {name.lower() for one in taken.values() for name in (one.name, *one.aliases)}
    both = sorted(names & {name.lower() for name in (method.name, *method.aliases)})
    if both:
        raise UserError(f"class {method.__name__} is called {both[0]!r}, as another method is; rename it")
    if method.forward is Method.forward:
        raise UserError(f"class {method.__name__} lacks forward, which returns its loss terms")
    expected = get_args(method.Options.model_fields["name"].annotation)  # of a Literal
    if expected and method.name not in expected:
        told = expected[0]
        raise UserError(f"class {method.__name__} is called {method.name!r}, but the name in its Options is {told!r}")
    bare = [key for key, field in method.Options.model_fields.items() if key not in NAMED and not field.description]
    if bare:
        raise UserError(f"class {method.__name__} has options without a description: {', '.join(bare)}")


def load_plugin(path: str | Path) -> list[type[Method]]:
    """Run a Python file and register the methods that it defines.

    Raises:
        UserError: no such file, it fails, or it defines no method that can be registered.
    """
    file = Path(path).expanduser().resolve()
    if file in _plugins:
        return _plugins[file]
    if not file.is_file() or file.suffix != ".py":
        raise UserError(f"--plugin {str(path)!r}: expected a Python file (.py) that defines a kdbert.methods.Method")
    name = f"kdbert_plugin_{file.stem}_{hashlib.sha256(str(file).encode()).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
        methods = _methods_of(module)
        if not methods:
            raise UserError("it defines no class that derives from kdbert.methods.Method")
        for number, method in enumerate(methods):
            _check(method, {**all_methods(), **{str(i): one for i, one in enumerate(methods[:number])}})
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        told = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        raise UserError(f"--plugin {str(path)!r}: {told}") from error
    _plugins[file] = methods
    return methods


def source_of(method: type[Method]) -> str:
    """A fingerprint of a method from outside this package: 8 hex digits of its file; "" for our own.

    What such a method computes of a teacher is kept under it, so that a changed method does not read what an older one
    kept.
    """
    if method.__module__.startswith(f"{__name__}."):
        return ""
    file = inspect.getsourcefile(method)
    content = Path(file).read_bytes() if file is not None else method.__qualname__.encode()
    return hashlib.sha256(content).hexdigest()[:8]


def plugins() -> dict[Path, list[type[Method]]]:
    """The files that `load_plugin` has read, and the methods of each."""
    return dict(_plugins)


def all_methods() -> dict[str, type[Method]]:
    """Registered name -> class: built-in, installed, plug-ins."""
    named = {method.name: method for methods in _plugins.values() for method in methods}
    return {**_built_in(), **_installed(), **named}


def get_method(name: str) -> type[Method]:
    """The method of that name or alias.

    Raises:
        UserError: unknown, with the nearest known name.
    """
    methods = all_methods()
    named = {word.lower(): method for method in methods.values() for word in (*method.aliases, method.name)}
    if name.lower() not in named:
        raise UserError(
            f"unknown method {name!r}{near_miss(name.lower(), named)} (known: {', '.join(methods)}; name a file with "
            "a method of your own by --plugin FILE)"
        )
    return named[name.lower()]
