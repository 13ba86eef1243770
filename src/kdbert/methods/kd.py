"""Knowledge distillation from the logits of one teacher (Hinton et al. 2015)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import torch
from pydantic import Field

from kdbert.data.batches import Batch
from kdbert.errors import UserError
from kdbert.heads import Head
from kdbert.heads.head import Variant
from kdbert.losses.hinton import standardised
from kdbert.methods.contract import Context, LossTerms, Method, MethodOptions, Models, Needs, Outputs, Paper, Share

KD_FORMULA = "alpha * CE(student, label) + (1 - alpha) * tau^2 * KL(softmax(teacher/tau) || softmax(student/tau))"


MANY_CLASSES, WARM = 50, 3.0  # measured with 151 classes at temperatures 5 and 1 (docs/results/general.md)
CONSTANT = 1e-4  # logits with a smaller standard deviation count as equal where logits are standardised

Standardise = Annotated[
    bool,
    Field(description="standardise the logits of each example, of both models, in the soft loss (Sun et al. 2024)"),
]


class HardAndSoftOptions(MethodOptions):
    """Options of a method that has a hard and a soft loss."""

    alpha: Share = Field(0.5, description="weight of the hard loss; the soft loss has 1 - alpha")
    temperature: float = Field(5.0, gt=0, description="tau, softens both distributions")
    standardise_logits: Standardise = False

    def check(self, head: Head) -> None:
        check_standardised(self.standardise_logits, head)

    def warnings(self, context: Context) -> list[str]:
        even = (
            context.unlabelled >= 0.5 and self.alpha != 1 and not self.standardise_logits
            and len(context.head.classes) >= MANY_CLASSES and self.temperature >= WARM
        )  # fmt: skip
        told = (
            f"{self.name}: most rows have no label, and soft labels of {len(context.head.classes)} classes at "
            f"temperature {self.temperature:g} are nearly even, so that little is learned of them; try "
            "method.temperature=1, train.unlabelled_share=0.5 and more epochs (docs/unlabelled.md)"
        )
        return [told] * even + idle_if_standardised(self.standardise_logits and self.alpha != 1, context.head)


def check_standardised(standardise: bool, head: Head) -> None:
    """Refuse to standardise logits that are not of classes of which one holds."""
    if standardise and head.kind not in ("single_label", "token"):
        raise UserError(
            f"method.standardise_logits is for classes of which one holds, and this task {head.takes}; leave it out"
        )


def idle_if_standardised(standardise: bool, head: Head) -> list[str]:
    """What is to be said where two classes leave of standardised logits their order only."""
    if not (standardise and len(head.classes) == 2):
        return []
    return [
        "method.standardise_logits leaves of two logits only which is larger, so that the soft loss teaches nothing; "
        "leave it out"
    ]


def logits_of(
    student: Outputs, teacher: Outputs, standardise: bool, variant: Variant
) -> tuple[torch.Tensor, torch.Tensor]:
    """The logits of both that a soft loss reads: as they are, or standardised."""
    if not standardise:
        return student.logits, teacher.logits
    constant = CONSTANT if variant == "corrected" else 0.0
    return standardised(student.logits, constant), standardised(teacher.logits, constant)


def hard_term(head: Head, student: Outputs, batch: Batch) -> torch.Tensor:
    """The mean of the hard loss over the step's examples that have a label."""
    assert batch.labels is not None
    return batch.mean_of_labelled(head.hard_loss(student.logits, batch.labels))


def soft_term(
    head: Head, options: HardAndSoftOptions, student: Outputs, teacher: Outputs, batch: Batch
) -> torch.Tensor:
    """The mean of the soft loss over the step's examples."""
    assert batch.labels is not None
    logits = logits_of(student, teacher, options.standardise_logits, options.variant)
    return batch.mean(head.soft_loss(*logits, batch.labels, options.temperature, options.variant))


def kd_terms(
    head: Head,
    options: HardAndSoftOptions,
    student: Outputs,
    teacher: Outputs | None,
    batch: Batch,
    weights: tuple[float, float] | None = None,
) -> LossTerms:
    """Terms `hard` and `soft`, weighted alpha and 1 - alpha, or as `weights` says; no soft term at weight 0."""
    hard, soft = weights if weights is not None else (options.alpha, 1 - options.alpha)
    found = LossTerms()
    found.add("hard", hard_term(head, student, batch), hard)
    if soft and teacher is not None:
        found.add("soft", soft_term(head, options, student, teacher, batch), soft)
    return found


class KD(Method[HardAndSoftOptions]):
    """alpha * hard loss + (1 - alpha) * soft loss (section 2 of the paper; docs/quirks.md, section 1)."""

    name = "kd"
    aliases = ("hinton", "vanilla-kd", "soft-label")
    summary = "soft labels of one teacher beside the hard labels"
    formula = KD_FORMULA
    papers = (
        Paper(
            "Distilling the Knowledge in a Neural Network",
            "Hinton, G., Vinyals, O. & Dean, J.",
            2015,
            "https://arxiv.org/abs/1503.02531",
        ),
    )
    differences = (
        "alpha weights the HARD loss, as in all five published codes (some papers write it the other way "
        "round). Temperatures in them: 5 (ICS, FSD), 3 (BERT-and-Friends; FSD's ilg script), 2 (NJIT). Regression: the "
        "softmax over one score is 1, so the published soft term is always 0 and the teacher is ignored; "
        "`original` keeps that, `corrected` distils the mean squared difference of the scores (tau unused). "
        "standardise_logits (Sun et al. 2024, Logit Standardization in Knowledge Distillation, "
        "https://arxiv.org/abs/2403.01427): z becomes (z - mean) / std over the classes, std with C - 1; its code has "
        "0.1 CE + 9 KL at tau 2, which is alpha 0.011 here (AdamW does not see the scale of a loss); `corrected` takes "
        "logits that hardly differ (std below 1e-4) as equal. With two classes only their order is left."
    )
    Options = HardAndSoftOptions

    @classmethod
    def needs(cls, options: HardAndSoftOptions, models: Models | None) -> Needs:
        """One teacher's logits, unless alpha is 1."""
        return Needs() if options.alpha == 1 else Needs(teachers=(1, 1), teacher_logits=True)

    @classmethod
    def takes_unlabelled(cls, options: HardAndSoftOptions, head: Head) -> bool:
        """Yes: they have the soft loss."""
        return True

    def forward(self, student: Outputs, teachers: Sequence[Outputs], batch: Batch) -> LossTerms:
        """Terms `hard` and `soft`."""
        return kd_terms(self.head, self.options, student, teachers[0] if teachers else None, batch)
