"""ReptileDistil (Ma et al. 2022): the teacher follows its student, step by step, and so learns to teach it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from pydantic import Field
from torch import nn

from kdbert.data.batches import Batch
from kdbert.errors import UserError
from kdbert.heads import Head
from kdbert.methods.contract import Context, LossTerms, Method, Models, Needs, Outputs, OwnStep, Paper
from kdbert.methods.kd import KD_FORMULA, kd_terms
from kdbert.methods.terms import LayerOptions
from kdbert.models.layers import Pair, all_pairs
from kdbert.models.student import encoder_layers


class ReptileOptions(LayerOptions):
    """Those of kd, and how the teacher learns."""

    teacher_learning_rate: float = Field(5e-5, ge=0, description="the teacher's peak rate; 0: it stays, as in kd")

    def default_pairs(self, teacher: int, student: int) -> tuple[Pair, ...]:
        """All student layers, each with the teacher's at the same height."""
        return all_pairs(teacher, student)

    def pairs(self, models: Models) -> tuple[Pair, ...]:
        """As `LayerOptions.pairs`; the embeddings (0) are drawn together in any case."""
        found = super().pairs(models)
        if any(0 in pair for pair in found):
            raise UserError("--layer-map of reptile: the embeddings (0) are drawn together in any case; leave them out")
        if len({teacher for teacher, _ in found}) < len(found):
            raise UserError("--layer-map of reptile: a layer of the teacher can follow one of the student only")
        return found


class Reptile(Method[ReptileOptions]):
    """kd, with a step of the teacher before each of the student's."""

    name = "reptile"
    aliases = ("reptiledistil", "reptile-distil")
    summary = "soft labels of a teacher that follows its student, step by step"
    formula = (
        f"{KD_FORMULA}; before each step the teacher's mapped weights t take an AdamW step with the gradient t - s', "
        "where s' are the student's weights after one AdamW step of a copy"
    )
    papers = (
        Paper(
            "Knowledge Distillation with Reptile Meta-Learning for Pretrained Language Model Compression",
            "Ma, X., Wang, J., Yu, L.-C. & Zhang, X.",
            2022,
            "https://aclanthology.org/2022.coling-1.435",
        ),
    )
    differences = (
        "Published for all of GLUE: alpha 0.5 (there the weight of the soft loss), temperature 5, both rates 5e-5, "
        "batch 32, 5 epochs, no warm-up, layers 2:1, 4:2, ... 12:6 (`--strategy skip`, the default here; the script's "
        "own default is 1:1, 2:2, ...), student TinyBERT_General_6L_768D. Embeddings, pooler and classifier are drawn "
        "to the student's, too. The copy's AdamW is a new one at its full rate in every step, so the copy moves by "
        "that rate, however small the gradient is. With warm-up the published copy never moves, since its schedule "
        "begins anew, at 0, in every step; here it does. The copy has the dropout of the student's own step, there "
        "another. Regression: as kd."
    )
    Options = ReptileOptions

    @classmethod
    def needs(cls, options: ReptileOptions, models: Models | None) -> Needs:
        """A teacher's logits, and the teacher itself, which must be as wide as the student."""
        if models is None:
            return Needs(teachers=(1, 1), teacher_logits=True)
        teacher, student = models.teachers[0], models.student
        if teacher.width != student.width:
            raise UserError(
                f"reptile draws the teacher's weights to the student's, and their widths are {teacher.width} and "
                f"{student.width}: take a student of the teacher's width"
            )
        pairs = {"drawn together": options.pairs(models)}
        return Needs(teachers=(1, 1), teacher_logits=True, holds_teachers=True, compares_tokens=True, pairs=pairs)

    @classmethod
    def takes_unlabelled(cls, options: ReptileOptions, head: Head) -> bool:
        """Yes: they have the soft loss."""
        return True

    def prepare(self, context: Context) -> None:
        """Which layers follow which."""
        super().prepare(context)
        self.layers = self.options.pairs(context.models)

    def take_models(self, student: nn.Module, teachers: Sequence[nn.Module]) -> None:
        """Which weights of the teacher follow which of the student's."""
        self.teacher = teachers[0].requires_grad_(False)
        layers, own = (encoder_layers(self.teacher), encoder_layers(student)), dict(student.named_parameters())
        pairs = [(layers[0][teacher - 1], layers[1][student - 1]) for teacher, student in self.layers]
        found = [both for t, s in pairs for both in zip(t.parameters(), s.parameters(), strict=True)]
        inside = {id(p) for one in layers for p in one.parameters()}
        found += [(p, own[name]) for name, p in self.teacher.named_parameters() if id(p) not in inside]
        if any(t.shape != s.shape for t, s in found):
            raise UserError("reptile draws the teacher's weights to the student's, and their layers differ in size")
        self._pairs = found

    def train(self, mode: bool = True) -> Reptile:
        """The teacher answers without dropout."""
        super().train(mode)
        for model in self.children():
            model.eval()
        return self

    def own_optimizer(self, student: torch.optim.Optimizer) -> torch.optim.Optimizer:
        """AdamW of the teacher's weights, with the student's settings."""
        trained = list(dict.fromkeys(teacher for teacher, _ in self._pairs))
        decay, settings = student.param_groups[0]["weight_decay"], student.param_groups[0]
        groups: list[dict[str, Any]] = [
            {"params": [p for p in trained if p.ndim > 1], "weight_decay": decay},
            {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
        ]
        return torch.optim.AdamW(
            groups, lr=self.options.teacher_learning_rate, betas=settings["betas"], eps=settings["eps"],
            fused=settings["fused"],
        )  # fmt: skip

    @torch.no_grad()
    def before_step(self, step: OwnStep) -> None:
        """The teacher's step towards the student as a step of its own would leave it."""
        with torch.enable_grad():
            step.backward()
        groups = {id(p): group for group in step.student.param_groups for p in group["params"]}
        for teacher, student in self._pairs:
            difference = teacher - _after_a_step(student, groups.get(id(student)))
            teacher.grad = difference if teacher.grad is None else teacher.grad + difference
        step.student.zero_grad(set_to_none=True)
        nn.utils.clip_grad_norm_([p for group in step.own.param_groups for p in group["params"]], step.max_grad_norm)
        share = step.student.param_groups[0]["lr"] / step.student.param_groups[0]["initial_lr"]
        for group in step.own.param_groups:
            group["lr"] = self.options.teacher_learning_rate * share
        step.own.step()
        step.own.zero_grad(set_to_none=True)

    def forward(self, student: Outputs, teachers: Sequence[Outputs], batch: Batch) -> LossTerms:
        """Terms `hard` and `soft`."""
        return kd_terms(self.head, self.options, student, teachers[0], batch)


def _after_a_step(parameter: torch.Tensor, group: dict[str, Any] | None) -> torch.Tensor:
    """A parameter after one step of a new AdamW at the peak rate, whose moments cancel to g / (|g| + eps)."""
    gradient = parameter.grad
    if group is None or gradient is None:
        return parameter
    rate = group["initial_lr"]
    return parameter * (1 - rate * group["weight_decay"]) - rate * gradient / (gradient.abs() + group["eps"])
