"""Distillation towards the nearest teacher representations of the same class (ICS)."""

from __future__ import annotations

from collections.abc import Sequence
from types import MappingProxyType
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import Field, model_validator

from kdbert.data.batches import Batch
from kdbert.errors import UserError
from kdbert.heads import Head
from kdbert.losses.neighbors import nearest, pairwise_mean_square, shrinking_count
from kdbert.methods.contract import Context, LossTerms, Method, Models, Needs, Outputs, Paper, Weight
from kdbert.methods.kd import KD_FORMULA, kd_terms
from kdbert.methods.terms import LayerOptions, Projections
from kdbert.models.layers import Pair, layers_of


class ICSOptions(LayerOptions):
    """Options of `ics`."""

    original_defaults = MappingProxyType({"beta": 0.01})

    beta: Weight = Field(0.32, description="weight of the feature term")
    neighbors: int = Field(3, ge=1, description="k, nearest teacher representations of the class (its own among them)")
    alpha_ce: Annotated[float | None, "weight"] = Field(
        None, description="weight of the hard loss on its own (the hate-speech script's), in place of alpha"
    )
    alpha_soft: Annotated[float | None, "weight"] = Field(
        None, description="weight of the soft loss on its own, in place of 1 - alpha"
    )
    k_state: Literal["batch", "run"] = Field(
        "batch", description="original only: how long k stays shrunk; run is the hate-speech script's"
    )

    @model_validator(mode="after")
    def _agree(self) -> ICSOptions:
        if self.k_state == "run" and self.variant == "corrected":
            raise ValueError("k_state=run is a quirk of the published code; it goes with variant original")
        return self

    @property
    def weights(self) -> tuple[float, float, float]:
        """Of the hard, the soft and the feature term."""
        return (
            self.alpha if self.alpha_ce is None else self.alpha_ce,
            1 - self.alpha if self.alpha_soft is None else self.alpha_soft,
            self.beta,
        )


class ICS(Method[ICSOptions]):
    """KD, and the student's last layer is drawn to its k nearest teacher representations of its class.

    docs/quirks.md, section 2.
    """

    name = "ics"
    aliases = ("intra-class", "intra-class-knn", "knn")
    summary = "draws each example to the nearest teacher representations of its class in the batch"
    formula = (
        KD_FORMULA + " + beta * mean_i sum_{n in kNN(i)} d(student_i, teacher_n); kNN(i): the `neighbors` nearest "
        "examples of i's class in the batch, i itself included, by d; d: mean squared difference of the hidden states "
        "over real positions and units; the class of an example without a label is the teacher's answer"
    )
    papers = (
        Paper(
            "Intra-Class Similarity-Guided Feature Distillation",
            "Saadi, K., Mitrović, J. & Granitzer, M.",
            2023,
            "https://nips.cc/virtual/2023/81154",
        ),
    )
    differences = (
        "`original`: the feature term is a SUM over the batch (beta 0.01 for batches of 32; `corrected` takes the "
        "mean, and beta 0.32 = 32 x 0.01 corresponds). k shrinks along the batch to the size of the smallest class met "
        "so far, in the hate-speech script for the rest of training (k_state=run); `corrected` has k_i = min(k, class "
        "size). Padding counts in distance and loss; `corrected` never sees it. For scores, a class is one exact "
        "score; `corrected` rounds scores to 0.5. The hate-speech script has independent weights alpha_ce 0.5, "
        "alpha_soft 0.5, alpha_mse 0.01 (here beta), neighbors 2 and temperature 2. Teacher and student must be "
        "equally wide in `original`; `corrected` learns a linear projection of the student where they are not."
    )

    heads = ("single_label", "multi_label", "regression")  # a tag belongs to a word, the term compares whole examples

    Options = ICSOptions

    k: torch.Tensor  # with k_state=run: how far k has shrunk

    def __init__(self, options: ICSOptions) -> None:
        super().__init__(options)
        self.pairs: tuple[Pair, ...] = ()
        self.projections = Projections()
        if options.k_state == "run":
            self.register_buffer("k", torch.tensor(options.neighbors))

    @classmethod
    def needs(cls, options: ICSOptions, models: Models | None) -> Needs:
        """The last hidden states of both, token by token."""
        _, soft, feature = options.weights
        if not (soft or feature):
            return Needs()
        if models is None or not feature:
            return Needs(teachers=(1, 1), teacher_logits=bool(soft))
        pairs = options.pairs(models)
        if options.variant == "original" and models.teachers[0].width != models.student.width:
            raise UserError(
                f"the published ics compares models of one width; the teacher has {models.teachers[0].width}, the "
                f"student {models.student.width}: use --variant corrected, which learns a projection"
            )
        teacher, student = layers_of(pairs)
        return Needs(
            teachers=(1, 1),
            teacher_logits=bool(soft),
            teacher_hidden=teacher,
            student_hidden=student,
            pairs={"feature": pairs},
            compares_examples=True,
            compares_tokens=True,
            reads_padding=options.variant == "original",
        )

    @classmethod
    def takes_unlabelled(cls, options: ICSOptions, head: Head) -> bool:
        """Yes, if the teacher's logits are read: its answer is the class of an example without a label."""
        _, soft, feature = options.weights
        return bool(soft) or not feature

    def prepare(self, context: Context) -> None:
        """A projection for each pair of layers, where the student has another width than the teacher."""
        super().prepare(context)
        self.pairs = self.needs(self.options, context.models).pairs.get("feature", ())
        self.projections.fit(context.models, self.pairs)

    def remark(self, batches: Sequence[np.ndarray]) -> str | None:
        """A warning where the batches hold hardly any other example of a class."""
        options = self.options
        if not self.pairs or options.neighbors == 1:
            return None
        limit, others = torch.tensor(options.neighbors), []
        for labels in batches:
            classes = self._classes(torch.from_numpy(labels))
            same = classes[:, None] == classes[None, :]
            if options.variant == "original":
                count = shrinking_count(same, limit)
                limit = count[-1] if options.k_state == "run" else limit
            else:
                count = same.sum(1).clamp(max=options.neighbors)
            others.append(count - 1)
        mean = float(torch.cat(others).double().mean())
        if mean >= min(1.0, (options.neighbors - 1) / 2):
            return None
        return (
            f"ics: an example has {mean:.2f} neighbours of its class in its batch besides itself, so the feature "
            "term draws it to little but its own teacher representation; --batch-sampler class-balanced brings "
            "examples of a class together"
        )

    def _classes(self, labels: torch.Tensor) -> torch.Tensor:
        """What counts as one class; `original` takes scores as they are."""
        return labels if self.options.variant == "original" else self.head.example_classes(labels)

    def forward(self, student: Outputs, teachers: Sequence[Outputs], batch: Batch) -> LossTerms:
        """Terms `hard`, `soft`, `feature`; monitors `ics/neighbors` (besides the own teacher) and `ics/alone`."""
        options = self.options
        hard, soft, feature = options.weights
        found = kd_terms(self.head, options, student, teachers[0] if teachers else None, batch, (hard, soft))
        if not self.pairs:
            return found
        assert batch.labels is not None
        original = options.variant == "original"
        labels = batch.labels
        if batch.labelled is not None:
            there = batch.labelled.reshape(-1, *(1 for _ in labels.shape[1:]))
            labels = torch.where(there, labels, self.head.answered(teachers[0].logits).to(labels.dtype))
        classes = self._classes(labels)
        everyone = batch.gather(classes)
        same = classes[:, None] == everyone[None, :]
        count = same.sum(1).clamp(max=options.neighbors)
        if original:
            count = self._shrunk(everyone)[batch.start : batch.start + len(same)]
            count = torch.cat([count, count.new_zeros(len(same) - len(count))])  # rows that only fill up
        mask = torch.ones_like(student.mask) if original else student.mask
        every_mask = batch.gather(mask)
        losses, others = [], []
        for number, (teacher_layer, student_layer) in enumerate(self.pairs):
            own = self.projections.of(number, student.hidden[student_layer])
            targets = batch.gather(teachers[0].hidden[teacher_layer])
            distances = pairwise_mean_square(own, targets, mask, every_mask)
            chosen = nearest(distances, same, count)
            losses.append((distances * chosen).sum(1))
            numbers = torch.arange(len(own), device=own.device)
            itself = chosen[numbers, (numbers + batch.start).clamp(max=chosen.shape[1] - 1)]
            others.append((chosen.sum(1) - itself.long()).to(own.dtype))
        value = batch.mean(torch.stack(losses).mean(0))
        if original:
            value = value * batch.count  # the published loss is the sum over the micro-batch
        found.add("feature", value, feature)
        besides = torch.stack(others)
        found.monitors["ics/neighbors"] = batch.mean(besides.mean(0))
        found.monitors["ics/alone"] = batch.mean((besides == 0).to(value.dtype).mean(0))
        return found

    def _shrunk(self, classes: torch.Tensor) -> torch.Tensor:
        """The published k of every example of the micro-batch."""
        options = self.options
        limit = self.k if options.k_state == "run" else torch.full((), options.neighbors, device=classes.device)
        counts = shrinking_count(classes[:, None] == classes[None, :], limit)
        if options.k_state == "run":
            self.k.copy_(counts[-1])
        return counts
