"""What a method is to the rest of the program. `training` knows methods through this file only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Protocol

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator, model_validator
from torch import nn

from kdbert.data.batches import Batch
from kdbert.data.examples import Kind
from kdbert.models.layers import Pair

if TYPE_CHECKING:
    from kdbert.centroids.file import Centroids

# Kinds of options. `corrected` refuses values outside; `original` takes what the published code takes.
Weight = Annotated[float, "weight"]  # of a term: 0 or more
Share = Annotated[float, "share"]  # splits a whole in two: 0 to 1


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
    # Defaults of `variant: original` where they differ.
    original_defaults: ClassVar[Mapping[str, Any]] = MappingProxyType({})

    name: str
    variant: Literal["corrected", "original"] = "corrected"

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_the_variant(cls, values: Any) -> Any:
        if isinstance(values, Mapping) and values.get("variant") == "original":
            return {**cls.original_defaults, **values}
        return values

    @field_validator("*")
    @classmethod
    def _no_nonsense(cls, value: Any, info: ValidationInfo) -> Any:
        fault = cls.fault(str(info.field_name), value)
        if fault and info.data.get("variant") == "corrected":
            raise ValueError(f"{fault[0]} (variant original takes what the published code takes)")
        return value

    @classmethod
    def fault(cls, key: str, value: Any) -> tuple[str, str] | None:
        """Whether a value is a weight that means nothing: negative, or a share outside 0..1.

        Returns:
            What is wrong with it, and what it amounts to; None if it is sound.
        """
        kinds = cls.model_fields[key].metadata
        if "weight" in kinds and value is not None and value < 0:
            return f"{key} is a weight and must be 0 or more (got {value:g})", f"{key} gives a weight of {value:g}"
        if "share" in kinds and value is not None and not 0 <= value <= 1:
            wrong = f"{key} must lie between 0 and 1, for 1 - {key} is a weight too (got {value:g})"
            return wrong, f"{key} {value:g} gives weights of {value:g} and {1 - value:g}"
        return None

    def nonsense(self) -> list[str]:
        """What the faults of all options amount to: there are some in `original` only."""
        found = [self.fault(key, getattr(self, key)) for key in type(self).model_fields]
        return [fault[1] for fault in found if fault]


@dataclass(frozen=True)
class Shape:
    """Number of encoder layers and hidden width of a model."""

    layers: int
    width: int


@dataclass(frozen=True)
class Models:
    """Student and teachers, as their configurations describe them."""

    student: Shape
    teachers: tuple[Shape, ...]


@dataclass(frozen=True)
class Reduced:
    """Something made from a teacher's hidden states that is constant over a run and read in their place.

    It is computed once per example by `Method.reduce` and kept with the teacher's outputs.

    Attributes:
        name: `gram.5`; the key of `Outputs.reduced`.
        layer: the hidden states that it is made from.
        of: what there is one row of: an `example` ([B, ...]) or a pair of its tokens (`token_pair`, [B, L, L]).
        by_memory: whether it depends on the memory.
    """

    name: str
    layer: int
    of: Literal["example", "token_pair"]
    by_memory: bool = False


@dataclass(frozen=True)
class Needs:
    """What a method reads, known from options and configurations alone, before any weight is loaded.

    Attributes:
        teacher_logits: whether it reads the teachers' logits.
        teacher_hidden: layers of each teacher that are read as they are.
        reduced: what is read of a teacher in place of hidden states.
        student_hidden: layers of the student.
        pairs: term -> the layers that it compares, (teacher, student).
        memory_layer: the teacher's layer whose centroids are read, if any.
        compares_examples: whether a term compares the examples of a micro-batch with each other, so
            that its value depends on the micro-batch size.
        compares_tokens: whether a term compares teacher and student token by token, so that both must read the
            same tokens.
        reads_padding: whether positions of padding count, so that batches are padded to the maximum length.
    """

    teacher_logits: bool = False
    teacher_hidden: tuple[int, ...] = ()
    reduced: tuple[Reduced, ...] = ()
    student_hidden: tuple[int, ...] = ()
    pairs: Mapping[str, tuple[Pair, ...]] = field(default_factory=dict)
    memory_layer: int | None = None
    compares_examples: bool = False
    compares_tokens: bool = False
    reads_padding: bool = False


@dataclass(frozen=True)
class Context:
    """What a method is told once, before training.

    Attributes:
        models: depths and widths.
        batch_size: examples of a full micro-batch, over all processes.
        memory: the centroids, where `Needs.memory_layer` asks for them.
    """

    models: Models
    batch_size: int
    memory: Centroids | None = None


class Head(Protocol):
    """The last matrix of a masked-LM head, which is applied where its output is read, and nowhere else."""

    def __call__(self, positions: torch.Tensor, columns: int | None = None) -> torch.Tensor:
        """Logits [n, columns] of the first `columns` pieces (None: all).

        Args:
            positions: int64 [n], numbers of tokens in the flattened batch [B * L].
        """


@dataclass
class Outputs:
    """What a model said about a batch; loss functions see float32 (float64 passes through).

    Attributes:
        logits: [B, C]; empty of a masked-LM, which has a `head` instead.
        hidden: layer -> [B, L, H]. Positions of padding hold anything.
        mask: [B, L], 1 for real positions.
        reduced: name -> what `Method.reduce` made of the hidden states.
        head: of a masked-LM.
    """

    logits: torch.Tensor
    hidden: Mapping[int, torch.Tensor] = field(default_factory=dict)
    mask: torch.Tensor | None = None
    reduced: Mapping[str, torch.Tensor] = field(default_factory=dict)
    head: Head | None = None

    def real(self, layer: int) -> torch.Tensor:
        """Hidden states of a layer with zero at padding, [B, L, H]."""
        assert self.mask is not None
        hidden = self.hidden[layer]
        return hidden * self.mask.to(hidden.dtype).unsqueeze(-1)


@dataclass
class LossTerms:
    """Named, unweighted terms (scalars) and their weights; `monitors` are logged beside them, never optimised."""

    terms: dict[str, torch.Tensor]
    weights: dict[str, float]
    monitors: dict[str, torch.Tensor] = field(default_factory=dict)

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
    heads: ClassVar[tuple[Kind, ...]] = ("single_label", "multi_label", "regression", "token")  # kinds of tasks
    Options: ClassVar[type[MethodOptions]]

    def __init__(self, options: MethodOptions) -> None:
        super().__init__()
        self.options = options

    @classmethod
    def teachers(cls, options: MethodOptions) -> tuple[int, int | None]:
        """The least and the most teachers that a recipe names (None: any number); (0, 0) where none is read."""
        return 0, 0

    @classmethod
    def reads_memory(cls, options: MethodOptions) -> bool:
        """Whether `Needs.memory_layer` will be set, whatever the models are."""
        return False

    @classmethod
    def needs(cls, options: MethodOptions, models: Models) -> Needs:
        """What the method reads under these options, of these models. A term of weight 0 needs nothing.

        Raises:
            UserError: layers that a model does not have, widths that do not fit.
        """
        return Needs()

    def prepare(self, context: Context) -> None:
        """Build projections, take over the memory. Called once, before training, after the seed was set."""

    def reduce(self, name: str, hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Compute a `Reduced` quantity from a teacher's hidden states [B, L, H] and mask [B, L]."""
        raise KeyError(name)

    def remark(self, batches: Sequence[np.ndarray]) -> str | None:
        """What a person should be told before training, given the labels of the first epoch's micro-batches.

        It is not asked where words have tags.
        """
        return None

    def forward(self, student: Outputs, teachers: Sequence[Outputs], batch: Batch) -> LossTerms:
        """The terms of one micro-batch, as seen from this process (see `Batch.mean` and `Batch.gather`)."""
        raise TypeError(f"{type(self).__name__} does not define forward")
