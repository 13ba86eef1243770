"""BERT-of-Theseus (Xu et al. 2020): blocks of the teacher's layers are replaced by single layers, more and more."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from types import MappingProxyType
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import nn

from kdbert.data.batches import Batch
from kdbert.errors import UserError
from kdbert.methods.contract import Context, LossTerms, Method, MethodOptions, Models, Needs, Outputs, Paper
from kdbert.models.student import encoder_layers


class TheseusOptions(MethodOptions):
    """When layers are replaced, and what else is trained."""

    original_defaults: ClassVar = MappingProxyType({"train_head": False, "replacing_k": 0.0006})

    replacing_rate: float = Field(
        0.3, gt=0, le=1, description="chance of a student layer in place of its block, at first"
    )
    schedule: Literal["linear", "constant"] = Field(
        "linear", description="linear: the chance grows in every step; constant: it stays, and is then 1 at once"
    )
    full_at: float | None = Field(
        0.6,
        ge=0,
        description="when the chance is 1: a share of all steps up to 1, else a number of steps; null: never",
    )
    replacing_k: float | None = Field(None, ge=0, description="linear: growth per step, in place of full_at")
    train_head: bool = Field(True, description="train the classifier (and pooler), too; original: layers only")

    @model_validator(mode="after")
    def _agree(self) -> TheseusOptions:
        if self.full_at is not None and self.full_at > 1 and self.full_at != int(self.full_at):
            raise ValueError(f"full_at: expected a share from 0 to 1 or a whole number of steps, got {self.full_at:g}")
        if self.variant == "corrected" and self.schedule == "constant" and self.replacing_k is not None:
            raise ValueError("replacing_k is the growth of schedule=linear; leave it out with schedule=constant")
        return self

    def warnings(self, context: Context) -> list[str]:
        last = self.rate(context.steps - 1, 1 - 1 / context.steps)
        if last >= 1 or (self.schedule == "linear" and self.replacing_k is None and self.full_at == 1):
            return []
        return [
            f"theseus: the run ends after {context.steps} steps with a chance of {last:.2g}, so that the student is "
            "never trained alone; see method.full_at and method.replacing_k"
        ]

    def rate(self, step: int, progress: float) -> float:
        """The chance in a step, from 0, before which the run has come so far (`Batch.progress`)."""
        base, full = self.replacing_rate, self.full_at
        if self.schedule == "linear" and self.replacing_k is not None:
            return min(base + self.replacing_k * step, 1.0)
        if full is None:
            return base
        now = progress if full <= 1 else step
        if self.schedule == "linear":
            return min(base + (1 - base) * now / full, 1.0) if full else 1.0
        return 1.0 if now >= full and step > 0 else base  # also with full_at 0 the first step is at `base`


def replace_layers(successors: nn.ModuleList, predecessors: nn.ModuleList, draws: list[bool]) -> None:
    """Make each successor run its block of predecessors instead, in training mode, where its draw is false.

    `draws`, one for each successor, is read whenever a successor is called.
    """
    each = len(predecessors) // len(successors)
    for number, layer in enumerate(successors):
        block = predecessors[number * each : (number + 1) * each]
        layer.forward = functools.partial(_either, layer, layer.forward, list(block), draws, number)


def _either(
    layer: nn.Module,
    own: Any,
    block: Sequence[nn.Module],
    draws: list[bool],
    number: int,
    hidden: Any,
    *args: Any,
    **options: Any,
) -> Any:
    """Replaces a successor's `forward`."""
    if not layer.training or draws[number]:
        return own(hidden, *args, **options)
    if hasattr(layer, "first_token_only"):  # of the student's last layer, see models/fast/first_token.py
        block[-1].first_token_only = layer.first_token_only
    for predecessor in block:
        hidden = predecessor(hidden, *args, **options)
    return hidden


class Theseus(Method[TheseusOptions]):
    """The loss against the labels of a model in which layers of teacher and student are mixed."""

    name = "theseus"
    aliases = ("bert-of-theseus",)
    summary = "blocks of the teacher's layers are replaced by single layers of the student, more and more"
    formula = (
        "CE(mixed model, label); for each student layer, drawn once a step: the layer with probability p, else the "
        "block of teacher layers that it replaces; p grows from replacing_rate to 1, then the student is trained alone"
    )
    papers = (
        Paper(
            "BERT-of-Theseus: Compressing BERT by Progressive Module Replacing",
            "Xu, C., Zhou, W., Ge, T., Wei, F. & Zhou, M.",
            2020,
            "https://arxiv.org/abs/2002.02925",
        ),
    )
    differences = (
        "The README's example for MRPC is replacing_rate 0.3, replacing_k 0.0006 (so p is 1 from step 1167 on), rate "
        "2e-5, batch 32, 15 epochs; the paper's values were searched for and are not published. There only the "
        "student's layers are trained, the teacher's layers have dropout, and the gradient's norm, by which it is "
        "clipped, counts all parameters: `original` does so. `corrected` runs the teacher's layers without dropout, "
        "trains the head, too (train_head), and goes by shares of the run (full_at). The published constant schedule "
        "is at p = 1 after one step by default (full_at=0). Draws are made once for a step, there for each "
        "micro-batch. Where p = 1 it is fine-tuning of the student."
    )
    starts_from_teacher = True
    Options = TheseusOptions

    @classmethod
    def needs(cls, options: TheseusOptions, models: Models | None) -> Needs:
        """A teacher's own layers; nothing of its outputs."""
        if models is not None:
            teacher, student = models.teachers[0].layers, models.student.layers
            if teacher % student:
                fitting = [str(n) for n in range(1, teacher) if teacher % n == 0]
                raise UserError(
                    f"theseus replaces blocks of equally many layers, and the teacher's {teacher} are no multiple of "
                    f"{student}: use --student-layers {' or '.join(fitting)}"
                )
        return Needs(teachers=(1, 1), holds_teachers=True, compares_tokens=True)

    def take_models(self, student: nn.Module, teachers: Sequence[nn.Module]) -> None:
        """Put the teacher's layers beside the student's; what stands before the layers is shared, and stays."""
        original = self.options.variant == "original"
        self._successors = [*encoder_layers(student)]
        self._draws = [True] * len(self._successors)
        predecessors = encoder_layers(teachers[0])
        replace_layers(encoder_layers(student), predecessors, self._draws)
        if original:  # they get gradients and have dropout, so they are trained in all but name
            self.predecessors = predecessors.requires_grad_(True)
            return
        predecessors.requires_grad_(False).eval()
        inside: Any = student
        for name, parameter in student.named_parameters():
            head = not name.startswith(f"{inside.base_model_prefix}.") or "pooler" in name
            parameter.requires_grad_(head and self.options.train_head)
        for layer in self._successors:
            layer.requires_grad_(True)

    def trained_parameters(self, student: nn.Module) -> list[nn.Parameter]:
        """In `original` the student's layers only; all others have gradients, which count in clipping."""
        if self.options.variant == "corrected":
            return super().trained_parameters(student)
        return [parameter for layer in self._successors for parameter in layer.parameters()]

    def before_forward(self, batch: Batch) -> None:
        """Draw which layers are the student's: the same in all processes and micro-batches of a step."""
        draws = np.random.default_rng([batch.seed, batch.step, 0x7E5]).random(len(self._draws))
        self._draws[:] = (draws < self.options.rate(batch.step, batch.progress)).tolist()

    def forward(self, student: Outputs, teachers: Sequence[Outputs], batch: Batch) -> LossTerms:
        """One term, `hard`; `theseus/rate` and `theseus/replaced`, the share of layers that were the student's."""
        assert batch.labels is not None
        hard = batch.mean_of_labelled(self.head.hard_loss(student.logits, batch.labels))
        idle = [layer for layer, drawn in zip(self._successors, self._draws, strict=True) if not drawn]
        # A layer that was not drawn has gradient 0, as published, and not none: AdamW moves it on by its momentum, and
        # processes wait for every gradient.
        unused = [*idle, *self.children()] if idle else [*self.children()]
        zeros = [p.sum() for module in unused for p in module.parameters()]
        hard = hard + 0 * torch.stack(zeros).sum() if zeros else hard
        share = {"rate": self.options.rate(batch.step, batch.progress), "replaced": float(np.mean(self._draws))}
        monitors = {f"theseus/{name}": torch.full_like(hard, part * batch.share) for name, part in share.items()}
        return LossTerms({"hard": hard}, {"hard": 1.0}, monitors)
