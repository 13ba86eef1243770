"""Knowledge distillation from the logits of one teacher (Hinton et al. 2015)."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field

from kdbert.data.batches import Batch
from kdbert.heads import Head
from kdbert.methods.contract import LossTerms, Method, MethodOptions, Models, Needs, Outputs, Paper, Share

KD_FORMULA = "alpha * CE(student, label) + (1 - alpha) * tau^2 * KL(softmax(teacher/tau) || softmax(student/tau))"


class HardAndSoftOptions(MethodOptions):
    """Options of a method that has a hard and a soft loss."""

    alpha: Share = Field(0.5, description="weight of the hard loss; the soft loss has 1 - alpha")
    temperature: float = Field(5.0, gt=0, description="tau, softens both distributions")


def kd_terms(
    head: Head,
    options: HardAndSoftOptions,
    student: Outputs,
    teacher: Outputs | None,
    batch: Batch,
    weights: tuple[float, float] | None = None,
) -> LossTerms:
    """Terms `hard` and `soft`, weighted alpha and 1 - alpha, or as `weights` says; no soft term at weight 0."""
    assert batch.labels is not None
    hard, soft = weights if weights is not None else (options.alpha, 1 - options.alpha)
    found = LossTerms()
    found.add("hard", batch.mean_of_labelled(head.hard_loss(student.logits, batch.labels)), hard)
    if soft and teacher is not None:
        loss = head.soft_loss(student.logits, teacher.logits, batch.labels, options.temperature, options.variant)
        found.add("soft", batch.mean(loss), soft)
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
        "`original` keeps that, `corrected` distils the mean squared difference of the scores (tau unused)."
    )
    Options = HardAndSoftOptions

    @classmethod
    def needs(cls, options: HardAndSoftOptions, models: Models | None) -> Needs:
        """One teacher's logits, unless alpha is 1."""
        return Needs() if options.alpha == 1 else Needs(teachers=(1, 1), teacher_logits=True)

    @classmethod
    def takes_unlabelled(cls, options: HardAndSoftOptions) -> bool:
        """Yes: they have the soft loss."""
        return True

    def forward(self, student: Outputs, teachers: Sequence[Outputs], batch: Batch) -> LossTerms:
        """Terms `hard` and `soft`."""
        return kd_terms(self.head, self.options, student, teachers[0] if teachers else None, batch)
