"""A method of one's own in one file: the squared difference of the logits in place of softened distributions.

kdbert distill --plugin logit_mse.py --method logit-mse --task rte --set method.alpha=0.3
kdbert methods show logit-mse --plugin logit_mse.py
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from kdbert.data.batches import Batch
from kdbert.losses.hard import hard_loss
from kdbert.methods import LossTerms, Method, MethodOptions, Models, Needs, Outputs, Paper, Share


class LogitMSE(Method):
    """alpha * hard loss + (1 - alpha) * mean squared difference of the logits."""

    name = "logit-mse"
    summary = "the student's logits are drawn to the teacher's"
    formula = "alpha * CE(student, label) + (1 - alpha) * mean_c (student_c - teacher_c)^2"
    papers = (
        Paper("Do Deep Nets Really Need to be Deep?", "Ba, J. & Caruana, R.", 2014, "https://arxiv.org/abs/1312.6184"),
    )

    class Options(MethodOptions):
        """What `--set method.NAME=VALUE` can set; the descriptions stand in `kdbert methods show`."""

        name: Literal["logit-mse"] = "logit-mse"
        alpha: Share = Field(0.5, description="weight of the hard loss; the other term has 1 - alpha")

    @classmethod
    def teachers(cls, options: MethodOptions) -> tuple[int, int | None]:
        """At least one, at most one."""
        return 1, 1

    @classmethod
    def needs(cls, options: MethodOptions, models: Models) -> Needs:
        """Of the teacher, its logits. (Hidden states: `teacher_hidden` and `student_hidden`, layer numbers.)"""
        return Needs(teacher_logits=True)

    def forward(self, student: Outputs, teachers: Sequence[Outputs], batch: Batch) -> LossTerms:
        """Every term with its weight; `batch.mean` makes one number of one number per example."""
        assert batch.labels is not None
        alpha = self.options.alpha  # type: ignore[attr-defined]
        difference = (student.logits - teachers[0].logits).square().mean(1)
        return LossTerms(
            terms={"hard": batch.mean(hard_loss(student.logits, batch.labels)), "logits": batch.mean(difference)},
            weights={"hard": alpha, "logits": 1 - alpha},
        )
