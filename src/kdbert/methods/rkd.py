"""Relational knowledge distillation: distances and angles among the examples of a batch (Park et al. 2019)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field, model_validator

from kdbert.data.batches import Batch
from kdbert.heads import Head
from kdbert.losses.relational import published_relational_losses, relational_losses
from kdbert.methods.contract import Context, LossTerms, Method, Models, Needs, Outputs, Paper, Reduced, Weight
from kdbert.methods.kd import KD_FORMULA, kd_terms
from kdbert.methods.terms import LayerOptions
from kdbert.models.layers import Pair, layers_of


class RKDOptions(LayerOptions):
    """Options of `rkd`."""

    distance_weight: Weight = Field(1.0, description="weight of the distances")
    angle_weight: Weight = Field(2.0, description="weight of the angles")
    features: Literal["cls", "mean", "flat", "logits"] = Field(
        "cls",
        description="what stands for an example: its first token, the mean of its tokens, all of them in one row, or "
        "its logits",
    )

    @model_validator(mode="after")
    def _agree(self) -> RKDOptions:
        if self.layer_map is not None and self.features == "logits":
            raise ValueError("layer_map names layers, and features=logits compares none: leave one of them out")
        return self

    @property
    def weights(self) -> dict[str, float]:
        """Of the terms that are formed."""
        found = {"distance": self.distance_weight, "angle": self.angle_weight}
        return {name: weight for name, weight in found.items() if weight}


class RKD(Method[RKDOptions]):
    """KD + distance_weight * distance + angle_weight * angle (docs/quirks.md, 9.2)."""

    name = "rkd"
    aliases = ("relational", "relational-kd")
    summary = "keeps the distances and angles among the examples of a batch"
    formula = (
        KD_FORMULA + " + distance_weight * mean_ij h(d_ij/mu of the student - that of the teacher) + angle_weight * "
        "mean_ijk h(cos of the angle at i between j and k, student - teacher); d: Euclidean distance of two examples' "
        "features; mu: its mean; h: smooth L1"
    )
    papers = (
        Paper("Relational Knowledge Distillation", "Park, W., Kim, D., Lu, Y. & Cho, M.", 2019,
              "https://arxiv.org/abs/1904.05068"),
    )  # fmt: skip
    differences = (
        "Published for images, with no soft loss (distance 1, angle 2; batch 128, 80 epochs), and in a later code "
        "beside the hard loss (25 and 50); FSD's code has it for BERT (features=flat, last layers) without weights. "
        "No published table of text could be found, so alpha 0.5 and temperature 5 are kd's. `original` counts "
        "degenerate pairs and triples (i = j, i = k, j = k) in the means, so that distances are (B-1)/B and angles "
        "(B-1)(B-2)/B^2 of the honest mean; two examples teach nothing; one makes the distances NaN; examples that "
        "are equal in the student only give a gradient of 1e10; with features=flat padding counts. `corrected` takes "
        "the mean over distinct examples, leaves out pairs and triples with equal ones (nearer than 1e-4 of the mean "
        "distance, in either model), and is 0 where none is left. Memory: `original` forms B^2 x features numbers "
        "(features=flat at batch 32, length 128, width 768: 400 MB, several times), `corrected` B^3."
    )
    heads = ("single_label", "multi_label", "regression")  # a tag belongs to a word, the term compares whole examples
    Options = RKDOptions

    pairs: tuple[Pair, ...] = ()

    @classmethod
    def needs(cls, options: RKDOptions, models: Models | None) -> Needs:
        """What stands for an example in both models, in a row for each where it is small."""
        logits = options.alpha != 1
        if not (logits or options.weights):
            return Needs()
        if models is None or not options.weights:
            return Needs(teachers=(1, 1), teacher_logits=logits)
        fewest = 2 if options.distance_weight else 3
        least = 2 if options.distance_weight and options.variant == "original" else 1
        if options.features == "logits":
            return Needs(teachers=(1, 1), teacher_logits=True, compares_examples=fewest, least_examples=least)
        pairs, flat = options.pairs(models), options.features == "flat"
        teacher, student = layers_of(pairs)
        return Needs(
            teachers=(1, 1),
            teacher_logits=logits,
            teacher_hidden=teacher if flat else (),
            reduced=()
            if flat
            else tuple(Reduced(f"{options.features}.{layer}", layer, "example") for layer in teacher),
            student_hidden=student,
            first_token=options.features == "cls",
            pairs=dict.fromkeys(options.weights, pairs),
            compares_examples=fewest,
            least_examples=least,
            reads_padding=flat and options.variant == "original",
        )

    @classmethod
    def takes_unlabelled(cls, options: RKDOptions, head: Head) -> bool:
        """Yes: they have the soft loss, and relations to the others."""
        return True

    def prepare(self, context: Context) -> None:
        """Note the layers."""
        super().prepare(context)
        if self.options.weights and self.options.features != "logits":
            self.pairs = self.options.pairs(context.models)

    def reduce(self, name: str, hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """What stands for an example, [B, D], by the name of the features."""
        if name.startswith("cls"):
            return hidden[:, 0]
        real = mask.to(hidden.dtype).unsqueeze(-1)
        return (hidden * real).sum(1) / real.sum(1)

    def _features(self, student: Outputs, teacher: Outputs) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Student's and teacher's rows [B, D], for each pair of layers."""
        kind = self.options.features
        if kind == "logits":
            return [(student.logits, teacher.logits)]
        if kind != "flat":
            return [
                (self.reduce(kind, student.hidden[own], student.mask), teacher.reduced[f"{kind}.{other}"])
                for other, own in self.pairs
            ]
        if self.options.variant == "original":
            return [(student.hidden[own].flatten(1), teacher.hidden[other].flatten(1)) for other, own in self.pairs]
        return [(student.real(own).flatten(1), teacher.real(other).flatten(1)) for other, own in self.pairs]

    def forward(self, student: Outputs, teachers: Sequence[Outputs], batch: Batch) -> LossTerms:
        """Terms `hard`, `soft`, `distance` and `angle`."""
        options = self.options
        found = kd_terms(self.head, options, student, teachers[0] if teachers else None, batch)
        if options.weights:
            compute = published_relational_losses if options.variant == "original" else relational_losses
            sides = self._features(student, teachers[0])
            values = [compute(batch.gather(own), batch.gather(other)) for own, other in sides]
            for name, weight in options.weights.items():
                found.add(name, torch.stack([value[name] for value in values]).mean() * batch.share, weight)
        return found
