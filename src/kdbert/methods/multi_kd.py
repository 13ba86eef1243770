"""Distillation from the logits of several teachers (the BERT-and-Friends notebooks, part 2)."""

from __future__ import annotations

from collections.abc import Sequence
from types import MappingProxyType
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from kdbert.data.batches import Batch
from kdbert.heads import Head
from kdbert.methods.contract import LossTerms, Method, Models, Needs, Outputs, Paper
from kdbert.methods.kd import HardAndSoftOptions, kd_terms, soft_term


class MultiKDOptions(HardAndSoftOptions):
    """Options of `multi-kd`."""

    original_defaults = MappingProxyType({"reduction": "sum"})

    temperature: float = Field(3.0, gt=0, description="tau, softens all distributions")
    reduction: Literal["sum", "mean", "weights"] = Field(
        "mean", description="how the teachers' soft losses are put together"
    )
    weights: list[float] | None = Field(None, description="of the teachers in their order; sets reduction=weights")

    @model_validator(mode="before")
    @classmethod
    def _weights_given(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("weights") is not None and "reduction" not in values:
            return {**values, "reduction": "weights"}
        return values

    @field_validator("weights", mode="before")
    @classmethod
    def _read(cls, value: Any) -> Any:
        return value.split(",") if isinstance(value, str) else value

    @model_validator(mode="after")
    def _weights_and_reduction(self) -> MultiKDOptions:
        if (self.reduction == "weights") != (self.weights is not None):
            raise ValueError("reduction=weights and weights go together; give both, or weights alone")
        if self.weights is not None and (not self.weights or max(self.weights) <= 0):
            raise ValueError("weights: expected a number for each teacher, at least one of them above 0")
        return self

    @classmethod
    def fault(cls, key: str, value: Any) -> str:
        """Negative weights of teachers too."""
        least = min(value or [0]) if key == "weights" else 0
        return f"weights gives a teacher {least:g}" if least < 0 else super().fault(key, value)

    def shares(self, count: int) -> list[float]:
        """The weight of each teacher's soft loss."""
        if self.weights is not None:
            return self.weights
        return [1.0 if self.reduction == "sum" else 1 / count] * count


class MultiKD(Method[MultiKDOptions]):
    """alpha * hard loss + (1 - alpha) * the teachers' soft losses, added or averaged (docs/quirks.md, section 4)."""

    name = "multi-kd"
    aliases = ("multi-teacher", "two-teacher")
    summary = "soft labels of several teachers beside the hard labels"
    formula = (
        "alpha * CE(student, label) + (1 - alpha) * sum_j w_j * tau^2 * KL(softmax(teacher_j/tau) || "
        "softmax(student/tau)); w_j = 1 (sum), 1/J (mean), or the given weights"
    )
    papers = (
        Paper(
            "Learning from Multiple Teacher Networks",
            "You, S., Xu, C., Xu, C. & Tao, D.",
            2017,
            "https://doi.org/10.1145/3097983.3098135",
        ),
    )
    differences = (
        "The published notebooks ADD the two KL terms (`original`, reduction sum), so that with alpha 0.5 the labels "
        "weigh 0.5 and the teachers 1.0 together; `corrected` takes their mean, so that alpha keeps its meaning for "
        "any number of teachers. They use temperature 3 and one tokenizer for all models; here each teacher reads its "
        "own encoding, so a RoBERTa can teach beside BERTs. They cite no paper; the one named here averages soft "
        "labels too and adds a term on intermediate features."
    )

    Options = MultiKDOptions

    @classmethod
    def needs(cls, options: MultiKDOptions, models: Models | None) -> Needs:
        """The logits of two teachers or more, of as many as there are weights; of none if alpha is 1."""
        if options.alpha == 1:
            return Needs()
        given = options.weights
        return Needs(teachers=(2, None) if given is None else (len(given), len(given)), teacher_logits=True)

    @classmethod
    def takes_unlabelled(cls, options: MultiKDOptions, head: Head) -> bool:
        """Yes: they have the soft losses."""
        return True

    def forward(self, student: Outputs, teachers: Sequence[Outputs], batch: Batch) -> LossTerms:
        """Terms `hard`, and `soft.1`, `soft.2`, … of the teachers."""
        options = self.options
        found = kd_terms(self.head, options, student, None, batch)
        if not teachers:
            return found
        for number, (teacher, share) in enumerate(zip(teachers, options.shares(len(teachers)), strict=True), 1):
            if share:
                term = soft_term(self.head, options, student, teacher, batch)
                found.add(f"soft.{number}", term, (1 - options.alpha) * share)
        return found
