"""Plain text: read line by line, tokenised once, kept on the disk and mapped into memory."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np

from kdbert.data.encode import Encoded
from kdbert.data.files import log_once, read_lines, text_digest
from kdbert.data.masking import Masking, tokenizer_digest
from kdbert.disk.lock import alone
from kdbert.disk.sealed import parse_json
from kdbert.errors import UserError

log = logging.getLogger("kdbert")
SUFFIXES = (".txt", ".text", ".raw")
DEV_SHARE = 20  # one text in so many is the dev split, where no file is named
DEV_SEQUENCES = 2000  # of a dev split so many are scored
WIDTHS = 16  # tokens: texts that are read as they are are padded to a multiple of it
_TEXTS_AT_A_TIME = 1000
_FORM = 1  # raised whenever what is kept changes


@dataclass(frozen=True)
class Numbers(Sequence[str]):
    """The numbers from 0 as texts, none of them held: names of things that have none."""

    size: int

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, place: Any) -> Any:
        found = range(self.size)[place]
        return str(found) if isinstance(found, int) else list(map(str, found))


@dataclass(frozen=True)
class TextSplit:
    """A split of a corpus; its own tokens are predicted, so it has no labels."""

    encoded: Encoded
    labels: None = None
    words: None = None

    def __len__(self) -> int:
        return len(self.encoded)

    @property
    def ids(self) -> Sequence[str]:
        """A name for each sequence: its number."""
        return Numbers(len(self))

    def first(self, count: int | None) -> TextSplit:
        """The first `count` sequences."""
        if count is None or count >= len(self):
            return self
        offsets = self.encoded.offsets[: count + 1]
        ids = self.encoded.input_ids[: int(offsets[-1])]
        return TextSplit(replace(self.encoded, input_ids=ids, offsets=offsets))

    def in_few_shapes(self) -> TextSplit:
        """The same split, batches of which come in few shapes."""
        return TextSplit(replace(self.encoded, multiple=WIDTHS))

    def masked(self, masking: Masking) -> TextSplit:
        """The same split with a masking."""
        return TextSplit(replace(self.encoded, masking=masking))


def corpus_files(place: str) -> list[Path]:
    """The files of a corpus: the named file, or all text files below a folder, plain or gzip, sorted by name."""
    if not place.strip():
        raise UserError("--corpus is empty: name a text file, or a folder of text files")
    path = Path(place).expanduser()
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise UserError(f"no corpus {place!r}: check the path (a text file, or a folder of text files)")
    every = sorted(file for file in path.rglob("*") if file.is_file() and not file.name.startswith("."))
    found = [file for file in every if file.name.removesuffix(".gz").endswith(SUFFIXES)]
    if not found:
        raise UserError(f"folder {place!r} holds no text files ({', '.join(SUFFIXES)}, plain or .gz)")
    if len(found) < len(every):
        log_once(f"corpus {place}: {len(found)} of {len(every)} files are text ({', '.join(SUFFIXES)})")
    return found


def corpus_digest(place: str) -> str:
    """16 hex digits of the content of a corpus's files, in their order."""
    return hashlib.sha256("".join(map(text_digest, corpus_files(place))).encode()).hexdigest()[:16]


Unit = Literal["line", "document", "file"]


def read_texts(place: str, unit: Unit = "line") -> Iterator[str]:
    """The texts of a corpus without blank ones.

    A text is a line; a document, which ends at a blank line or with the file; or a file. Its lines are joined with a
    space.
    """
    found = False
    for file in corpus_files(place):
        lines = (_checked(line, file, number) for number, line in read_lines(file))
        for text in lines if unit == "line" else _joined(lines, at_blank=unit == "document"):
            if text:
                found = True
                yield text
    if not found:
        raise UserError(f"corpus {place!r} holds no text: all of its lines are blank")


def _checked(line: str, file: Path, number: int) -> str:
    """A line without white space at its ends; bytes of 0 may be UTF-8, but no text has them."""
    if "\0" in line:
        raise UserError(f"{file}, line {number}: it holds a byte of 0, so this is no text; leave the file out")
    return line.strip()


def _joined(lines: Iterable[str], at_blank: bool) -> Iterator[str]:
    """Lines joined: all of them, or those between blank ones."""
    kept: list[str] = []
    for line in lines:
        if line:
            kept.append(line)
        elif at_blank:
            yield " ".join(kept)
            kept = []
    yield " ".join(kept)


def is_dev(text: str) -> bool:
    """Whether a text belongs to the dev split: one in `DEV_SHARE` does, by a hash of the text."""
    return int(hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:8], 16) % DEV_SHARE == 0


def tokenised(
    place: str,
    tokenizer: Any,
    max_length: int,
    *,
    folder: Path,
    packed: bool,
    part: str | None = None,
    unit: Unit = "line",
) -> TextSplit:
    """A corpus as sequences of at most `max_length` tokens, each `[CLS] … [SEP]`, or with whatever special tokens its
    tokenizer adds; made once, then mapped from disk.

    Args:
        folder: where it is kept, under a name made of the files' content, the tokenizer and the settings.
        packed: join texts, with `[SEP]` between them, and cut the whole into full sequences; else each text is a
            sequence and cut to the length (as VE-KD reads its corpus).
        part: `train` or `dev`: those texts (see `is_dev`); None: all.
        unit: see `read_texts`.

    Raises:
        UserError: no text, a fault in a file, no text of that part, no room on the disk.
    """
    about = {
        "form": _FORM,
        "corpus": corpus_digest(place),
        "tokenizer": tokenizer_digest(tokenizer),
        "max_length": max_length,
        "packed": packed,
        "part": part,
        "unit": unit,
    }
    name = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]
    kept = folder / name
    try:
        with alone(kept):
            found = _mapped(kept, tokenizer, about)
            if found is None:
                shutil.rmtree(kept, ignore_errors=True)
                _write(kept, place, tokenizer, about)
                found = _mapped(kept, tokenizer, about)
    except OSError as error:
        raise UserError(f"cannot keep the tokenised corpus in {folder}: {error.strerror or error}") from None
    assert found is not None
    return TextSplit(found)


def _mapped(kept: Path, tokenizer: Any, about: dict[str, Any]) -> Encoded | None:
    """A corpus that was tokenised before; None if there is none, or it is damaged, which is logged."""
    if not kept.exists():
        return None
    files = kept / "ids.bin", kept / "offsets.bin"
    try:
        noted = parse_json((kept / "about.json").read_text(encoding="utf-8"))
        truncated = int(noted["truncated"])
        whole = noted["about"] == about and noted["sha256"] == [text_digest(file) for file in files]
    except (OSError, UserError, ValueError, KeyError, TypeError):
        whole = False
    if not whole:
        log.warning("the tokenised corpus in %s is damaged and is made again", kept)
        return None
    ids, offsets = (np.memmap(file, dtype, "r") for file, dtype in zip(files, (np.int32, np.int64), strict=True))
    return Encoded(ids, None, np.asarray(offsets), None, truncated, tokenizer.pad_token_id or 0)


def _write(kept: Path, place: str, tokenizer: Any, about: dict[str, Any]) -> None:
    """Tokenise a corpus into `kept`, which appears when it is complete."""
    log.info("corpus %s: tokenising", place)
    started = time.perf_counter()
    part = about["part"]
    wanted = (text for text in read_texts(place, about["unit"]) if part is None or is_dev(text) == (part == "dev"))
    temporary = kept.with_name(f".{kept.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    texts = truncated = tokens = 0
    start, end = _around(tokenizer)
    limit = about["max_length"] - len(start) - len(end)
    try:
        with open(temporary / "ids.bin", "wb") as ids_file, open(temporary / "offsets.bin", "wb") as offsets_file:
            offsets_file.write(np.zeros(1, np.int64).tobytes())

            def put(sequence: list[int]) -> None:
                nonlocal tokens
                whole = start + sequence + end
                tokens += len(whole)
                ids_file.write(np.array(whole, np.int32).tobytes())
                offsets_file.write(np.array([tokens], np.int64).tobytes())

            rest: list[int] = []  # packed tokens that do not fill a sequence yet
            for ids in _ids(wanted, tokenizer):
                texts += 1
                if not about["packed"]:
                    truncated += len(ids) > limit
                    put(ids[:limit])
                    continue
                joined = rest + (end if rest else []) + ids
                whole = len(joined) - len(joined) % limit
                for first in range(0, whole, limit):
                    put(joined[first : first + limit])
                rest = joined[whole:]
            if rest:
                put(rest)
        if not tokens:
            raise UserError(
                f"corpus {place!r} has {'no' if part == 'dev' else 'only'} texts for dev (one in {DEV_SHARE}, by a "
                "hash of the text); name a dev corpus with --dev-file"
            )
        files = temporary / "ids.bin", temporary / "offsets.bin"
        noted = {
            "about": about,
            "truncated": truncated,
            "texts": texts,
            "sha256": [text_digest(file) for file in files],
        }
        (temporary / "about.json").write_text(json.dumps(noted, indent=1), encoding="utf-8")
        temporary.rename(kept)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    log.info("corpus %s: %d texts, %d tokens, %.0f s", place, texts, tokens, time.perf_counter() - started)


def _around(tokenizer: Any) -> tuple[list[int], list[int]]:
    """The special tokens that a tokenizer puts before a text and after it: of most `[CLS]` and `[SEP]`."""
    bare, whole = (tokenizer("a", add_special_tokens=special)["input_ids"] for special in (False, True))
    before = next(place for place in range(len(whole)) if whole[place : place + len(bare)] == bare)
    return whole[:before], whole[before + len(bare) :]


def _ids(texts: Iterable[str], tokenizer: Any) -> Iterator[list[int]]:
    """Token ids of each text, without special tokens."""
    running = iter(texts)
    while some := list(islice(running, _TEXTS_AT_A_TIME)):
        coded = tokenizer(
            some, add_special_tokens=False, return_attention_mask=False, return_token_type_ids=False, verbose=False
        )
        yield from coded["input_ids"]
