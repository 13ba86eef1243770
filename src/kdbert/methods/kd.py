"""Knowledge distillation from the logits of one teacher (Hinton et al. 2015)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, cast

from pydantic import Field

from kdbert.data.batches import Batch
from kdbert.losses.hard import hard_loss
from kdbert.losses.hinton import score_loss, soft_label_loss
from kdbert.methods.contract import LossTerms, Method, MethodOptions, Needs, Outputs, Paper


class KD(Method):
    """alpha * hard loss + (1 - alpha) * soft loss (METHODS.md section 1)."""

    name = "kd"
    aliases = ("hinton", "vanilla-kd", "soft-label")
    summary = "soft labels of one teacher beside the hard labels"
    formula = "alpha * CE(student, label) + (1 - alpha) * tau^2 * KL(softmax(teacher/tau) || softmax(student/tau))"
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

    class Options(MethodOptions):
        """Options of `kd`."""

        name: Literal["kd"] = "kd"
        alpha: float = Field(0.5, ge=0, le=1, description="weight of the hard loss; 1 is plain fine-tuning")
        temperature: float = Field(5.0, gt=0, description="tau, softens both distributions")

    @classmethod
    def needs(cls, options: MethodOptions) -> Needs:
        """One teacher's logits, unless alpha is 1."""
        if cast(KD.Options, options).alpha == 1:
            return Needs()
        return Needs(teachers=1)

    def forward(self, student: Outputs, teachers: Sequence[Outputs], batch: Batch) -> LossTerms:
        """Terms `hard` and `soft`."""
        assert batch.labels is not None
        options = cast(KD.Options, self.options)
        terms = {"hard": batch.mean(hard_loss(student.logits, batch.labels))}
        weights = {"hard": options.alpha}
        if options.alpha < 1:
            regression = batch.labels.is_floating_point()
            if regression and options.variant == "corrected":
                soft = score_loss(student.logits, teachers[0].logits)
            else:
                soft = soft_label_loss(student.logits, teachers[0].logits, options.temperature)
            terms["soft"] = batch.mean(soft)
            weights["soft"] = 1 - options.alpha
        return LossTerms(terms, weights)
