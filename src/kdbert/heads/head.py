"""What a head means to the rest of the program: how labels are read, what is minimised, what is answered and scored.

A new kind of task is one file here with a subclass of `Head`, and one line in `kdbert.heads`. It must define:

- the class variables that have no default here;
- `read_label` (a label in a file -> values), `soft_loss` (against a teacher), `written` (an answer -> JSON, which
  `read_label` reads back), `constants` (among which the best constant answer is).

The other methods fit a head that chooses one of its classes for each example; `tokens` shows what to override where
an example has many labels, `plain_text` where it has none. A head opens neither files nor models, and knows no task.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, ClassVar, Literal

import numpy as np
import torch

from kdbert.data.batches import Batch
from kdbert.data.corpus import TextSplit
from kdbert.data.encode import Encoded
from kdbert.data.examples import Examples
from kdbert.data.labels import class_number, label_text
from kdbert.errors import UserError, few
from kdbert.losses.hard import balanced_weights, cross_entropy
from kdbert.metrics import TABLE, better, score

Variant = Literal["corrected", "original"]


@lru_cache(maxsize=8)  # a copy to a GPU in every step would make the host wait
def _tensor(values: tuple[Any, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    return torch.tensor(values, dtype=dtype, device=device)


@dataclass(frozen=True)
class Head(ABC):
    """A kind of task, with the classes of the task.

    Attributes:
        classes: their names, in the order of the logits; empty where there are none.
        class_weights: of each class in the hard loss; empty: all count alike.
        label_smoothing: share of a label that the hard loss spreads over all classes.
        kind: its name in a `TaskSpec`, a recipe and run.json.
        takes: completes "task X, which …".
        makes: what a model with this head is, for its card.
        auto_class: the library's class that loads a model with this head. saved_as: how such classes' names end.
        pipeline: the Hub's name for what such a model does.
        label_type: type of the labels in an array.
        problem_type: the library's name for the kind of labels.
        of_words: each example is a list of words, and each word has a label; the logits are of tokens.
        plain_text: examples are texts without labels (see `PlainText`).
        hides_tokens: their own tokens are hidden and predicted, as a masked-LM is trained.
        reads_first_token: the head reads the last hidden state of the first token only.
        has_example_classes: whether two examples can be of one class (see `example_classes`).
        published: whether published code distils such a head, so that there is a variant `original`.
        score_note: what a model card says about its scores.
    """

    classes: tuple[str, ...] = ()
    class_weights: tuple[Any, ...] = ()
    label_smoothing: float = 0.0

    kind: ClassVar[str]
    takes: ClassVar[str]
    makes: ClassVar[str]
    auto_class: ClassVar[str] = "AutoModelForSequenceClassification"
    saved_as: ClassVar[tuple[str, ...]] = ("ForSequenceClassification",)
    pipeline: ClassVar[str] = "text-classification"
    label_type: ClassVar[type[np.generic]] = np.int64
    problem_type: ClassVar[str | None] = None
    of_words: ClassVar[bool] = False
    plain_text: ClassVar[bool] = False
    hides_tokens: ClassVar[bool] = False
    reads_first_token: ClassVar[bool] = True
    has_example_classes: ClassVar[bool] = True
    published: ClassVar[bool] = True
    score_note: ClassVar[str] = (
        "The constant answer is the best that one and the same answer to every example reaches on that split."
    )

    @cached_property
    def numbers(self) -> dict[str, int]:
        """Name of each class -> its number."""
        return {name: number for number, name in enumerate(self.classes)}

    @property
    def outputs(self) -> int:
        """Logits per example or token of a fresh head."""
        return len(self.classes) or 1  # a score

    @property
    def answers(self) -> str:
        """What one answer is, for a person."""
        return f"one of {len(self.classes)} classes"

    def configure(self, config: Any) -> None:
        """Set what a model's configuration says of a fresh head."""
        config.num_labels = self.outputs
        if self.classes:
            config.id2label = dict(enumerate(self.classes))
            config.label2id = dict(self.numbers)
        config.problem_type = self.problem_type

    # ---- labels

    @abstractmethod
    def read_label(self, label: str | tuple[str, ...], words: Sequence[str] | None, where: str) -> list[Any]:
        """The values of an example's label as a file (or `written`) has it: one, or one for each of `words`.

        Args:
            where: file and line, for messages.

        Raises:
            UserError: the label is not one of the task's.
        """

    def no_label(self, words: Sequence[str] | None) -> list[Any]:
        """What stands for a missing label in a training split, in the form of `read_label`; no loss reads it."""
        return [0] * (1 if words is None else len(words))

    def answered(self, logits: torch.Tensor) -> torch.Tensor:
        """The answers to some examples, from their logits, in the form of a batch's labels."""
        return logits.argmax(-1)

    def example_classes(self, labels: torch.Tensor) -> torch.Tensor:
        """A number for each example [B], equal where two examples are of one class."""
        return labels

    # ---- losses

    def hard_loss(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Loss against the labels: of each example [B], or of each token [B, L] with 0 where it has no label."""
        return cross_entropy(logits, labels, self._weights(logits), self.label_smoothing)

    def _weights(self, logits: torch.Tensor) -> torch.Tensor | None:
        """`class_weights` as a tensor where the logits are."""
        return _tensor(self.class_weights, logits.dtype, logits.device) if self.class_weights else None

    def balanced_weights(self, labels: np.ndarray) -> tuple[Any, ...]:
        """`class_weights` with which all classes count alike in these labels."""
        return tuple(balanced_weights(labels, len(self.classes)))

    def given_weights(self, given: Mapping[str, float]) -> tuple[Any, ...]:
        """`class_weights` from the weight of each label.

        Raises:
            UserError: a label is not one of the classes, or a class has no weight.
        """
        key = "train.class_weights"
        numbers = {label_text(name) or name: number for number, name in enumerate(self.classes)}
        weights = {class_number(label, numbers, key): weight for label, weight in given.items()}
        if missing := [name for number, name in enumerate(self.classes) if number not in weights]:
            raise UserError(f"{key}: no weight for {few(missing)}; give one for each of the {len(self.classes)} labels")
        return tuple(weights[number] for number in range(len(self.classes)))

    @property
    def weights_by_class(self) -> dict[str, Any]:
        """Class -> its weight, as run.json has it."""
        return dict(zip(self.classes, self.class_weights, strict=False))

    @property
    def weights_in_words(self) -> str:
        """The weights of classes for a person to read."""
        return few([f"{name} {weight:.4g}" for name, weight in self.weights_by_class.items()], ", see run.json")

    @abstractmethod
    def soft_loss(
        self, student: torch.Tensor, teacher: torch.Tensor, labels: torch.Tensor, temperature: float, variant: Variant
    ) -> torch.Tensor:
        """Loss against a teacher's logits, in the form of `hard_loss`; no gradient flows into `teacher`."""

    def softened(self, logits: torch.Tensor, temperature: float) -> torch.Tensor:
        """What a method may compare of two models' answers, [..., C]: probabilities, softened by the temperature."""
        return (logits / temperature).softmax(-1)

    # ---- what a model answers

    def outcome(self, outputs: Any, batch: Batch) -> torch.Tensor:
        """What is kept of a model's outputs when it is scored: [B, ...], or [B, L, ...] where logits are of tokens."""
        return outputs.logits

    def label_logits(self, logits: np.ndarray, data: Encoded, columns: Sequence[int] | None = None) -> np.ndarray:
        """One row of logits for each label, from the outcomes of a split.

        Args:
            columns: for each class, the model's column that means it (None: they are in the task's order).
        """
        return logits if columns is None else logits[:, columns]

    def predicted(self, logits: np.ndarray) -> np.ndarray:
        """The answers that logits give (one row for each label), in the form of the labels."""
        return logits.argmax(axis=1)

    def probabilities(self, logits: np.ndarray) -> np.ndarray:
        """The probability of each class, float64 [N, C], from logits (one row for each label)."""
        shifted = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
        return shifted / shifted.sum(axis=1, keepdims=True)

    def stated(self, logits: np.ndarray) -> np.ndarray:
        """Logits as predictions files have them, float64 with six decimals, so that a score can be computed again."""
        return np.round(logits.astype(np.float64), 6)

    def in_words(self, answer: Any) -> str:
        """One answer for a person to read."""
        return self.classes[int(answer)]

    @abstractmethod
    def written(self, answer: Any) -> Any:
        """The answer to one example as predictions files have it."""

    def prediction_rows(self, examples: Examples | TextSplit, logits: np.ndarray) -> Iterator[dict[str, Any]]:
        """The rows of a predictions file: id, label, prediction, scores (logits in the task's order of classes)."""
        answers, labels = self.predicted(logits), examples.labels
        for identity, place in zip(examples.ids, self.places(examples), strict=True):
            yield {
                "id": identity,
                "label": None if labels is None else self.written(labels[place]),
                "prediction": self.written(answers[place]),
                "scores": self.stated(logits[place]).tolist(),
            }

    def places(self, part: Examples | TextSplit) -> Sequence[int | slice]:
        """For each example, where its labels and answers are in arrays of a split."""
        return range(len(part))

    # ---- scores

    def scores(
        self,
        metrics: Sequence[str],
        answers: np.ndarray,
        labels: np.ndarray | None,
        groups: np.ndarray | None = None,
        logits: np.ndarray | None = None,
    ) -> dict[str, float]:
        """The named metrics of a split; none where it has no labels.

        Args:
            answers: of `predicted`.
            groups: what a metric counts together, see `kdbert.metrics.score`.
            logits: one row for each label, where a metric reads probabilities.
        """
        if labels is None:
            return {}
        probabilities = None
        if logits is not None and any(TABLE[name].reads == "probabilities" for name in metrics):
            probabilities = self.probabilities(self.stated(logits))
        return score(metrics, answers, labels, groups, self.classes, probabilities)

    @abstractmethod
    def constants(self, labels: np.ndarray, groups: np.ndarray | None) -> list[Any]:
        """The constant answers of which the best is taken, for each metric by itself."""

    def shares(self, labels: np.ndarray) -> np.ndarray:
        """The share of each class in the labels [C]: the constant answer of metrics that read probabilities."""
        return np.bincount(labels, minlength=len(self.classes)) / len(labels)

    def constant_answer(
        self, metrics: Sequence[str], labels: np.ndarray | None, groups: np.ndarray | None = None
    ) -> dict[str, float] | None:
        """The best that one and the same answer to every example reaches on a split, for each metric by itself.

        For a metric that reads probabilities this answer is the share of each class in the split. A correlation with a
        constant is undefined, and 0 here. None of a split without labels.
        """
        if labels is None:
            return None
        if not len(labels):
            return dict.fromkeys(metrics, 0.0)
        of_shares = [name for name in metrics if TABLE[name].reads == "probabilities"]
        of_answers = [name for name in metrics if name not in of_shares]
        found: dict[str, float] = {}
        for answer in self.constants(labels, groups) if of_answers else ():
            reached = self.scores(of_answers, np.broadcast_to(answer, labels.shape), labels, groups)
            found |= {
                name: value for name, value in reached.items() if name not in found or better(name, value, found[name])
            }
        if of_shares:
            shares = np.tile(self.shares(labels), (len(labels), 1))
            found |= score(of_shares, labels, labels, groups, self.classes, shares)
        return {name: found[name] for name in metrics}

    def same_answer(self, answers: np.ndarray) -> str | None:
        """The answer that is given to every example (or word), in words; None if there are several, or one example."""
        return self.in_words(answers[0]) if len(answers) > 1 and (answers == answers[0]).all() else None

    def agreement(self, first: np.ndarray, second: np.ndarray) -> float:
        """How alike two models answer: the share of examples (or words) with equal answers."""
        return float((first == second).mean())
