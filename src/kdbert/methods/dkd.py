"""Decoupled knowledge distillation: the target class and the others apart (Zhao et al. 2022)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import Field, model_validator

from kdbert.data.batches import Batch
from kdbert.data.masking import IGNORE_INDEX
from kdbert.errors import UserError
from kdbert.heads import Head
from kdbert.losses.decoupled import decoupled_loss, published_decoupled_loss
from kdbert.losses.schedules import epoch_of
from kdbert.methods.contract import (
    Context,
    LossTerms,
    Method,
    MethodOptions,
    Models,
    Needs,
    Outputs,
    Paper,
    Share,
    Weight,
)
from kdbert.methods.kd import Standardise, check_standardised, hard_term, idle_if_standardised, logits_of


class DKDOptions(MethodOptions):
    """Options of `dkd`."""

    hard_weight: Weight = Field(1.0, description="weight of the hard loss")
    alpha_d: Weight = Field(1.0, description="weight of the target class against all others (TCKD)")
    beta_d: Weight = Field(8.0, description="weight of the other classes among themselves (NCKD)")
    temperature: float = Field(4.0, gt=0, description="tau, softens both distributions")
    warmup: Share = Field(0.08, description="share of the run in which both weights rise from 0")
    standardise_logits: Standardise = False

    @model_validator(mode="after")
    def _something_to_learn(self) -> DKDOptions:
        self.need_a_weight("hard_weight", "alpha_d", "beta_d")
        return self

    def check(self, head: Head) -> None:
        check_standardised(self.standardise_logits, head)
        if len(head.classes) == 2 and not (self.hard_weight or self.alpha_d):
            raise UserError("dkd: of two classes beta_d teaches nothing; give hard_weight or alpha_d a weight")

    def warnings(self, context: Context) -> list[str]:
        found = idle_if_standardised(self.standardise_logits, context.head)
        if self.beta_d and len(context.head.classes) == 2:
            found.append("dkd: of two classes there is one beside the target, so that beta_d teaches nothing")
        return found

    def rise(self, progress: float, epochs: int) -> float:
        """What both weights are multiplied with; `original` goes by epochs, from 1."""
        if self.variant == "original":
            progress = (epoch_of(progress, epochs) + 1) / epochs
        return min(progress / self.warmup, 1.0) if self.warmup else 1.0


class DKD(Method[DKDOptions]):
    """hard_weight * hard + alpha_d * tckd + beta_d * nckd (docs/quirks.md, 9.4)."""

    name = "dkd"
    aliases = ("decoupled", "decoupled-kd")
    summary = "soft labels in two parts, the target class and the others among themselves, each with a weight"
    formula = (
        "hard_weight * CE(student, label) + r * tau^2 * mean_b [alpha_d * KL((p_t, 1 - p_t) of teacher || student) + "
        "beta_d * KL(softmax of the other classes' logits/tau, teacher || student)]; p_t: probability of the label's "
        "class (of an example without a label: of the teacher's answer) in softmax(logits/tau); r rises from 0 to 1 in "
        "the first `warmup` of the run"
    )
    papers = (
        Paper("Decoupled Knowledge Distillation", "Zhao, B., Cui, Q., Song, R., Qiu, Y. & Liang, J.", 2022,
              "https://arxiv.org/abs/2203.08679"),
    )  # fmt: skip
    differences = (
        "Published for images: alpha_d 1, beta_d 2 to 8 by pair of models (default 8), tau 4, hard weight 1, warm-up "
        "20 of 240 epochs; no table of text. With standardise_logits its code has tau 2 and multiplies alpha_d and "
        "beta_d by 9. With TWO classes the second part is 0 and beta_d does nothing. `original` warms up from epoch "
        "to epoch, counting from 1 (a run of 12 epochs or fewer has no warm-up), and is infinite where a probability "
        "of the student underflows that the teacher has; `corrected` warms up from step to step, and works with "
        "logarithms. KL = tckd + (1 - p_t of the teacher) * nckd, whichever class is the target; so the teacher's "
        "answer can stand for a label that is missing."
    )
    heads = ("single_label", "token")  # one class holds
    Options = DKDOptions

    epochs = 1

    @classmethod
    def needs(cls, options: DKDOptions, models: Models | None) -> Needs:
        """The logits."""
        return Needs(teachers=(1, 1), teacher_logits=True) if options.alpha_d or options.beta_d else Needs()

    @classmethod
    def takes_unlabelled(cls, options: DKDOptions, head: Head) -> bool:
        """Yes: the teacher's answer is the target of an example without a label."""
        return True

    def prepare(self, context: Context) -> None:
        """Note how many epochs there are."""
        super().prepare(context)
        self.epochs = context.epochs

    def forward(self, student: Outputs, teachers: Sequence[Outputs], batch: Batch) -> LossTerms:
        """Terms `hard`, `tckd` and `nckd`."""
        options = self.options
        found = LossTerms()
        found.add("hard", hard_term(self.head, student, batch), options.hard_weight)
        if not teachers:
            return found
        assert batch.labels is not None
        target, there = batch.labels, batch.labels != IGNORE_INDEX
        if batch.labelled is not None:
            labelled = batch.labelled.reshape(-1, *(1 for _ in target.shape[1:]))
            target = torch.where(labelled, target, self.head.answered(teachers[0].logits))
        logits = logits_of(student, teachers[0], options.standardise_logits, options.variant)
        compute = published_decoupled_loss if options.variant == "original" else decoupled_loss
        parts = compute(*logits, target.clamp(min=0), options.temperature)
        rise = options.rise(batch.progress, self.epochs)
        for name, weight, part in zip(("tckd", "nckd"), (options.alpha_d, options.beta_d), parts, strict=True):
            if weight and (name == "tckd" or student.logits.shape[-1] > 2 or options.variant == "original"):
                found.add(name, batch.mean(part * there), rise * weight)
        return found
