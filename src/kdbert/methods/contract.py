"""What a method is to the rest of the program. `training` knows methods through this file only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from pydantic import BaseModel, ConfigDict
from torch import nn

from kdbert.data.batches import Batch


@dataclass(frozen=True)
class Paper:
    """Where a method comes from; shown by `kdbert methods` and cited in model cards."""

    title: str
    authors: str
    year: int
    link: str

    def __str__(self) -> str:
        return f"{self.authors} ({self.year}). {self.title}. {self.link}"


class MethodOptions(BaseModel):
    """Options that every method has; each method adds its own, with a description each.

    `corrected` is what the method means; `original` reproduces the published code, quirks included
    (METHODS.md section 10).
    """

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    name: str
    variant: Literal["corrected", "original"] = "corrected"


@dataclass(frozen=True)
class Needs:
    """What a method reads, known from its options alone, before any weight is loaded.

    Attributes:
        teachers: how many teachers a recipe must name (0: none is loaded).
        compares_examples: whether a term compares the examples of a micro-batch with each other, so
            that its value depends on the micro-batch size.
    """

    teachers: int = 0
    compares_examples: bool = False


@dataclass
class Outputs:
    """What a model said about a batch; loss functions see float32 (float64 passes through).

    Attributes:
        logits: [B, C].
    """

    logits: torch.Tensor


@dataclass
class LossTerms:
    """Named, unweighted terms (scalars) and their weights."""

    terms: dict[str, torch.Tensor]
    weights: dict[str, float]

    @property
    def total(self) -> torch.Tensor:
        """The weighted sum: what is minimised."""
        parts = [self.weights[name] * term for name, term in self.terms.items()]
        return torch.stack(parts).sum()


class Method(nn.Module):
    """A training objective. One file per published method; the file is found by the method's name.

    A method may own trainable parameters and buffers; they are optimised with the student, go into
    checkpoints, and are saved beside the student, not inside it.
    """

    name: ClassVar[str]
    aliases: ClassVar[tuple[str, ...]] = ()
    summary: ClassVar[str]
    formula: ClassVar[str]
    papers: ClassVar[tuple[Paper, ...]]
    differences: ClassVar[str] = ""
    Options: ClassVar[type[MethodOptions]]

    def __init__(self, options: MethodOptions) -> None:
        super().__init__()
        self.options = options

    @classmethod
    def needs(cls, options: MethodOptions) -> Needs:
        """What the method reads under these options. A term of weight 0 needs nothing."""
        return Needs()

    def forward(self, student: Outputs, teachers: Sequence[Outputs], batch: Batch) -> LossTerms:
        """The terms of one micro-batch, as seen from this process (see `Batch.mean`)."""
        raise TypeError(f"{type(self).__name__} does not define forward")
