"""Attribution-driven distillation: which tokens an answer comes from, by gradients (Wu et al. 2023)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field

from kdbert.data.batches import Batch
from kdbert.errors import UserError
from kdbert.heads import Head
from kdbert.losses.points import Error, error_of
from kdbert.losses.schedules import annealed
from kdbert.methods.contract import Context, LossTerms, Method, Models, Needs, Outputs, Paper, Reduced, Share, Weight
from kdbert.methods.kd import KD_FORMULA, HardAndSoftOptions
from kdbert.methods.terms import mean_of_sums, plain_kd_terms


class ADKDOptions(HardAndSoftOptions):
    """Options of `ad-kd`."""

    alpha: Share = Field(0.2, description="weight of the hard loss; the soft loss has 1 - alpha")
    temperature: float = Field(2.0, gt=0, description="tau, softens both distributions")
    anneal: bool = Field(False, description="let tau go to 1 over the run (kd_anneal); original: from epoch to epoch")
    beta: Weight = Field(1.0, description="weight of the attributions")
    views: Literal["label", "classes"] | None = Field(
        None,
        description="what attributions are of: the label's loss, or that of each class, which takes a double backward "
        "pass each; without it classes where there are three, else label",
    )
    top_k: int | None = Field(
        None, ge=1, description="of the teacher's units, so many with the largest attribution count; null: all"
    )
    norm: Literal[1, 2] = Field(2, description="attributions are divided by this norm over the tokens of a text")
    error: Error = Field("l2", description="how attributions are compared")

    def views_of(self, head: Head) -> Literal["label", "classes"]:
        """What attributions are of in a task with this head."""
        return self.views or ("classes" if head.kind == "single_label" and head.outputs == 3 else "label")


class ADKD(Method[ADKDOptions]):
    """KD, and the student's attributions learn the teacher's. docs/quirks.md, 14.4."""

    name = "ad-kd"
    aliases = ("attribution-kd",)
    summary = "the tokens that the teacher's answer comes from matter to the student, by gradients"
    formula = (
        f"{KD_FORMULA} + beta * mean over real tokens of the sum over views of (s_S - s_T)^2; s: |dL/dE * E| of a "
        "token (Euclidean norm over units, the teacher's over its top_k largest), divided by its norm over the text's "
        "tokens; E: embeddings' output, L: loss of the view, which is the label, or -log p of each class"
    )
    papers = (
        Paper(
            "AD-KD: Attribution-Driven Knowledge Distillation for Language Model Compression",
            "Wu, S., Chen, H., Quan, X., Wang, Q. & Wang, R.",
            2023,
            "https://arxiv.org/abs/2305.10010",
        ),
    )
    differences = (
        "`original`: the soft loss is a cross-entropy without tau^2 (scores: squared difference / tau^2), tau falls "
        "from epoch to epoch, and a token whose teacher attribution is exactly 0 leaves the denominator, not the sum, "
        "so that it depends on the batch. `corrected`: KD as in kd, the mean over real tokens. The published code has "
        "views classes for MNLI by name. Labels are needed, except with views=classes. Both models run in the "
        "library's eager attention and the student is differentiated twice: its forward and backward pass take about "
        "twice as long as kd's with one view, five times with three (a small BERT on a CPU). Published, for each task "
        "(tau; 1 - alpha; beta; top_k; batch; epochs; rate; * anneal): CoLA 1; .9; 1; 768; 32; 10; 4e-5. MNLI* 3; .8; "
        "10; 768; 64; 6; 4e-5. MRPC* 4; .9; 10; 768; 16; 10; 3e-5. QNLI 3; .9; 100; 768; 32; 6; 4e-5. QQP* 4; 1; 50; "
        "734; 32; 8; 4e-5. RTE 2; .9; 10; 700; 16; 12; 2e-5. SST-2 2; .8; 1; 768; 32; 6; 5e-5. STS-B 3; .8; 1; 640; "
        "16; 8; 5e-5. All its scripts but STS-B's stop with an error before they read beta and top_k."
    )
    heads = ("single_label", "multi_label", "regression")  # the loss of a tagged text is of many words
    Options = ADKDOptions

    plain_head: Head

    def __init__(self, options: ADKDOptions) -> None:
        super().__init__(options)
        self.epochs = 1

    @classmethod
    def needs(cls, options: ADKDOptions, models: Models | None) -> Needs:
        """The teacher's attributions, and the student's embeddings with a graph."""
        logits = options.alpha != 1
        if not (logits or options.beta):
            return Needs()
        if models is None or not options.beta:
            return Needs(teachers=(1, 1), teacher_logits=logits)
        return Needs(
            teachers=(1, 1),
            teacher_logits=logits,
            reduced=(Reduced(cls._kept_as(options), 0, "token", by_gradient=True),),
            student_hidden=(0,),
            pairs={"attribution": ((0, 0),)},
            compares_examples=options.variant == "original",
            compares_tokens=True,
            differentiates_twice=True,
        )

    @staticmethod
    def _kept_as(options: ADKDOptions) -> str:
        """A name for the teacher's attributions that says all that they depend on."""
        return f"attribution.{options.views or 'auto'}.{options.top_k or 'all'}.{options.norm}"

    @classmethod
    def takes_unlabelled(cls, options: ADKDOptions, head: Head) -> bool:
        """Yes, if attributions are of every class: that of a label needs the label."""
        return options.views_of(head) == "classes" or not options.beta

    def prepare(self, context: Context) -> None:
        """Note what views there are, and how long the run is."""
        super().prepare(context)
        if self.options.views == "classes" and self.head.kind == "regression":
            raise UserError("method.views=classes: a task of scores has no classes; use method.views=label")
        self.epochs = context.epochs
        # What attributions are of must not depend on weights of classes and label smoothing.
        self.plain_head = replace(context.head, class_weights=(), label_smoothing=0.0)

    def attribute(self, name: str, teacher: Outputs, batch: Batch) -> torch.Tensor:
        """The teacher's attributions, [B, L, views]."""
        return self._attributions(teacher, batch, top_k=self.options.top_k, twice=False)

    def forward(self, student: Outputs, teachers: Sequence[Outputs], batch: Batch) -> LossTerms:
        """Terms `hard`, `soft`, `attribution`; monitor `ad-kd/temperature`, where it falls."""
        options, teacher = self.options, teachers[0] if teachers else None
        original, temperature = options.variant == "original", options.temperature
        if options.anneal:
            temperature = annealed(temperature, batch.progress, self.epochs if original else None)
        found = plain_kd_terms(self.head, options, student, teacher, batch, temperature)
        if options.anneal:
            found.monitors["ad-kd/temperature"] = batch.mean(batch.valid * temperature)
        if teacher is None or not options.beta:
            return found
        target = teacher.reduced[self._kept_as(options)]
        errors = error_of(self._attributions(student, batch), target, options.error)  # [B, L, views]
        if original:
            views = zip(errors.sum(1).unbind(1), (target != 0).sum(1).to(errors.dtype).unbind(1), strict=True)
            term = torch.stack([mean_of_sums(batch, summed, count) for summed, count in views]).sum()
        else:
            term = batch.token_mean(errors.sum(-1))
        found.add("attribution", term, options.beta)
        return found

    def _attributions(
        self, model: Outputs, batch: Batch, *, top_k: int | None = None, twice: bool = True
    ) -> torch.Tensor:
        """How much each token's embedding matters to the loss of each view, [B, L, views]; 0 at padding.

        Args:
            top_k: so many units count (None: all). twice: whether the result is to be differentiated.
        """
        embeddings, found = model.hidden[0], []
        for loss in self._views(model.logits, batch):
            (gradient,) = torch.autograd.grad(loss, embeddings, retain_graph=True, create_graph=twice)
            units = (gradient * embeddings).abs()
            if top_k is not None and top_k < units.shape[-1]:
                units = units.topk(top_k, -1).values
            found.append(torch.linalg.vector_norm(units, dim=-1).masked_fill(model.mask == 0, 0.0))
        return torch.stack([F.normalize(one, p=self.options.norm, dim=1) for one in found], -1)

    def _views(self, logits: torch.Tensor, batch: Batch) -> list[torch.Tensor]:
        """The losses that attributions are of, each summed over the texts (no text's depends on another text)."""
        if self.options.views_of(self.head) == "classes":
            logs = F.log_softmax(logits, -1) if self.head.kind == "single_label" else F.logsigmoid(logits)
            return [-one.sum() for one in logs.unbind(-1)]
        assert batch.labels is not None
        return [self.plain_head.hard_loss(logits, batch.labels).sum()]
