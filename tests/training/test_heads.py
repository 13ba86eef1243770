"""Runs of other heads: tags of words, any number of classes. What must not change a loss does not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForTokenClassification, AutoTokenizer

from in_processes import Two
from kdbert.data.batches import collate
from kdbert.data.encode import encode
from kdbert.data.examples import Examples
from kdbert.data.masking import IGNORE_INDEX
from kdbert.errors import UserError
from kdbert.heads import Tokens
from kdbert.models.load import load_tokenizer
from kdbert.models.locate import locate
from kdbert.training.step import forward_backward
from small_heads import HeadSetting, make_setting
from small_models import make_roberta
from small_run import FEATURES, Parts, assert_same_gradients, build, gradients, logged

KINDS = ("token", "multi_label")
EXACT = {"dropout": 0.0, "precision": "fp32"}
WEIGHED = {"class_weights": "balanced", "label_smoothing": 0.1}


@pytest.fixture(scope="module")
def settings(tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, HeadSetting]:
    """A small task of each kind."""
    return {kind: make_setting(kind, tmp_path_factory.mktemp(kind), tiny_bert) for kind in KINDS}


def make(settings: dict[str, HeadSetting], kind: str, folder: Path, **changes: Any) -> Parts:
    """The student without dropout, in float32."""
    return build(settings[kind].recipe(folder, **{**EXACT, **changes}))


def step(
    parts: Parts, teacher: Any, rows: np.ndarray, accumulation: int = 1
) -> tuple[dict[str, float], dict[str, Any]]:
    """Terms and gradients of one global batch."""
    parts.module.train()
    terms = forward_backward(
        parts.module, parts.data, rows, [teacher], parts.accelerator, accumulation=accumulation, seed=1, step=0
    )
    return {**{k: v.item() for k, v in terms.terms.items()}, "total": terms.total.item()}, gradients(parts.module)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("changes", [{}, WEIGHED], ids=["plain", "weighed"])
def test_padding_packing_micro_batches_and_the_cache_change_no_loss_and_no_gradient(
    settings: dict[str, HeadSetting], changes: dict[str, Any], kind: str, tmp_path: Path
) -> None:
    parts = make(settings, kind, tmp_path / "run", **changes)
    rows = np.arange(11)
    expected, grads = step(parts, parts.stored_teacher(), rows)
    assert expected["soft"] > 0.01
    for teacher, accumulation in ((parts.live_teacher(), 1), (parts.stored_teacher(), 4), (parts.live_teacher(), 3)):
        found, own = step(parts, teacher, rows, accumulation)
        assert found == pytest.approx(expected, rel=1e-5)
        assert_same_gradients(own, grads, rtol=1e-5)
    plain = make(settings, kind, tmp_path / "plain", packing=False, first_token=False, attention="eager", **changes)
    plain.module.load_state_dict(parts.module.state_dict())
    found, own = step(plain, plain.live_teacher(), rows)
    assert found == pytest.approx(expected, rel=1e-5)
    assert_same_gradients(own, grads, rtol=1e-4)
    batch = collate(parts.data, rows, int(parts.data.lengths[rows].max()) + 16)
    terms = parts.module(batch, [parts.live_teacher().outputs(batch)])
    assert terms.total.item() == pytest.approx(expected["total"], rel=1e-5)


@pytest.mark.parametrize("method", ["cka-l", "cka-i", "cka-g", "distilbert", "mgskd", "ckd"])
def test_structure_methods_distil_taggers_too(settings: dict[str, HeadSetting], method: str, tmp_path: Path) -> None:
    options: dict[str, Any] = {"method.name": method, "student.layers": 3}
    if method == "cka-g":
        options["memory.centroids"] = 6
    parts = make(settings, "token", tmp_path / "run", **options)
    terms, grads = step(parts, parts.stored_teacher(), np.arange(16))
    assert len(terms) > 3
    assert all(np.isfinite(value) for value in terms.values())
    live, own = step(parts, parts.live_teacher(), np.arange(16))
    assert live == pytest.approx(terms, rel=1e-5)
    assert_same_gradients(own, grads, rtol=1e-4)


@pytest.mark.parametrize(
    ("kind", "method"),
    [
        *(("token", name) for name in ("dist", "dkd")),
        *(("multi_label", name) for name in ("pkd", "rkd", "dist", "sinkd")),
    ],
)
def test_methods_that_read_answers_distil_other_heads_too(
    settings: dict[str, HeadSetting], kind: str, method: str, tmp_path: Path
) -> None:
    parts = make(settings, kind, tmp_path / "run", **{"student.layers": 3, **FEATURES[method]})
    rows = np.arange(16)
    terms, grads = step(parts, parts.stored_teacher(), rows)
    assert len(terms) > 3
    assert all(value > 1e-6 for value in terms.values())
    live, own = step(parts, parts.live_teacher(), rows)
    assert live == pytest.approx(terms, rel=1e-5)
    assert_same_gradients(own, grads, rtol=1e-4, floor=2e-4)
    batch = collate(parts.data, rows, int(parts.data.lengths[rows].max()) + 5)
    padded = parts.module(batch, [parts.live_teacher().outputs(batch)])
    assert padded.total.item() == pytest.approx(terms["total"], rel=1e-5)


def test_the_first_token_of_a_word_has_its_tag(tiny_bert: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert)
    words = [("the", "qz7", "dog"), ("\u200b", "cat"), ("red",) * 9]
    tags = np.array([2, 0, 1, 1, 0, *range(9)])
    data = encode(Examples("train", list("abc"), [""] * 3, None, tags, words), tokenizer, 8)
    pieces = [
        tokenizer.convert_ids_to_tokens(data.input_ids[a:b])
        for a, b in zip(data.offsets, data.offsets[1:], strict=False)
    ]
    assert pieces[0] == ["[CLS]", "the", "q", "##z", "##7", "dog", "[SEP]"]
    assert pieces[1] == ["[CLS]", "cat", "[SEP]"]  # a word of no token
    assert data.word_tokens is not None
    assert data.word_tokens.tolist() == [1, 2, 5, -1, 8, *range(11, 17), -1, -1, -1]  # cut to 8 tokens
    assert data.token_labels[:7].tolist() == [IGNORE_INDEX, 2, 0, IGNORE_INDEX, IGNORE_INDEX, 1, IGNORE_INDEX]
    assert data.label_counts.tolist() == [3, 1, 6]
    assert data.truncated == 1
    logits = np.arange(len(data.input_ids) * 3, dtype=np.float32).reshape(-1, 3)
    rows = Tokens(("B", "I", "O")).label_logits(logits, data)
    assert rows[0].tolist() == logits[1].tolist()
    assert rows[3].tolist() == rows[-1].tolist() == [0, 0, 1]  # lost words count as outside


@pytest.fixture(scope="module")
def finished(
    settings: dict[str, HeadSetting], kdbert: Any, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """A run of each kind by the command line."""
    runs = {}
    for kind in KINDS:
        root = tmp_path_factory.mktemp("runs")
        result = kdbert(*settings[kind].words(root, epochs=8, learning_rate=3e-3, **{"method.alpha": 0.98}), "-q")
        assert result.code == 0, result.err
        runs[kind] = Path(result.out.strip())
    return runs


def scores(run: Path) -> dict[str, Any]:
    """Metrics of run.json."""
    return json.loads((run / "run.json").read_text(encoding="utf-8"))["metrics"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_learns_and_its_files_tell_what_it_answered(finished: dict[str, Path], kind: str, kdbert: Any) -> None:
    run = finished[kind]
    facts = json.loads((run / "run.json").read_text(encoding="utf-8"))
    metric = {"token": "entity_f1", "multi_label": "document_f1"}[kind]
    assert facts["selection"] == metric
    # One entity in a word, or the commonest classes of documents: what can be had without reading.
    assert 0.0 < facts["constant_answer"]["dev"][metric] < 1.0
    loss = logged(run, "loss/hard")
    assert loss[max(loss)]["loss/hard"] < 0.8 * loss[1]["loss/hard"]
    rows = [json.loads(line) for line in (run / "predictions" / "test.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(rows) == 31
    right = found = there = 0
    if kind == "token":
        for row in rows:
            assert len(row["label"]) == len(row["prediction"]) == len(row["scores"])
        right = sum(a == b for row in rows for a, b in zip(row["label"], row["prediction"], strict=True))
        assert right > 0
    else:
        documents: dict[str, tuple[set[str], set[str]]] = {}
        for row in rows:
            pair = documents.setdefault(row["id"].split("_")[0], (set(), set()))
            pair[0].update(row["prediction"])
            pair[1].update(row["label"])
        for predicted, gold in documents.values():
            right, found, there = right + len(predicted & gold), found + len(predicted), there + len(gold)
        assert scores(run)["test"]["document_f1"] == pytest.approx(2 * right / max(1, found + there))
    again = kdbert("evaluate", run, "--split", "test")
    assert again.code == 0, again.err
    assert f"{scores(run)['test'][metric]:.4f}" in again.out


def test_a_tagger_is_an_ordinary_model_of_the_library(finished: dict[str, Path]) -> None:
    folder = finished["token"] / "model"
    model = AutoModelForTokenClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert list(model.config.id2label.values()) == ["B", "I", "O"]
    rows = [json.loads(x) for x in (finished["token"] / "predictions" / "dev.jsonl").read_text().splitlines()]
    words = json.loads((Path(json.loads((finished["token"] / "run.json").read_text())["recipe"]["task"]["data_dir"])
                        / "dev.json").read_text().splitlines()[0])["tokens"]  # fmt: skip
    coded = tokenizer(words, is_split_into_words=True, return_tensors="pt", truncation=True, max_length=24)
    with torch.no_grad():
        logits = model(**coded).logits[0]
    first = [coded.word_ids().index(number) for number in range(len(words)) if number in coded.word_ids()]
    expected = torch.tensor(rows[0]["scores"])[: len(first)]
    torch.testing.assert_close(logits[first], expected, rtol=0.05, atol=0.02)  # the run was in bf16
    assert (expected[:, None] - expected[None, :]).abs().amax() > 0.5  # words are told apart
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "AutoModelForTokenClassification" in card
    assert "token-classification" in card


@pytest.mark.parametrize(
    ("kind", "words", "told"),
    [
        ("token", ["--method", "ics"], "method 'ics' is not made for task 'ncbi-disease', which tags words"),
        ("token", ["--variant", "original"], "no variant original"),
        ("multi_label", ["--method", "ics", "--variant", "original"], "no variant original"),
        ("token", ["--batch-sampler", "class-balanced"], "--batch-sampler"),
    ],
)
def test_what_has_no_meaning_for_a_head_is_refused(
    settings: dict[str, HeadSetting], kind: str, words: list[str], told: str, kdbert: Any, tmp_path: Path
) -> None:
    given = settings[kind].words(tmp_path)
    if "--method" in words:
        place = given.index('method.name="kd"')
        given = given[: place - 1] + given[place + 1 :]
    result = kdbert(*given, *words)
    assert result.code == 2
    assert told in result.err
    assert not list(tmp_path.rglob("run.json"))


@pytest.mark.parametrize("kind", KINDS)
def test_original_is_refused_before_a_teacher_is_made(
    settings: dict[str, HeadSetting], kind: str, kdbert: Any, tmp_path: Path
) -> None:
    words = settings[kind].words(tmp_path)
    place = words.index("--teacher")
    words[place : place + 2] = ["--teacher-model", str(settings[kind].student)]
    for more in ([], ["--dry-run"]):
        result = kdbert(*words, "--variant", "original", *more)
        assert result.code == 2
        assert "no variant original" in result.err
    assert not list(tmp_path.rglob("run.json"))


@pytest.mark.parametrize("kind", KINDS)
def test_diagnose_works_for_every_head(
    settings: dict[str, HeadSetting], kind: str, kdbert: Any, tmp_path: Path
) -> None:
    result = kdbert(*settings[kind].words(tmp_path), "--diagnose", "-q")
    assert result.code == 0, result.err
    run = Path(result.out.strip())
    assert (run / "diagnostics" / "cka.csv").exists()
    names = {name for line in logged(run).values() for name in line}
    assert any(name.startswith("diagnostics/inter_cosine") for name in names)
    assert ("diagnostics/intra_class_cosine/student" in names) == (kind != "token")


def test_words_need_a_tokenizer_that_reads_them_as_a_text_does(tmp_path: Path, tiny_bert: Path) -> None:
    roberta = make_roberta(tmp_path / "roberta")
    for place in (tiny_bert, roberta):
        tokenizer = load_tokenizer(locate(str(place)), words=True)
        apart = tokenizer(["the", "good", "film"], is_split_into_words=True)["input_ids"]
        assert apart[-3:] == tokenizer("the good film")["input_ids"][-3:]
    config = json.loads((roberta / "tokenizer_config.json").read_text(encoding="utf-8"))
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    (roberta / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(UserError, match="tag them"):
        load_tokenizer(locate(str(roberta)), words=True)


def test_a_teacher_of_whole_examples_is_no_teacher_of_tags(
    settings: dict[str, HeadSetting], kdbert: Any, tmp_path: Path
) -> None:
    words = settings["token"].words(tmp_path)
    words[words.index("--teacher") + 1] = str(settings["multi_label"].teacher)
    result = kdbert(*words)
    assert result.code == 2
    assert "has no trained head for task 'ncbi-disease', which tags words" in result.err


def test_ics_compares_examples_with_equal_sets_of_classes(settings: dict[str, HeadSetting], tmp_path: Path) -> None:
    parts = make(settings, "multi_label", tmp_path / "run", **{"method.name": "ics"})
    terms, _ = step(parts, parts.stored_teacher(), np.arange(16))
    assert terms["feature"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_give_what_one_gives(
    settings: dict[str, HeadSetting], kind: str, kdbert: Any, tmp_path: Path
) -> None:
    words = settings[kind].words(tmp_path / "one", **EXACT, **WEIGHED, **{"train.learning_rate": 1e-4})
    assert kdbert(*words).code == 0
    words[words.index("--runs-dir") + 1] = str(tmp_path / "two")
    ended = Two.command(tmp_path / "printed", words).join()
    assert ended.codes == (0, 0), ended.err
    one, two = (next((tmp_path / name).rglob("run.json")).parent for name in ("one", "two"))
    first, second = logged(one), logged(two)
    assert sorted(first) == sorted(second) == list(range(1, 8))
    for number in first:
        for key in ("loss", "loss/hard", "loss/soft", "grad_norm"):
            assert second[number][key] == pytest.approx(first[number][key], rel=1e-4), (number, key)
    for split in ("dev", "test"):
        assert scores(two)[split] == pytest.approx(scores(one)[split], abs=1e-9)
