"""Local inter-feature structure: the CKA of a batch's samples (FSD_L)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, cast

from kdbert.data.batches import Batch
from kdbert.layers import Pair, last_pair
from kdbert.methods.contract import Context, LossTerms, Method, MethodOptions, Models, Needs, Outputs
from kdbert.methods.terms import FSD, KD_FORMULA, CKAOptions, inter_term, kd_terms


class CKALocal(Method):
    """KD + beta * local term (METHODS.md section 3.2)."""

    name = "cka-l"
    aliases = ("fsd-l", "cka-local")
    summary = "keeps the teacher's structure among the samples of a batch, by CKA"
    formula = (
        KD_FORMULA + " + beta * mean over layer pairs of -log CKA(T, S); CKA = |<KT, KS>| / (|KT| |KS|), K: centred "
        "inner products of a batch's samples, each sample one flattened row"
    )
    papers = (FSD,)
    differences = (
        "Default layers: the LAST of both (12:6), unlike cka-i, cka-g and cka-ilg, whose scripts take the last but "
        "one. `original` cuts the smaller last batch of an epoch into as many rows as a full one has, pieces of "
        "samples, and lets padding in; `corrected` takes the samples there are, zero at padding, and gives 0 for "
        "a batch of one sample. beta 30 is the script's default."
    )

    class Options(CKAOptions):
        """Options of `cka-l`."""

        name: Literal["cka-l"] = "cka-l"

    def __init__(self, options: MethodOptions) -> None:
        super().__init__(options)
        self.pairs: tuple[Pair, ...] = ()
        self.batch_size = 0

    @classmethod
    def teachers(cls, options: MethodOptions) -> tuple[int, int | None]:
        """One, unless only the hard loss has a weight."""
        options = cast(CKAOptions, options)
        return (1, 1) if options.alpha != 1 or options.beta else (0, 0)

    @classmethod
    def needs(cls, options: MethodOptions, models: Models) -> Needs:
        """Hidden states of both."""
        options = cast(CKAOptions, options)
        if not models.teachers:
            return Needs()
        if not options.beta:
            return Needs(teacher_logits=options.alpha != 1)
        pairs = options.pairs(models, last_pair)
        return Needs(
            teacher_logits=options.alpha != 1,
            teacher_hidden=tuple(sorted({teacher for teacher, _ in pairs})),
            student_hidden=tuple(sorted({student for _, student in pairs})),
            pairs={"local": pairs},
            compares_examples=True,
            reads_padding=options.variant == "original",
        )

    def prepare(self, context: Context) -> None:
        """Note the layers."""
        self.pairs = self.needs(self.options, context.models).pairs.get("local", ())
        self.batch_size = context.batch_size

    def forward(self, student: Outputs, teachers: Sequence[Outputs], batch: Batch) -> LossTerms:
        """Terms `hard`, `soft`, `local`."""
        options = cast(CKALocal.Options, self.options)
        found = kd_terms(options, student, teachers[0] if teachers else None, batch)
        if self.pairs:
            term = inter_term(self.pairs, student, teachers[0], batch, options.variant, self.batch_size)
            found.terms["local"] = term
            found.weights["local"] = options.beta
        return found
