"""TinyBERT: attention scores and hidden states of every layer, then the teacher's answers (Jiao et al. 2020)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import nn

from kdbert.data.batches import Batch
from kdbert.errors import UserError
from kdbert.heads import Head
from kdbert.losses.attention import padded_score_error, score_error, scores
from kdbert.losses.hinton import soft_cross_entropy
from kdbert.methods.contract import (
    Context,
    HiddenStates,
    LossTerms,
    Method,
    Models,
    Needs,
    Outputs,
    Paper,
    Share,
    Weight,
)
from kdbert.methods.kd import HardAndSoftOptions, kd_terms, logits_of
from kdbert.methods.terms import Pairs, Projections
from kdbert.models.layers import Pair, all_pairs, check_pairs, layers_of


class TinyBERTOptions(HardAndSoftOptions):
    """The stage, and what it compares."""

    stage: Literal["intermediate", "prediction"] | None = Field(
        None,
        description="intermediate: attention and hidden states; prediction: the teacher's answers (default: one after "
        "the other)",
    )
    layer_map: Pairs | None = Field(
        None, description="teacher:student layers to compare, such as 2:1,4:2 (default: every layer of the student)"
    )
    embeddings: bool = Field(True, description="also compare the embeddings' output, 0:0")
    attention_weight: Weight = Field(1.0, description="weight of the attention scores")
    hidden_weight: Weight = Field(1.0, description="weight of the hidden states")
    alpha: Share = Field(0.0, description="prediction: weight of the hard loss; the soft loss has 1 - alpha")
    temperature: float = Field(1.0, gt=0, description="prediction: tau, softens both distributions")
    teacher_dropout: bool = Field(
        False, description="original only: the teacher's dropout is on, as in the published code"
    )

    @model_validator(mode="after")
    def _agree(self) -> TinyBERTOptions:
        if self.stage != "prediction":
            self.need_a_weight("attention_weight", "hidden_weight")
        if self.teacher_dropout and self.variant == "corrected":
            raise ValueError("teacher_dropout=true is a quirk of the published code; it goes with variant original")
        return self

    @property
    def trains_head(self) -> bool:
        return self.stage == "prediction"

    def warnings(self, context: Context) -> list[str]:
        if self.trains_head:
            return super().warnings(context)
        if context.models.headless:
            return []
        return [
            "tinybert, stage intermediate: the head is not trained, so scores mean nothing yet; stage prediction "
            "trains it (from a run of this stage alone: --student RUN --set method.stage=prediction)"
        ]

    @property
    def weights(self) -> dict[str, float]:
        """Of the terms of the first stage."""
        return {"attention": self.attention_weight, "hidden": self.hidden_weight}

    def pairs(self, models: Models) -> dict[str, tuple[Pair, ...]]:
        """Term -> the layers that it compares; none for a term without a weight. Embeddings have no attention."""
        depths = models.teachers[0].layers, models.student.layers
        if self.layer_map is None and self.variant == "original" and depths[0] % depths[1]:
            raise UserError(
                f"the published tinybert takes every n-th layer, and {depths[1]} layers do not divide {depths[0]}; "
                "name layers with --layer-map, or use --variant corrected"
            )
        found = all_pairs(*depths) if self.layer_map is None else check_pairs(self.layer_map, *depths)
        embeddings = [(0, 0)] * (self.embeddings and (0, 0) not in found)
        chosen = {"attention": tuple(pair for pair in found if 0 not in pair), "hidden": (*embeddings, *found)}
        return {name: pairs if self.weights[name] else () for name, pairs in chosen.items()}


class TinyBERT(Method[TinyBERTOptions]):
    """Either stage of the published method by itself (docs/quirks.md, section 13)."""

    name = "tinybert"
    aliases = ("tiny-bert", "transformer-distillation")
    summary = "first each layer's attention scores and hidden states, then the teacher's answers: two stages"
    formula = (
        "stage intermediate: attention_weight * sum over layer pairs of the mean over heads and pairs of real tokens "
        "of (student's q k^T / sqrt(d) - teacher's)^2 + hidden_weight * sum over layer pairs and embeddings of the "
        "mean over real tokens and units of (W student + c - teacher)^2; W, c: learned where the widths differ, else "
        "left out. stage prediction: alpha * hard + (1 - alpha) * soft, as kd"
    )
    papers = (
        Paper(
            "TinyBERT: Distilling BERT for Natural Language Understanding",
            "Jiao, X., Yin, Y., Shang, L., Jiang, X., Chen, X., Li, L., Wang, F. & Liu, Q.",
            2020,
            "https://arxiv.org/abs/1909.10351",
        ),
    )
    differences = (
        "`original`: padded queries count in the attention term, padded tokens in the hidden one; scores of -100 or "
        "less are 0; one projection for all layers, also where the widths are equal; the soft cross-entropy is divided "
        "by the number of classes; of scores (STS-B) the second stage learns the labels and ignores the teacher. The "
        "published teacher has its dropout on (teacher_dropout=true). Published: first stage 5e-5, batch 32, 10 epochs "
        "at a constant rate; second 3e-5, 3 epochs, the best on dev; length 128; all on augmented data (kdbert "
        "augment): 30 copies a text (MNLI, QQP 10; SST-2, QNLI 20), single sentences cut to 64 tokens; a table in the "
        "code, which is never read, has 50 epochs of the first stage for CoLA, 20 for MRPC, STS-B and RTE, 10 for "
        "SST-2 and QNLI, 5 for MNLI and QQP. Its classifier has a ReLU before its last matrix, which the library's has "
        "not, so kdbert's has none either. Teacher and student must have as many heads."
    )
    heads = ("single_label", "multi_label", "regression", "token", "encoder")
    Options = TinyBERTOptions
    stages = ("intermediate", "prediction")

    def __init__(self, options: TinyBERTOptions) -> None:
        super().__init__(options)
        self.pairs: dict[str, tuple[Pair, ...]] = {}
        self.projections = Projections()  # `original`: one for all pairs

    @classmethod
    def needs(cls, options: TinyBERTOptions, models: Models | None) -> Needs:
        """Of the first stage what has a weight, token by token; of the second the logits."""
        if options.stage == "prediction":
            return Needs(teachers=(1, 1), teacher_logits=options.alpha != 1)
        if models is None:
            return Needs(teachers=(1, 1), compares_tokens=True)
        pairs, heads = options.pairs(models), (models.teachers[0].heads, models.student.heads)
        if pairs["attention"] and heads[0] != heads[1]:
            raise UserError(
                f"tinybert compares attention head by head; the teacher has {heads[0]} heads, the student {heads[1]}: "
                "take a student with as many, or set method.attention_weight=0"
            )
        (hidden_teacher, hidden_student), (teacher, student) = layers_of(pairs["hidden"]), layers_of(pairs["attention"])
        return Needs(
            teachers=(1, 1),
            teacher_hidden=hidden_teacher,
            student_hidden=hidden_student,
            teacher_attention=dict.fromkeys(teacher, "qk"),
            student_attention=dict.fromkeys(student, "qk"),
            pairs={name: some for name, some in pairs.items() if some},
            compares_tokens=True,
            reads_padding=options.variant == "original",
            teacher_dropout=options.teacher_dropout,
            unreached=True,
        )

    @classmethod
    def heads_for(cls, options: TinyBERTOptions) -> tuple[str, ...]:
        """On plain text there are no answers."""
        return cls.heads if options.stage != "prediction" else tuple(head for head in cls.heads if head != "encoder")

    @classmethod
    def takes_unlabelled(cls, options: TinyBERTOptions, head: Head) -> bool:
        """Yes: they have all terms but the hard one."""
        return True

    def prepare(self, context: Context) -> None:
        """Note the layers; a projection for each pair of hidden states where the widths differ."""
        super().prepare(context)
        if self.options.stage == "prediction":
            return
        self.pairs = self.options.pairs(context.models)
        hidden = self.pairs["hidden"]
        if self.options.variant == "corrected":
            self.projections.fit(context.models, hidden)
        elif hidden:
            self.projections.append(nn.Linear(context.models.student.width, context.models.teachers[0].width))

    def forward(self, student: Any, teachers: Sequence[Any], batch: Batch) -> LossTerms:
        """Terms `attention` and `hidden`, with monitors of each pair of layers; or `hard` and `soft`."""
        if self.options.stage == "prediction":
            return self._answers(student, teachers[0], batch)
        found = LossTerms()
        original, weights = self.options.variant == "original", self.options.weights
        for name, errors in self._errors(student, teachers[0]).items():
            mean = batch.mean if original else batch.pair_mean if name == "attention" else batch.token_mean
            values = [mean(error) for error in errors]
            found.add(name, torch.stack(values).sum(), weights[name])
            for (teacher_layer, layer), value in zip(self.pairs[name], values, strict=True):
                found.monitors[f"{name}/{teacher_layer}-{layer}"] = value.detach()
        return found

    def loss_of_texts(self, student: HiddenStates, teachers: Sequence[HiddenStates], batch: Batch) -> torch.Tensor:
        """The loss of each text by itself, times its tokens, and their number."""
        mask, parts = batch.attention_mask > 0, []
        tokens = mask.sum(1)
        for name, errors in self._errors(student, teachers[0]).items():
            error = torch.stack(errors).sum(0)
            if self.options.variant == "corrected":
                error = error / tokens**2 if name == "attention" else error.masked_fill(~mask, 0.0).sum(1) / tokens
            parts.append(self.options.weights[name] * error)
        whole = torch.stack(parts).sum(0)
        return torch.stack([whole * tokens, tokens.to(whole.dtype)], 1)

    def _errors(self, student: HiddenStates, teacher: HiddenStates) -> dict[str, list[torch.Tensor]]:
        """Term -> the error at each pair of layers: of tokens [B, L], of pairs their sums [B]; `original`: of texts."""
        original, found = self.options.variant == "original", dict[str, list[torch.Tensor]]()
        for name, pairs in self.pairs.items():
            if not pairs:
                continue
            found[name] = []
            for number, (teacher_layer, layer) in enumerate(pairs):
                if name == "attention":
                    ours, theirs = (
                        (side.attention[one]["q"], side.attention[one]["k"])
                        for side, one in ((student, layer), (teacher, teacher_layer))
                    )
                    error = (
                        padded_score_error(scores(ours), scores(theirs), student.mask)
                        if original
                        else score_error(ours, theirs, student.mask)
                    )
                else:
                    own = self.projections.of(0 if original else number, student.hidden[layer])
                    error = (own - teacher.hidden[teacher_layer].detach()).square().mean((1, 2) if original else 2)
                found[name].append(error)
        return found

    def _answers(self, student: Outputs, teacher: Outputs, batch: Batch) -> LossTerms:
        """The second stage. `original`: of scores the labels only; of classes a cross-entropy over their number."""
        options = self.options
        if options.variant == "corrected":
            return kd_terms(self.head, options, student, teacher, batch)
        scored = self.head.kind == "regression"
        found = kd_terms(self.head, options, student, None, batch, (1.0 if scored else options.alpha, 0.0))
        if not scored:
            logits = logits_of(student, teacher, options.standardise_logits, options.variant)
            soft = soft_cross_entropy(*logits, options.temperature) / student.logits.shape[-1]
            found.add("soft", batch.mean(soft), 1 - options.alpha)
        return found
