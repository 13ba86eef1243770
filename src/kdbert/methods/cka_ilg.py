"""Intra, local and global feature structures together (FSD_ILG)."""

from __future__ import annotations

from collections.abc import Sequence
from types import MappingProxyType
from typing import Any, ClassVar, Literal, cast

import torch
from pydantic import Field, field_validator

from kdbert.data.batches import Batch
from kdbert.methods.contract import (
    Context,
    LossTerms,
    Method,
    MethodOptions,
    Models,
    Needs,
    Outputs,
    Reduced,
    Share,
    Weight,
)
from kdbert.methods.terms import (
    FSD,
    KD_FORMULA,
    GlobalMemory,
    StructureOptions,
    inter_term,
    intra_term,
    kd_terms,
    read_pairs,
    token_gram,
)
from kdbert.models.layers import Pair, check_pairs, penultimate_pair


class ILGOptions(StructureOptions):
    """Options of `cka-ilg` and `cka-il`."""

    temperature: float = Field(3.0, gt=0, description="tau, softens both distributions")
    gamma: Share = Field(0.5, description="share of the intra term; the local term has 1 - gamma")
    epsilon: Weight = Field(0.1, description="weight of all structure terms together (beta in the published README)")

    def shares(self) -> dict[str, float]:
        """The weight of each structure term."""
        return {"intra": self.epsilon / 2 * self.gamma, "local": self.epsilon / 2 * (1 - self.gamma)}


class CKAIntraLocalGlobal(Method):
    """KD + epsilon * [sigma * global + (1 - sigma) * (gamma * intra + (1 - gamma) * local) / 2].

    METHODS.md section 3.4.
    """

    name = "cka-ilg"
    aliases: ClassVar[tuple[str, ...]] = ("fsd-ilg", "fsd")
    summary = "keeps the teacher's structures among tokens, batch samples and centroids, by CKA"
    formula = (
        KD_FORMULA + " + epsilon * [sigma * (beta * distance + (1 - beta) * cosine + memory_cka) + (1 - sigma) * 1/2 * "
        "(gamma * intra + (1 - gamma) * local)]; the terms are those of cka-g, cka-i and cka-l"
    )
    papers = (FSD,)
    differences = (
        "All terms compare the last but one layers (11:5), the local one too, unlike cka-l. The script's defaults "
        "(alpha 0, beta 5, gamma 0, sigma 5) give negative weights, 1 - beta = 1 - sigma = -4: they are the defaults "
        "of `original`; `corrected` refuses them and has 0.5 each. Its README speaks of gamma_m (here beta), gamma_g "
        "(sigma), gamma_i and gamma_l (gamma and 1 - gamma, which are tied) and beta (epsilon), flags that do not "
        "exist. FSD_IL is sigma 0 (see cka-il). epsilon 0.1 is the script's default, chosen for its Euclidean "
        "distances: `corrected` keeps it, but there the structure terms weigh little beside hard and soft loss, and "
        "it is hardly more than kd; raise it. For memory, padding and degenerate samples see cka-g and cka-i."
    )

    class Options(ILGOptions):
        """Options of `cka-ilg`."""

        original_defaults = MappingProxyType({"alpha": 0.0, "beta": 5.0, "gamma": 0.0, "sigma": 5.0})

        name: Literal["cka-ilg"] = "cka-ilg"
        beta: Share = Field(0.5, description="share of the distances in the global term; the cosines have 1 - beta")
        sigma: Share = Field(0.5, description="share of the global term; intra and local have 1 - sigma")
        global_layer_map: list[Pair] | None = Field(
            None, description="the pair of the global term, such as 11:5, where layer_map gives several"
        )

        @field_validator("global_layer_map", mode="before")
        @classmethod
        def _read_global(cls, value: Any) -> Any:
            return read_pairs(value)

        @field_validator("global_layer_map")
        @classmethod
        def _one(cls, value: Any) -> Any:
            if value is not None and len(value) != 1:
                raise ValueError("the memory is of one layer, so expected one pair such as 11:5")
            return value

        def shares(self) -> dict[str, float]:
            """The weight of each structure term."""
            rest = {name: (1 - self.sigma) * share for name, share in super().shares().items()}
            whole = self.epsilon * self.sigma
            return {
                **rest, "distance": whole * self.beta, "cosine": whole * (1 - self.beta), "memory_cka": whole,
            }  # fmt: skip

        def global_pair(self, models: Models) -> tuple[Pair, ...]:
            """The layers of the global term: its own, the only pair of `layer_map`, or the last but one."""
            chosen = self.global_layer_map
            if chosen is None and self.layer_map is not None and len(self.layer_map) == 1:
                chosen = self.layer_map
            depths = models.teachers[0].layers, models.student.layers
            return penultimate_pair(*depths) if chosen is None else check_pairs(chosen, *depths)

    def __init__(self, options: MethodOptions) -> None:
        super().__init__(options)
        self.pairs: tuple[Pair, ...] = ()
        self.batch_size = 0
        self.memory: GlobalMemory | None = None

    @classmethod
    def teachers(cls, options: MethodOptions) -> tuple[int, int | None]:
        """One, unless only the hard loss has a weight."""
        options = cast(ILGOptions, options)
        return (1, 1) if options.alpha != 1 or options.epsilon else (0, 0)

    @classmethod
    def reads_memory(cls, options: MethodOptions) -> bool:
        """Where the global term has a weight."""
        return isinstance(options, CKAIntraLocalGlobal.Options) and bool(options.sigma and options.epsilon)

    @classmethod
    def needs(cls, options: MethodOptions, models: Models) -> Needs:
        """What the terms with a weight read."""
        options = cast(ILGOptions, options)
        if not models.teachers:
            return Needs()
        logits = options.alpha != 1
        shares = options.shares()
        pairs = {name: options.pairs(models, penultimate_pair) for name in ("intra", "local") if shares[name]}
        memory_layer = None
        if isinstance(options, CKAIntraLocalGlobal.Options) and cls.reads_memory(options):
            pairs["global"] = options.global_pair(models)
            memory_layer = pairs["global"][0][0]
        reduced = [Reduced(f"gram.{layer}", layer, "token_pair") for layer, _ in pairs.get("intra", ())]
        if memory_layer is not None:
            reduced.append(Reduced(f"global.{memory_layer}", memory_layer, "example", by_memory=True))
        return Needs(
            teacher_logits=logits,
            teacher_hidden=tuple(sorted({teacher for teacher, _ in pairs.get("local", ())})),
            reduced=tuple(dict.fromkeys(reduced)),
            student_hidden=tuple(sorted({student for some in pairs.values() for _, student in some})),
            pairs=pairs,
            memory_layer=memory_layer,
            compares_examples="intra" in pairs or "local" in pairs,
            compares_tokens="intra" in pairs,
            reads_padding=options.variant == "original" and bool(pairs),
        )

    def prepare(self, context: Context) -> None:
        """Note the layers, take over the teacher's memory, draw the student's."""
        pairs = self.needs(self.options, context.models).pairs
        self.pairs = pairs.get("intra", pairs.get("local", ()))
        self.batch_size = context.batch_size
        if "global" in pairs:
            assert context.memory is not None
            ((_, layer),) = pairs["global"]
            self.memory = GlobalMemory(context.memory, layer, context.models.student.width, self.options.variant)

    def reduce(self, name: str, hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """The teacher's token structure [B, L, L], or its distances and cosines [B, 2, K]."""
        if name.startswith("gram."):
            return token_gram(hidden, mask, self.options.variant)
        assert self.memory is not None
        return self.memory.teacher_relations(hidden, mask)

    def forward(self, student: Outputs, teachers: Sequence[Outputs], batch: Batch) -> LossTerms:
        """Terms `hard`, `soft`, `intra`, `local`, `distance`, `cosine`, `memory_cka`."""
        options = cast(ILGOptions, self.options)
        variant = options.variant
        found = kd_terms(options, student, teachers[0] if teachers else None, batch)
        if not teachers:
            return found
        shares = options.shares()
        if shares["intra"]:
            grams = [teachers[0].reduced[f"gram.{layer}"] for layer, _ in self.pairs]
            found.terms["intra"] = intra_term(self.pairs, student, grams, batch, variant)
        if shares["local"]:
            found.terms["local"] = inter_term(self.pairs, student, teachers[0], batch, variant, self.batch_size)
        found.weights.update({name: shares[name] for name in ("intra", "local") if name in found.terms})
        if self.memory is not None:
            relations = next(value for name, value in teachers[0].reduced.items() if name.startswith("global."))
            weights = shares["distance"], shares["cosine"], shares["memory_cka"]
            self.memory.add_terms(found, student, relations, batch, weights)
        return found
