"""Plain fine-tuning: no teacher. The baseline of every distilled student."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from kdbert.data.batches import Batch
from kdbert.losses.hard import hard_loss
from kdbert.methods.contract import LossTerms, Method, MethodOptions, Outputs, Paper
from kdbert.methods.terms import masked_lm_loss


class Finetune(Method):
    """Cross-entropy against the labels or the hidden pieces of plain text; squared error for scores."""

    name = "finetune"
    aliases = ("fine-tune", "ft", "baseline")
    summary = "fine-tuning on the labels, without a teacher"
    formula = "CE(student, label); MSE for regression"
    papers = (
        Paper(
            "BERT: Pre-training of Deep Bidirectional Transformers for Language Understanding",
            "Devlin, J., Chang, M.-W., Lee, K. & Toutanova, K.",
            2019,
            "https://arxiv.org/abs/1810.04805",
        ),
    )

    heads = (*Method.heads, "masked_lm")

    class Options(MethodOptions):
        """No options beyond the variant, which changes nothing here."""

        name: Literal["finetune"] = "finetune"

    def forward(self, student: Outputs, teachers: Sequence[Outputs], batch: Batch) -> LossTerms:
        """One term, `hard`."""
        assert batch.labels is not None
        if student.head is not None:
            return LossTerms({"hard": masked_lm_loss(student, batch)}, {"hard": 1.0})
        return LossTerms({"hard": batch.mean(hard_loss(student.logits, batch.labels))}, {"hard": 1.0})
