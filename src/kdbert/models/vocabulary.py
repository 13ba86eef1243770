"""Growing a WordPiece vocabulary: learning pieces from a corpus, adding them to a tokenizer, giving them embeddings.

The pieces of the base tokenizer keep their ids; new ones come after them, as in VE-KD's vocabulary.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kdbert.data.masking import BASE_SIZE, base_size, vocabulary_size
from kdbert.data.words import is_word
from kdbert.errors import UserError

CONTINUES = "##"
NEW_ROW_STD = 0.02  # of new embeddings, as VE-KD's code draws them


def kind_of(tokenizer: Any) -> str:
    """The kind of a tokenizer, in words: `a WordPiece`, `a byte-pair`, …"""
    name = type(tokenizer.backend_tokenizer.model).__name__
    return {"BPE": "a byte-pair", "Unigram": "a unigram (SentencePiece)"}.get(name, f"a {name}")


def whole_words(tokenizer: Any) -> list[str | None]:
    """The word that each piece is by itself, by id; None for a piece that is none.

    A piece is a word if it is what the tokenizer makes of this word behind a space: so it holds for WordPiece (`house`,
    not `##ing`), byte-pair (`Ġhouse`, not `ing`) and SentencePiece (`▁house`) alike.
    """
    pieces = vocabulary_size(tokenizer)
    texts = [text.strip() for text in tokenizer.batch_decode([[number] for number in range(pieces)])]
    special = set(tokenizer.all_special_ids)
    asked = [number for number in range(pieces) if number not in special and is_word(texts[number])]
    read = tokenizer([f" {texts[number]}" for number in asked], add_special_tokens=False)["input_ids"] if asked else []
    found: list[str | None] = [None] * pieces
    for number, ids in zip(asked, read, strict=True):
        if ids == [number]:
            found[number] = texts[number]
    return found


def check_wordpiece(tokenizer: Any, name: str) -> None:
    """Refuse a tokenizer that is not WordPiece, or has tokens after its vocabulary."""
    backend = tokenizer.backend_tokenizer
    if kind_of(tokenizer) != "a WordPiece" or backend.model.continuing_subword_prefix != CONTINUES:
        raise UserError(
            f"tokenizer {name!r} is {kind_of(tokenizer)} tokenizer, and only WordPiece vocabularies (BERT's) are "
            "expanded; take a model such as bert-base-uncased"
        )
    inside = backend.get_vocab(with_added_tokens=False)
    behind = [token for token in tokenizer.get_added_vocab() if token not in inside]
    if behind:
        raise UserError(
            f"tokenizer {name!r} has added tokens after its vocabulary ({', '.join(behind[:3])}), whose ids new pieces "
            "would take; expand the tokenizer without them"
        )


def check_expansion(base: Any, grown: Any, base_name: str, name: str) -> None:
    """Refuse a tokenizer that is not an expansion of another one: its pieces keep their ids, words are split alike."""
    if kind_of(base) != kind_of(grown):
        raise UserError(
            f"tokenizer {name!r} is {kind_of(grown)} tokenizer, that of {base_name!r} is {kind_of(base)} one; make an "
            "expansion of it with `kdbert expand-vocab`"
        )
    before, after = base.get_vocab(), grown.get_vocab()
    moved = min((p for p, number in before.items() if after.get(p) != number), key=before.__getitem__, default=None)
    if moved is not None:
        there = f"has {moved!r} as piece {after[moved]}" if moved in after else f"lacks {moved!r}"
        raise UserError(
            f"tokenizer {name!r} is not an expansion of {base_name!r}: it {there}, which is piece {before[moved]} "
            "there; make one with `kdbert expand-vocab`"
        )
    ours, theirs = (json.loads(tokenizer.backend_tokenizer.to_str()) for tokenizer in (base, grown))
    for part in ("normalizer", "pre_tokenizer"):
        if ours[part] != theirs[part]:
            raise UserError(f"tokenizers {name!r} and {base_name!r} split texts differently ({part})")


def count_words(texts: Iterable[str], tokenizer: Any) -> Counter[str]:
    """How often each word occurs, as the tokenizer normalises texts and splits them into words."""
    normalizer, splitter = tokenizer.backend_tokenizer.normalizer, tokenizer.backend_tokenizer.pre_tokenizer
    found: Counter[str] = Counter()
    for text in texts:
        normal = text if normalizer is None else normalizer.normalize_str(text)
        found.update(word for word, _ in splitter.pre_tokenize_str(normal))
    return found


def pieces_of(word: str, vocabulary: Mapping[str, int], longest: int) -> list[str] | None:
    """A word's WordPiece pieces, longest match first; None where it cannot be made of the vocabulary.

    A `##part` goes on another word. A word of more than `longest` characters is unknown as a whole.
    """
    inside = word.startswith(CONTINUES) and len(word) > len(CONTINUES)
    rest = word.removeprefix(CONTINUES) if inside else word
    if len(rest) > longest:
        return None
    pieces: list[str] = []
    start = 0
    while start < len(rest):
        prefix = CONTINUES if inside or start else ""
        stop = next((end for end in range(len(rest), start, -1) if prefix + rest[start:end] in vocabulary), None)
        if stop is None:
            return None
        pieces.append(prefix + rest[start:stop])
        start = stop
    return pieces


def learn_pieces(words: Mapping[str, int], count: int, min_count: int) -> list[str]:
    """Pieces of a WordPiece vocabulary of these words, in the order in which merging finds them.

    Characters come first, the most frequent first; then, merge by merge, the neighbouring pieces that most often occur
    together (Sennrich et al. 2016, arXiv:1508.07909, section 3.2; the library's WordPiece trainer does this). Every
    character has its number before training begins, so that pairs of equal counts come in an order that depends neither
    on the order of lines nor on a process's hashes.

    At most `count` pieces that occur `min_count` times or more; `words` says how often each word occurs.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    characters: Counter[str] = Counter()
    for word, often in words.items():
        for place, character in enumerate(word):
            characters[CONTINUES + character if place else character] += often
    kept = sorted(characters)
    learner = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    learner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    trainer = trainers.WordPieceTrainer(
        vocab_size=len(kept) + 1 + count,
        min_frequency=min_count,
        show_progress=False,
        special_tokens=["[UNK]", *kept],
    )
    learner.train_from_iterator(_repeated(words), trainer)
    numbers = learner.get_vocab()
    merged = sorted(
        (piece for piece in numbers if piece not in characters and piece != "[UNK]"), key=numbers.__getitem__
    )
    often_enough = [piece for piece, often in characters.items() if often >= min_count]
    return [*sorted(often_enough, key=lambda piece: (-characters[piece], piece)), *merged]


def _repeated(words: Mapping[str, int]) -> Iterator[str]:
    """Each word as often as it occurs, in texts of at most a thousand times the same word, in alphabetical order."""
    for word in sorted(words):
        left = words[word]
        while left:
            times = min(left, 1000)
            yield " ".join([word] * times)
            left -= times


def read_with(words: Mapping[str, int], vocabulary: Mapping[str, int], longest: int) -> Counter[str]:
    """How often each piece of a vocabulary is read in these words, longest match first; `[UNK]` where none fits."""
    from tokenizers import models

    model = models.WordPiece(dict(vocabulary), unk_token="[UNK]", max_input_chars_per_word=longest)
    found: Counter[str] = Counter()
    for word, often in words.items():
        for token in model.tokenize(word):
            found[token.value] += often
    return found


def log_likelihood(counts: Mapping[str, int]) -> float:
    """Log-likelihood (nats) of a text under the unigram model of its own pieces."""
    values = np.array(list(counts.values()), dtype=np.float64)
    return float((values * np.log(values / values.sum())).sum())


@dataclass(frozen=True)
class Chosen:
    """The pieces that a vocabulary is expanded with."""

    pieces: list[str]
    dropped: dict[str, str]  # pieces that were left out -> the reason
    candidates: int  # pieces of the corpus that the vocabulary lacks, counted up to twice as many as were asked for
    short: str  # why there are fewer pieces than were asked for; "" if there are not


def choose(words: Mapping[str, int], tokenizer: Any, *, add: int, min_count: int, min_gain: float | None) -> Chosen:
    """The pieces that a tokenizer's vocabulary is expanded with.

    Candidates are the pieces of `learn_pieces` that it lacks, in their order. Pieces that are then hardly read in the
    corpus, because a longer piece is read instead, are left out, and others take their place.

    Args:
        words: word -> how often it occurs in the corpus.
        add: most pieces. min_count: how often each must be read.
        min_gain: stop when another tenth of `add` raises the log-likelihood of the corpus by less than this share
            (AdaLM, Yao et al. 2021, arXiv:2106.13474, also chooses the size by the corpus's probability). None: never.
    """
    base, first = tokenizer.get_vocab(), vocabulary_size(tokenizer)
    longest = tokenizer.backend_tokenizer.model.max_input_chars_per_word
    candidates = [piece for piece in learn_pieces(words, len(base) + 2 * add, min_count) if piece not in base]
    found = len(candidates)

    def grown(pieces: Sequence[str]) -> dict[str, int]:
        return {**base, **{piece: first + number for number, piece in enumerate(pieces)}}

    limit = add
    if min_gain is not None:
        step, before = max(1, add // 10), log_likelihood(read_with(words, base, longest))
        for size in range(step, add + step, step):
            after = log_likelihood(read_with(words, grown(candidates[:size]), longest))
            gain = (after - before) / abs(before)
            if gain < min_gain and size == step:
                raise UserError(
                    f"--min-gain {min_gain:g}: the first tenth of --add, {step} pieces, raises the log-likelihood by "
                    f"{gain:.2g} only; give less, or a larger --add"
                )
            if gain < min_gain:
                limit = size - step
                break
            before = after
        candidates = candidates[: limit * 2]
    left_out: set[str] = set()
    while True:
        used = [piece for piece in candidates if piece not in left_out][:limit]
        read = read_with(words, grown(used), longest)
        rarely = {piece for piece in used if read[piece] < min_count}
        if not rarely:
            break
        left_out |= rarely
    rare = f"each is read less than {min_count} times, since a longer piece is read in its place"
    why = []
    if limit < min(add, found):
        why.append(f"--min-gain {min_gain:g} ends after {limit} pieces, since another {max(1, add // 10)} gain less")
    if len(used) < add and (len(used) < limit or limit >= found):
        often = f" {min_count} times or more" if min_count > 1 else ""
        text = f"the corpus ({sum(words.values())} words, {len(words)} different)"
        hardly = f", and {len(left_out)} of them are hardly read, since longer pieces come first" if left_out else ""
        why.append(f"{text} has {found} pieces that occur{often} and that the vocabulary lacks{hardly}")
        why.append("give more text" + (", or a smaller --min-count" if min_count > 1 else ""))
    return Chosen(used, dict.fromkeys(sorted(left_out), rare), found, "; ".join(why))


def given_pieces(lines: Iterable[str], tokenizer: Any) -> tuple[list[str], dict[str, str]]:
    """The pieces of a list that a tokenizer can be expanded with, in their order; and those left out, with reasons."""
    base, seen = tokenizer.get_vocab(), set()
    normalizer = tokenizer.backend_tokenizer.normalizer
    splitter = tokenizer.backend_tokenizer.pre_tokenizer
    longest = tokenizer.backend_tokenizer.model.max_input_chars_per_word
    kept: list[str] = []
    dropped: dict[str, str] = {}
    for line in lines:
        piece = line.strip()
        if not piece:
            continue
        bare = piece.removeprefix(CONTINUES) or piece
        normal = bare if normalizer is None else normalizer.normalize_str(bare)
        if piece in base:
            dropped[piece] = "the tokenizer has them already"
        elif piece in seen:
            dropped[piece] = "they are listed twice"
        elif normal != bare:
            dropped[piece] = "the tokenizer normalises them away (lower case, accents)"
        elif [word for word, _ in splitter.pre_tokenize_str(bare)] != [bare]:
            dropped[piece] = "the tokenizer splits them into words"
        elif len(bare) > longest:
            dropped[piece] = f"the tokenizer reads no words of more than {longest} characters"
        else:
            kept.append(piece)
        seen.add(piece)
    return kept, dropped


def save_expanded(tokenizer: Any, pieces: Sequence[str], folder: Path) -> Any:
    """Write a tokenizer with further pieces after its own into a folder, and read it back."""
    from transformers import AutoTokenizer

    before = vocabulary_size(tokenizer)
    tokenizer.save_pretrained(folder)
    place = folder / "tokenizer.json"
    content = json.loads(place.read_text(encoding="utf-8"))
    content["model"]["vocab"].update({piece: before + number for number, piece in enumerate(pieces)})
    place.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    listed = folder / "vocab.txt"
    ordered = sorted(content["model"]["vocab"].items(), key=lambda item: item[1])
    listed.write_text("".join(f"{piece}\n" for piece, _ in ordered), encoding="utf-8")
    settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    settings[BASE_SIZE] = base_size(tokenizer)
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    grown = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    check_expansion(tokenizer, grown, "the base", str(folder))
    if vocabulary_size(grown) != before + len(pieces):
        found = vocabulary_size(grown)
        raise UserError(f"{folder}: the expanded tokenizer has {found} pieces, not {before + len(pieces)}")
    return grown


def grow_embeddings(model: Any, base: Any, grown: Any, *, from_pieces: bool) -> None:
    """Give a model a row for each new piece of an expanded tokenizer, in place.

    With `from_pieces` a new row is the mean of the rows of the base pieces that its piece was read as before; else it
    is drawn from N(0, 0.02^2), as VE-KD does.
    """
    before, size = vocabulary_size(base), vocabulary_size(grown)
    if size > model.config.vocab_size:  # it may have rows to spare
        model.resize_token_embeddings(size, mean_resizing=False)
    vocabulary = base.get_vocab()
    weight = model.get_input_embeddings().weight
    names = grown.convert_ids_to_tokens(list(range(before, size)))
    with torch.no_grad():
        weight[before:size].normal_(std=NEW_ROW_STD)
        if from_pieces:
            for row, name in enumerate(names, before):
                pieces = pieces_of(name, vocabulary, longest=10**6)
                if pieces:
                    weight[row] = weight[[vocabulary[piece] for piece in pieces]].mean(0)
        output = model.get_output_embeddings()
        if output is not None and getattr(output, "bias", None) is not None:
            output.bias[before:size] = 0.0
