"""What a method is to the rest of the program. `training` knows methods through this file only.

In each step a method gets the student's outputs for the micro-batch, each teacher's, and the `Batch`; it returns named
terms and their weights. `Needs` says beforehand which outputs it reads. So nothing is computed that no term reads, and
what is read of a teacher can be computed once and kept.

What does not exist yet, and where it will attach:

- queries, keys and values of chosen layers: `Needs` names the layers, as it does for hidden states, and `Outputs` has
  one more mapping, filled in the same forward pass (`training/forward.py`);
- weights that change over a run: a field `progress` in [0, 1) of `Batch`, set where the training loop cuts a batch;
- rows without a label: `Head.hard_loss` is 0 for them, and `Batch.label_scale` counts the others, as it already does
  for tokens. Today every row of a training split has a label;
- two stages: two recipes, the second of which starts from the student of the first. A method sees one stage;
- a method that wraps the model being trained, or that trains its teacher: a hook beside `prepare` that gets the model.
  `Needs` must then say that teacher outputs may not be kept, as `reads_padding` does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, Generic, Literal, TypeVar

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator, model_validator
from torch import nn

from kdbert.data.batches import Batch
from kdbert.heads import Head
from kdbert.heads.head import Variant
from kdbert.heads.masked_lm import VocabularyHead
from kdbert.models.layers import Pair

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
        end = "" if self.title.endswith(("?", "!", ".")) else "."
        return f"{self.authors} ({self.year}). {self.title}{end} {self.link}"


class MethodOptions(BaseModel):
    """Options that every method has; each method adds its own, with a description each.

    `corrected` is what the method means; `original` reproduces the published code, quirks included (docs/quirks.md).
    """

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)
    # Defaults of `variant: original` where they differ.
    original_defaults: ClassVar[Mapping[str, Any]] = MappingProxyType({})

    name: str
    variant: Variant = "corrected"

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
        """Whether a value makes a weight negative.

        Returns:
            What is wrong with it, and which weights it gives; None if nothing is wrong.
        """
        kinds = cls.model_fields[key].metadata
        if "weight" in kinds and value is not None and value < 0:
            return f"{key} is a weight and must be 0 or more (got {value:g})", f"{key} gives a weight of {value:g}"
        if "share" in kinds and value is not None and not 0 <= value <= 1:
            wrong = f"{key} must be between 0 and 1, since 1 - {key} is a weight too (got {value:g})"
            return wrong, f"{key} {value:g} gives weights of {value:g} and {1 - value:g}"
        return None

    def nonsense(self) -> list[str]:
        """The negative weights that the options give: only `original` takes any."""
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
    """A quantity computed from a teacher's hidden states and read in their place.

    `Method.reduce` computes it once per example; it is kept with the teacher's outputs.

    Attributes:
        name: `gram.5`; the key in `Outputs.reduced`.
        layer: the hidden states that it is computed from.
        of: what it has one row for: an `example` ([B, ...]) or a pair of its tokens (`token_pair`, [B, L, L]).
        by_centroids: whether it depends on the centroids.
    """

    name: str
    layer: int
    of: Literal["example", "token_pair"]
    by_centroids: bool = False


@dataclass(frozen=True)
class Needs:
    """What a method reads, known before any weight is loaded.

    Attributes:
        teachers: the fewest and the most teachers (None: any number); (0, 0) where none is read.
        reads_centroids: whether it reads centroids of a teacher's layer.
        centroids_layer: that layer, once the models are known.
        teacher_logits: whether it reads the teachers' logits.
        teacher_hidden: layers of each teacher that are read as they are.
        reduced: what is read of a teacher in place of hidden states.
        student_hidden: layers of the student.
        pairs: term -> the layers that it compares, (teacher, student).
        compares_examples: whether a term compares the examples of a micro-batch with each other, so that its value
            depends on the micro-batch size.
        compares_tokens: whether a term compares teacher and student token by token, so that both must read the same
            tokens.
        reads_padding: whether padding counts, so that batches are padded to the maximum length.
    """

    teachers: tuple[int, int | None] = (0, 0)
    reads_centroids: bool = False
    centroids_layer: int | None = None
    teacher_logits: bool = False
    teacher_hidden: tuple[int, ...] = ()
    reduced: tuple[Reduced, ...] = ()
    student_hidden: tuple[int, ...] = ()
    pairs: Mapping[str, tuple[Pair, ...]] = field(default_factory=dict)
    compares_examples: bool = False
    compares_tokens: bool = False
    reads_padding: bool = False


@dataclass(frozen=True)
class Context:
    """What `Method.prepare` gets, once, before training.

    Attributes:
        models: depths and widths.
        head: what the task's labels mean: its losses.
        batch_size: examples of a full micro-batch, over all processes.
        centroids: [K, length, H] of the teacher's layer `Needs.centroids_layer`, if the method reads them.
    """

    models: Models
    head: Head
    batch_size: int
    centroids: torch.Tensor | None = None


@dataclass(kw_only=True)
class HiddenStates:
    """Hidden states of a batch, and what was computed from them; float32 (float64 passes through).

    Attributes:
        mask: [B, L], 1 for real positions.
        hidden: layer -> [B, L, H], for the layers asked for. Values at padding are arbitrary.
        reduced: name -> the `Reduced` quantity; of a teacher.
    """

    mask: torch.Tensor
    hidden: Mapping[int, torch.Tensor] = field(default_factory=dict)
    reduced: Mapping[str, torch.Tensor] = field(default_factory=dict)

    def real(self, layer: int) -> torch.Tensor:
        """Hidden states of a layer with zero at padding, [B, L, H]."""
        hidden = self.hidden[layer]
        return hidden * self.mask.to(hidden.dtype).unsqueeze(-1)


@dataclass
class Outputs(HiddenStates):
    """What a model said about a batch of a task with labels.

    Attributes:
        logits: [B, C], or [B, L, C] where tokens have labels; of a teacher, in the task's order of classes.
    """

    logits: torch.Tensor


@dataclass
class MaskedLMOutputs(HiddenStates):
    """What a masked-LM said about a batch: it forms logits where they are asked for.

    Attributes:
        head: `head(positions, columns)` gives logits [n, columns] over the first `columns` pieces of the vocabulary
            (None: all); positions are int64 [n], numbers of tokens in the flattened batch [B * L].
    """

    head: VocabularyHead


@dataclass
class LossTerms:
    """Named, unweighted terms (scalars) and their weights; `monitors` are logged beside them, never optimised."""

    terms: dict[str, torch.Tensor] = field(default_factory=dict)
    weights: dict[str, float] = field(default_factory=dict)
    monitors: dict[str, torch.Tensor] = field(default_factory=dict)

    def add(self, name: str, term: torch.Tensor, weight: float) -> None:
        """One more term.

        Raises:
            ValueError: it is one number for each example; their mean over the batch is `Batch.mean`.
        """
        if term.dim():
            raise ValueError(f"term {name!r} has shape {tuple(term.shape)}, not one number: take batch.mean of it")
        self.terms[name], self.weights[name] = term, weight

    @property
    def total(self) -> torch.Tensor:
        """The weighted sum: what is minimised."""
        parts = [self.weights[name] * term for name, term in self.terms.items()]
        return torch.stack(parts).sum()


OptionsT = TypeVar("OptionsT", bound=MethodOptions)


class Method(nn.Module, Generic[OptionsT]):
    """A training objective: `class KD(Method[KDOptions])`. One file for a published method, or for a family.

    A method may own trainable parameters and buffers; they are optimised with the student, go into
    checkpoints, and are saved beside the student, not inside it.

    Attributes:
        heads: the kinds of tasks that it is made for.
        Options: the class of its options.
    """

    name: ClassVar[str]
    aliases: ClassVar[tuple[str, ...]] = ()
    summary: ClassVar[str]
    formula: ClassVar[str]
    papers: ClassVar[tuple[Paper, ...]]
    differences: ClassVar[str] = ""
    heads: ClassVar[tuple[str, ...]] = ("single_label", "multi_label", "regression", "token")
    Options: ClassVar[type[MethodOptions]]

    head: Head

    def __init__(self, options: OptionsT) -> None:
        super().__init__()
        self.options = options

    @classmethod
    def needs(cls, options: OptionsT, models: Models | None) -> Needs:
        """What the method reads with these options, of these models. A term of weight 0 needs nothing.

        Args:
            models: None before any is known; then only `teachers` and `reads_centroids` are asked for.

        Raises:
            UserError: layers that a model does not have, widths that do not fit.
        """
        return Needs()

    def prepare(self, context: Context) -> None:
        """Build what the method owns. Called once, before training, after the seed was set.

        A method that overrides this calls `super().prepare(context)`, which sets `self.head`.
        """
        self.head = context.head

    def reduce(self, name: str, hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Compute a `Reduced` quantity from a teacher's hidden states [B, L, H] and mask [B, L]."""
        raise KeyError(name)

    def remark(self, batches: Sequence[np.ndarray]) -> str | None:
        """A warning to print before training, given the labels of the first epoch's micro-batches.

        Not called where words have labels.
        """
        return None

    def forward(self, student: Any, teachers: Sequence[Any], batch: Batch) -> LossTerms:
        """The terms of one micro-batch, as this process sees it (see `Batch.mean` and `Batch.gather`).

        Args:
            student, teachers: `Outputs`; `MaskedLMOutputs` on plain text.
        """
        raise TypeError(f"{type(self).__name__} does not define forward")
