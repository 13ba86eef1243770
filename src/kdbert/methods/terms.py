"""Terms and options that several methods share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import torch
from pydantic import Field, field_validator, model_validator
from torch import nn
from torch.utils.checkpoint import checkpoint

from kdbert.data.batches import Batch
from kdbert.data.masking import IGNORE_INDEX
from kdbert.losses.centroids import relation_loss, relations
from kdbert.losses.cka import centered_gram, cka, cka_loss, defined_cka
from kdbert.losses.hard import hard_loss
from kdbert.losses.hinton import score_loss, soft_label_loss, soft_labels_loss
from kdbert.methods.contract import LossTerms, MethodOptions, Models, Outputs, Paper, Share, Weight
from kdbert.models.layers import Pair, check_pairs, layerwise_pairs, parse_pairs

if TYPE_CHECKING:
    from kdbert.centroids.file import Centroids

INITIALIZER_RANGE = 0.02  # BERT's
VOCABULARY_CHUNK = 1024  # tokens whose logits over a vocabulary are held at a time
Variant = Literal["corrected", "original"]
T = TypeVar("T")
FSD = Paper(
    "Feature Structure Distillation with Centered Kernel Alignment in BERT Transferring",
    "Jung, H.-J., Kim, D., Na, S.-H. & Kim, K.",
    2022,
    "https://arxiv.org/abs/2204.08922",
)
KD_FORMULA = "alpha * CE(student, label) + (1 - alpha) * tau^2 * KL(softmax(teacher/tau) || softmax(student/tau))"


class KDOptions(MethodOptions):
    """Options of a method that has a hard and a soft loss."""

    alpha: Share = Field(0.5, description="weight of the hard loss; the soft loss has 1 - alpha")
    temperature: float = Field(5.0, gt=0, description="tau, softens both distributions")


def read_pairs(value: Any) -> Any:
    """Text such as 2:1,4:2, or a list of such, as pairs; YAML reads a bare 11:5 as a number to the base of 60."""
    if isinstance(value, int) and not isinstance(value, bool) and value >= 60:
        return [divmod(value, 60)]
    if isinstance(value, list):
        parts = [read_pairs(part) if isinstance(part, (int, str)) else [part] for part in value]
        return [pair for part in parts for pair in part] if all(isinstance(part, list) for part in parts) else value
    return parse_pairs(value) if isinstance(value, str) else value


class LayerOptions(KDOptions):
    """Options of a method that compares layers."""

    layer_map: list[Pair] | None = Field(
        None, description="teacher:student layers to compare, such as 2:1,4:2 (flag --layer-map); their mean is taken"
    )

    @field_validator("layer_map", mode="before")
    @classmethod
    def _read(cls, value: Any) -> Any:
        return read_pairs(value)

    @field_validator("layer_map")
    @classmethod
    def _some(cls, value: list[Pair] | None) -> list[Pair] | None:
        if value is not None and (not value or len(set(value)) != len(value)):
            raise ValueError("expected at least one pair of layers, each once")
        return value

    def pairs(self, models: Models, default: Callable[[int, int], tuple[Pair, ...]]) -> tuple[Pair, ...]:
        """The layers to compare: those of `layer_map`, or the default for the models' depths."""
        depths = models.teachers[0].layers, models.student.layers
        return default(*depths) if self.layer_map is None else check_pairs(self.layer_map, *depths)


class StructureOptions(LayerOptions):
    """Options of the methods that compare token or batch structures by CKA."""

    layerwise: bool = Field(
        False, description="compare every student layer but the last (12 and 6 layers: 2:1, 4:2, 6:3, 8:4, 10:5)"
    )

    @model_validator(mode="after")
    def _one_choice(self) -> StructureOptions:
        if self.layerwise and self.layer_map is not None:
            raise ValueError("layerwise and layer_map both say which layers are compared; keep one of them")
        return self

    def pairs(self, models: Models, default: Callable[[int, int], tuple[Pair, ...]]) -> tuple[Pair, ...]:
        """The layers to compare."""
        return super().pairs(models, layerwise_pairs if self.layerwise else default)


class CKAOptions(StructureOptions):
    """Options of the published CKA scripts with one structure."""

    beta: Weight = Field(30.0, description="weight of the structure term")


def soft_loss(student: torch.Tensor, teacher: torch.Tensor, labels: torch.Tensor, options: KDOptions) -> torch.Tensor:
    """Soft loss of each example [B], or of each token [B, L] with 0 where it has no label.

    It compares distributions; for each class apart where the labels are sets of classes; scores where they are
    scores. `original` softens a single score into the constant 1, so that the loss is 0 (METHODS.md section 1).
    """
    if labels.dtype == torch.bool:
        return soft_labels_loss(student, teacher, options.temperature)
    if labels.is_floating_point() and options.variant == "corrected":
        return score_loss(student, teacher)
    loss = soft_label_loss(student, teacher, options.temperature)
    return loss.masked_fill(labels == IGNORE_INDEX, 0.0) if labels.dim() == 2 else loss


def kd_terms(
    options: KDOptions,
    student: Outputs,
    teacher: Outputs | None,
    batch: Batch,
    weights: tuple[float, float] | None = None,
) -> LossTerms:
    """Terms `hard` and `soft`, weighted alpha and 1 - alpha, or as `weights` says; no soft term at weight 0."""
    assert batch.labels is not None
    hard, soft = weights if weights is not None else (options.alpha, 1 - options.alpha)
    found = LossTerms({"hard": batch.mean(hard_loss(student.logits, batch.labels))}, {"hard": hard})
    if soft and teacher is not None:
        found.terms["soft"] = batch.mean(soft_loss(student.logits, teacher.logits, batch.labels, options))
        found.weights["soft"] = soft
    return found


def in_parts(compute: Callable[[torch.Tensor], T], positions: torch.Tensor) -> list[T]:
    """What `compute` makes of some tokens [n] whose logits over a vocabulary it forms, part by part.

    Logits of thousands of tokens and tens of thousands of pieces are many GiB, so those of a part are made, left, and
    made again for the gradient.
    """
    return [
        checkpoint(compute, part, use_reentrant=False, preserve_rng_state=False)
        for part in positions.split(VOCABULARY_CHUNK)
    ]


def masked_lm_loss(student: Outputs, batch: Batch) -> torch.Tensor:
    """Mean cross-entropy of the hidden tokens of the step over the student's whole vocabulary; 0 where there are none.

    Logits are made at hidden tokens only.
    """
    head, labels = student.head, batch.labels
    assert head is not None
    assert labels is not None
    labels = labels.masked_fill((batch.valid == 0)[:, None], IGNORE_INDEX).reshape(-1)
    positions = (labels != IGNORE_INDEX).nonzero()[:, 0]
    sums = in_parts(lambda part: hard_loss(head(part), labels[part]).sum(), positions)
    return torch.stack(sums).sum() * batch.label_scale


def token_gram(hidden: torch.Tensor, mask: torch.Tensor, variant: Variant) -> torch.Tensor:
    """Centred inner products of each sample's tokens, [B, L, L]; `original` counts padding as tokens."""
    return centered_gram(hidden, None if variant == "original" else mask)


def intra_term(
    pairs: Sequence[Pair], student: Outputs, grams: Sequence[torch.Tensor], batch: Batch, variant: Variant
) -> torch.Tensor:
    """Mean over layer pairs of -log(mean over samples of the CKA of their token structures); METHODS.md section 3.1.

    Args:
        grams: the teacher's `token_gram` of each pair.
    """
    assert student.mask is not None
    total = []
    for (_, layer), teacher_gram in zip(pairs, grams, strict=True):
        gram = token_gram(student.hidden[layer], student.mask, variant)
        if variant == "original":
            total.append(cka_loss(batch.gather(cka(teacher_gram, gram))))
        else:
            values, defined = defined_cka(teacher_gram, gram)
            total.append(cka_loss(batch.gather(values), batch.gather(defined.to(values.dtype)) > 0))
    return torch.stack(total).mean() * batch.share


def inter_term(
    pairs: Sequence[Pair], student: Outputs, teacher: Outputs, batch: Batch, variant: Variant, batch_size: int
) -> torch.Tensor:
    """Mean over layer pairs of -log(CKA of the samples of a batch, each flattened to one row); METHODS.md section 3.2.

    Args:
        batch_size: examples of a full micro-batch. `original` cuts a smaller one into as many rows all the
            same, each a piece of a sample (quirk F1), where that divides evenly.
    """
    total = []
    for teacher_layer, student_layer in pairs:
        if variant == "original":
            sides = teacher.hidden[teacher_layer], student.hidden[student_layer]
            total.append(cka_loss(cka(*(centered_gram(_rows(batch.gather(side), batch_size)) for side in sides))))
        else:
            flat = [
                batch.gather(side.flatten(1)) for side in (teacher.real(teacher_layer), student.real(student_layer))
            ]
            every = torch.ones(len(flat[0]), device=flat[0].device)
            total.append(cka_loss(*defined_cka(*(centered_gram(rows, every) for rows in flat))))
    return torch.stack(total).mean() * batch.share


def _rows(hidden: torch.Tensor, batch_size: int) -> torch.Tensor:
    return hidden.reshape(batch_size if hidden.numel() % batch_size == 0 else len(hidden), -1)


class GlobalMemory(nn.Module):
    """Where the student lies among centroids of its own, as the teacher does among its memory (METHODS.md section 3.3).

    The student's centroids are trained with it. `corrected` draws them from N(0, 0.02), as BERT's weights are
    drawn and as the published code meant to (its call is commented out, F12); `original` from N(0, 1).
    `corrected` divides distances by sqrt(length x width) of their side's centroids, so that the weight of the term
    depends neither on length nor on width (at length 128 and width 768 the published term is 98,304 times as large, and
    drowns every other), and models of different widths can be compared.

    Args:
        memory: the teacher's centroids.
        layer: the student's layer.
        width: hidden width of the student.
        teacher_epsilon: added under the root of the teacher's distances; one of the published scripts has 1e-8.
    """

    teacher_gram: torch.Tensor

    def __init__(
        self, memory: Centroids, layer: int, width: int, variant: Variant, teacher_epsilon: float = 0.0
    ) -> None:
        super().__init__()
        self.layer = layer
        self.variant: Variant = variant
        self.teacher_epsilon = teacher_epsilon
        self.memory = memory.values
        count, length, _ = memory.values.shape
        std = 1.0 if variant == "original" else INITIALIZER_RANGE
        self.centroids = nn.Parameter(torch.randn(count, length, width) * std)
        self.register_buffer("teacher_gram", self._gram(memory.values), persistent=False)

    def _gram(self, centroids: torch.Tensor) -> torch.Tensor:
        flat = centroids.flatten(1)
        every = None if self.variant == "original" else torch.ones(len(flat), device=flat.device)
        return centered_gram(flat, every)

    def teacher_relations(self, hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """The teacher's distances and cosines, [B, 2, K]: constant over a run."""
        if self.memory.device != hidden.device or self.memory.dtype != hidden.dtype:
            self.memory = self.memory.to(hidden)
        seen = Outputs(hidden.new_empty(0), {0: hidden}, mask)
        return torch.stack(self._relations(seen, 0, self.memory, self.teacher_epsilon), 1)

    def _relations(
        self, outputs: Outputs, layer: int, centroids: torch.Tensor, epsilon: float = 0.0
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Distances and cosines; in `corrected` distances are root mean squares over length x width."""
        if self.variant == "original":
            return relations(outputs.hidden[layer], centroids, epsilon)
        distances, cosines = relations(outputs.real(layer), centroids)
        return distances / centroids[0].numel() ** 0.5, cosines

    def add_terms(
        self,
        found: LossTerms,
        student: Outputs,
        teacher_relations: torch.Tensor,
        batch: Batch,
        weights: tuple[float, float, float],
    ) -> None:
        """Add the terms `distance`, `cosine` and `memory_cka`; those of weight 0 are left out."""
        sides = self._relations(student, self.layer, self.centroids)
        for number, (name, side) in enumerate(zip(("distance", "cosine"), sides, strict=True)):
            if weights[number]:
                found.terms[name] = batch.mean(relation_loss(side, teacher_relations[:, number]))
                found.weights[name] = weights[number]
        if weights[2]:
            gram = self._gram(self.centroids)
            if self.variant == "original":
                value = cka_loss(cka(self.teacher_gram, gram))
            else:
                value = cka_loss(*defined_cka(self.teacher_gram, gram))
            found.terms["memory_cka"] = value * batch.share
            found.weights["memory_cka"] = weights[2]
