"""kdbert: one toolkit for distilling BERT models.

>>> from kdbert import Recipe, distill, finetune, evaluate
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

from kdbert.version import __version__

# oneDNN keeps 1,024 compiled kernels by default; batches padded to their own length need more, and
# a full cache compiles for ever. It is read once, when torch is imported, so it is set here.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "16384")

_ORIGIN = {
    "Recipe": "kdbert.recipe",
    "RunResult": "kdbert.runs.folder",
    "distill": "kdbert.runs.commands",
    "finetune": "kdbert.runs.commands",
    "train_memory": "kdbert.runs.commands",
    "evaluate": "kdbert.runs.evaluate",
    "predict": "kdbert.runs.predict",
    "expand_vocab": "kdbert.expansion",
    "KdbertError": "kdbert.errors",
    "UserError": "kdbert.errors",
}
__all__ = [
    "KdbertError", "Recipe", "RunResult", "UserError", "__version__", "distill", "evaluate", "expand_vocab", "finetune",
    "predict", "train_memory",
]  # fmt: skip

if TYPE_CHECKING:
    from kdbert.errors import KdbertError, UserError
    from kdbert.expansion import expand_vocab
    from kdbert.recipe import Recipe
    from kdbert.runs.commands import distill, finetune, train_memory
    from kdbert.runs.evaluate import evaluate
    from kdbert.runs.folder import RunResult
    from kdbert.runs.predict import predict


def __getattr__(name: str) -> Any:
    # torch and transformers take seconds to import; `kdbert --help` must not wait for them.
    if name in _ORIGIN:
        return getattr(import_module(_ORIGIN[name]), name)
    raise AttributeError(f"module 'kdbert' has no attribute {name!r}")
