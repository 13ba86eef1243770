"""Masked-LM training and distillation on plain text, from a shell: a teacher, a larger vocabulary, a student."""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from transformers import AutoModelForMaskedLM, AutoTokenizer

from conftest import VOCABULARY, WORDS, make_bert
from in_processes import saved_steps, start, wait_until
from kdbert.data.batches import collate, micro_batches
from kdbert.data.masking import base_size, masking_of, vocabulary_size
from kdbert.models.vocabulary import grow_embeddings
from kdbert.recipe import Recipe
from kdbert.recipe.defaults import resolve_distill
from kdbert.runs.inputs import Inputs
from kdbert.runs.job import Job
from kdbert.training.step import forward_backward
from small_run import assert_same_gradients, build, gradients

COMMON = ("--max-length", "32", "--batch-size", "8", "--precision", "fp32")
TERMS = ["cataract", "glaucoma", "retinopathy", "keratitis"]


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """300 short texts of a domain, each word of which follows from the one before it."""
    draw = random.Random(0)
    folder = tmp_path_factory.mktemp("corpus") / "eyes"
    folder.mkdir()
    lines = []
    for _ in range(300):
        start = draw.randrange(len(WORDS))
        words = [WORDS[(start + step) % len(WORDS)] for step in range(draw.randint(3, 12))]
        lines.append(" ".join([*words[:2], draw.choice(TERMS), *words[2:]]))
    (folder / "a.txt").write_text("\n".join(lines[:200]) + "\n\n", encoding="utf-8")
    with gzip.open(folder / "b.txt.gz", "wt", encoding="utf-8") as file:
        file.write("\r\n".join(lines[200:]))
    (folder / "LICENCE").write_text("not text of the corpus", encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def teacher(tiny_bert: Path, text: Path, kdbert: Callable[..., Any], tmp_path_factory: Any) -> Path:
    """A masked-LM of four layers, trained on the text for a while."""
    runs = tmp_path_factory.mktemp("runs")
    done = kdbert(
        "finetune-teacher", "--corpus", text, "--model", tiny_bert, *COMMON, "--epochs", "12", "--runs-dir", runs,
        "train.learning_rate=3e-3", "-q",
    )  # fmt: skip
    assert done.code == 0, done.err
    return Path(done.out.strip())


@pytest.fixture(scope="module")
def vocabulary(tiny_bert: Path, text: Path, kdbert: Callable[..., Any], tmp_path_factory: Any) -> Path:
    """The small tokenizer, expanded on the text."""
    out = tmp_path_factory.mktemp("vocabulary") / "grown"
    done = kdbert("expand-vocab", "--tokenizer", tiny_bert, "--corpus", text, "--add", "30", "--out", out)
    assert done.code == 0, done.err
    return out


def manifest(path: Path) -> dict[str, Any]:
    """run.json."""
    found: dict[str, Any] = json.loads((path / "run.json").read_text(encoding="utf-8"))
    return found


def logged(path: Path) -> list[dict[str, Any]]:
    """The losses that were logged."""
    lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [line for line in lines if "loss" in line]


def test_a_masked_lm_head_is_trained_and_kept(teacher: Path, text: Path, kdbert: Callable[..., Any]) -> None:
    losses = [line["loss"] for line in logged(teacher)]
    assert losses[0] == pytest.approx(np.log(len(VOCABULARY)), abs=0.4)  # it knows nothing at first
    dev = manifest(teacher)["metrics"]["dev"]
    assert dev["mlm_loss"] < losses[0] - 0.7
    assert dev["pseudo_perplexity"] == pytest.approx(np.exp(dev["mlm_loss"]))
    assert 0.2 < dev["masked_accuracy"] < 1
    assert not any(name.startswith("new_") for name in dev)
    model = AutoModelForMaskedLM.from_pretrained(teacher / "model")
    assert model.config.architectures == ["BertForMaskedLM"]
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    card = (teacher / "model" / "README.md").read_text(encoding="utf-8")
    assert "pipeline_tag: fill-mask" in card
    assert "AutoModelForMaskedLM.from_pretrained" in card
    # The same model on the same dev texts, scored by the other command.
    done = kdbert("evaluate", teacher, "--precision", "fp32")
    assert done.code == 0, done.err
    assert f"{dev['mlm_loss']:.4f}" in done.out
    rows = [json.loads(line) for line in (teacher / "predictions" / "dev.jsonl").read_text().splitlines()]
    sums = np.array([[row["prediction"][name] for name in ("loss", "right", "hidden")] for row in rows]).sum(0)
    assert sums[0] / sums[2] == pytest.approx(dev["mlm_loss"], rel=1e-5)


def test_the_dev_loss_is_that_of_the_library_s_own_model(teacher: Path) -> None:
    """Hidden as kdbert hides them, the dev texts have the loss that the model's own forward gives."""
    recipe = Recipe.build(teacher / "recipe.yaml")
    dev = Job("student", recipe, Inputs()).eval_examples["dev"].encoded
    model = AutoModelForMaskedLM.from_pretrained(teacher / "model", dtype=torch.float32).eval()
    batch = collate(dev, np.arange(len(dev)))
    assert batch.labels is not None
    with torch.no_grad():
        out = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, labels=batch.labels)
    assert out.loss.item() == pytest.approx(manifest(teacher)["metrics"]["dev"]["mlm_loss"], rel=1e-5)
    hidden = (batch.labels != -100).sum().item() / batch.attention_mask.sum().item()
    assert 0.08 < hidden < 0.2


@pytest.mark.parametrize("variant", ["corrected", "original"])
def test_a_student_with_a_larger_vocabulary_learns_its_new_words(
    teacher: Path, vocabulary: Path, text: Path, kdbert: Callable[..., Any], tmp_path: Path, variant: str
) -> None:
    done = kdbert(
        "distill", "--method", "ve-kd", "--corpus", text, "--teacher", teacher, "--student-layers", "2",
        "--tokenizer", vocabulary, *COMMON, "--epochs", "4", "--runs-dir", tmp_path, "--variant", variant,
        "train.learning_rate=3e-3", "train.logging_steps=1", "method.alpha_mse=0.01", "method.alpha_ce=2",
        "method.alpha_mlm=1", "method.alpha_cos=5", "method.tolerance=0.05",
    )  # fmt: skip
    assert done.code == 0, done.err
    path = Path(done.out.splitlines()[-1].removeprefix("run: "))
    lines = logged(path)
    assert lines[-1]["loss"] < lines[0]["loss"] - 0.5
    assert lines[-1]["loss/mlm"] < lines[0]["loss/mlm"] - 0.5
    weights = {"ce": 2, "mse": 0.01, "cos": 5, "mlm": 1}
    for line in lines:
        assert line["loss"] == pytest.approx(sum(w * line[f"loss/{name}"] for name, w in weights.items()), rel=1e-4)
        for name in ("ce", "mse", "cos"):  # the tolerance is taken off the weighted term
            assert line[f"loss/{name}"] == pytest.approx(
                max(line[f"ve-kd/{name}"] - 0.05 / weights[name], 0), rel=1e-3, abs=1e-4
            )
    facts = manifest(path)
    dev, taught = facts["metrics"]["dev"], facts["teachers"][0]["metrics"]["dev"]
    assert dev["new_mlm_loss"] < np.log(4) + 1.8  # one of four terms, all of them new pieces
    assert not any(name.startswith("new_") for name in taught)  # the teacher has none of them
    tokenizer = AutoTokenizer.from_pretrained(path / "model")
    assert tokenizer.tokenize("the cataract") == ["the", "cataract"]
    model = AutoModelForMaskedLM.from_pretrained(path / "model")
    assert model.config.vocab_size == vocabulary_size(tokenizer) > len(VOCABULARY)
    assert model.config.num_hidden_layers == 2


def test_embeddings_of_new_pieces_begin_as_the_mean_of_their_old_pieces(tiny_bert: Path, vocabulary: Path) -> None:
    base, grown = AutoTokenizer.from_pretrained(tiny_bert), AutoTokenizer.from_pretrained(vocabulary)
    before = AutoModelForMaskedLM.from_pretrained(tiny_bert)
    old = before.get_input_embeddings().weight.detach().clone()
    grow_embeddings(before, base, grown, from_pieces=True)
    rows = before.get_input_embeddings().weight.detach()
    assert torch.equal(rows[: len(old)], old)
    number = grown.convert_tokens_to_ids("cataract")
    assert number >= vocabulary_size(base)
    old_pieces = base("cataract", add_special_tokens=False)["input_ids"]
    assert len(old_pieces) > 1
    torch.testing.assert_close(rows[number], old[old_pieces].mean(0))
    drawn = AutoModelForMaskedLM.from_pretrained(tiny_bert)
    grow_embeddings(drawn, base, grown, from_pieces=False)
    new = drawn.get_input_embeddings().weight.detach()[vocabulary_size(base) :]
    assert float(new.std()) == pytest.approx(0.02, rel=0.2)


def test_what_is_hidden_depends_on_seed_epoch_and_text_alone(teacher: Path, vocabulary: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(vocabulary)
    text = "the cataract of a man and the glaucoma of a dog were unbelievable"
    ids = np.array(tokenizer(text)["input_ids"] * 40)
    masking = masking_of(tokenizer, known=base_size(tokenizer), probability=0.3)
    first = masking.chosen(ids, (1, 0, 7))
    assert np.array_equal(first, masking.chosen(ids, (1, 0, 7)))
    for draw in ((2, 0, 7), (1, 1, 7), (1, 0, 8)):
        assert not np.array_equal(first, masking.chosen(ids, draw))
    new, special = ids >= base_size(tokenizer), np.isin(ids, [2, 3])
    assert first[new].all()
    assert not first[special].any()
    assert first[~new & ~special].mean() == pytest.approx(0.3, abs=0.05)
    free = masking_of(tokenizer, known=base_size(tokenizer), probability=0.3, new_always=False).chosen(ids, (1, 0, 7))
    assert 0.1 < free[new].mean() < 0.5
    whole = masking_of(AutoTokenizer.from_pretrained(teacher / "model"), probability=0.3, words=True)
    pieces = AutoTokenizer.from_pretrained(teacher / "model")("the cataract " * 60)["input_ids"]
    hidden = whole.chosen(np.array(pieces), (3,))
    words = AutoTokenizer.from_pretrained(teacher / "model")("the cataract " * 60).word_ids()
    for word in {word for word in words if word is not None}:
        assert len({bool(hidden[place]) for place, other in enumerate(words) if other == word}) == 1
    assert 0.2 < hidden.mean() < 0.4


class Step:
    """One global batch of a masked-LM run, by ve-kd if nothing else is said."""

    def __init__(self, teacher: Path, vocabulary: Path | None, text: Path, folder: Path, **changes: Any) -> None:
        keys = {
            "task.name": "corpus", "task.train_file": str(text), "task.max_length": 32, "task.dev_file": None,
            "teachers": [{"model": str(teacher)}], "student.layers": 2, "method.name": "ve-kd",
            "student.tokenizer": None if vocabulary is None else str(vocabulary),
            "train.precision": "fp32", "train.dropout": 0.0, "output.runs_dir": str(folder),
            "method.alpha_mse": 0.01,
        }  # fmt: skip
        if "method.name" not in changes:
            keys["method.tolerance"] = 0.0
        self.parts = build(resolve_distill(Recipe.build(flags={**keys, **changes})))

    def run(self, rows: np.ndarray, accumulation: int = 1) -> tuple[dict[str, float], dict[str, torch.Tensor]]:
        """Terms and gradients."""
        parts = self.parts
        parts.module.train()
        terms = forward_backward(
            parts.module, parts.data, rows, [parts.live_teacher()], parts.accelerator, accumulation=accumulation,
            seed=1, epoch=3, step=0,
        )  # fmt: skip
        return {name: value.item() for name, value in terms.terms.items()}, gradients(parts.module)


DISTILBERT = {"method.name": "distilbert-mlm"}
MASKED = {"ve-kd": {}, "distilbert-mlm": DISTILBERT, "at hidden tokens": {**DISTILBERT, "method.hidden_only": True}}


@pytest.mark.parametrize("name", MASKED)
def test_micro_batches_packing_and_attention_change_no_loss_and_no_gradient(
    teacher: Path, vocabulary: Path, text: Path, tmp_path: Path, name: str
) -> None:
    ragged = {"method.variant": "original", "method.alpha_ce": 2.0, "method.alpha_cos": 5.0, "method.alpha_mlm": 1.0}
    ragged |= MASKED[name]
    step = Step(teacher, vocabulary, text, tmp_path, **ragged)
    assert len(set(step.parts.data.lengths[:11].tolist())) > 3
    expected, grads = step.run(np.arange(11))
    found, own = step.run(np.arange(11), accumulation=4)
    assert found == pytest.approx(expected, rel=1e-5, abs=3e-7)
    assert_same_gradients(own, grads, rtol=1e-4)
    plain = Step(
        teacher, vocabulary, text, tmp_path, **ragged,
        **{"train.packing": False, "train.attention": "eager", "train.fast_dropout": False},
    )  # fmt: skip
    plain.parts.module.load_state_dict(step.parts.module.state_dict())
    found, own = plain.run(np.arange(11))
    assert found == pytest.approx(expected, rel=1e-5, abs=3e-7)
    assert_same_gradients(own, grads, rtol=1e-4)


def test_without_new_pieces_and_tolerance_it_is_plain_masked_lm_distillation(
    teacher: Path, text: Path, tmp_path: Path
) -> None:
    """Against DistilBERT's objective, written down independently: dense logits, the library's own losses."""
    step = Step(teacher, None, text, tmp_path)
    rows = np.arange(9)
    terms, grads = step.run(rows)
    student = AutoModelForMaskedLM.from_pretrained(teacher / "model", dtype=torch.float32)
    student.bert.encoder.layer = student.bert.encoder.layer[:2]
    student.load_state_dict(step.parts.module.student.state_dict())
    student.eval()
    big = AutoModelForMaskedLM.from_pretrained(teacher / "model", dtype=torch.float32).eval()
    (batch,) = micro_batches(step.parts.data, rows, draw=(1, 3))
    inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask, "output_hidden_states": True}
    ours = student(**inputs)
    with torch.no_grad():
        theirs = big(**inputs)
    real = batch.attention_mask.bool()
    s, t = ours.logits[real], theirs.logits[real]
    ce = F.kl_div(F.log_softmax(s / 2, -1), F.softmax(t / 2, -1), reduction="batchmean") * 4
    mse = F.mse_loss(s, t, reduction="sum") / len(s)
    last = ours.hidden_states[-1][real], theirs.hidden_states[-1][real]
    cos = F.cosine_embedding_loss(*last, torch.ones(len(s)))
    mlm = F.cross_entropy(ours.logits.flatten(0, 1), batch.labels.flatten())
    assert terms == pytest.approx({"ce": ce.item(), "mse": mse.item(), "cos": cos.item(), "mlm": mlm.item()}, rel=1e-4)
    (2 * ce + 0.01 * mse + 5 * cos + mlm).backward()
    for name, parameter in student.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(grads[f"student.{name}"], parameter.grad, rtol=1e-3, atol=1e-6)


def test_label_smoothing_changes_the_masked_lm_term_and_no_other(
    teacher: Path, vocabulary: Path, text: Path, tmp_path: Path
) -> None:
    keys = {"method.alpha_mse": 1.0, "method.tolerance": 0.0}
    plain, _ = Step(teacher, vocabulary, text, tmp_path, **keys).run(np.arange(9))
    smooth = Step(teacher, vocabulary, text, tmp_path, **keys, **{"train.label_smoothing": 0.2})
    terms, grads = smooth.run(np.arange(9))
    assert {name for name, value in terms.items() if value != plain[name]} == {"mlm"}
    parts, own = smooth.run(np.arange(9), accumulation=4)
    assert parts == pytest.approx(terms, rel=1e-5)
    assert_same_gradients(own, grads, rtol=1e-4)


@pytest.mark.parametrize("name", MASKED)
def test_where_nothing_is_hidden_the_masked_lm_loss_is_zero_and_no_nan(
    teacher: Path, tmp_path: Path, name: str
) -> None:
    common = tmp_path / "common.txt"
    common.write_text("\n".join(" ".join(WORDS[i : i + 5]) for i in range(90)), encoding="utf-8")
    step = Step(teacher, None, common, tmp_path, **{"task.mask_probability": 1e-9}, **MASKED[name])
    terms, grads = step.run(np.arange(3))
    assert terms["mlm"] == 0
    assert all(np.isfinite(value) for value in terms.values())
    assert all(torch.isfinite(value).all() for value in grads.values())


def run_words(teacher: Path, vocabulary: Path, text: Path, output: Path, *more: object) -> list[str]:
    """A ve-kd run, of which each text is a sequence, so that batches are ragged."""
    return [
        str(word)
        for word in (
            "distill", "-m", "ve-kd", "--variant", "original", "--corpus", text, "--teacher", teacher, "--tokenizer",
            vocabulary, "--student-layers", "2", *COMMON, "--epochs", "2", "--output-dir", output, "--runs-dir",
            output.parent / "runs", "method.alpha_ce=2", "method.alpha_mse=0.01", "method.alpha_cos=5",
            "method.alpha_mlm=1", "method.tolerance=0.2", "train.accumulation=2", "train.logging_steps=1",
            "train.checkpoint_steps=5", *more,
        )
    ]  # fmt: skip


@pytest.mark.long
def test_a_killed_run_ends_with_the_same_weights(
    teacher: Path, vocabulary: Path, text: Path, kdbert: Callable[..., Any], tmp_path: Path
) -> None:
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
    done = kdbert(*run_words(teacher, vocabulary, text, tmp_path / "whole" / "run"))
    assert done.code == 0, done.err
    killed = tmp_path / "killed" / "run"
    words = run_words(teacher, vocabulary, text, killed)
    process = start(words, tmp_path / "output")
    try:
        wait_until(lambda: max(saved_steps(killed), default=0) >= 40, process.is_alive, "step 40")
    finally:
        process.kill()
        process.join()
    assert manifest(killed)["status"] == "running"
    done = kdbert(*words)
    assert done.code == 0, done.err
    assert "continuing from step" in done.err
    for name in ("metrics.jsonl", "model/model.safetensors", "predictions/dev.jsonl"):
        assert (killed / name).read_bytes() == (tmp_path / "whole" / "run" / name).read_bytes(), name


def test_a_student_of_another_kind_and_width_is_drawn_from_a_configuration(
    teacher: Path, vocabulary: Path, text: Path, kdbert: Callable[..., Any], tmp_path: Path
) -> None:
    """VE-KD's own student: DistilBERT with fixed sinusoidal positions, another width, and so a projection."""
    config = {
        "model_type": "distilbert", "dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32,
        "max_position_embeddings": 64, "sinusoidal_pos_embds": True, "vocab_size": 7,
    }  # fmt: skip
    (tmp_path / "small.json").write_text(json.dumps(config), encoding="utf-8")
    words = [
        "distill", "-m", "ve-kd", "--corpus", text, "--teacher", teacher, "--student", tmp_path / "small.json",
        "--tokenizer", vocabulary, *COMMON, "--epochs", "1", "--runs-dir", tmp_path / "runs", "-q",
    ]  # fmt: skip
    done = kdbert(*words)
    assert done.code == 0, done.err
    path = Path(done.out.strip())
    model = AutoModelForMaskedLM.from_pretrained(path / "model")
    assert type(model).__name__ == "DistilBertForMaskedLM"
    assert model.config.vocab_size == vocabulary_size(AutoTokenizer.from_pretrained(vocabulary))
    projection = load_file(path / "method.safetensors")
    assert projection["projection.weight"].shape == (32, 16)
    again = kdbert(*words)
    assert again.code == 0
    assert "already finished" in kdbert(*words[:-1]).err


def test_a_masked_lm_goes_on_to_a_task(
    teacher: Path, kdbert: Callable[..., Any], custom_files: tuple[Path, Path], tmp_path: Path
) -> None:
    done = kdbert(
        "finetune-teacher", "--task", "custom", "--train-file", custom_files[0], "--dev-file", custom_files[1],
        "--model", teacher / "model", "--runs-dir", tmp_path, "--max-length", "32", "train.max_steps=2", "-q",
    )  # fmt: skip
    assert done.code == 0, done.err


@pytest.mark.parametrize("words", [(), ("method.variant=original", "method.alpha_mlm=1", "task.text_unit=document")])
def test_a_run_and_its_evaluation_agree_where_the_teacher_s_vocabulary_was_expanded_too(
    teacher: Path, vocabulary: Path, text: Path, kdbert: Callable[..., Any], tmp_path: Path, words: tuple[str, ...]
) -> None:
    (tmp_path / "more.txt").write_text("zebra\nzoo\n", encoding="utf-8")
    (tmp_path / "text.txt").write_text("\n\n".join(f"the zebra and glaucoma of zoo {n}" for n in range(200)))
    runs = ("--runs-dir", tmp_path / "runs", *COMMON, "-q")
    more = ("--pieces", tmp_path / "more.txt", "--out", tmp_path / "more")
    assert kdbert("expand-vocab", "--tokenizer", vocabulary, *more).code == 0
    start = ("--corpus", tmp_path / "text.txt", "--epochs", "1")
    first = kdbert("finetune-teacher", "--model", teacher, "--tokenizer", vocabulary, *start, *runs)
    assert first.code == 0, first.err
    taught = ("distill", "--method", "ve-kd", "--teacher", first.out.strip(), "--tokenizer", tmp_path / "more")
    done = kdbert(*taught, "--student-layers", "2", *start, *runs, *words)
    assert done.code == 0, done.err
    run = Path(done.out.strip())
    assert manifest(run)["known_pieces"] == vocabulary_size(AutoTokenizer.from_pretrained(vocabulary))
    before = (run / "predictions" / "dev.jsonl").read_text(encoding="utf-8")
    from kdbert import evaluate

    found = evaluate(str(run), precision="fp32").metrics["dev"]
    assert found == pytest.approx(manifest(run)["metrics"]["dev"], rel=1e-4)
    assert "new_mlm_loss" in found
    assert len((run / "predictions" / "dev.jsonl").read_text(encoding="utf-8")) == len(before)


def test_evaluations_of_other_texts_and_models_keep_apart(
    teacher: Path, tiny_bert: Path, text: Path, kdbert: Callable[..., Any], tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("other.txt").write_text("the cat and the dog of glaucoma\n" * 30)
    for words in (("other.txt",), (text,), ("other.txt", "--max-length", "16")):
        assert kdbert("evaluate", teacher, "--corpus", *words, "-q").code == 0
    assert len(list(Path("predictions").rglob("dev.jsonl"))) == 3


def test_no_term_with_a_weight_is_refused_before_anything_is_read(
    teacher: Path, text: Path, kdbert: Callable[..., Any], tmp_path: Path
) -> None:
    done = kdbert(
        "distill", "--method", "ve-kd", "--teacher", teacher, "--corpus", text, "--runs-dir", tmp_path / "runs",
        "method.variant=original", "method.alpha_ce=0",
    )  # fmt: skip
    assert done.code == 2
    assert "all of alpha_ce, alpha_mse, alpha_cos, alpha_mlm are 0; give one of them a weight" in done.err
    assert not (tmp_path / "runs").exists()


def test_wrong_text_and_wrong_models_are_told(
    teacher: Path, tiny_bert: Path, vocabulary: Path, text: Path, kdbert: Callable[..., Any], tmp_path: Path
) -> None:
    (tmp_path / "blank.txt").write_text("\n  \n", encoding="utf-8")
    (tmp_path / "latin.txt").write_bytes("na\xefve\n".encode("latin-1"))
    (tmp_path / "empty").mkdir()
    distil = ("distill", "-m", "ve-kd", "--runs-dir", tmp_path / "runs", *COMMON)
    other = make_bert(tmp_path / "other", vocabulary=[*VOCABULARY[:5], *reversed(VOCABULARY[5:])])
    for words, told in (
        ((*distil, "--teacher", teacher, "--corpus", tmp_path / "none.txt"), "no corpus"),
        ((*distil, "--teacher", teacher, "--corpus", tmp_path / "empty"), "holds no text files"),
        ((*distil, "--teacher", teacher, "--corpus", tmp_path / "blank.txt"), "all of its lines are blank"),
        ((*distil, "--teacher", teacher, "--corpus", tmp_path / "latin.txt"), "line 1: not UTF-8 (byte 0xef)"),
        ((*distil, "--teacher", tiny_bert, "--corpus", text), "has no masked-LM head"),
        ((*distil, "--teacher", teacher), "it learns from plain text: name some with --corpus"),
        ((*distil, "--teacher", teacher, "--task", "corpus"), "name a file or folder with --corpus"),
        ((*distil, "--teacher", teacher, "--task", "rte", "--corpus", text), "task corpus, not rte"),
        ((*distil, "--teacher", teacher, "--corpus", text, "--tokenizer", other), "is not an expansion of"),
        ((*distil, "--teacher", teacher, "--corpus", text, "--tokenizer", tmp_path / "x/y/z"), "no tokenizer folder"),
        (("distill", "-m", "kd", "--teacher", teacher, "--corpus", text), "'kd' is not made for task 'corpus'"),
        (
            (*distil, "--teacher", teacher, "--corpus", text, "--student", tmp_path / "no.json"),
            "no configuration",
        ),
        (("evaluate", teacher, "--corpus", text, "--task", "rte"), "task corpus, not rte"),
        (("evaluate", tiny_bert, "--corpus", text), "has no masked-LM head"),
        (("evaluate", teacher, "--split", "test"), "has no test split"),
    ):
        done = kdbert(*words)
        assert (done.code, "Traceback" in done.err) == (2, False), (words, done.err)
        assert told in done.err, (words, done.err)
