"""Plain fine-tuning: no teacher. The baseline of every distilled student."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from kdbert.data.batches import Batch
from kdbert.methods.contract import LossTerms, MaskedLMOutputs, Method, MethodOptions, Outputs, Paper
from kdbert.methods.terms import masked_lm_loss


class FinetuneOptions(MethodOptions):
    """No options beyond the variant, which changes nothing here."""

    name: Literal["finetune"] = "finetune"


class Finetune(Method[FinetuneOptions]):
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
    Options = FinetuneOptions

    def forward(self, student: Outputs | MaskedLMOutputs, teachers: Sequence[Any], batch: Batch) -> LossTerms:
        """One term, `hard`."""
        if isinstance(student, MaskedLMOutputs):
            return LossTerms({"hard": masked_lm_loss(self.head, student, batch)}, {"hard": 1.0})
        assert batch.labels is not None
        return LossTerms({"hard": batch.mean(self.head.hard_loss(student.logits, batch.labels))}, {"hard": 1.0})
