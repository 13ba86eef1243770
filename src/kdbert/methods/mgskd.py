"""Relations of several sizes: among tokens in the lower layers, among texts in the upper ones (Liu et al. 2022)."""

from __future__ import annotations

from collections.abc import Sequence
from types import MappingProxyType

import torch
from pydantic import Field, model_validator

from kdbert.data.batches import Batch
from kdbert.errors import UserError
from kdbert.heads import Head
from kdbert.losses.attention import score_error
from kdbert.losses.points import Triples, angle_errors, attended, in_heads
from kdbert.methods.contract import Context, LossTerms, Method, Models, Needs, Outputs, Paper, Reduced, Share, Weight
from kdbert.methods.kd import KD_FORMULA, kd_terms
from kdbert.methods.terms import LayerOptions, Pairs, mean_of_sums
from kdbert.models.layers import Pair, all_pairs, layers_of

LEAST_UNITS = 4  # of a part, by default: in one of one unit an angle is 1 or -1


class MGSKDOptions(LayerOptions):
    """Options of `mgskd`."""

    original_defaults = MappingProxyType({"prediction": 0.0})

    alpha: Share = Field(0.5, description="share of the hard loss in the prediction's; the soft loss has 1 - alpha")
    temperature: float = Field(1.0, gt=0, description="tau, softens both distributions (TinyBERT's second stage: 1)")
    prediction: Weight = Field(
        1.0, description="weight of hard and soft loss together; 0: only relations are learned, and no head"
    )
    sample_weight: Weight = Field(4.0, description="weight of the relations among texts")
    token_weight: Weight = Field(1.0, description="weight of the relations among tokens")
    token_layers: int = Field(
        2, ge=0, description="M: of the pairs of layers, so many from below compare tokens, the others texts"
    )
    relation_heads: int | None = Field(
        None,
        ge=1,
        description="R, parts of a hidden state; without it 64, or the next number below that cuts both widths into "
        "parts of 4 units or more",
    )
    layer_map: Pairs | None = Field(
        None, description="teacher:student layers to compare, such as 2:1,4:2 (flag --layer-map); they are added up"
    )
    centres: int = Field(20, ge=1, description="k1, tokens at which angles are compared: those most attended to")
    ends: int = Field(20, ge=2, description="k2, tokens between which the angles lie: those a centre attends to most")

    @model_validator(mode="after")
    def _something_to_learn(self) -> MGSKDOptions:
        self.need_a_weight("prediction", "sample_weight", "token_weight")
        return self

    @property
    def trains_head(self) -> bool:
        return bool(self.prediction)

    def warnings(self, context: Context) -> list[str]:
        found = super().warnings(context)
        if not self.trains_head:
            found.append(
                "mgskd: with method.prediction=0 nothing trains the student's head; start kd from this run (--student "
                "RUN)"
            )
        if self.sample_weight and (count := len(self.pairs(context.models))) <= self.token_layers:
            found.append(
                f"mgskd: all {count} pairs of layers compare tokens (method.token_layers={self.token_layers}), so that "
                "sample_weight has no effect"
            )
        return found

    def default_pairs(self, teacher: int, student: int) -> tuple[Pair, ...]:
        return ((0, 0), *all_pairs(teacher, student))

    def parts(self, models: Models) -> int:
        """R for models of these widths."""
        widths = {"teacher": models.teachers[0].width, "student": models.student.width}
        if self.relation_heads is None:
            most = min(64, *(max(1, width // LEAST_UNITS) for width in widths.values()))
            return max(count for count in range(1, most + 1) if all(width % count == 0 for width in widths.values()))
        for role, width in widths.items():
            if width % self.relation_heads:
                raise UserError(
                    f"mgskd cuts a hidden state into method.relation_heads={self.relation_heads} parts, and the "
                    f"{role}'s width is {width}: give a number that divides the widths of both models, or none"
                )
        return self.relation_heads


class MGSKD(Method[MGSKDOptions]):
    """Angles and inner products of tokens, angles of texts. docs/quirks.md, 14.2."""

    name = "mgskd"
    aliases = ("multi-granularity",)
    summary = "keeps the teacher's relations among tokens in the lower layers, among texts in the upper ones"
    formula = (
        f"prediction * [{KD_FORMULA}] + token_weight * sum over the lower layers of (pairs + triples) + sample_weight "
        "* sum over the upper layers of sample. pairs: mean squared difference of the inner products of tokens, / "
        "sqrt(width / R), in each of R parts of a hidden state; triples: mean of h(angle_S - angle_T) at the "
        "`centres` tokens that the teacher attends to most, between the `ends` that each attends to most (attention "
        "as a softmax over these products); sample: the same at each text of the batch between two others, of mean "
        "token vectors, in each part; angle(i, j, k): cosine of (e_j - e_i, e_k - e_i), h: smooth L1"
    )
    papers = (
        Paper(
            "Multi-Granularity Structural Knowledge Distillation for Language Model Compression",
            "Liu, C., Tao, C., Feng, J. & Zhao, D.",
            2022,
            "https://aclanthology.org/2022.acl-long.71/",
        ),
    )
    differences = (
        "Phrases are left out in both variants: their spans were not released. What was released is the loss: no "
        "rate, no epochs, no task's numbers. The published run has two stages: relations alone (`original`: prediction "
        "0, so that the student's head stays as it was drawn), then `kd` from there (--student RUN). `corrected` "
        "learns both at once; method.prediction=0 gives the first stage. `original` takes the mean over all triples of "
        "texts, (i, i, j) too; `corrected` over those of three texts, so the term is B^3 / (B (B-1) (B-2)) times "
        "larger; below three texts it is 0. `original` divides by the sums over a batch, so long texts weigh more, and "
        "triples of tokens by those whose student angle is not 0; `corrected` takes each token's mean over its pairs, "
        "each text's over its triples, and leaves out points closer than a hundredth of their size, at which an angle "
        "has no meaning and its gradient no bound. The published code writes zeros into the model's hidden states."
    )

    Options = MGSKDOptions

    def __init__(self, options: MGSKDOptions) -> None:
        super().__init__(options)
        self.token_pairs: tuple[Pair, ...] = ()
        self.sample_pairs: tuple[Pair, ...] = ()
        self.parts = 1

    @classmethod
    def needs(cls, options: MGSKDOptions, models: Models | None) -> Needs:
        """Hidden states of the lower layers; of the upper ones the teacher's mean vectors."""
        logits = bool(options.prediction) and options.alpha != 1
        relations = bool(options.token_weight or options.sample_weight)
        if not (logits or relations):
            return Needs()
        if models is None or not relations:
            return Needs(teachers=(1, 1), teacher_logits=logits)
        options.parts(models)  # refuses a number that does not divide the widths
        pairs = sorted(options.pairs(models), key=lambda pair: pair[1])
        tokens = pairs[: options.token_layers] if options.token_weight else []
        samples = pairs[options.token_layers :] if options.sample_weight else []
        return Needs(
            teachers=(1, 1),
            teacher_logits=logits,
            teacher_hidden=layers_of(tokens)[0],
            reduced=tuple(Reduced(f"mean.{layer}", layer, "example") for layer in layers_of(samples)[0]),
            student_hidden=layers_of((*tokens, *samples))[1],
            pairs={name: tuple(some) for name, some in (("token", tokens), ("sample", samples)) if some},
            compares_examples=1 if options.variant == "original" else 3 if samples else 0,
            compares_tokens=bool(tokens),
        )

    @classmethod
    def takes_unlabelled(cls, options: MGSKDOptions, head: Head) -> bool:
        """Yes: they have all terms but the hard one."""
        return True

    def prepare(self, context: Context) -> None:
        """Note the layers, and into how many parts a hidden state is cut."""
        super().prepare(context)
        pairs = self.needs(self.options, context.models).pairs
        self.token_pairs, self.sample_pairs = pairs.get("token", ()), pairs.get("sample", ())
        if pairs:
            self.parts = self.options.parts(context.models)

    def reduce(self, name: str, hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """The mean vector of each text, [B, H]."""
        real = mask.to(hidden.dtype).unsqueeze(-1)
        return (hidden * real).sum(1) / real.sum(1)

    def forward(self, student: Outputs, teachers: Sequence[Outputs], batch: Batch) -> LossTerms:
        """Terms `hard`, `soft`, and with a weight `token` and `sample`: sums over their layers."""
        options, teacher = self.options, teachers[0] if teachers else None
        weights = options.prediction * options.alpha, options.prediction * (1 - options.alpha)
        found = kd_terms(self.head, options, student, teacher, batch, weights)
        if teacher is None:
            return found
        if self.token_pairs:
            tokens = [self._tokens(student, teacher, batch, pair) for pair in self.token_pairs]
            found.add("token", torch.stack(tokens).sum(), options.token_weight)
        if self.sample_pairs:
            samples = [self._samples(student, teacher, batch, pair) for pair in self.sample_pairs]
            found.add("sample", torch.stack(samples).sum() * batch.share, options.sample_weight)
        return found

    def _tokens(self, student: Outputs, teacher: Outputs, batch: Batch, pair: Pair) -> torch.Tensor:
        """Inner products of every two tokens, and angles of chosen triples, of one pair of layers."""
        options, mask, original = self.options, student.mask, self.options.variant == "original"
        own, other = student.hidden[pair[1]], teacher.hidden[pair[0]]
        lengths = mask.sum(1)
        ours, theirs = in_heads(own, self.parts), in_heads(other, self.parts)
        products = score_error((ours, ours), (theirs, theirs), mask)  # [B], sums over pairs of tokens
        triples = attended(other, mask, self.parts, options.centres, options.ends)
        errors = angle_errors(own, other, mask, triples, error="smooth_l1", exact=original)
        summed, counts = errors.unflatten(0, (len(own), -1)).sum(1).unbind(1)
        if original:
            pairs = mean_of_sums(batch, products, (lengths**2).to(products.dtype))
            return pairs + mean_of_sums(batch, summed, counts)
        return batch.token_mean(products / lengths) + batch.mean(summed / counts.clamp(min=1))

    def _samples(self, student: Outputs, teacher: Outputs, batch: Batch, pair: Pair) -> torch.Tensor:
        """Angles of every three texts of the batch, of one pair of layers."""
        original = self.options.variant == "original"
        means = self.reduce("", student.hidden[pair[1]], student.mask), teacher.reduced[f"mean.{pair[0]}"]
        own, other = (in_heads(batch.gather(one)[None], self.parts)[0] for one in means)
        everyone = own.new_ones(own.shape[:2])
        triples = Triples.of_all(everyone > 0, distinct=not original)
        summed, counts = angle_errors(own, other, everyone, triples, error="smooth_l1", exact=original).sum(0)
        return summed / (own.shape[0] * own.shape[1] ** 3 if original else counts.clamp(min=1))
