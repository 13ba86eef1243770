"""Options of layers, and terms, that several methods share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Any, TypeVar

import torch
from pydantic import AfterValidator, BeforeValidator, Field, model_validator
from torch import nn
from torch.utils.checkpoint import checkpoint

from kdbert.data.batches import Batch
from kdbert.data.masking import IGNORE_INDEX
from kdbert.heads import Head
from kdbert.heads.masked_lm import VOCABULARY_CHUNK
from kdbert.losses.hinton import score_loss, soft_cross_entropy
from kdbert.methods.contract import LossTerms, MaskedLMOutputs, MethodOptions, Models, Needs, Outputs, Weight
from kdbert.methods.kd import HardAndSoftOptions, kd_terms, logits_of
from kdbert.models.layers import Pair, check_pairs, last_pair, parse_pairs

T = TypeVar("T")


class MaskedLMOptions(MethodOptions):
    """Weights of the terms of masked-LM distillation. Each method gives them its defaults and descriptions."""

    alpha_ce: Weight
    alpha_mse: Weight
    alpha_cos: Weight
    alpha_mlm: Weight

    @property
    def of_teacher(self) -> dict[str, float]:
        """The terms that read the teacher and have a weight."""
        weights = {"ce": self.alpha_ce, "mse": self.alpha_mse, "cos": self.alpha_cos}
        return {name: weight for name, weight in weights.items() if weight}

    @model_validator(mode="after")
    def _something_to_learn(self) -> MaskedLMOptions:
        if not (self.of_teacher or self.alpha_mlm):
            raise ValueError("all of alpha_ce, alpha_mse, alpha_cos, alpha_mlm are 0; give one of them a weight")
        return self

    def needs(self, models: Models | None) -> Needs:
        """The masked-LM heads of both, and the last hidden states where the cosine has a weight."""
        if not self.of_teacher:
            return Needs()
        if models is None or not self.alpha_cos:
            return Needs(teachers=(1, 1), compares_tokens=True)
        teacher, student = models.teachers[0].layers, models.student.layers
        return Needs(
            teachers=(1, 1),
            teacher_hidden=(teacher,),
            student_hidden=(student,),
            pairs={"cos": ((teacher, student),)},
            compares_tokens=True,
        )


def _read_pairs(value: Any) -> Any:
    """Text such as 2:1,4:2, or a list of such, as pairs; YAML reads a bare 11:5 as a number to the base of 60."""
    if isinstance(value, int) and not isinstance(value, bool) and value >= 60:
        return [divmod(value, 60)]
    if isinstance(value, list):
        parts = [_read_pairs(part) if isinstance(part, (int, str)) else [part] for part in value]
        return [pair for part in parts for pair in part] if all(isinstance(part, list) for part in parts) else value
    return parse_pairs(value) if isinstance(value, str) else value


def _each_once(value: list[Pair]) -> list[Pair]:
    if not value or len(set(value)) != len(value):
        raise ValueError("expected at least one pair of layers, each once")
    return value


def _one(value: list[Pair]) -> list[Pair]:
    if len(value) != 1:
        raise ValueError("one layer of each model is compared, so expected one pair such as 11:5")
    return value


Pairs = Annotated[list[Pair], BeforeValidator(_read_pairs), AfterValidator(_each_once)]
OnePair = Annotated[Pairs, AfterValidator(_one)]


class LayerOptions(HardAndSoftOptions):
    """Options of a method that compares layers."""

    layer_map: Pairs | None = Field(
        None, description="teacher:student layers to compare, such as 2:1,4:2 (flag --layer-map); their mean is taken"
    )

    def pairs(self, models: Models) -> tuple[Pair, ...]:
        """The layers to compare: those of `layer_map`, or the default ones."""
        depths = models.teachers[0].layers, models.student.layers
        return self.default_pairs(*depths) if self.layer_map is None else check_pairs(self.layer_map, *depths)

    def default_pairs(self, teacher: int, student: int) -> tuple[Pair, ...]:
        """Without `layer_map`, of models of these depths: the last layers."""
        return last_pair(teacher, student)


class Projections(nn.ModuleList):
    """W x + c for each pair of layers, of the student's states where its width is not the teacher's; else none."""

    def fit(self, models: Models, pairs: Sequence[Pair]) -> None:
        """Make them, where the widths differ."""
        student, teacher = models.student.width, models.teachers[0].width if models.teachers else 0
        if student != teacher:
            self.extend(nn.Linear(student, teacher) for _ in pairs)

    def of(self, number: int, hidden: torch.Tensor) -> torch.Tensor:
        """The student's states [..., H] of a pair, as wide as the teacher's."""
        return self[number](hidden) if self else hidden


def in_parts(compute: Callable[[torch.Tensor], T], positions: torch.Tensor) -> list[T]:
    """What `compute` gives for some tokens [n] whose logits over a vocabulary it forms, a part of them at a time.

    Logits of thousands of tokens and tens of thousands of pieces take many GiB. So those of a part are dropped, and
    computed again for the gradient.
    """
    parts = positions.split(VOCABULARY_CHUNK)
    return [checkpoint(compute, part, use_reentrant=False, preserve_rng_state=False) for part in parts]


def known_tokens(batch: Batch) -> torch.Tensor:
    """Real tokens of this process's own texts that the teacher knows, bool [B, L]."""
    assert batch.known is not None
    return batch.known & (batch.valid > 0)[:, None]


def hidden_tokens(batch: Batch) -> torch.Tensor:
    """Hidden tokens of this process's own texts, bool [B, L]."""
    assert batch.labels is not None
    return (batch.labels != IGNORE_INDEX) & (batch.valid > 0)[:, None]


def masked_lm_loss(head: Head, student: MaskedLMOutputs, batch: Batch) -> torch.Tensor:
    """Mean cross-entropy of the step's hidden tokens over the student's whole vocabulary; 0 where there are none."""
    assert batch.labels is not None
    labels, positions = batch.labels.reshape(-1), batch.places(hidden_tokens)
    sums = in_parts(lambda part: head.hard_loss(student.head(part), labels[part]).sum(), positions)
    return torch.stack(sums).sum() * batch.label_scale


def plain_kd_terms(
    head: Head,
    options: HardAndSoftOptions,
    student: Outputs,
    teacher: Outputs | None,
    batch: Batch,
    temperature: float,
) -> LossTerms:
    """`kd_terms` at a temperature; in `original` the soft loss as CKD, AD-KD and SinKD publish it.

    That is the cross-entropy with the teacher's softened probabilities, or of scores the squared difference of scores
    / tau, and no tau^2: the larger tau is, the less it weighs.
    """
    if options.variant == "corrected":
        return kd_terms(head, options.model_copy(update={"temperature": temperature}), student, teacher, batch)
    found = kd_terms(head, options, student, teacher, batch, (options.alpha, 0.0))
    if options.alpha != 1 and teacher is not None:
        if head.kind != "regression":
            logits = logits_of(student, teacher, options.standardise_logits, options.variant)
            loss = soft_cross_entropy(*logits, temperature)
        else:
            loss = score_loss(student.logits, teacher.logits) / temperature**2
        found.add("soft", batch.mean(loss), 1 - options.alpha)
    return found


def mean_of_sums(batch: Batch, sums: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """As published, over a whole micro-batch: the sum of a quantity of its examples [B] / that of their counts [B]."""
    return batch.gather(sums).sum() / batch.gather(counts).sum().clamp(min=1) * batch.share
