"""Schemes of tagged words: BIO (IOB2), IOB1, IO, BIOES, BILOU, or tags that each stand for themselves.

A tag of an entity is a letter and a kind, `B-PER`, or the letter alone; a word outside of all is `O`. Entities are read
as seqeval does by default (`kdbert.metrics.grouped.entity_counts`), which understands all of these alike.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from kdbert.errors import UserError
from kdbert.metrics.grouped import OUTSIDE, TAG, continues, mark_entities

# A letter and a kind in another form: separated by another sign, small, or behind the kind.
_OTHERWISE = re.compile(r"[BIbi][_/:.].+|[bi]-.+|[A-Za-z]+-[BI]")


class Scheme(NamedTuple):
    """How words are tagged.

    Attributes:
        name: of the scheme; "" where each tag stands for itself.
        labels: the tags in order. Of a scheme each kind has every letter that some kind has.
        kinds: kind -> number of entities.
    """

    name: str
    labels: tuple[str, ...]
    kinds: dict[str, int]

    def told(self) -> str:
        """For a person."""
        if not self.name:
            shown = f"{', '.join(self.labels[:8])}{', …' * (len(self.labels) > 8)}"
            return f"{len(self.labels)} tags of words ({shown}), each scored by itself"
        kinds = ", ".join(f"{kind or 'without a kind'} {count}" for kind, count in self.kinds.items())
        return f"tags of words, {self.name}; {sum(self.kinds.values())} entities ({kinds})"


def scheme_of(found: Iterable[Sequence[str]], where: str) -> Scheme:
    """The scheme of the tags of sentences.

    Raises:
        UserError: letters of two schemes, or another sign than `-` between letter and kind.
    """
    seen: dict[str, tuple[str, str] | None] = {}  # tag -> letter and kind
    kinds: dict[str, int] = {}
    inside_first = begins_alone = False
    for sentence in found:
        before = (OUTSIDE, "")
        for tag in sentence:
            if tag not in seen:
                match = TAG.fullmatch(tag)
                seen[tag] = (OUTSIDE, "") if tag == OUTSIDE else (match[1], match[2] or "") if match else None
            this = seen[tag] or (OUTSIDE, "")
            if this[0] != OUTSIDE and not (before[1] == this[1] and continues(before[0], this[0])):
                kinds[this[1]] = kinds.get(this[1], 0) + 1
                inside_first |= this[0] == "I"
                begins_alone |= this[0] == "B" and not (before[0] in "BI" and before[1] == this[1])
            before = this
    tags = sorted(seen)
    if odd := next((tag for tag in tags if seen[tag] is None and _OTHERWISE.fullmatch(tag)), None):
        raise UserError(f"{where}: write the tag {odd!r} as letter, '-' and kind, such as B-PER")
    plain = [tag for tag in tags if seen[tag] is None]
    if plain and any("-" in tag for tag in tags if seen[tag] is not None):
        raise UserError(
            f"{where}: the tag {plain[0]!r} is neither O nor a letter and a kind, such as B-PER, as others are (if "
            "it is from a header, remove that line)"
        )
    if not mark_entities(tags):
        return Scheme("", tuple(tags), {})
    letters = {part[0] for part in seen.values() if part is not None} - {OUTSIDE}
    if letters & set("ES") and letters & set("LU"):
        raise UserError(f"{where}: the tags mix the letters of BIOES and BILOU ({', '.join(sorted(letters))})")
    name = "BIO"
    if letters & set("ES"):
        name = "BIOES"
    elif letters & set("LU"):
        name = "BILOU"
    elif "B" not in letters:
        name = "IO"
    elif inside_first and not begins_alone:
        name = "IOB1"
    labels = {OUTSIDE} | {f"{letter}-{kind}" if kind else letter for letter in letters for kind in kinds}
    return Scheme(name, tuple(sorted(labels)), dict(sorted(kinds.items())))
