"""Intra and local feature structures together, without a memory (FSD_IL)."""

from __future__ import annotations

from types import MappingProxyType
from typing import Literal

from kdbert.methods.cka_ilg import CKAIntraLocalGlobal, ILGOptions
from kdbert.methods.terms import FSD, KD_FORMULA


class CKAIntraLocal(CKAIntraLocalGlobal):
    """KD + epsilon * (gamma * intra + (1 - gamma) * local) / 2: `cka-ilg` with sigma 0 (METHODS.md section 3.4)."""

    name = "cka-il"
    aliases = ("fsd-il", "cka-intra-local")
    summary = "keeps the teacher's structures among tokens and batch samples, by CKA"
    formula = (
        KD_FORMULA + " + epsilon * 1/2 * (gamma * intra + (1 - gamma) * local); the terms are those of cka-i and cka-l"
    )
    papers = (FSD,)
    differences = (
        "The published code has no such script: it is cka-ilg's with --sigma 0, which is what this name runs. Both "
        "terms compare the last but one layers (11:5). The script's other defaults (alpha 0, gamma 0) are those of "
        "`original`; with gamma 0 the intra term has no weight."
    )

    class Options(ILGOptions):
        """Options of `cka-il`."""

        original_defaults = MappingProxyType({"alpha": 0.0, "gamma": 0.0})

        name: Literal["cka-il"] = "cka-il"
