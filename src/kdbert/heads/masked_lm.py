"""Hidden tokens of plain text: masked language modelling."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch

from kdbert.data.batches import Batch
from kdbert.data.masking import IGNORE_INDEX
from kdbert.heads.head import Variant
from kdbert.heads.plain_text import PlainText
from kdbert.losses.hard import cross_entropy
from kdbert.losses.hinton import soft_label_loss

VOCABULARY_CHUNK = 1024  # tokens whose logits over a vocabulary are held at a time
# Of a text: loss (nats, summed), right answers and number of hidden tokens that the teacher knows; then of new ones.
HIDDEN = ("loss", "right", "hidden", "new_loss", "new_right", "new_hidden")


class VocabularyHead(Protocol):
    """The last matrix of a masked-LM, which is applied only where its logits are read."""

    @property
    def pieces(self) -> int:
        """Size of the vocabulary."""

    def __call__(self, positions: torch.Tensor, columns: int | None = None) -> torch.Tensor:
        """Logits [n, columns] of some tokens, numbered in the flattened batch [B * L]."""


class MaskedLM(PlainText):
    """Labels are made with each batch: int64 [B, L], -100 at tokens that are not hidden."""

    kind = "masked_lm"
    makes = "masked language model"
    auto_class = "AutoModelForMaskedLM"
    saved_as = ("ForMaskedLM", "ForPreTraining")
    pipeline = "fill-mask"
    numbers_of = HIDDEN
    hides_tokens = True
    score_note = (
        "The scores are of pieces that are hidden together (15 % unless the recipe says otherwise, and every new "
        "one); `new_`: of pieces that the vocabulary lacked before it was expanded."
    )

    @property
    def answers(self) -> str:
        return "hidden pieces"

    def soft_loss(
        self, student: torch.Tensor, teacher: torch.Tensor, labels: torch.Tensor, temperature: float, variant: Variant
    ) -> torch.Tensor:
        return soft_label_loss(student, teacher, temperature).masked_fill(labels == IGNORE_INDEX, 0.0)

    def outcome(self, outputs: Any, batch: Batch) -> torch.Tensor:
        """The numbers of `HIDDEN` for each text, [B, 6].

        A model that lacks the new pieces, such as the teacher itself, has 0 there.
        """
        head: VocabularyHead = outputs.head
        labels, known = batch.labels, batch.known
        assert labels is not None
        assert known is not None
        length, flat, new = labels.shape[1], labels.reshape(-1), ~known.reshape(-1)
        found = torch.zeros(len(labels), len(HIDDEN), device=labels.device)
        hidden = (flat != IGNORE_INDEX) & (flat < head.pieces)
        for positions in hidden.nonzero()[:, 0].split(VOCABULARY_CHUNK):
            logits, right = head(positions), flat[positions]
            values = torch.stack(
                [cross_entropy(logits, right), (logits.argmax(-1) == right).float(), torch.ones_like(right).float()], 1
            )
            is_new = new[positions].float()[:, None]
            found.index_add_(0, positions // length, torch.cat([values * (1 - is_new), values * is_new], 1))
        return found

    def scores(
        self,
        metrics: Sequence[str],
        answers: np.ndarray,
        labels: np.ndarray | None,
        groups: np.ndarray | None = None,
        logits: np.ndarray | None = None,
    ) -> dict[str, float]:
        """The named metrics of a split; those of new pieces only where there are some."""
        names = [name for name in metrics if answers.sum(0)[5] or not name.startswith("new_")]
        return super().scores(names, answers, labels)
