"""DIST: the correlations of two models' answers, class with class and example with example (Huang et al. 2022)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import Field, model_validator

from kdbert.data.batches import Batch
from kdbert.data.masking import IGNORE_INDEX
from kdbert.errors import UserError
from kdbert.heads import Head
from kdbert.losses.correlation import correlation
from kdbert.methods.contract import Context, LossTerms, Method, MethodOptions, Models, Needs, Outputs, Paper, Weight
from kdbert.methods.kd import hard_term


class DISTOptions(MethodOptions):
    """Options of `dist`."""

    hard_weight: Weight = Field(1.0, description="weight of the hard loss")
    beta: Weight = Field(1.0, description="weight of the relation among the classes of an example (inter)")
    gamma: Weight = Field(1.0, description="weight of the relation among the examples of a batch (intra)")
    temperature: float = Field(1.0, gt=0, description="tau, softens both distributions")

    def check(self, head: Head) -> None:
        if self.variant == "original" and not head.classes:
            raise UserError(f"the published dist is for classes, and this task {head.takes}: use --variant corrected")

    @model_validator(mode="after")
    def _something_to_learn(self) -> DISTOptions:
        self.need_a_weight("hard_weight", "beta", "gamma")
        return self

    def warnings(self, context: Context) -> list[str]:
        if not self.beta or context.head.outputs > 2:
            return []
        what = "two classes" if context.head.outputs == 2 else "one output"
        left = "gives no gradient" if self.variant == "original" else "is left out"
        others = {"the hard loss": self.hard_weight, "the relation among examples": self.gamma}
        teach = " and ".join(name for name, weight in others.items() if weight)
        return [
            f"dist: with {what} the relation among the classes says nothing and {left}; what teaches is "
            f"{teach or 'nothing: give gamma a weight'}"
        ]


class DIST(Method[DISTOptions]):
    """hard_weight * hard + beta * inter + gamma * intra (docs/quirks.md, 9.3)."""

    name = "dist"
    aliases = ("relation-match",)
    summary = "the student's answers correlate with the teacher's, over classes and over examples"
    formula = (
        "hard_weight * CE(student, label) + tau^2 * [beta * (1 - mean_b rho over the classes of example b) + gamma * "
        "(1 - mean_c rho over the batch's examples of class c)]; rho: Pearson's correlation of softmax(student/tau) "
        "and softmax(teacher/tau); where any number of classes holds sigmoids, of scores the scores"
    )
    papers = (
        Paper("Knowledge Distillation from A Stronger Teacher", "Huang, T., You, S., Wang, F., Qian, C. & Xu, C.", 2022,
              "https://arxiv.org/abs/2205.10536"),
    )  # fmt: skip
    differences = (
        "Published for images: beta 1, gamma 1, hard weight 1 (no alpha), tau 1 (ImageNet) and 4 (CIFAR-100, 100 "
        "classes); no table of text. With TWO classes rho over the classes is 1 or -1: the inter term teaches "
        "nothing, and `corrected` leaves it out. `original` counts constant columns (a class of one probability for "
        "all examples, or a batch of one example) as rho 0, so that the term is tau^2 with no gradient, and a "
        "constant row of the student gives a gradient of 1e7; `corrected` leaves constant columns and rows out. "
        "Scores (STS-B) are not in the published code; `corrected` has Pearson's correlation over the batch."
    )
    Options = DISTOptions

    @classmethod
    def needs(cls, options: DISTOptions, models: Models | None) -> Needs:
        """The logits."""
        if not (options.beta or options.gamma):
            return Needs()
        return Needs(teachers=(1, 1), teacher_logits=True, compares_examples=2 if options.gamma else 0)

    @classmethod
    def takes_unlabelled(cls, options: DISTOptions, head: Head) -> bool:
        """Yes: they have both relations."""
        return True

    def forward(self, student: Outputs, teachers: Sequence[Outputs], batch: Batch) -> LossTerms:
        """Terms `hard`, `inter` and `intra`."""
        options, corrected = self.options, self.options.variant == "corrected"
        found, scale = LossTerms(), options.temperature**2
        found.add("hard", hard_term(self.head, student, batch), options.hard_weight)
        if not teachers:
            return found
        assert batch.labels is not None
        own, other = (
            self.head.softened(logits, options.temperature) for logits in (student.logits, teachers[0].logits.detach())
        )
        counted = torch.ones_like(own[..., 0], dtype=torch.bool)
        if self.head.of_words:
            counted = batch.labels != IGNORE_INDEX
        if options.beta and (own.shape[-1] > 2 or not corrected):
            rho, defined = correlation(own, other, dim=-1)
            loss = scale * (1 - rho) * counted
            found.add("inter", batch.mean(loss * defined if corrected else loss), options.beta)
        if options.gamma:
            rows, others = (batch.gather(side).flatten(0, -2) for side in (own, other))
            rho, defined = correlation(rows, others, 0, batch.gather(counted.to(own.dtype)).reshape(-1, 1) > 0)
            loss = 1 - rho.mean()
            if corrected:
                loss = ((1 - rho) * defined).sum() / defined.sum().clamp(min=1)
            found.add("intra", scale * loss * batch.share, options.gamma)
        return found
