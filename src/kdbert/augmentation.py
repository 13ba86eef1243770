"""`kdbert augment`: new texts from a task's training texts, by replacing words.

The procedure is TinyBERT's (Jiao et al. 2020, arXiv:1909.10351, algorithm 1); docs/augment.md says where it differs.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from kdbert.data.batches import collate
from kdbert.data.encode import Encoded
from kdbert.data.examples import Examples
from kdbert.data.files import text_digest
from kdbert.data.masking import tokenizer_digest
from kdbert.data.vectors import WordVectors
from kdbert.data.words import Word, words_of
from kdbert.disk.lock import alone
from kdbert.disk.resumable import ResumableFile
from kdbert.errors import Diverged, UserError
from kdbert.heads import MaskedLM
from kdbert.models.fast.late_head import use_late_head
from kdbert.models.load import has_head, load_config, load_tokenizer, no_masked_lm
from kdbert.models.locate import locate
from kdbert.models.open import open_of_plain_text
from kdbert.models.vocabulary import whole_words
from kdbert.models.way import check_length, decide, device_type, fit_tokenizer
from kdbert.recipe.defaults import task_of
from kdbert.recipe.sections import TaskSection
from kdbert.tasks import TaskSpec
from kdbert.tasks.describe import plain_digest, rows_of
from kdbert.tasks.own import NoLabels
from kdbert.training.forward import encoder_autocast, run_model
from kdbert.training.loggers import progress_bar
from kdbert.training.precision import Precision, choose_precision, make_accelerator

log = logging.getLogger("kdbert")
# Never replaced: the English list of NLTK with which TinyBERT's code is published (StopWordsList in
# data_augmentation.py), without its entries that have an apostrophe: a word ends there.
STOP_WORDS = frozenset(
    "i me my myself we our ours ourselves you your yours yourself yourselves he him his himself she her hers herself "
    "it its itself they them their theirs themselves this that these those am is are was were be been being have has "
    "had having do does did doing a an the and but if or because as until while of at by for with about against "
    "between into through during before after above below to from up down in out on off over under again further "
    "then once here there all any both each few more most other some such no nor not only own same so than too very "
    "s t can will just don should now d ll m o re ve y ain aren couldn didn doesn hadn hasn haven isn ma mightn "
    "mustn needn shan shouldn wasn weren won wouldn".split()
)
ROW_OF = "of"  # the column with the id of the row that a text comes from
TOKENS = 4096  # of masked sentences in one forward pass
MEASURED = 3.0  # seconds of work from which the cost is estimated
_KEPT_TEXTS = 10_000  # whose candidates are kept: pair tasks repeat their texts
_RECENT = 1_000_000
COUNTS = ("examples", "texts", "repeated", "held")


class Replaceable(NamedTuple):
    """A word of a text that may be replaced, and by what."""

    word: Word
    candidates: tuple[str, ...]


class Change(NamedTuple):
    """A place of a text, and what is put there."""

    start: int
    end: int
    text: str


def put(text: str, changes: Sequence[Change], start: int = 0, end: int | None = None) -> str:
    """The text, or this part of it, with the changes that lie in it."""
    end = len(text) if end is None else end
    parts, at = [], start
    for change in changes:
        if start <= change.start and change.end <= end:
            parts += [text[at : change.start], change.text]
            at = change.end
    return "".join([*parts, text[at:end]])


class Fillers:
    """What a masked-LM would write in the place of a word that is one piece.

    A forward pass holds sentences of one text only, so that its numbers depend on nothing else.

    Attributes:
        words: the word that each piece is, by id; None for other pieces.
        sentences, passes: how many masked sentences were computed so far, and in how many forward passes.
    """

    def __init__(
        self, model: Any, tokenizer: Any, words: Sequence[str | None], length: int, precision: Precision, name: str
    ) -> None:
        self.model, self.tokenizer, self.words, self.length = model, tokenizer, words, length
        self.precision, self.name = precision, name
        self.device = next(model.parameters()).device
        self.other = torch.tensor([word is None for word in words], device=self.device)  # bool [V]
        self.sentences = self.passes = 0

    def read(self, text: str) -> tuple[list[int], dict[tuple[int, int], int], int]:
        """The ids of a text; the position of each word that is one piece, by its place; where the text is cut.

        A text is read behind a space, so that its first word is a piece that begins a word, as all others are.
        """
        coded = self.tokenizer(f" {text}", truncation=True, max_length=self.length, return_offsets_mapping=True)
        ids, positions, cut = coded["input_ids"], {}, 0
        for position, (start, end) in enumerate(coded["offset_mapping"]):
            start, end = max(start - 1, 0), end - 1
            cut = max(cut, end)
            start += len(text[start:end]) - len(text[start:end].lstrip())  # a byte-pair piece has its space with it
            if start < end and self.words[ids[position]] is not None:
                positions[start, end] = position
        return ids, positions, cut

    def most_probable(self, ids: Sequence[int], positions: Sequence[int], count: int) -> list[tuple[str, ...]]:
        """For each position the `count` words that are most probable where it alone is masked, best first."""
        found: list[tuple[str, ...]] = []
        at_once = max(1, TOKENS // len(ids))
        for begin in range(0, len(positions), at_once):
            some = np.array(positions[begin : begin + at_once])
            rows = np.arange(len(some))
            masked = np.tile(np.array(ids, dtype=np.int32), (len(some), 1))
            masked[rows, some] = self.tokenizer.mask_token_id
            types = np.zeros(masked.size, np.uint8) if "token_type_ids" in self.tokenizer.model_input_names else None
            offsets = np.arange(len(some) + 1, dtype=np.int64) * len(ids)
            batch = collate(Encoded(masked.ravel(), types, offsets, None, 0, 0), rows).to(self.device)
            out: Any = run_model(self.model, batch, self.precision)
            logits = out.head(torch.from_numpy(rows * len(ids) + some).to(self.device))
            if not bool(logits.isfinite().all()):
                raise Diverged(f"the outputs of model {self.name!r} are not finite; try --precision fp32")
            best = logits.masked_fill(self.other[: logits.shape[1]], -torch.inf).topk(count).indices
            found += [tuple(str(self.words[number]) for number in row) for row in best.tolist()]
            self.sentences += len(some)
            self.passes += 1
        return found


class Augmenter:
    """Makes new texts of texts: a function of seed and text alone.

    Args:
        count: candidates for each word.
        threshold: probability with which a word is replaced.
        per_example: how many texts are drawn for an example; of a pair, half of them change the first text, the other
            half the second.
    """

    def __init__(
        self, fillers: Fillers, vectors: WordVectors | None, *, count: int, threshold: float, per_example: int,
        seed: int,
    ) -> None:  # fmt: skip
        self.fillers, self.vectors = fillers, vectors
        self.count = min(count, sum(word is not None for word in fillers.words))
        self.threshold, self.per_example, self.seed = threshold, per_example, seed
        self.replaceable = lru_cache(_KEPT_TEXTS)(self._replaceable)
        self._nearest = lru_cache(_KEPT_TEXTS)(lambda word: vectors.nearest(word, count) if vectors else ())

    def _replaceable(self, text: str) -> tuple[Replaceable, ...]:
        """The words of a text that have candidates; stop words and all beyond the length have none."""
        ids, positions, cut = self.fillers.read(text)
        words = [word for word in words_of(text) if word.text.lower() not in STOP_WORDS and word.end <= cut]
        single = [positions[word[1:]] for word in words if word[1:] in positions]
        filled = iter(self.fillers.most_probable(ids, single, self.count))
        found = []
        for word in words:
            candidates = next(filled) if word[1:] in positions else self._nearest(word.text)
            if word.text.istitle():  # many tokenizers, and many files of vectors, know small letters only
                candidates = tuple(one[0].upper() + one[1:] for one in candidates)
            if candidates:
                found.append(Replaceable(word, candidates))
        return tuple(found)

    def variants(self, texts: Sequence[str]) -> Iterator[tuple[int, list[Change]]]:
        """(which text, its changes) of each new example; one that was drawn without any change is left out."""
        for side, text in enumerate(texts):
            words = self.replaceable(text)
            shape = len(range(side, self.per_example, len(texts))), len(words)
            digest = hashlib.blake2b("\0".join(texts).encode(), digest_size=16).digest()
            random = np.random.default_rng([self.seed, side, int.from_bytes(digest, "little")])
            replaced, which = random.random(shape) < self.threshold, random.random(shape)
            for row in np.flatnonzero(replaced.any(1)):
                yield (
                    side,
                    [
                        Change(word.start, word.end, candidates[int(which[row, place] * len(candidates))])
                        for place, (word, candidates) in enumerate(words)
                        if replaced[row, place]
                    ],
                )


class Seen:
    """Digests (64 bits) of texts that are there already: 8 bytes each, but for the latest million."""

    def __init__(self) -> None:
        self._older = np.zeros(0, np.uint64)  # ascending
        self._recent: set[int] = set()

    def __contains__(self, digest: int) -> bool:
        if digest in self._recent:
            return True
        place = int(np.searchsorted(self._older, np.uint64(digest)))
        return place < len(self._older) and int(self._older[place]) == digest

    def add(self, digest: int) -> None:
        """Take one up."""
        self._recent.add(digest)
        if len(self._recent) >= _RECENT:
            self._older = np.union1d(self._older, np.fromiter(self._recent, np.uint64, len(self._recent)))
            self._recent.clear()


def augment(
    task: TaskSection,
    model: str,
    output: str,
    *,
    vectors: str | None = None,
    per_example: int = 20,
    candidates: int = 15,
    threshold: float = 0.4,
    seed: int = 1,
    precision: str = "auto",
    overwrite: bool = False,
) -> dict[str, int]:
    """Write new texts, made of a task's training texts, into a file of JSON lines; continue or skip what is done.

    Args:
        model: a masked-LM: run, folder or Hub id.
        output: the file; each row has the task's text columns, and in `of` the id of the example that it comes from.
        vectors: a text file of word vectors, for words of several pieces; without it they stay.
        per_example, candidates, threshold: see `Augmenter`.

    Returns:
        How many `examples` were read, how many `texts` written with how many `bytes`, and how many were left out as
        `repeated` (of an example, or of another new text) or `held` (a text of dev or test).

    Raises:
        UserError: the task, the model, or the output is none that can be used.
        Diverged: an output of the model is not finite.
    """
    try:
        spec = task_of(task)
    except NoLabels as error:
        raise UserError(f"{error}; augment reads none, but the task has some: name them with --labels a,b") from None
    if spec.head.plain_text:
        raise UserError("augment makes texts for a task, and plain text is none: name another --task")
    columns = text_columns(spec)
    place = locate(model)
    tokenizer = load_tokenizer(place)
    config = load_config(place)
    way = decide(config, MaskedLM(), model, device=device_type())
    if not has_head(config, MaskedLM()):
        raise no_masked_lm(config, model)
    tokenizer = fit_tokenizer(tokenizer, way, model)
    words = whole_words(tokenizer)
    if tokenizer.mask_token_id is None or not any(words):
        raise UserError(
            f"the tokenizer of model {model!r} has no mask token, or no pieces that are whole words; take another model"
        )
    length = task.max_length or min(spec.max_length, way.limit or spec.max_length)
    check_length(length, way.limit, model)
    named = None if vectors is None else Path(vectors).expanduser()
    parts = {split: spec.load(split, task.data_dir) for split in _there(spec, task.data_dir)}
    train = parts["train"].first(task.max_train_examples)
    device = make_accelerator().device
    arithmetic = choose_precision(precision if way.half else "fp32", device)
    about = {
        "task": spec.name,
        "columns": list(columns),
        "data": {split: part.fingerprint() for split, part in parts.items()},
        "ids": hashlib.sha256("\n".join(train.ids).encode()).hexdigest()[:16],
        "model": place.fingerprint(),
        "tokenizer": tokenizer_digest(tokenizer),
        "vectors": None if named is None else text_digest(named),
        "per_example": per_example,
        "candidates": candidates,
        "threshold": threshold,
        "seed": seed,
        "length": length,
        "precision": arithmetic,
    }
    path = Path(output).expanduser()
    with alone(path):
        file = ResumableFile(path, about, COUNTS, overwrite)
        if file.finished:
            log.info("%s was made so before", path)
            return file.counts
        near = None if named is None else WordVectors(named)
        network, trained = open_of_plain_text(place, MaskedLM(), tokenizer, way)
        if not trained:
            raise no_masked_lm(config, model)
        use_late_head(network)
        fillers = Fillers(network.to(device), tokenizer, words, length, arithmetic, model)
        augmenter = Augmenter(
            fillers, near, count=candidates, threshold=threshold, per_example=per_example, seed=seed
        )  # fmt: skip
        with torch.no_grad(), encoder_autocast(device, arithmetic):  # weights are cast once for the whole of it
            _tell_cost(augmenter, train, columns, file.counts["examples"])
            _write(file, augmenter, spec, parts, train, columns)
        if not file.counts["texts"]:
            file.discard()
            more = "" if vectors else "; name word vectors with --vectors"
            raise UserError(f"no new text can be made of task {spec.name!r}: none of its words has candidates{more}")
        file.finish()
    return file.counts


def text_columns(spec: TaskSpec) -> tuple[str, ...]:
    """The columns of the new file: of own data its own, else such as `kdbert predict` recognises."""
    if spec.own is None:
        return ("tokens",) if spec.head.of_words else ("sentence1", "sentence2") if spec.pair else ("text",)
    if ROW_OF in spec.own.text:
        raise UserError(f"the text column {ROW_OF!r} has the name of a column that augment writes; rename it")
    return spec.own.text


def _there(spec: TaskSpec, data_dir: str | None) -> list[str]:
    """The splits whose texts are read: train, and all others that have files."""
    missing = [split for split in spec.splits if split != "train" and spec.path(split, data_dir) is None]
    if missing:
        log.warning("no file of %s is here, so new texts may be among its texts", " or ".join(missing))
    return ["train", *(split for split in spec.splits if split not in ("train", *missing))]


def _row(part: Examples, number: int, columns: Sequence[str], side: int, changes: list[Change]) -> dict[str, Any]:
    """An example with changes in one of its texts, as a row of the new file; words stay as many as they are."""
    texts = part.texts(number)
    if part.words is None:
        new = [put(text, changes) if place == side else text for place, text in enumerate(texts)]
        return {**dict(zip(columns, new, strict=True)), ROW_OF: part.ids[number]}
    found, start = [], 0
    for word in part.words[number]:  # joined with spaces they are the text
        found.append(put(texts[0], changes, start, start + len(word)))
        start += len(word) + 1
    return {columns[0]: found, ROW_OF: part.ids[number]}


def _digest(row: Mapping[str, Any], columns: Sequence[str]) -> int:
    """What the texts of a row are known by."""
    return plain_digest(*(text if isinstance(text := row[name], str) else " ".join(text) for name in columns))


def _write(
    file: ResumableFile,
    augmenter: Augmenter,
    spec: TaskSpec,
    parts: Mapping[str, Examples],
    train: Examples,
    columns: Sequence[str],
) -> None:
    """Write the rows of all examples that are not done."""
    held, seen = Seen(), Seen()
    for split, part in parts.items():
        for digest in rows_of(spec, part).plain.tolist():
            (seen if split == "train" else held).add(digest)
    for line in file.lines():
        seen.add(_digest(json.loads(line), columns))
    done = file.counts["examples"]
    bar = progress_bar(None, "augment", "example", True, total=len(train), initial=done)
    with bar, file.writing() as write:
        for number in range(done, len(train)):
            lines, repeated, of_held = [], 0, 0
            for side, changes in augmenter.variants(train.texts(number)):
                row = _row(train, number, columns, side, changes)
                digest = _digest(row, columns)
                if digest in held:
                    of_held += 1
                elif digest in seen:
                    repeated += 1
                else:
                    seen.add(digest)
                    lines.append(json.dumps(row, ensure_ascii=False) + "\n")
            write(lines, 1, len(lines), repeated, of_held)
            bar.update()


def _tell_cost(augmenter: Augmenter, train: Examples, columns: Sequence[str], done: int) -> None:
    """Say what the rest takes, measured on a few examples."""
    if done == len(train) or not log.isEnabledFor(logging.INFO):
        return
    order = np.random.default_rng(0).permutation(np.arange(done, len(train)))
    fillers, rows, size, count = augmenter.fillers, 0, 0, 0
    augmenter.replaceable(train.text_a[int(order[0])])  # the first pass is slow
    augmenter.replaceable.cache_clear()
    sentences, passes, begun = fillers.sentences, fillers.passes, time.perf_counter()
    for number in order.tolist():
        for side, changes in augmenter.variants(train.texts(number)):
            rows += 1
            size += len(json.dumps(_row(train, number, columns, side, changes), ensure_ascii=False).encode()) + 1
        count += 1
        if time.perf_counter() - begun > MEASURED:
            break
    factor, left = len(order) / count, time.perf_counter() - begun
    log.info(
        "%s examples%s: about %s masked sentences in %s forward passes, %s; about %s new texts, %.3g MB",
        f"{len(order):,}", f" of {len(train):,} are left" if done else "",
        f"{factor * (fillers.sentences - sentences):,.0f}", f"{factor * (fillers.passes - passes):,.0f}",
        _duration(factor * left), f"{factor * rows:,.0f}", factor * size / 1e6,
    )  # fmt: skip


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
