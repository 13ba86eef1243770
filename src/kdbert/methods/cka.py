"""Feature Structure Distillation: the CKA methods (Jung et al. 2022; docs/quirks.md, section 3).

Each of the five minimises KD plus weighted structure terms. With K a centred matrix of inner products, and
CKA(T, S) = |<KT, KS>| / (|KT| |KS|), the terms are:

- `intra`: -log of the mean over samples of the CKA of their tokens;
- `local`: -log of the CKA of a batch's samples, each flattened to one row;
- `distance`, `cosine`: mean squared difference of student's and teacher's distances (cosines) between a sample and
  each centroid of the training split;
- `memory_cka`: -log of the CKA of the student's centroids, which are trained, and the teacher's.

Which terms a method has is what the `weights` of its options say, and which layers it compares, their `pairs`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import MappingProxyType
from typing import ClassVar, TypeVar

import torch
from pydantic import Field, model_validator
from torch import nn

from kdbert.data.batches import Batch
from kdbert.heads import Head
from kdbert.heads.head import Variant
from kdbert.losses.centroids import relation_loss, relations
from kdbert.losses.cka import centered_gram, cka, cka_loss, defined_cka
from kdbert.methods.contract import Context, LossTerms, Method, Models, Needs, Outputs, Paper, Reduced, Share, Weight
from kdbert.methods.kd import KD_FORMULA, kd_terms
from kdbert.methods.terms import LayerOptions, OnePair
from kdbert.models.layers import Pair, check_pairs, last_pair, layers_of, layerwise_pairs, penultimate_pair

INITIALIZER_RANGE = 0.02  # BERT's


class CKAOptions(LayerOptions):
    """What the terms read of a method's options."""

    def default_pairs(self, teacher: int, student: int) -> tuple[Pair, ...]:
        return penultimate_pair(teacher, student)

    def weights(self) -> dict[str, float]:
        """The weights of the structure terms; one of weight 0 is not formed."""
        raise NotImplementedError

    def global_pairs(self, models: Models) -> tuple[Pair, ...]:
        """The one pair of layers for the terms that read centroids."""
        return self.pairs(models)


class LayerwiseOptions(CKAOptions):
    """Options of the methods that compare tokens or samples."""

    layerwise: bool = Field(
        False, description="compare every student layer but the last (12 and 6 layers: 2:1, 4:2, 6:3, 8:4, 10:5)"
    )

    @model_validator(mode="after")
    def _one_choice(self) -> LayerwiseOptions:
        if self.layerwise and self.layer_map is not None:
            raise ValueError("layerwise and layer_map both say which layers are compared; keep one of them")
        return self

    def pairs(self, models: Models) -> tuple[Pair, ...]:
        """The layers to compare."""
        depths = models.teachers[0].layers, models.student.layers
        return layerwise_pairs(*depths) if self.layerwise else super().pairs(models)


OptionsT = TypeVar("OptionsT", bound=CKAOptions)


class _CKA(Method[OptionsT]):
    """What the five methods share."""

    papers = (
        Paper(
            "Feature Structure Distillation with Centered Kernel Alignment in BERT Transferring",
            "Jung, H.-J., Kim, D., Na, S.-H. & Kim, K.",
            2022,
            "https://arxiv.org/abs/2204.08922",
        ),
    )
    teacher_epsilon: ClassVar[float] = 0.0  # added under the root of the teacher's distances in `original`

    def __init__(self, options: OptionsT) -> None:
        super().__init__(options)
        self.pairs: dict[str, tuple[Pair, ...]] = {}
        self.batch_size = 0
        self.centroids: AmongCentroids | None = None

    @classmethod
    def needs(cls, options: OptionsT, models: Models | None) -> Needs:
        """What the terms with a weight read."""
        formed = [name for name, weight in options.weights().items() if weight]
        logits, among = options.alpha != 1, "memory_cka" in formed
        if not (logits or formed):
            return Needs()
        if models is None or not formed:
            return Needs(teachers=(1, 1), teacher_logits=logits, reads_centroids=among)
        pairs = {name: options.pairs(models) for name in formed if name in ("intra", "local")}
        layers = {name: layers_of(some)[0] for name, some in pairs.items()}
        reduced = [Reduced(f"gram.{layer}", layer, "token_pair") for layer in layers.get("intra", ())]
        centroids_layer = None
        if among:
            pairs["global"] = options.global_pairs(models)
            ((centroids_layer, _),) = pairs["global"]
            reduced.append(Reduced(f"global.{centroids_layer}", centroids_layer, "example", by_centroids=True))
        return Needs(
            teachers=(1, 1),
            reads_centroids=among,
            centroids_layer=centroids_layer,
            teacher_logits=logits,
            teacher_hidden=layers.get("local", ()),
            reduced=tuple(reduced),
            student_hidden=layers_of(pair for some in pairs.values() for pair in some)[1],
            pairs=pairs,
            compares_examples="intra" in pairs or "local" in pairs,
            compares_tokens="intra" in pairs,
            reads_padding=options.variant == "original",
        )

    @classmethod
    def takes_unlabelled(cls, options: OptionsT, head: Head) -> bool:
        """Yes: they have all terms but the hard one."""
        return True

    def prepare(self, context: Context) -> None:
        """Note the layers, take over the teacher's centroids, draw the student's."""
        super().prepare(context)
        self.pairs = dict(self.needs(self.options, context.models).pairs)
        self.batch_size = context.batch_size
        if "global" in self.pairs:
            assert context.centroids is not None
            width, variant = context.models.student.width, self.options.variant
            self.centroids = AmongCentroids(context.centroids, width, variant, self.teacher_epsilon)

    def reduce(self, name: str, hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """The teacher's token structure [B, L, L], or its distances and cosines [B, 2, K]."""
        if name.startswith("gram."):
            return self._token_gram(hidden, mask)
        assert self.centroids is not None
        return self.centroids.of_teacher(hidden, mask)

    def forward(self, student: Outputs, teachers: Sequence[Outputs], batch: Batch) -> LossTerms:
        """Terms `hard`, `soft`, and the structure terms that have a weight."""
        found = kd_terms(self.head, self.options, student, teachers[0] if teachers else None, batch)
        weights = self.options.weights()
        for name, compute in (("intra", self._intra), ("local", self._local)):
            if name in self.pairs:
                values = [compute(student, teachers[0], batch, pair) for pair in self.pairs[name]]
                found.add(name, torch.stack(values).mean() * batch.share, weights[name])
        if self.centroids is not None:
            ((teacher_layer, layer),) = self.pairs["global"]
            teacher = teachers[0].reduced[f"global.{teacher_layer}"]
            sides = self.centroids.relations(student.hidden[layer], student.mask, self.centroids.student)
            for number, name in enumerate(("distance", "cosine")):
                if weights[name]:
                    term = batch.mean(relation_loss(sides[number], teacher[:, number]))
                    found.add(name, term, weights[name])
            found.add("memory_cka", self.centroids.cka_term() * batch.share, weights["memory_cka"])
        return found

    def _token_gram(self, hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Centred inner products of each sample's tokens, [B, L, L]; `original` counts padding as tokens."""
        return centered_gram(hidden, None if self.options.variant == "original" else mask)

    def _intra(self, student: Outputs, teacher: Outputs, batch: Batch, pair: Pair) -> torch.Tensor:
        grams = teacher.reduced[f"gram.{pair[0]}"], self._token_gram(student.hidden[pair[1]], student.mask)
        return structure_loss(*grams, self.options.variant, batch.gather)

    def _local(self, student: Outputs, teacher: Outputs, batch: Batch, pair: Pair) -> torch.Tensor:
        rows = self._rows(teacher, pair[0], batch), self._rows(student, pair[1], batch)
        first, second = (row_gram(side, self.options.variant) for side in rows)
        return structure_loss(first, second, self.options.variant)

    def _rows(self, side: Outputs, layer: int, batch: Batch) -> torch.Tensor:
        """The samples of the micro-batch, one row each.

        `original` cuts a smaller micro-batch into as many rows as a full one has, pieces of samples, where that
        divides evenly (docs/quirks.md, F1).
        """
        if self.options.variant == "corrected":
            return batch.gather(side.real(layer).flatten(1))
        hidden = batch.gather(side.hidden[layer])
        return hidden.reshape(self.batch_size if hidden.numel() % self.batch_size == 0 else len(hidden), -1)


def row_gram(rows: torch.Tensor, variant: Variant) -> torch.Tensor:
    """Centred inner products [n, n] of rows [n, d] that all count."""
    return centered_gram(rows, None if variant == "original" else torch.ones(len(rows), device=rows.device))


def structure_loss(
    first: torch.Tensor,
    second: torch.Tensor,
    variant: Variant,
    gather: Callable[[torch.Tensor], torch.Tensor] = lambda values: values,
) -> torch.Tensor:
    """-log of the (mean) CKA of Gram matrices; `corrected` leaves out those with nothing to compare."""
    if variant == "original":
        return cka_loss(gather(cka(first, second)))
    values, defined = defined_cka(first, second)
    return cka_loss(gather(values), gather(defined.to(values.dtype)) > 0)


class AmongCentroids(nn.Module):
    """Where samples are among centroids: the teacher's among those of its layer, the student's among its own.

    The student's centroids are trained. `corrected` draws them from N(0, 0.02), as BERT's weights are drawn and as the
    published code meant to (docs/quirks.md, F12); `original` from N(0, 1). `corrected` divides distances by
    sqrt(length x width), so that the weight of the term depends on neither.

    Args:
        teacher: [K, length, H]. width: of the student. teacher_epsilon: see `relations`.
    """

    teacher_gram: torch.Tensor

    def __init__(self, teacher: torch.Tensor, width: int, variant: Variant, teacher_epsilon: float) -> None:
        super().__init__()
        self.teacher = teacher
        self.variant = variant
        self.teacher_epsilon = teacher_epsilon
        std = 1.0 if variant == "original" else INITIALIZER_RANGE
        self.student = nn.Parameter(torch.randn(*teacher.shape[:2], width) * std)
        self.register_buffer("teacher_gram", row_gram(teacher.flatten(1), variant), persistent=False)

    def of_teacher(self, hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """The teacher's distances and cosines, [B, 2, K]: constant over a run."""
        if self.teacher.device != hidden.device or self.teacher.dtype != hidden.dtype:
            self.teacher = self.teacher.to(hidden)
        return torch.stack(self.relations(hidden, mask, self.teacher, self.teacher_epsilon), 1)

    def cka_term(self) -> torch.Tensor:
        """-log of the CKA of both sides' centroids."""
        return structure_loss(self.teacher_gram, row_gram(self.student.flatten(1), self.variant), self.variant)

    def relations(
        self, hidden: torch.Tensor, mask: torch.Tensor, centroids: torch.Tensor, epsilon: float = 0.0
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Distances [B, K] and cosines [B, K]."""
        if self.variant == "original":
            return relations(hidden, centroids, epsilon)
        distances, cosines = relations(hidden * mask.to(hidden.dtype).unsqueeze(-1), centroids)
        return distances / centroids[0].numel() ** 0.5, cosines


class IntraOptions(LayerwiseOptions):
    """Options of `cka-i`."""

    beta: Weight = Field(30.0, description="weight of the structure term")
    internal: bool = Field(True, description="compare the tokens of a sample; false: the samples of a batch, as cka-l")

    def weights(self) -> dict[str, float]:
        return {"intra" if self.internal else "local": self.beta}


class CKAIntra(_CKA[IntraOptions]):
    """KD + beta * intra (FSD_I)."""

    name = "cka-i"
    aliases = ("fsd-i", "cka-intra")
    summary = "keeps the teacher's structure among the tokens of each sample, by CKA"
    formula = (
        KD_FORMULA + " + beta * mean over layer pairs of -log(mean_b CKA(T_b, S_b)); CKA = |<KT, KS>| / "
        "(|KT| |KS|), K: centred inner products of a sample's tokens"
    )
    differences = (
        "`original` counts padding as tokens, and a sample with constant features makes the loss NaN; `corrected` "
        "centres each sample over its own real tokens and leaves out samples with fewer than two tokens or no "
        "variance. In both the mean over samples stands inside the logarithm. internal=false is the published script "
        "without its flag --internal. beta 30 is the script's default; the paper's values for each task could not be "
        "found."
    )
    Options = IntraOptions


class LocalOptions(LayerwiseOptions):
    """Options of `cka-l`, which compares the last layers, unlike the rest of the family."""

    beta: Weight = Field(30.0, description="weight of the structure term")

    def default_pairs(self, teacher: int, student: int) -> tuple[Pair, ...]:
        return last_pair(teacher, student)

    def weights(self) -> dict[str, float]:
        return {"local": self.beta}


class CKALocal(_CKA[LocalOptions]):
    """KD + beta * local (FSD_L)."""

    name = "cka-l"
    aliases = ("fsd-l", "cka-local")
    summary = "keeps the teacher's structure among the samples of a batch, by CKA"
    formula = (
        KD_FORMULA + " + beta * mean over layer pairs of -log CKA(T, S); CKA = |<KT, KS>| / (|KT| |KS|), K: centred "
        "inner products of a batch's samples, each sample one flattened row"
    )
    differences = (
        "The LAST layers of both are compared (12:6), unlike in cka-i, cka-g and cka-ilg. `original` cuts the smaller "
        "last batch of an epoch into as many rows as a full one has, pieces of samples, and lets padding in; "
        "`corrected` takes the samples there are, zero at padding, and gives 0 for a batch of one sample. beta 30 is "
        "the script's default; on the quickstart task (one seed, dev accuracy; kd .59) 30, 10, 3, 1 gave .49, .65, "
        ".67, .68."
    )
    Options = LocalOptions


class GlobalOptions(CKAOptions):
    """Options of `cka-g`."""

    original_defaults = MappingProxyType({"beta": 30.0})

    layer_map: OnePair | None = Field(None, description="the teacher:student layers to compare, such as 11:5")
    beta: Weight = Field(0.3, description="weight of the global terms")
    gamma: Share = Field(0.5, description="share of the distances; the cosines have 1 - gamma")

    def weights(self) -> dict[str, float]:
        return {"distance": self.beta * self.gamma, "cosine": self.beta * (1 - self.gamma), "memory_cka": self.beta}


class CKAGlobal(_CKA[GlobalOptions]):
    """KD + beta * (gamma * distance + (1 - gamma) * cosine + memory_cka) (FSD_G)."""

    name = "cka-g"
    aliases = ("fsd-g", "cka-global")
    summary = "keeps where the teacher's samples lie among the centroids of all training samples"
    formula = (
        KD_FORMULA + " + beta * [gamma * distance + (1 - gamma) * cosine + memory_cka]; distance, cosine: mean squared "
        "difference of student's and teacher's distances (cosines) between a sample and each centroid; memory_cka: "
        "-log CKA(student's centroids, teacher's centroids)"
    )
    differences = (
        "The published distances are Euclidean and drown the labels: at length 128 and width 768 their term is 98,304 "
        "times that of `corrected`, which divides distances by sqrt(length x width). beta 30 is the published "
        "script's default (its README adds the term without a weight); on the quickstart task (one seed, dev "
        "accuracy; kd .59) `corrected` with beta 30, 3, 1, 0.3 gave .30, .17, .20, .47, so it helped nowhere there. "
        "The student's centroids are trained; they start from N(0, 1) in `original` and from N(0, 0.02), as the code "
        "meant to, in `corrected`. The published memory is an exponential average of the last members in file order "
        "(memory.algorithm=legacy, for `original`), though the paper speaks of clustering; that of `corrected` is by "
        "true k-means. Padding counts in `original`, with memory and batches at the same full length."
    )
    Options = GlobalOptions
    teacher_epsilon = 1e-8  # this script alone


class IntraLocalOptions(LayerwiseOptions):
    """Options of `cka-il`."""

    original_defaults = MappingProxyType({"alpha": 0.0, "gamma": 0.0})

    temperature: float = Field(3.0, gt=0, description="tau, softens both distributions")
    gamma: Share = Field(0.5, description="share of the intra term; the local term has 1 - gamma")
    epsilon: Weight = Field(0.1, description="weight of all structure terms together (beta in the published README)")

    def weights(self) -> dict[str, float]:
        return {"intra": self.epsilon / 2 * self.gamma, "local": self.epsilon / 2 * (1 - self.gamma)}


class CKAIntraLocal(_CKA[IntraLocalOptions]):
    """KD + epsilon * (gamma * intra + (1 - gamma) * local) / 2 (FSD_IL)."""

    name = "cka-il"
    aliases = ("fsd-il", "cka-intra-local")
    summary = "keeps the teacher's structures among tokens and batch samples, by CKA"
    formula = (
        KD_FORMULA + " + epsilon * 1/2 * (gamma * intra + (1 - gamma) * local); the terms are those of cka-i and cka-l"
    )
    differences = (
        "The published code has no such script: it is cka-ilg's with --sigma 0, which is what this name runs. Both "
        "terms compare the last but one layers (11:5). The script's other defaults (alpha 0, gamma 0) are those of "
        "`original`; with gamma 0 the intra term has no weight."
    )
    Options = IntraLocalOptions


class IntraLocalGlobalOptions(IntraLocalOptions):
    """Options of `cka-ilg`."""

    original_defaults = MappingProxyType({"alpha": 0.0, "beta": 5.0, "gamma": 0.0, "sigma": 5.0})

    beta: Share = Field(0.5, description="share of the distances in the global term; the cosines have 1 - beta")
    sigma: Share = Field(0.5, description="share of the global term; intra and local have 1 - sigma")
    global_layer_map: OnePair | None = Field(
        None, description="the pair of the global term, such as 11:5, where layer_map gives several"
    )

    def weights(self) -> dict[str, float]:
        whole = self.epsilon * self.sigma
        return {
            **{name: (1 - self.sigma) * weight for name, weight in super().weights().items()},
            "distance": whole * self.beta,
            "cosine": whole * (1 - self.beta),
            "memory_cka": whole,
        }

    def global_pairs(self, models: Models) -> tuple[Pair, ...]:
        """Its own pair, the only one of `layer_map`, or the last but one layers."""
        chosen = self.global_layer_map
        if chosen is None and self.layer_map is not None and len(self.layer_map) == 1:
            chosen = self.layer_map
        depths = models.teachers[0].layers, models.student.layers
        return penultimate_pair(*depths) if chosen is None else check_pairs(chosen, *depths)


class CKAIntraLocalGlobal(_CKA[IntraLocalGlobalOptions]):
    """KD + epsilon * [sigma * global + (1 - sigma) * (gamma * intra + (1 - gamma) * local) / 2] (FSD_ILG).

    Here global is beta * distance + (1 - beta) * cosine + memory_cka.
    """

    name = "cka-ilg"
    aliases = ("fsd-ilg", "fsd")
    summary = "keeps the teacher's structures among tokens, batch samples and centroids, by CKA"
    formula = (
        KD_FORMULA + " + epsilon * [sigma * (beta * distance + (1 - beta) * cosine + memory_cka) + (1 - sigma) * 1/2 * "
        "(gamma * intra + (1 - gamma) * local)]; distance, cosine, memory_cka as in cka-g; intra: -log of the mean CKA "
        "of a sample's tokens (cka-i); local: -log CKA of a batch's samples (cka-l)"
    )
    differences = (
        "All terms compare the last but one layers (11:5), the local one too, unlike cka-l. The script's defaults "
        "(alpha 0, beta 5, gamma 0, sigma 5) give negative weights, 1 - beta = 1 - sigma = -4: they are the defaults "
        "of `original`; `corrected` refuses them and has 0.5 each. Its README calls beta gamma_m, sigma gamma_g, gamma "
        "and 1 - gamma gamma_i and gamma_l, and epsilon beta. epsilon 0.1 is the script's default, chosen for its "
        "Euclidean distances: in `corrected` the structure terms then weigh little beside hard and soft loss; raise "
        "it. For memory, padding and degenerate samples see cka-g and cka-i."
    )
    Options = IntraLocalGlobalOptions
