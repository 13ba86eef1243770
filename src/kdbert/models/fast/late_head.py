"""A masked-LM's last matrix, applied only to the tokens and pieces that are read."""

from __future__ import annotations

import types
from typing import Any


def use_late_head(model: Any, pieces: int | None = None) -> None:
    """Make a masked-LM return as `logits` the input of its last matrix, `get_output_embeddings()`: [B, L, H].

    Whoever reads logits applies the matrix to the positions and columns that are read.

    Args:
        pieces: size of the vocabulary, where the matrix has more rows than there are pieces; None: all rows.
    """
    decoder = model.get_output_embeddings()
    decoder.forward = types.MethodType(lambda self, features: features, decoder)
    model.late_pieces = decoder.out_features if pieces is None else min(pieces, decoder.out_features)
