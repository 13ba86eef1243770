"""Intra-feature structure: the CKA of each sample's tokens (FSD_I)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal, cast

import torch
from pydantic import Field

from kdbert.data.batches import Batch
from kdbert.methods.contract import Context, LossTerms, Method, MethodOptions, Models, Needs, Outputs, Reduced
from kdbert.methods.terms import FSD, KD_FORMULA, CKAOptions, inter_term, intra_term, kd_terms, token_gram
from kdbert.models.layers import Pair, penultimate_pair


class CKAIntra(Method):
    """KD + beta * intra term (METHODS.md section 3.1)."""

    name = "cka-i"
    aliases: ClassVar[tuple[str, ...]] = ("fsd-i", "cka-intra")
    summary = "keeps the teacher's structure among the tokens of each sample, by CKA"
    formula = (
        KD_FORMULA + " + beta * mean over layer pairs of -log(mean_b CKA(T_b, S_b)); CKA = |<KT, KS>| / "
        "(|KT| |KS|), K: centred inner products of a sample's tokens"
    )
    papers = (FSD,)
    differences = (
        "Default layers: the last but one of both (11:5 for 12 and 6 layers), as the published "
        "script has it. The mean over samples stands inside the logarithm, in both variants. `original` counts padding "
        "as tokens, and a sample with constant features makes the loss NaN; `corrected` centres each sample over its "
        "own real tokens and leaves out samples with fewer than two tokens or no variance. internal=false is the "
        "published script without its flag --internal: samples of the batch are compared, not tokens. beta 30 is the "
        "script's default; the paper's values for each task could not be found."
    )

    class Options(CKAOptions):
        """Options of `cka-i`."""

        name: Literal["cka-i"] = "cka-i"
        internal: bool = Field(
            True, description="compare the tokens of a sample; false: the samples of a batch, as cka-l"
        )

    def __init__(self, options: MethodOptions) -> None:
        super().__init__(options)
        self.pairs: tuple[Pair, ...] = ()
        self.batch_size = 0

    @staticmethod
    def default_pairs(teacher: int, student: int) -> tuple[Pair, ...]:
        """The layers that are compared where nobody says which."""
        return penultimate_pair(teacher, student)

    @staticmethod
    def _among_tokens(options: MethodOptions) -> bool:
        """Whether the tokens of a sample are compared, not the samples of a batch."""
        return isinstance(options, CKAIntra.Options) and options.internal

    @classmethod
    def teachers(cls, options: MethodOptions) -> tuple[int, int | None]:
        """One, unless only the hard loss has a weight."""
        options = cast(CKAOptions, options)
        return (1, 1) if options.alpha != 1 or options.beta else (0, 0)

    @classmethod
    def needs(cls, options: MethodOptions, models: Models) -> Needs:
        """Token structures or hidden states of the teacher, hidden states of the student."""
        options = cast(CKAOptions, options)
        if not models.teachers:
            return Needs()
        logits = options.alpha != 1
        if not options.beta:
            return Needs(teacher_logits=logits)
        tokens = cls._among_tokens(options)
        pairs = options.pairs(models, cls.default_pairs)
        layers = tuple(sorted({teacher for teacher, _ in pairs}))
        return Needs(
            teacher_logits=logits,
            teacher_hidden=() if tokens else layers,
            reduced=tuple(Reduced(f"gram.{layer}", layer, "token_pair") for layer in layers) if tokens else (),
            student_hidden=tuple(sorted({student for _, student in pairs})),
            pairs={"intra" if tokens else "local": pairs},
            compares_examples=True,
            compares_tokens=tokens,
            reads_padding=options.variant == "original",
        )

    def prepare(self, context: Context) -> None:
        """Note the layers."""
        self.pairs = next(iter(self.needs(self.options, context.models).pairs.values()), ())
        self.batch_size = context.batch_size

    def reduce(self, name: str, hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """The teacher's token structure, [B, L, L]."""
        return token_gram(hidden, mask, self.options.variant)

    def forward(self, student: Outputs, teachers: Sequence[Outputs], batch: Batch) -> LossTerms:
        """Terms `hard`, `soft`, and `intra` or `local`."""
        options = cast(CKAOptions, self.options)
        found = kd_terms(options, student, teachers[0] if teachers else None, batch)
        if not self.pairs:
            return found
        if self._among_tokens(options):
            grams = [teachers[0].reduced[f"gram.{layer}"] for layer, _ in self.pairs]
            name, term = "intra", intra_term(self.pairs, student, grams, batch, options.variant)
        else:
            name = "local"
            term = inter_term(self.pairs, student, teachers[0], batch, options.variant, self.batch_size)
        found.terms[name], found.weights[name] = term, options.beta
        return found
