"""Hidden tokens of plain text: masked language modelling."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import torch

from kdbert.data.batches import Batch
from kdbert.data.corpus import TextSplit
from kdbert.data.encode import Encoded
from kdbert.data.examples import Examples
from kdbert.data.masking import IGNORE_INDEX
from kdbert.heads.head import Head, Variant
from kdbert.losses.hard import cross_entropy
from kdbert.losses.hinton import soft_label_loss
from kdbert.metrics import score

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


class MaskedLM(Head):
    """Labels are made with each batch: int64 [B, L], -100 at tokens that are not hidden.

    A model's outcome is not its logits, which are many, but for each text the six numbers of `HIDDEN`.
    """

    kind = "masked_lm"
    takes = "is plain text"
    makes = "masked language model"
    prints = "print(tokenizer.decode(logits[0].argmax(-1)))"
    auto_class = "AutoModelForMaskedLM"
    pipeline = "fill-mask"
    plain_text = True
    reads_first_token = False
    has_example_classes = False

    @property
    def saved_as(self) -> tuple[str, ...]:
        """How the names of model classes with this head end."""
        return "ForMaskedLM", "ForPreTraining"

    @property
    def answers(self) -> str:
        """What one answer is, for a person."""
        return "hidden pieces"

    @property
    def score_note(self) -> str:
        """What a model card says about its scores."""
        return (
            "The scores are of pieces that are hidden together (15 % unless the recipe says otherwise, and every new "
            "one); `new_`: of pieces that the vocabulary lacked before it was expanded."
        )

    def configure(self, config: Any) -> None:
        """Nothing: the head is as wide as the vocabulary."""

    def read_label(self, label: str | tuple[str, ...], words: Sequence[str] | None, where: str) -> list[Any]:
        """Plain text has no labels."""
        raise TypeError("plain text has no labels")

    def hard_loss(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Cross-entropy of each token: logits [n, V], labels [n]."""
        return cross_entropy(logits, labels)

    def soft_loss(
        self, student: torch.Tensor, teacher: torch.Tensor, labels: torch.Tensor, temperature: float, variant: Variant
    ) -> torch.Tensor:
        """Hinton's loss of each token, 0 where it is not hidden."""
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

    def label_logits(self, logits: np.ndarray, data: Encoded, columns: Sequence[int] | None = None) -> np.ndarray:
        """The outcomes as they are."""
        return logits

    def predicted(self, logits: np.ndarray) -> np.ndarray:
        """The outcomes as they are: [N, 6]."""
        return logits

    def in_words(self, answer: Any) -> str:
        """A text has no one answer."""
        raise TypeError("plain text has no answers")

    def written(self, answer: Any) -> Any:
        """The numbers by name."""
        return dict(zip(HIDDEN, np.round(np.asarray(answer, dtype=np.float64), 6).tolist(), strict=True))

    def prediction_rows(self, examples: Examples | TextSplit, logits: np.ndarray) -> Iterator[dict[str, Any]]:
        """The rows of a predictions file: the number of the text, and how its hidden tokens were answered."""
        for identity, row in zip(examples.ids, logits, strict=True):
            yield {"id": identity, "label": None, "prediction": self.written(row)}

    def scores(
        self, metrics: Sequence[str], answers: np.ndarray, labels: np.ndarray | None, groups: np.ndarray | None = None
    ) -> dict[str, float]:
        """The named metrics of a split; those of new pieces only where there are some."""
        sums = np.asarray(answers, dtype=np.float64)
        names = [name for name in metrics if sums.sum(0)[5] or not name.startswith("new_")]
        nothing = np.zeros(len(sums))
        return score(names, sums, nothing, nothing)

    def constants(self, labels: np.ndarray, groups: np.ndarray | None) -> list[Any]:
        """There is none."""
        return []

    def all_equal(self, answers: np.ndarray) -> bool:
        """A text has no one answer."""
        return False
