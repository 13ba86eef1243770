"""Vocabulary-expansion distillation: a student that learns a domain's words and a teacher's language at once."""

from __future__ import annotations

from collections.abc import Sequence
from types import MappingProxyType

import torch
from pydantic import Field
from torch import nn

from kdbert.data.batches import Batch
from kdbert.losses.hinton import soft_label_loss
from kdbert.losses.masked_lm import beyond, cosine_loss, logits_loss
from kdbert.methods.contract import (
    Context,
    LossTerms,
    MaskedLMOutputs,
    Method,
    Models,
    Needs,
    Paper,
    Weight,
)
from kdbert.methods.terms import MaskedLMOptions, in_parts, known_tokens, masked_lm_loss


class VEKDOptions(MaskedLMOptions):
    """Weights of the four terms, and the tolerance of three of them."""

    original_defaults = MappingProxyType({"alpha_ce": 0.5, "alpha_cos": 0.0, "alpha_mlm": 0.0, "tolerance": 0.1})

    alpha_ce: Weight = Field(2.0, description="weight of the teacher's soft labels")
    alpha_mse: Weight = Field(0.0, description="weight of the squared difference of logits (README of VE-KD: 1)")
    alpha_cos: Weight = Field(5.0, description="weight of the cosine distance of the last hidden states")
    alpha_mlm: Weight = Field(1.0, description="weight of the masked-LM loss")
    tolerance: Weight = Field(0.5, description="what is taken off each weighted term but mlm, down to 0")
    temperature: float = Field(2.0, gt=0, description="tau, softens both distributions")


class VEKD(Method[VEKDOptions]):
    """Masked-LM distillation of a student whose vocabulary has more pieces than the teacher's.

    New pieces are always hidden, so the teacher reads text of its own vocabulary; where one is to be predicted, only
    the student's masked-LM loss says anything. Everywhere else the student's logits of the teacher's pieces are drawn
    to the teacher's (a softmax over these alone), and its last hidden states to the teacher's.
    """

    name = "ve-kd"
    aliases = ("vekd", "vocabulary-expansion")
    summary = "masked-LM distillation on plain text, with a vocabulary that was expanded for its domain"
    formula = (
        "alpha_mlm * MLM + sum over x in (ce, mse, cos) of max(alpha_x * L_x - tolerance, 0), where ce = tau^2 * "
        "KL(softmax(teacher/tau) || softmax(student/tau)) over the teacher's pieces, mse = sum of squared "
        "differences of these logits, cos = 1 - cosine of the last hidden states; means over the tokens that the "
        "teacher knows"
    )
    papers = (
        Paper(
            "VE-KD: Vocabulary-Expansion Knowledge-Distillation for Training Smaller Domain-Specific Language Models",
            "Gao, P., Yamasaki, T. & Imoto, K.",
            2024,
            "https://aclanthology.org/2024.findings-emnlp.884/",
        ),
    )
    differences = (
        "corrected trains the projection between different widths and defaults to the weights of the released model; "
        "original leaves the projection as it was drawn and defaults to those of the command line"
    )
    heads = ("masked_lm",)

    Options = VEKDOptions

    def __init__(self, options: VEKDOptions) -> None:
        super().__init__(options)
        self.projection: nn.Linear | None = None
        self.layers = (0, 0)

    @classmethod
    def needs(cls, options: VEKDOptions, models: Models | None) -> Needs:
        """The masked-LM heads of both, and the last hidden states where the cosine has a weight."""
        return options.needs(models)

    def prepare(self, context: Context) -> None:
        """A projection where the student has another width than the teacher."""
        super().prepare(context)
        models = context.models
        pairs = self.needs(self.options, models).pairs
        if not pairs:
            return
        (self.layers,) = pairs["cos"]
        if models.teachers[0].width != models.student.width:
            self.projection = nn.Linear(models.student.width, models.teachers[0].width)
            if self.options.variant == "original":
                self.projection.requires_grad_(False)

    def forward(self, student: MaskedLMOutputs, teachers: Sequence[MaskedLMOutputs], batch: Batch) -> LossTerms:
        """Terms `ce`, `mse`, `cos` above their tolerance, and `mlm`; monitors `ve-kd/…`: the former without it."""
        options = self.options
        weights = options.of_teacher
        found = LossTerms()
        if weights:
            for name, summed in self._sums(student, teachers[0], batch, weights).items():
                over_all = batch.total(summed) / max(1, batch.known_count)
                share = batch.known_count * batch.known_scale / batch.world
                value = summed * batch.known_scale
                found.add(name, beyond(value, over_all, options.tolerance / weights[name], share), weights[name])
                found.monitors[f"ve-kd/{name}"] = value.detach()
        if options.alpha_mlm:
            found.add("mlm", masked_lm_loss(self.head, student, batch), options.alpha_mlm)
        return found

    def _sums(
        self, student: MaskedLMOutputs, teacher: MaskedLMOutputs, batch: Batch, weights: dict[str, float]
    ) -> dict[str, torch.Tensor]:
        """Each loss of the teacher, summed over this process's tokens that the teacher knows."""
        positions = batch.places(known_tokens)
        sums: dict[str, torch.Tensor] = {}
        if "ce" in weights or "mse" in weights:
            parts = in_parts(lambda part: self._of_logits(student, teacher, part, list(weights)), positions)
            sums.update({name: torch.stack([part[name] for part in parts]).sum() for name in parts[0]})
        if "cos" in weights:
            own = student.hidden[self.layers[1]].flatten(0, 1)[positions]
            if self.projection is not None:
                own = self.projection(own)
            sums["cos"] = cosine_loss(own, teacher.hidden[self.layers[0]].flatten(0, 1)[positions]).sum()
        return sums

    def _of_logits(
        self, student: MaskedLMOutputs, teacher: MaskedLMOutputs, positions: torch.Tensor, names: list[str]
    ) -> dict[str, torch.Tensor]:
        """The losses of some tokens' logits, over the teacher's pieces."""
        options = self.options
        with torch.no_grad():
            targets = teacher.head(positions)
        logits = student.head(positions, targets.shape[-1])
        found = {}
        if "ce" in names:
            found["ce"] = soft_label_loss(logits, targets, options.temperature).sum()
        if "mse" in names:
            found["mse"] = logits_loss(logits, targets).sum()
        return found
