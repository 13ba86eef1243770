"""Knowledge distillation from the logits of one teacher (Hinton et al. 2015)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, cast

from kdbert.data.batches import Batch
from kdbert.methods.contract import LossTerms, Method, MethodOptions, Models, Needs, Outputs, Paper
from kdbert.methods.terms import KD_FORMULA, KDOptions, kd_terms


class KD(Method):
    """alpha * hard loss + (1 - alpha) * soft loss (METHODS.md section 1)."""

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

    class Options(KDOptions):
        """Options of `kd`."""

        name: Literal["kd"] = "kd"

    @classmethod
    def teachers(cls, options: MethodOptions) -> tuple[int, int | None]:
        """One, unless alpha is 1."""
        return (0, 0) if cast(KD.Options, options).alpha == 1 else (1, 1)

    @classmethod
    def needs(cls, options: MethodOptions, models: Models) -> Needs:
        """The teacher's logits."""
        return Needs(teacher_logits=bool(models.teachers))

    def forward(self, student: Outputs, teachers: Sequence[Outputs], batch: Batch) -> LossTerms:
        """Terms `hard` and `soft`."""
        return kd_terms(cast(KD.Options, self.options), student, teachers[0] if teachers else None, batch)
