"""What a method is to the rest of the program. `training` knows methods through this file only.

In each step a method gets the student's outputs for the micro-batch, each teacher's, and the `Batch`; it returns named
terms and their weights. `Needs` says beforehand which outputs it reads. So nothing is computed that no term reads, and
what is read of a teacher can be computed once and kept.

Rows without a label: where a training split has some, `Batch.labelled` says which rows have one, and `Batch.labels`
means nothing for the others. A term that reads labels takes `Batch.mean_of_labelled` of its values, the mean over the
rows of the step that have one; every other term takes `Batch.mean`. A method that does so says `takes_unlabelled`; any
other is refused with such data. A method that reads no teacher never sees these rows: they are left out.

What changes over a run (a weight that warms up, a temperature that falls) is a function of `Batch.progress`, the share
of the optimiser steps that were made before this one, in [0, 1): the same in every process and micro-batch, and in a
run that was continued. Where published code goes by epochs, `Context.epochs` says how many there are.

A method with two stages (`Method.stages`) is trained in two runs, the second of which starts from the student of the
first. It sees one of them at a time: its option `stage` says which.

A method that works with the models themselves says `Needs.holds_teachers`. It gets student and teachers once
(`take_models`), is called before each forward pass of the student (`before_forward`), may say what is trained
(`trained_parameters`), and may take steps of its own, such as its teacher's, before each of the student's
(`own_optimizer`, `before_step`). Parameters that it registers, and its optimiser's state, go into checkpoints. Nothing
of its teachers is kept, all word vectors are trained, and fp16, which scales gradients, is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
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
            expected = "0 to 1" if "share" in cls.model_fields[str(info.field_name)].metadata else "0 or more"
            raise ValueError(f"{fault}; expected {expected} (variant original takes what the published code takes)")
        return value

    @classmethod
    def fault(cls, key: str, value: Any) -> str:
        """Which negative weight a value gives; "" if it gives none."""
        kinds = cls.model_fields[key].metadata
        if "weight" in kinds and value is not None and value < 0:
            return f"{key} gives a weight of {value:g}"
        if "share" in kinds and not 0 <= value <= 1:
            return f"{key} {value:g} gives weights of {value:g} and {1 - value:g}"
        return ""

    def check(self, head: Head) -> None:
        """Refuse, by a `UserError`, what has no meaning in a task with this head."""

    @property
    def trains_head(self) -> bool:
        """Whether a term reaches the student's head. If none does, the run's scores say nothing, and tables leave them
        out.
        """
        return True

    def warnings(self, context: Context) -> list[str]:
        """What teaches nothing in such a run, or is not trained: a sentence each, said before training."""
        return []

    def need_a_weight(self, *keys: str) -> None:
        """Refuse options that leave nothing to learn: a ValueError if all of these are 0."""
        if not any(getattr(self, key) for key in keys):
            raise ValueError(f"{', '.join(keys[:-1])} and {keys[-1]} are 0; give one of them a weight")

    def nonsense(self) -> list[str]:
        """The negative weights that the options give: only `original` takes any."""
        return [fault for key in type(self).model_fields if (fault := self.fault(key, getattr(self, key)))]


@dataclass(frozen=True)
class Shape:
    """Number of encoder layers and hidden width of a model, number and width of its attention heads (0: unknown)."""

    layers: int
    width: int
    heads: int = 0
    head_width: int = 0


@dataclass(frozen=True)
class Models:
    """Student and teachers, as their configurations describe them."""

    student: Shape
    teachers: tuple[Shape, ...]
    headless: bool = False  # whether they are encoders of plain text, which have no logits


@dataclass(frozen=True)
class Reduced:
    """A quantity computed from a teacher's hidden states and read in their place.

    `Method.reduce` computes it once per example, or `Method.attribute`; it is kept with the teacher's outputs.
    """

    name: str  # such as `gram.5`; the key in `Outputs.reduced`
    layer: int  # the hidden states that it is computed from
    # What it has a row for: [B, ...], [B, L, ...] or [B, L, L]; 0 at padding.
    of: Literal["example", "token", "token_pair"]
    by_centroids: bool = False  # whether it depends on the centroids
    by_gradient: bool = False  # whether it is made of gradients by these hidden states, by `Method.attribute`


@dataclass(frozen=True)
class Needs:
    """What a method reads, known before any weight is loaded."""

    teachers: tuple[int, int | None] = (0, 0)  # the fewest and the most (None: any number)
    reads_centroids: bool = False  # of a teacher's layer
    centroids_layer: int | None = None  # that layer, once the models are known
    teacher_logits: bool = False
    teacher_hidden: tuple[int, ...] = ()  # layers of each teacher that are read as they are
    reduced: tuple[Reduced, ...] = ()  # what is read of a teacher in place of hidden states
    student_hidden: tuple[int, ...] = ()  # layers of the student
    first_token: bool = False  # of these the first token only: the last layer's may then have no other, [B, 1, H]
    # Layer, from 1 -> which of its queries, keys and values are read, such as "qk".
    teacher_attention: Mapping[int, str] = field(default_factory=dict)
    student_attention: Mapping[int, str] = field(default_factory=dict)
    pairs: Mapping[str, tuple[Pair, ...]] = field(default_factory=dict)  # term -> layers compared, (teacher, student)
    # Examples of a micro-batch that a term compares with each other, at the fewest; its value depends on their number.
    compares_examples: int = 0  # 0: none does; 1: it has a value for one example, too
    least_examples: int = 1  # fewer in a micro-batch make a published term NaN
    compares_tokens: bool = False  # teacher and student token by token, so that both must read the same tokens
    reads_padding: bool = False  # whether padding counts, so that batches are padded to the maximum length
    holds_teachers: bool = False  # gets the models themselves, see `Method.take_models`
    teacher_dropout: bool = False  # whether the teacher's dropout is on; it goes with `reads_padding`
    unreached: bool = False  # whether no term may reach some of the student's weights, such as its head
    # Whether a term is made of gradients by hidden states: then all models run in the library's eager attention.
    differentiates_twice: bool = False
    survey: int = 0  # how many texts of the training split `Method.survey` looks at (fewer if there are fewer)


@dataclass(frozen=True)
class Context:
    """What `Method.prepare` gets, once, before training."""

    models: Models
    head: Head  # what the task's labels mean: its losses, with the recipe's weights of classes and label smoothing
    batch_size: int  # examples of a full micro-batch, over all processes
    epochs: int = 1  # of the run; with `train.max_steps` it may end before the last of them
    steps: int = 1  # of the optimiser, in the whole run
    unlabelled: float = 0.0  # share of a step's rows that have no label
    centroids: torch.Tensor | None = None  # [K, length, H] of the layer `Needs.centroids_layer`, if they are read


@dataclass(frozen=True)
class OwnStep:
    """What a method with an optimiser of its own gets before each step of the student's."""

    student: torch.optim.Optimizer  # `initial_lr` of its groups is the peak rate, `lr` the one of this step
    own: torch.optim.Optimizer
    backward: Callable[[], object]  # adds the gradient of the step's whole batch, over all processes, to `.grad`
    max_grad_norm: float  # infinite where gradients are not clipped


@dataclass(kw_only=True)
class HiddenStates:
    """Hidden states of a batch, and what was computed from them; float32 (float64 passes through)."""

    mask: torch.Tensor  # [B, L], 1 for real positions
    # Layer -> [B, L, H], for the layers asked for. Values at padding are arbitrary.
    hidden: Mapping[int, torch.Tensor] = field(default_factory=dict)
    reduced: Mapping[str, torch.Tensor] = field(default_factory=dict)  # name -> the `Reduced` quantity; of a teacher
    # Layer -> q, k, v -> [B, heads, L, units], for those asked for (see `kdbert.models.fast.capture`).
    attention: Mapping[int, Mapping[str, torch.Tensor]] = field(default_factory=dict)

    def real(self, layer: int) -> torch.Tensor:
        """Hidden states of a layer with zero at padding, [B, L, H]."""
        hidden = self.hidden[layer]
        return hidden * self.mask.to(hidden.dtype).unsqueeze(-1)


@dataclass
class Outputs(HiddenStates):
    """What a model said about a batch of a task with labels."""

    logits: torch.Tensor  # [B, C], or [B, L, C] where tokens have labels; of a teacher, in the task's order of classes


@dataclass
class MaskedLMOutputs(HiddenStates):
    """What a masked-LM said about a batch: it forms logits where they are asked for.

    `head(positions, columns)` gives logits [n, columns] over the first `columns` pieces of the vocabulary (None: all);
    positions are int64 [n], numbers of tokens in the flattened batch [B * L].
    """

    head: VocabularyHead


@dataclass
class LossTerms:
    """Named, unweighted terms (scalars) and their weights; `monitors` are logged beside them, never optimised."""

    terms: dict[str, torch.Tensor] = field(default_factory=dict)
    weights: dict[str, float] = field(default_factory=dict)
    monitors: dict[str, torch.Tensor] = field(default_factory=dict)

    def add(self, name: str, term: torch.Tensor, weight: float) -> None:
        """One more term, a scalar: of one number for each example take `Batch.mean` or `mean_of_labelled`."""
        if term.dim():
            raise ValueError(f"term {name!r} has shape {tuple(term.shape)}, not one number: take batch.mean of it")
        self.terms[name], self.weights[name] = term, weight

    @property
    def total(self) -> torch.Tensor:
        """The weighted sum: what is minimised."""
        return torch.stack([self.weights[name] * term for name, term in self.terms.items()]).sum()


OptionsT = TypeVar("OptionsT", bound=MethodOptions)


class Method(nn.Module, Generic[OptionsT]):
    """A training objective: `class ICS(Method[ICSOptions])`. One file for a published method, or for a family.

    A method may own trainable parameters and buffers; they are optimised with the student, go into
    checkpoints, and are saved beside the student, not inside it.
    """

    name: ClassVar[str]
    aliases: ClassVar[tuple[str, ...]] = ()
    summary: ClassVar[str]
    formula: ClassVar[str]
    papers: ClassVar[tuple[Paper, ...]]
    differences: ClassVar[str] = ""
    heads: ClassVar[tuple[str, ...]] = ("single_label", "multi_label", "regression", "token")  # kinds of tasks
    # None, or two, in their order: `distill` makes a run of each, with `options.stage` set to its name. An option
    # `stage` (default None) names one of them, to be run alone. Both take the same teachers. On plain text there is the
    # first one only.
    stages: ClassVar[tuple[str, ...]] = ()
    starts_from_teacher: ClassVar[bool] = False  # the student is cut from the teacher itself, head and all
    published: ClassVar[bool] = True  # whether published code computes it on such tasks, so that `original` exists
    Options: ClassVar[type[MethodOptions]]

    head: Head

    def __init__(self, options: OptionsT) -> None:
        super().__init__()
        self.options = options

    @classmethod
    def needs(cls, options: OptionsT, models: Models | None) -> Needs:
        """What the method reads with these options, of these models. A term of weight 0 needs nothing.

        `models` is None before any is known; then only `teachers` and `reads_centroids` are asked for. A `UserError`
        refuses layers that a model does not have, and widths that do not fit.
        """
        return Needs()

    def prepare(self, context: Context) -> None:
        """Build what the method owns. Called once, before training, after the seed was set.

        A method that overrides this calls `super().prepare(context)`, which sets `self.head`.
        """
        self.head = context.head

    @classmethod
    def heads_for(cls, options: OptionsT) -> tuple[str, ...]:
        """The kinds of tasks, of `heads`, that it is made for with these options."""
        return cls.heads

    @classmethod
    def takes_unlabelled(cls, options: OptionsT, head: Head) -> bool:
        """Whether the method, with these options and this head, can learn from rows without a label beside others."""
        return False

    def take_models(self, student: nn.Module, teachers: Sequence[nn.Module]) -> None:
        """Get hold of student and teachers: called once, behind `prepare`, where `Needs` say `holds_teachers`."""

    def before_forward(self, batch: Batch) -> None:
        """Called before the student runs on a micro-batch in training."""

    def trained_parameters(self, student: nn.Module) -> list[nn.Parameter]:
        """What the student's optimiser changes. Other parameters with a gradient only count where that is clipped."""
        return [p for p in dict.fromkeys((*student.parameters(), *self.parameters())) if p.requires_grad]

    def own_optimizer(self, student: torch.optim.Optimizer) -> torch.optim.Optimizer | None:
        """The optimiser of parameters that the method trains itself, in `before_step`; `student` is the student's."""
        return None

    def before_step(self, step: OwnStep) -> None:
        """Called before each step of the student's optimiser, of a method that has one of its own."""

    def survey(self, teachers: Iterator[Sequence[HiddenStates]]) -> None:
        """Look at what the teachers say of `Needs.survey` texts, batch by batch, once before training.

        The texts are spread evenly over the training split, the same for every seed. What is learned of them is kept in
        buffers: they go into checkpoints, so that a run that is continued has the same.
        """

    def reduce(self, name: str, hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Compute a `Reduced` quantity from a teacher's hidden states [B, L, H] and mask [B, L]."""
        raise KeyError(name)

    def attribute(self, name: str, teacher: Outputs, batch: Batch) -> torch.Tensor:
        """Compute a `Reduced` quantity that is made of gradients, from a teacher's outputs and a batch with its labels.

        `teacher.hidden` has the quantity's layer, on the way to the logits (in the task's order of classes): ask for
        gradients by `torch.autograd.grad`. No graph is kept of the result.
        """
        raise KeyError(name)

    def remark(self, batches: Sequence[np.ndarray]) -> str | None:
        """A warning to print before training, by the labels of the first epoch's micro-batches (if texts have them)."""
        return None

    def forward(self, student: Any, teachers: Sequence[Any], batch: Batch) -> LossTerms:
        """The terms of one micro-batch, as this process sees it (see `Batch.mean` and `Batch.gather`).

        Student and teachers are `Outputs`; of a masked-LM `MaskedLMOutputs`, of an encoder without a head
        `HiddenStates`.
        """
        raise TypeError(f"{type(self).__name__} does not define forward")

    def loss_of_texts(self, student: HiddenStates, teachers: Sequence[HiddenStates], batch: Batch) -> torch.Tensor:
        """The loss of each text as a sum, and what that is divided by: [B, 2]. Tasks of kind `encoder` need it.

        The quotient of their sums over the dev texts is the dev score.
        """
        raise TypeError(f"{type(self).__name__} does not define loss_of_texts")
