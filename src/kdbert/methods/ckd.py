"""Contextual knowledge distillation: relations among words, and among the layers of a word (Park et al. 2021)."""

from __future__ import annotations

from collections.abc import Sequence
from math import gcd
from types import MappingProxyType
from typing import Any, Literal

import torch
from pydantic import Field, model_validator

from kdbert.data.batches import Batch
from kdbert.heads import Head
from kdbert.losses.points import Distance, Error, Triples, angle_errors, distance_errors
from kdbert.methods.contract import Context, LossTerms, Method, Models, Needs, Outputs, Paper, Weight
from kdbert.methods.kd import KD_FORMULA
from kdbert.methods.terms import LayerOptions, mean_of_sums, plain_kd_terms
from kdbert.models.layers import Pair, layers_of


class CKDOptions(LayerOptions):
    """Options of `ckd`."""

    original_defaults = MappingProxyType({"alpha": 0.0})

    temperature: float = Field(3.0, gt=0, description="tau, softens both distributions")
    word_distance: Weight = Field(1.0, description="weight of the distances of two words (wrdist_w)")
    word_angle: Weight = Field(1.0, description="weight of the angles of three words (wrangle_w)")
    layer_distance: Weight = Field(1.0, description="weight of the distances of two layers of a word (ltrdist_w)")
    layer_angle: Weight = Field(1.0, description="weight of the angles of three layers of a word (ltrangle_w)")
    window: int | None = Field(
        21, ge=3, description="angles of words lie within so many, the word itself in the middle; null: within the text"
    )
    distance: Distance = Field("cosine", description="what is between two vectors: their cosine, or squared distance")
    normalize: bool = Field(False, description="divide squared distances by their mean in each text (distnorm)")
    distance_error: Error | Literal["kl"] = Field(
        "kl", description="how distances are compared; kl: as a softmax over the other words (layers)"
    )
    angle_error: Error = Field("l2", description="how angles are compared")

    @model_validator(mode="after")
    def _agree(self) -> CKDOptions:
        if self.window is not None and self.window % 2 == 0:
            raise ValueError(f"window {self.window} has no word in the middle: expected an odd number")
        if self.normalize and self.distance == "cosine":
            raise ValueError("normalize divides squared distances: use it with distance=squared")
        return self

    def warnings(self, context: Context) -> list[str]:
        found = super().warnings(context)
        if not self.weights:  # then there may be no teacher
            return found
        count = len(self.pairs(context.models))
        fewest = {"layer_distance": 3 if self.distance_error == "kl" else 2, "layer_angle": 3}
        idle = [name for name, least in fewest.items() if name in self.weights and count < least]
        if idle:
            found.append(
                f"ckd compares {count} layer{'s' * (count != 1)}, and {' and '.join(idle)} "
                f"need{'s' * (len(idle) == 1)} {max(fewest[name] for name in idle)}: nothing is learned of the layers "
                "of a word by "
                f"{'it' if len(idle) == 1 else 'them'}; name more with --layer-map"
            )
        return found

    def default_pairs(self, teacher: int, student: int) -> tuple[Pair, ...]:
        """The embeddings, then as many layers as both depths can be cut into (`emb+skip`)."""
        steps = gcd(teacher, student)
        return tuple((step * teacher // steps, step * student // steps) for step in range(steps + 1))

    @property
    def weights(self) -> dict[str, float]:
        """Of the terms besides hard and soft loss."""
        names = "word_distance", "word_angle", "layer_distance", "layer_angle"
        return {name: weight for name in names if (weight := getattr(self, name))}


class CKD(Method[CKDOptions]):
    """Word relations and layer-transforming relations. docs/quirks.md, 14.3."""

    name = "ckd"
    aliases = ("contextual-kd",)
    summary = "keeps the teacher's relations among the words of a text, and among the layers of each word"
    formula = (
        f"{KD_FORMULA} + word_distance * WD + word_angle * WA + layer_distance * LD + layer_angle * LA; WD: "
        "KL(softmax_j cos(e_i, e_j) of the teacher || of the student) over the other words j, divided by their "
        "number; WA: squared difference of the cosines of (e_j - e_i, e_k - e_i), j and k within `window`; LD, LA: "
        "the same of the vectors of one word in the compared layers; means over real tokens (words here), and over "
        "layers"
    )
    papers = (
        Paper(
            "Distilling Linguistic Context for Language Model Compression",
            "Park, G., Kim, G. & Yang, E.",
            2021,
            "https://arxiv.org/abs/2109.08359",
        ),
    )
    differences = (
        "The published code drops the hard loss (the mix is commented out; its alpha is read and not used), and its "
        "soft loss is a cross-entropy without tau^2: `original` has alpha 0. `corrected` is KD as in kd. Its "
        "configuration sets the weights of layer terms under names that nothing reads, so they stay at 1; the values "
        "meant are those of the word terms, and configs/ckd has them. The window is cut at the PADDED length: padding "
        "counts as words, tokens at the edge are repeated, and angles with the word itself, always 0, count in the "
        "mean; `corrected` takes the distinct real words of the window. Distances are divided by n^2, and by the sum "
        "of that over the batch, so long texts weigh more; `corrected` divides each word's by the n - 1 others and "
        "takes the mean over words. Points closer than a hundredth of their size make no angle in `corrected`. With a "
        "current torch the published distances are NaN for every input; `original` has those of torch 1.7, which the "
        "code pins. Published, for each task (tau; WD / WA = LD / LA; rate; epochs): CoLA 3; 1/10; 5e-5; 4. SST-2 4; "
        "100/1000; 4e-5; 4. RTE 3; 1/10; 5e-5; 6. QNLI 3; 10/1; 4e-5; 4. MRPC 4; 1/1; 3e-5; 4. STS-B 1; .1/.1; 5e-5; "
        "4. MNLI 4; 100/1; 4e-5; 4. QQP 2; 10/10; 5e-5; 4."
    )
    Options = CKDOptions

    def __init__(self, options: CKDOptions) -> None:
        super().__init__(options)
        self.pairs: tuple[Pair, ...] = ()

    @classmethod
    def needs(cls, options: CKDOptions, models: Models | None) -> Needs:
        """Hidden states of the compared layers, token by token."""
        formed, logits = options.weights, options.alpha != 1
        if not (formed or logits):
            return Needs()
        if models is None or not formed:
            return Needs(teachers=(1, 1), teacher_logits=logits)
        pairs = options.pairs(models)
        teacher, student = layers_of(pairs)
        return Needs(
            teachers=(1, 1),
            teacher_logits=logits,
            teacher_hidden=teacher,
            student_hidden=student,
            pairs={"relations": pairs},
            compares_examples=options.variant == "original",
            compares_tokens=True,
            reads_padding=options.variant == "original",
        )

    @classmethod
    def takes_unlabelled(cls, options: CKDOptions, head: Head) -> bool:
        """Yes: they have all terms but the hard one."""
        return True

    def prepare(self, context: Context) -> None:
        """Note the layers."""
        super().prepare(context)
        self.pairs = self.needs(self.options, context.models).pairs.get("relations", ())

    def forward(self, student: Outputs, teachers: Sequence[Outputs], batch: Batch) -> LossTerms:
        """Terms `hard`, `soft`, and those of words and layers that have a weight."""
        options = self.options
        teacher = teachers[0] if teachers else None
        found = plain_kd_terms(self.head, options, student, teacher, batch, options.temperature)
        if teacher is None:
            return found
        for name, weight in options.weights.items() if self.pairs else ():
            found.add(name, getattr(self, f"_{name}")(student, teacher, batch), weight)
        return found

    def _word_distance(self, student: Outputs, teacher: Outputs, batch: Batch) -> torch.Tensor:
        lengths, real = student.mask.sum(1), student.mask > 0
        sums = [distance_errors(*self._at(student, teacher, pair), real, **self._how) for pair in self.pairs]
        return self._mean(sums, (lengths - 1)[:, None], lengths**2, batch)

    def _word_angle(self, student: Outputs, teacher: Outputs, batch: Batch) -> torch.Tensor:
        options, mask, exact = self.options, student.mask, self.options.variant == "original"
        triples, lengths = self._window(mask), mask.sum(1)
        parts = [
            angle_errors(*self._at(student, teacher, pair), mask, triples, error=options.angle_error, exact=exact)
            for pair in self.pairs
        ]
        sums, counts = zip(*(part.unflatten(0, mask.shape).unbind(-1) for part in parts), strict=True)
        if exact:
            return self._mean(sums, 1, lengths * (lengths if options.window is None else options.window) ** 2, batch)
        return batch.token_mean(
            torch.stack([one / of.clamp(min=1) for one, of in zip(sums, counts, strict=True)]).mean(0)
        )

    def _layer_distance(self, student: Outputs, teacher: Outputs, batch: Batch) -> torch.Tensor:
        own, other = self._by_token(student, teacher)
        there = own.new_ones(own.shape[:2]) > 0
        sums = distance_errors(own, other, there, **self._how).sum(1).unflatten(0, student.mask.shape)
        layers = len(self.pairs)
        return batch.token_mean(
            sums / (layers * (layers if self.options.variant == "original" else max(1, layers - 1)))
        )

    def _layer_angle(self, student: Outputs, teacher: Outputs, batch: Batch) -> torch.Tensor:
        exact = self.options.variant == "original"
        own, other = self._by_token(student, teacher)
        there = own.new_ones(own.shape[:2])
        triples = Triples.of_all(there > 0, distinct=not exact)
        parts = angle_errors(own, other, there, triples, error=self.options.angle_error, exact=exact)
        sums, counts = parts.unflatten(0, (*student.mask.shape, -1)).sum(2).unbind(-1)
        return batch.token_mean(sums / (len(self.pairs) ** 3 if exact else counts.clamp(min=1)))

    @property
    def _how(self) -> dict[str, Any]:
        """How distances are made and compared."""
        options = self.options
        return {"distance": options.distance, "error": options.distance_error, "normalize": options.normalize}

    def _at(self, student: Outputs, teacher: Outputs, pair: Pair) -> tuple[torch.Tensor, torch.Tensor]:
        """Hidden states [B, L, H] of both."""
        return student.hidden[pair[1]], teacher.hidden[pair[0]]

    def _by_token(self, student: Outputs, teacher: Outputs) -> tuple[torch.Tensor, torch.Tensor]:
        """The vectors of each token in the compared layers, [B L, P, H], of both."""
        both = zip(*(self._at(student, teacher, pair) for pair in self.pairs), strict=True)
        own, other = (torch.stack(side, 2).flatten(0, 1) for side in both)
        return own, other

    def _window(self, mask: torch.Tensor) -> Triples:
        """Each token as a centre, with the words around it as ends."""
        exact, (batch, length) = self.options.variant == "original", mask.shape
        if self.options.window is None:
            return Triples.of_all(mask > 0, distinct=not exact)
        numbers = torch.arange(batch * length, device=mask.device)
        group, centre = numbers // length, numbers % length
        half = self.options.window // 2
        around = centre[:, None] + torch.arange(-half, self.options.window - half, device=mask.device)
        ends = around.clamp(0, length - 1)
        valid = torch.ones_like(ends) > 0 if exact else (around == ends) & (mask[group[:, None], ends] > 0)
        return Triples(group, centre, ends, valid, distinct=not exact)

    def _mean(self, sums: Sequence[torch.Tensor], others: Any, counts: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Mean over layers of sums [B, L] of each word.

        `corrected` divides them by `others` and takes the mean over words; `original` divides their sum by that of
        `counts` [B].
        """
        mean = torch.stack(list(sums)).mean(0)
        if self.options.variant == "corrected":
            return batch.token_mean(mean / others.clamp(min=1))
        real = mean.masked_fill(batch.attention_mask == 0, 0.0)
        return mean_of_sums(batch, real.sum(1), counts.to(mean.dtype))
