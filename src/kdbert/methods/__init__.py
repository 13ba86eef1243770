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
    OwnStep,
    Paper,
    Reduced,
    Shape,
    Share,
    Weight,
)

__all__ = [
    "Context", "HiddenStates", "LossTerms", "MaskedLMOutputs", "Method", "MethodOptions", "Models", "Needs", "Outputs",
    "OwnStep", "Paper", "Reduced", "Shape", "Share", "Weight", "all_methods", "get_method", "load_plugin", "plugins",
    "source_of",
]  # fmt: skip
log = logging.getLogger("kdbert")
plugins: dict[Path, list[type[Method]]] = {}  # the files that `load_plugin` has read, and the methods of each


@cache
def _installed() -> dict[str, type[Method]]:
    """Name -> class, of this package in alphabetical order, then of others; of these, what fails is left out."""
    found: dict[str, type[Method]] = {}
    for module in pkgutil.iter_modules(__path__):
        _add(_methods_of(import_module(f"{__name__}.{module.name}")), found)
    found = dict(sorted(found.items()))
    for point in entry_points(group="kdbert.methods"):
        try:
            loaded = point.load()
            _add(_methods_of(loaded) if isinstance(loaded, ModuleType) else [loaded], found)
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


def _add(methods: list[type[Method]], known: dict[str, type[Method]]) -> None:
    """Add methods to the known ones, unless one is incomplete or its name is taken."""
    for method in methods:
        if not (isinstance(method, type) and issubclass(method, Method)):
            raise UserError(f"{method!r} is not a kdbert.methods.Method")
        missing = [key for key in ("name", "summary", "formula", "papers", "Options") if not hasattr(method, key)]
        if missing:
            raise UserError(f"class {method.__name__} lacks {', '.join(missing)}")
        names = {name.lower() for one in known.values() for name in (one.name, *one.aliases)}
        for name in (method.name, *method.aliases):
            if name.lower() in names:
                raise UserError(f"class {method.__name__} is called {name!r}, as another method is; rename it")
        if method.forward is Method.forward:
            raise UserError(f"class {method.__name__} lacks forward, which returns its loss terms")
        if method.stages and (len(method.stages) != 2 or "stage" not in method.Options.model_fields):
            raise UserError(
                f"class {method.__name__} needs two stages, and an option `stage` that names one or is None"
            )
        if "encoder" in method.heads and method.loss_of_texts is Method.loss_of_texts:
            raise UserError(f"class {method.__name__} lacks loss_of_texts, by which an encoder is scored")
        own = {key: o for key, o in method.Options.model_fields.items() if key not in MethodOptions.model_fields}
        bare = [key for key, option in own.items() if not option.description]
        if bare:
            raise UserError(f"class {method.__name__} has options without a description: {', '.join(bare)}")
        known[method.name] = method


def load_plugin(path: str | Path) -> list[type[Method]]:
    """Run a Python file and register the methods that it defines."""
    file = Path(path).expanduser().resolve()
    if file in plugins:
        return plugins[file]
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
        _add(methods, all_methods())
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        told = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        raise UserError(f"--plugin {str(path)!r}: {told}") from error
    plugins[file] = methods
    return methods


def source_of(method: type[Method]) -> str:
    """A fingerprint of a method from outside this package: 8 hex digits of its file; "" for our own.

    What it computes of a teacher is kept under it, so that a changed method does not read what an older one kept.
    """
    if method.__module__.startswith(f"{__name__}."):
        return ""
    file = inspect.getsourcefile(method)
    content = Path(file).read_bytes() if file is not None else method.__qualname__.encode()
    return hashlib.sha256(content).hexdigest()[:8]


def all_methods() -> dict[str, type[Method]]:
    """Registered name -> class: built-in, installed, plug-ins."""
    return _installed() | {method.name: method for methods in plugins.values() for method in methods}


def get_method(name: str) -> type[Method]:
    """The method of that name or alias."""
    methods = all_methods()
    named = {word.lower(): method for method in methods.values() for word in (*method.aliases, method.name)}
    if name.lower() not in named:
        raise UserError(
            f"unknown method {name!r}{near_miss(name.lower(), named)} (known: {', '.join(methods)}; name a file with "
            "a method of your own by --plugin FILE)"
        )
    return named[name.lower()]
