"""Patient knowledge distillation: first tokens of several layers (Sun et al. 2019)."""

from __future__ import annotations

from collections.abc import Sequence
from types import MappingProxyType

import torch
from pydantic import Field

from kdbert.data.batches import Batch
from kdbert.errors import UserError
from kdbert.heads import Head
from kdbert.losses.patience import patience_loss, rounded
from kdbert.methods.contract import Context, LossTerms, Method, Models, Needs, Outputs, Paper, Reduced, Weight
from kdbert.methods.kd import KD_FORMULA, kd_terms
from kdbert.methods.terms import LayerOptions, Projections
from kdbert.models.layers import Pair, layers_of, layerwise_pairs


class PKDOptions(LayerOptions):
    """Options of `pkd`."""

    original_defaults = MappingProxyType({"beta": 100.0})

    temperature: float = Field(10.0, gt=0, description="tau, softens both distributions")
    beta: Weight = Field(0.13, description="weight of the patience term")
    normalise: bool = Field(True, description="compare directions of the first tokens, not the vectors themselves")

    def default_pairs(self, teacher: int, student: int) -> tuple[Pair, ...]:
        return layerwise_pairs(teacher, student)

    def check(self, head: Head) -> None:
        super().check(head)
        if self.variant == "original" and not head.classes:
            raise UserError(f"the published pkd is for classes, and this task {head.takes}: use --variant corrected")


class PKD(Method[PKDOptions]):
    """alpha * hard + (1 - alpha) * soft + beta * patience (docs/quirks.md, 9.1)."""

    name = "pkd"
    aliases = ("bert-pkd", "patient-kd", "patience")
    summary = "soft labels, and the first tokens of the layers in between"
    formula = (
        KD_FORMULA + " + beta * mean over layer pairs of |n(teacher's first token) - n(student's first token)|^2; "
        "n(x) = x / |x| (normalise), or x"
    )
    papers = (
        Paper(
            "Patient Knowledge Distillation for BERT Model Compression",
            "Sun, S., Cheng, Y., Gan, Z. & Liu, J.",
            2019,
            "https://arxiv.org/abs/1908.09355",
        ),
    )
    differences = (
        "`original` divides the KL by the number of classes too and the patience by the width H, which is why its "
        "beta is 10 to 1000 (100 / 768 = 0.13, the default of `corrected`); it rounds the patience, and beta times "
        "it, to float16 (their gradient is not rounded); alpha 1 is a run without a teacher; scores are refused, and "
        "so are models of two widths, for which `corrected` learns a linear projection of the student as `ics` does. "
        "Layers: skip is the default (12 and 6: 2:1, 4:2 … 10:5; 12 and 3: 4:1, 8:2), last is --layer-map "
        "7:1,8:2,9:3,10:4,11:5. Its code weighs the SOFT loss by its alpha. Published for 12 to 6 layers (soft "
        "weight, tau, beta, normalise, learning rate; batch 32, 4 epochs, length 128): MRPC 0.7, 20, 1, yes, 2e-5; "
        "SST-2 0.5, 10, 100, yes, 5e-5; RTE 0.7, 10, 500, yes, 1e-5; MNLI 0.5, 10, 100, no, 5e-5; QNLI 0.5, 20, 100, "
        "no, 5e-5; QQP 0.7, 20, 100, no, 5e-5 (configs/pkd); RACE 0.5, 5, 100, no, 5e-5. They are the best on dev of a "
        "grid: soft weight 0.2, 0.5, 0.7; tau 5, 10, 20; beta 10 to 1000."
    )
    heads = ("single_label", "multi_label", "regression")  # a tag belongs to a word, the term compares whole examples
    Options = PKDOptions

    def __init__(self, options: PKDOptions) -> None:
        super().__init__(options)
        self.pairs: tuple[Pair, ...] = ()
        self.projections = Projections()

    @classmethod
    def needs(cls, options: PKDOptions, models: Models | None) -> Needs:
        """The logits, and the first token of some layers, a row for each example."""
        logits = options.alpha != 1
        patience = options.beta and (logits or options.variant == "corrected")
        if not (logits or patience):
            return Needs()
        if models is None or not patience:
            return Needs(teachers=(1, 1), teacher_logits=logits)
        widths = models.teachers[0].width, models.student.width
        if options.variant == "original" and widths[0] != widths[1]:
            raise UserError(
                f"the published pkd compares models of one width; the teacher has {widths[0]}, the student "
                f"{widths[1]}: use --variant corrected, which learns a projection"
            )
        pairs = options.pairs(models)
        teacher, student = layers_of(pairs)
        return Needs(
            teachers=(1, 1),
            teacher_logits=logits,
            reduced=tuple(Reduced(f"first.{layer}", layer, "example") for layer in teacher),
            student_hidden=student,
            first_token=True,
            pairs={"patience": pairs},
        )

    @classmethod
    def takes_unlabelled(cls, options: PKDOptions, head: Head) -> bool:
        """Yes: they have the soft loss and the patience."""
        return True

    def prepare(self, context: Context) -> None:
        """A projection for each pair of layers, where the student has another width than the teacher."""
        super().prepare(context)
        self.pairs = self.needs(self.options, context.models).pairs.get("patience", ())
        self.projections.fit(context.models, self.pairs)

    def reduce(self, name: str, hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """The first token, [B, H]."""
        return hidden[:, 0]

    def forward(self, student: Outputs, teachers: Sequence[Outputs], batch: Batch) -> LossTerms:
        """Terms `hard`, `soft` and `patience`."""
        options, original = self.options, self.options.variant == "original"
        found = kd_terms(self.head, options, student, teachers[0] if teachers else None, batch)
        if original and "soft" in found.terms:
            found.terms["soft"] = found.terms["soft"] / student.logits.shape[-1]
        if self.pairs:
            firsts = [student.hidden[layer][:, 0] for _, layer in self.pairs]
            own = [self.projections.of(number, one) for number, one in enumerate(firsts)]
            other = torch.stack([teachers[0].reduced[f"first.{layer}"] for layer, _ in self.pairs])
            value = batch.mean(patience_loss(torch.stack(own), other, options.normalise))
            if original:
                value = rounded(value / other.shape[-1], options.beta)
            found.add("patience", value, options.beta)
        return found
