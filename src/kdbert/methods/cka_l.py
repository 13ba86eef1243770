"""Local inter-feature structure: the CKA of a batch's samples (FSD_L)."""

from __future__ import annotations

from typing import Literal

from kdbert.methods.cka_i import CKAIntra
from kdbert.methods.terms import FSD, KD_FORMULA, CKAOptions
from kdbert.models.layers import Pair, last_pair


class CKALocal(CKAIntra):
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
        "samples, and lets padding in; `corrected` takes the samples there are, zero at padding, and gives 0 for a "
        "batch of one sample. beta 30 is the script's default; on the quickstart task (one seed, dev accuracy; kd "
        ".59) 30, 10, 3, 1 gave .49, .65, .67, .68."
    )

    class Options(CKAOptions):
        """Options of `cka-l`."""

        name: Literal["cka-l"] = "cka-l"

    @staticmethod
    def default_pairs(teacher: int, student: int) -> tuple[Pair, ...]:
        """The last layers."""
        return last_pair(teacher, student)
