"""MiniLM and MiniLMv2: how the tokens of a text are related by their queries, keys and values in one layer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from pydantic import Field, field_validator, model_validator

from kdbert.data.batches import Batch
from kdbert.errors import UserError
from kdbert.heads import Head
from kdbert.losses.attention import padded_relation_loss, relation_loss, scores
from kdbert.methods.contract import Context, HiddenStates, LossTerms, Method, Models, Needs, Paper, Weight
from kdbert.methods.kd import HardAndSoftOptions, kd_terms
from kdbert.methods.terms import OnePair
from kdbert.models.layers import Pair, check_pairs

MOST_HEADS = 48  # relation heads, as published for models of base size
Relation = Literal["qq", "kk", "vv", "qk", "kq", "qv", "vq", "kv", "vk"]


class MiniLMOptions(HardAndSoftOptions):
    """Which relations, of which layers, in how many heads; and what is learned beside them."""

    relations: list[Relation] = Field(
        ["qq", "kk", "vv"], description="relations compared; qk,vv is the first paper's: attention and value relation"
    )
    relation_weights: list[float] | None = Field(
        None, description="weight of each relation (default: 1 / their number; original: 1)"
    )
    relation_heads: int | None = Field(
        None, ge=1,
        description="relation heads, which divide the attention width of both models (default: the most that do, "
        f"{MOST_HEADS} at most; with relation qk the models' own heads)",
    )  # fmt: skip
    layer_map: OnePair | None = Field(
        None,
        description="the teacher:student layers to compare, such as 10:6 (default: the last; of 24 layers the 21st)",
    )
    beta: Weight = Field(1.0, description="weight of the relations")
    kd: Weight = Field(
        1.0, description="on a task: weight of hard and soft loss together; 0: relations only, before fine-tuning"
    )
    reduction: Literal["real", "padded"] = Field(
        "real", description="original only: padded is a port of the first paper in which padded queries count"
    )

    @field_validator("relations", "relation_weights", mode="before")
    @classmethod
    def _read(cls, value: Any) -> Any:
        return [part.strip() for part in value.split(",")] if isinstance(value, str) else value

    @model_validator(mode="after")
    def _agree(self) -> MiniLMOptions:
        if not self.relations or len(set(self.relations)) < len(self.relations):
            raise ValueError("relations: expected at least one, each once, such as qq,kk,vv")
        if self.relation_weights is not None and len(self.relation_weights) != len(self.relations):
            raise ValueError(f"relation_weights: expected {len(self.relations)}, one for each of {self.relations}")
        if not (self.kd or any(self.weights.values())):
            raise ValueError("kd, and the weights of all relations, are 0; give one of them a weight")
        if self.reduction == "padded" and (self.variant == "corrected" or self.relations != ["qk", "vv"]):
            raise ValueError("reduction=padded is a port of the first paper; it goes with original and relations qk,vv")
        return self

    @property
    def trains_head(self) -> bool:
        return bool(self.kd)

    def warnings(self, context: Context) -> list[str]:
        found = super().warnings(context)
        if not (self.trains_head or context.models.headless):
            found.append(
                "minilm: with method.kd=0 nothing trains the student's head; start kd from this run (--student RUN)"
            )
        return found

    @classmethod
    def fault(cls, key: str, value: Any) -> str:
        """Negative weights of relations too."""
        least = min(value or [0]) if key == "relation_weights" else 0
        return f"relation_weights gives a relation {least:g}" if least < 0 else super().fault(key, value)

    @property
    def weights(self) -> dict[str, float]:
        """Relation -> its weight in the loss, of those that have one."""
        each = 1.0 if self.variant == "original" else 1 / len(self.relations)
        given = self.relation_weights or [each] * len(self.relations)
        weights = {name: self.beta * weight for name, weight in zip(self.relations, given, strict=True)}
        return {name: weight for name, weight in weights.items() if weight}

    def pair(self, models: Models) -> Pair:
        """The layers to compare."""
        teacher, student = models.teachers[0].layers, models.student.layers
        if self.layer_map is None:
            return 21 if teacher == 24 else teacher, student
        ((first, second),) = check_pairs(self.layer_map, teacher, student)
        if 0 in (first, second):
            raise UserError(f"--layer-map {first}:{second}: the embeddings, layer 0, have no queries, keys and values")
        return first, second

    def heads(self, models: Models) -> int:
        """How many relation heads both models' states are cut into."""
        sides = models.teachers[0], models.student
        if self.relation_heads is None and ("qk" in self.relations or self.reduction == "padded"):
            if sides[0].heads != sides[1].heads:
                raise UserError(
                    f"relation qk compares attention head by head; the teacher has {sides[0].heads} heads, the student "
                    f"{sides[1].heads}: say into how many both are cut with method.relation_heads"
                )
            return sides[0].heads
        widths = [side.heads * side.head_width for side in sides]
        common = math.gcd(*widths)
        if self.relation_heads is None:
            return next(heads for heads in range(MOST_HEADS, 0, -1) if common % heads == 0)
        if common % self.relation_heads:
            raise UserError(
                f"method.relation_heads={self.relation_heads} does not divide the attention widths of teacher and "
                f"student, {widths[0]} and {widths[1]}; take a divisor of {common}"
            )
        return self.relation_heads


class MiniLM(Method[MiniLMOptions]):
    """Relations of one layer, on plain text alone, on a task beside hard and soft loss (docs/quirks.md, section 12)."""

    name = "minilm"
    aliases = ("minilmv2", "self-attention-relations")
    summary = "keeps how the tokens of a text are related by queries, keys and values in one layer of the teacher"
    formula = (
        "kd * [alpha * hard + (1 - alpha) * soft] (on tasks) + beta * sum_x w_x * mean over texts, real tokens i and "
        "relation heads of KL(R_x(teacher)_i || R_x(student)_i); R_x = softmax over real tokens j of a_i b_j / "
        "sqrt(d), x = ab: qq, kk, vv or another pair of queries, keys, values; w_x = 1 / number of relations"
    )
    papers = (
        Paper(
            "MiniLMv2: Multi-Head Self-Attention Relation Distillation for Compressing Pretrained Transformers",
            "Wang, W., Bao, H., Huang, S., Dong, L. & Wei, F.",
            2021,
            "https://arxiv.org/abs/2012.15828",
        ),
        Paper(
            "MiniLM: Deep Self-Attention Distillation for Task-Agnostic Compression of Pre-Trained Transformers",
            "Wang, W., Wei, F., Dong, L., Bao, H., Yang, N. & Zhou, M.",
            2020,
            "https://arxiv.org/abs/2002.10957",
        ),
    )
    differences = (
        "There is no official training code. `original` is bloomberg/minilmv2.bb: weight 1 for each relation; its "
        "slices of real tokens assume padding on the right, which kdbert has. reduction=padded (original, relations "
        "qk,vv) is How-to-distill's port of the first paper: padded queries count, the value relation sees padding, "
        "the student's probabilities are 1e-7 at least. Published for plain text: 48 relation heads, teacher layer 12 "
        "(base) or 21 (of 24), batch 256 a GPU, rate 6e-4, 400,000 steps; then fine-tuning. What stands behind the "
        "queries, keys and values of the compared layer learns nothing from relations: there a student keeps what it "
        "started with."
    )
    heads = ("single_label", "multi_label", "regression", "token", "encoder")
    Options = MiniLMOptions

    def __init__(self, options: MiniLMOptions) -> None:
        super().__init__(options)
        self.pair, self.relation_heads = (0, 0), 0

    @classmethod
    def needs(cls, options: MiniLMOptions, models: Models | None) -> Needs:
        """Queries, keys and values of one layer of each, those that a relation with a weight reads."""
        weights = options.weights
        logits = bool(options.kd) and options.alpha != 1 and not (models is not None and models.headless)
        if models is None or not weights:
            return Needs(teachers=(1, 1), teacher_logits=logits)
        teacher, student = options.pair(models)
        options.heads(models)
        kinds = "".join(kind for kind in "qkv" if any(kind in name for name in weights))
        return Needs(
            teachers=(1, 1),
            teacher_logits=logits,
            teacher_attention={teacher: kinds},
            student_attention={student: kinds},
            pairs={"relation": ((teacher, student),)},
            compares_tokens=True,
            reads_padding=options.reduction == "padded",
            unreached=True,
        )

    @classmethod
    def heads_for(cls, options: MiniLMOptions) -> tuple[str, ...]:
        """On plain text there is nothing but relations to learn."""
        return cls.heads if options.weights else tuple(head for head in cls.heads if head != "encoder")

    @classmethod
    def takes_unlabelled(cls, options: MiniLMOptions, head: Head) -> bool:
        """Yes: they have all terms but the hard one."""
        return True

    def prepare(self, context: Context) -> None:
        """Note layers and relation heads."""
        super().prepare(context)
        if self.options.weights:
            self.pair, self.relation_heads = self.options.pair(context.models), self.options.heads(context.models)

    def forward(self, student: Any, teachers: Sequence[Any], batch: Batch) -> LossTerms:
        """On a task `hard` and `soft`; a term `relation.qq` (and so on) for each relation with a weight."""
        found, options = LossTerms(), self.options
        if not self.head.plain_text:
            weights = options.kd * options.alpha, options.kd * (1 - options.alpha)
            found = kd_terms(self.head, options, student, teachers[0], batch, weights)
        for name, value in self._relations(student, teachers[0]).items():
            found.add(f"relation.{name}", batch.mean(value), options.weights[name])
        return found

    def loss_of_texts(self, student: HiddenStates, teachers: Sequence[HiddenStates], batch: Batch) -> torch.Tensor:
        """The loss of each text, and 1."""
        relations = self._relations(student, teachers[0])
        whole = torch.stack([self.options.weights[name] * value for name, value in relations.items()]).sum(0)
        return torch.stack([whole, torch.ones_like(whole)], 1)

    def _relations(self, student: HiddenStates, teacher: HiddenStates) -> dict[str, torch.Tensor]:
        """Relation -> its divergence in each text, [B]."""
        found = {}
        for name in self.options.weights:
            theirs, ours = (
                (side.attention[layer][name[0]], side.attention[layer][name[1]])
                for side, layer in zip((teacher, student), self.pair, strict=True)
            )
            if self.options.reduction == "padded":
                related = scores(theirs)
                if name == "vv":  # divided by the root of the student's head width on both sides
                    related = related * (theirs[0].shape[-1] / ours[0].shape[-1]) ** 0.5
                mask = student.mask if name == "qk" else None
                found[name] = padded_relation_loss(scores(ours), related, mask)
            else:
                found[name] = relation_loss(ours, theirs, student.mask, self.relation_heads)
        return found
