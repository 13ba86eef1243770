"""`kdbert expand-vocab`: a tokenizer that knows the words of a domain."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from kdbert.data.corpus import DEV_SHARE, corpus_digest, is_dev, read_texts
from kdbert.data.files import read_lines, text_digest
from kdbert.data.masking import tokenizer_digest, vocabulary_size
from kdbert.disk.files import replace_folder, sha256, write_json
from kdbert.disk.sealed import sealed, unsealed
from kdbert.errors import UserError
from kdbert.models.load import load_tokenizer
from kdbert.models.locate import EXPANSION as ABOUT
from kdbert.models.locate import locate_tokenizer
from kdbert.models.vocabulary import check_wordpiece, choose, count_words, given_pieces, read_with, save_expanded

log = logging.getLogger("kdbert")
ADD, MIN_COUNT = 30000, 5
SHOWN = 15  # words that became one piece
HELD = f"one text in {DEV_SHARE}"  # is kept for the report


def expand_vocab(
    tokenizer: str,
    out: str,
    *,
    corpus: str | None = None,
    pieces: str | None = None,
    add: int | None = None,
    min_count: int | None = None,
    min_gain: float | None = None,
) -> dict[str, Any]:
    """Append pieces that a corpus needs to a WordPiece vocabulary, and write the tokenizer into a folder.

    Args:
        tokenizer: folder, model or Hub id of the one that is expanded; its pieces keep their ids.
        out: folder to write.
        corpus: text file or folder of such; one text in `DEV_SHARE` is kept for the report.
        pieces: a file with pieces, one a line, instead of learning them.
        add, min_count, min_gain: see `kdbert.models.vocabulary.choose`; by default 30000, 5, none.

    Returns:
        The report, which is also `expansion.json` in the folder.
    """
    if corpus is None and pieces is None:
        raise UserError("where do new pieces come from? name text with --corpus, or a list of pieces with --pieces")
    if pieces is not None and (add, min_count, min_gain) != (None, None, None):
        raise UserError("--pieces takes all of a list; --add, --min-count and --min-gain say which pieces are learned")
    add, min_count = add or ADD, min_count or MIN_COUNT
    folder, listed = Path(out).expanduser(), Path(pieces or "").expanduser()
    if pieces is not None and not listed.is_file():
        raise UserError(f"--pieces {pieces!r}: no such file")
    if corpus is not None and Path(corpus).expanduser().absolute() in folder.absolute().parents:
        raise UserError(f"--out {out!r} is inside the corpus and would add texts to it; choose a folder elsewhere")
    base = load_tokenizer(locate_tokenizer(tokenizer))
    check_wordpiece(base, tokenizer)
    about = {
        "tokenizer_digest": tokenizer_digest(base),
        "corpus_digest": None if corpus is None else corpus_digest(corpus),
        "pieces_digest": None if pieces is None else text_digest(listed),
        **({"add": add, "min_count": min_count, "min_gain": min_gain} if pieces is None else {}),
    }
    report = _there(folder, about)
    if report:
        log.info("%s was made so before", folder)
        _warn_of_few(report)
        return report
    train, held = _words(corpus, base) if corpus is not None else (Counter[str](), Counter[str]())
    chosen = None
    if pieces is None:
        if not train:
            raise UserError(f"all texts of {corpus!r} are kept for the report ({HELD}); give more text")
        chosen = choose(train, base, add=add, min_count=min_count, min_gain=min_gain)
        new, dropped = chosen.pieces, chosen.dropped
    else:
        new, dropped = given_pieces((line for _, line in read_lines(listed)), base)
    reasons = Counter(dropped.values())
    if not new:
        why = f"no new piece is read {min_count} times in {corpus}"
        if pieces is not None:
            why = f"{pieces}: " + ("; ".join(f"{n} left out ({what})" for what, n in reasons.items()) or "it is blank")
        raise UserError(f"there is nothing to add to {tokenizer!r}: {why}")

    def fill(target: Path) -> None:
        grown = save_expanded(base, new, target)
        report.update({
            "about": about,
            "base_pieces": vocabulary_size(base),
            "new_pieces": len(new),
            "continuing": sum(piece.startswith("##") for piece in new),
            "dropped": dict(reasons),
            "candidates": None if chosen is None else chosen.candidates,
            "short": "" if chosen is None else chosen.short,
            "digest": tokenizer_digest(grown),
            "words": None if corpus is None else _words_report(train, held, base, grown),
            "files": {file.name: sha256(file) for file in sorted(target.iterdir())},
        })  # fmt: skip
        write_json(target / ABOUT, sealed(report))

    replace_folder(folder, fill)
    _warn_of_few(report)
    return report


def _warn_of_few(report: Mapping[str, Any]) -> None:
    """Say that there are fewer pieces than were asked for, and why."""
    if report.get("short"):
        new, add = report["new_pieces"], report["about"]["add"]
        log.warning("%d new pieces, fewer than the %d of --add: %s", new, add, report["short"])


def _there(folder: Path, about: Mapping[str, Any]) -> dict[str, Any]:
    """The report of an expansion that was made in this way before; empty where the folder is."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return {}
    try:
        report = unsealed((folder / ABOUT).read_text(encoding="utf-8"))
        known = report["about"]
    except (OSError, ValueError, LookupError, TypeError):
        raise UserError(f"--out {str(folder)!r} holds something else; choose another folder") from None
    if known != about:
        differ = ", ".join(key for key in {**known, **about} if known.get(key) != about.get(key))
        raise UserError(f"--out {str(folder)!r} holds another expansion ({differ} differ); choose another folder")
    if tokenizer_digest(load_tokenizer(locate_tokenizer(str(folder)))) != report.get("digest"):
        raise UserError(f"the tokenizer in {str(folder)!r} is not the one that was written there; remove the folder")
    return report


def _words(corpus: str, tokenizer: Any) -> tuple[Counter[str], Counter[str]]:
    """How often each word occurs in the texts that pieces are learned from, and in those kept for the report."""
    held: list[str] = []

    def learned() -> Iterator[str]:
        for text in read_texts(corpus):
            if is_dev(text):
                held.append(text)
            else:
                yield text

    train = count_words(learned(), tokenizer)
    return train, count_words(held, tokenizer)


def _words_report(train: Counter[str], held: Counter[str], base: Any, grown: Any) -> dict[str, Any]:
    """How the words of the held-out texts are read before and after."""
    longest = base.backend_tokenizer.model.max_input_chars_per_word
    source = held or train
    total = max(1, source.total())
    found: dict[str, Any] = {"held_out": bool(held), "words": source.total()}
    for name, tokenizer in (("before", base), ("after", grown)):
        vocabulary = tokenizer.get_vocab()
        read = read_with(source, vocabulary, longest)
        found[name] = {
            "pieces_per_word": round(read.total() / total, 4),
            "words_of_one_piece": round(sum(n for word, n in source.items() if word in vocabulary) / total, 4),
            "unknown": round(read[base.unk_token] / total, 6),
        }
    known, after = base.get_vocab(), grown.get_vocab()
    became = [(word, often) for word, often in train.items() if word in after and word not in known]
    became.sort(key=lambda item: (-item[1], item[0]))  # whatever the order of lines
    found["became_one_piece"] = {"words": len(became), "commonest": dict(became[:SHOWN])}
    return found
