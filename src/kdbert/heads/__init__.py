"""What a kind of task means, one file each; `head` says what a new one must define."""

from __future__ import annotations

from kdbert.heads.encoder import Encoder
from kdbert.heads.head import Head
from kdbert.heads.masked_lm import MaskedLM
from kdbert.heads.multi_label import MultiLabel
from kdbert.heads.plain_text import PlainText
from kdbert.heads.regression import Regression
from kdbert.heads.single_label import SingleLabel
from kdbert.heads.tokens import Tokens

__all__ = [
    "HEADS", "Encoder", "Head", "MaskedLM", "MultiLabel", "PlainText", "Regression", "SingleLabel", "Tokens", "head_of",
]  # fmt: skip

HEADS: dict[str, type[Head]] = {
    head.kind: head for head in (SingleLabel, MultiLabel, Regression, Tokens, MaskedLM, Encoder)
}


def head_of(kind: str, classes: tuple[str, ...] = ()) -> Head:
    """The head of a kind of task, with these classes."""
    return HEADS[kind](classes)
