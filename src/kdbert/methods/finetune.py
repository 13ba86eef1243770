"""Plain fine-tuning: no teacher. The baseline of every distilled student."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kdbert.data.batches import Batch
from kdbert.methods.contract import LossTerms, MaskedLMOutputs, Method, MethodOptions, Outputs, Paper
from kdbert.methods.terms import masked_lm_loss


class Finetune(Method[MethodOptions]):
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
    Options = MethodOptions

    def forward(self, student: Outputs | MaskedLMOutputs, teachers: Sequence[Any], batch: Batch) -> LossTerms:
        """One term, `hard`."""
        if isinstance(student, MaskedLMOutputs):
            loss = masked_lm_loss(self.head, student, batch)
        else:
            assert batch.labels is not None
            loss = batch.mean_of_labelled(self.head.hard_loss(student.logits, batch.labels))
        return LossTerms({"hard": loss}, {"hard": 1.0})
