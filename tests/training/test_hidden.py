"""General distillation: `kdbert distill --corpus … --method hidden`, and what its student is good for."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel, AutoTokenizer

from conftest import VOCABULARY, WORDS, make_bert
from in_processes import manifest, saved_steps, start, wait_until
from kdbert.data.batches import collate, epoch_batches, micro_batches
from kdbert.losses.hidden import deviations
from kdbert.recipe import Recipe
from kdbert.recipe.defaults import resolve_distill
from kdbert.training.step import forward_backward
from small_models import make_distilbert, make_roberta
from small_run import Parts, assert_same_gradients, build, gradients, logged

TEXTS = 260


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Texts of 1 to 40 words."""
    draw = random.Random(0)
    file = tmp_path_factory.mktemp("text") / "a.txt"
    file.write_text("\n".join(" ".join(draw.choices(WORDS, k=draw.randint(1, 40))) for _ in range(TEXTS)))
    return file


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher with a head, wider than its students."""
    return make_bert(tmp_path_factory.mktemp("wide") / "bert", hidden=48, base=False, labels=["no", "yes"], seed=1)


def words(text: Path, teacher: Path, *more: object) -> list[Any]:
    """A run of two layers."""
    return [
        "distill", "--corpus", text, "--method", "hidden", "--teacher", teacher, "--student-layers", 2, "--max-length",
        32, "--epochs", 2, "train.batch_tokens=256", "train.logging_steps=1", "train.learning_rate=1e-3", *more,
    ]  # fmt: skip


def parts_of(text: Path, teacher: Path, folder: Path, **changes: Any) -> Parts:
    """The same as objects, in float32."""
    keys = {
        "task.name": "corpus", "task.train_file": str(text), "task.max_length": 32, "method.name": "hidden",
        "teachers": [{"model": str(teacher)}], "student.layers": 2, "train.batch_tokens": 256,
        "train.precision": "fp32", "output.runs_dir": str(folder),
    }  # fmt: skip
    return build(resolve_distill(Recipe.build(flags={**keys, **changes})))


@pytest.fixture(scope="module")
def general(tiny_bert: Path, text: Path, kdbert: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished general student of `tiny_bert`, its layers 2 and 4."""
    runs = tmp_path_factory.mktemp("runs")
    done = kdbert(*words(text, tiny_bert, "--student-init", "even", "--runs-dir", runs, "-q"))
    assert done.code == 0, done.err
    return Path(done.out.strip())


def test_a_student_comes_nearer_to_its_teacher_and_is_an_encoder_without_a_head(general: Path, tiny_bert: Path) -> None:
    lines = list(logged(general).values())
    assert lines[-1]["loss"] < 0.9 * lines[0]["loss"]
    for line in lines:
        assert line["loss"] == pytest.approx((line["hidden/2-1"] + line["hidden/4-2"]) / 2, rel=1e-5)
    facts = manifest(general)
    assert facts["selection"] == "distillation_loss"
    assert facts["metrics"]["dev"]["distillation_loss"] < lines[0]["loss"]
    rows = [json.loads(line)["prediction"] for line in (general / "predictions/dev.jsonl").read_text().splitlines()]
    assert sum(row["loss"] for row in rows) / sum(row["weight"] for row in rows) == pytest.approx(
        facts["metrics"]["dev"]["distillation_loss"], abs=1e-6
    )
    model, teacher = AutoModel.from_pretrained(general / "model"), AutoModel.from_pretrained(tiny_bert)
    assert (type(model).__name__, model.config.num_hidden_layers) == ("BertModel", 2)
    assert model.config.hidden_dropout_prob == teacher.config.hidden_dropout_prob > 0  # off in this training only
    assert torch.equal(model.pooler.dense.weight, teacher.pooler.dense.weight)
    assert load_file(general / "method.safetensors")["deviation"].shape == (2, 32)
    card = (general / "model" / "README.md").read_text(encoding="utf-8")
    assert "AutoModel.from_pretrained" in card
    assert "pipeline_tag: feature-extraction" in card
    assert "--student" in card


def test_loss_and_gradients_are_those_written_down_with_the_library_alone(
    text: Path, tiny_bert: Path, tmp_path: Path
) -> None:
    parts = parts_of(text, tiny_bert, tmp_path, **{"method.embeddings": True, "student.init": "even"})
    rows = np.arange(11)
    parts.module.train()
    terms = forward_backward(
        parts.module, parts.data, rows, [parts.live_teacher()], parts.accelerator, accumulation=1, seed=1, step=0
    )
    teacher = AutoModel.from_pretrained(tiny_bert, dtype=torch.float32).eval()
    student = AutoModel.from_pretrained(tiny_bert, dtype=torch.float32).eval()
    student.encoder.layer = torch.nn.ModuleList([student.encoder.layer[1], student.encoder.layer[3]])

    def states(model: Any, batch: Any) -> Any:
        inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
        return model(**inputs, output_hidden_states=True).hidden_states

    everything = collate(parts.data, np.arange(len(parts.data)))  # fewer texts than are looked at
    with torch.no_grad():
        whole = states(teacher, everything)
    batch, pairs = collate(parts.data, rows), ((0, 0), (2, 1), (4, 2))
    real = batch.attention_mask.bool()
    with torch.no_grad():
        theirs = states(teacher, batch)
    ours, expected = states(student, batch), []
    for first, second in pairs:
        deviation = whole[first][everything.attention_mask.bool()].double().std(0, unbiased=False).float()
        expected.append((((ours[second] - theirs[first])[real] / deviation) ** 2).mean())
    total = torch.stack(expected).mean()
    total.backward()
    assert terms.total.item() == pytest.approx(total.item(), rel=1e-4)
    found = gradients(parts.module)
    for name, parameter in student.named_parameters():
        if parameter.grad is not None and not name.startswith("embeddings.word"):
            torch.testing.assert_close(found[f"student.{name}"], parameter.grad, rtol=1e-3, atol=1e-6)


def test_each_unit_counts_alike_whatever_its_size_and_one_that_hardly_varies_does_not_explode() -> None:
    draw = torch.Generator().manual_seed(0)
    hidden = torch.randn(2, 40, 9, 6, generator=draw) * torch.tensor([1, 50, 0.02, 1e-6, 0, 3]) + torch.arange(6) * 20
    mask = (torch.arange(9) < torch.arange(40)[:, None] % 9 + 1).long()
    found = deviations((hidden[:, rows], mask[rows]) for rows in (slice(0, 7), slice(7, 40)))
    spread = hidden[:, mask > 0].double().std(1, unbiased=False)
    least = spread.square().mean(1).sqrt() / 100
    torch.testing.assert_close(found.double(), torch.maximum(spread, least[:, None]), rtol=1e-4, atol=0)
    assert torch.equal(deviations([(torch.full((1, 2, 3, 4), 7.0), torch.ones(2, 3))]), torch.ones(1, 4))


@pytest.mark.parametrize("student", ["cut", "narrow"])
def test_padding_micro_batches_and_the_way_of_computing_change_no_loss_and_no_gradient(
    text: Path, wide: Path, tiny_bert: Path, tmp_path: Path, student: str
) -> None:
    start = {"student.model": str(tiny_bert)} if student == "narrow" else {}
    parts = parts_of(text, wide, tmp_path, **start)
    assert bool(parts.module.method.projections) == (student == "narrow")
    rows, teacher = np.argsort(parts.data.lengths, kind="stable")[:14], parts.live_teacher()
    parts.module.train()

    def step(parts: Parts, accumulation: int = 1, length: int | None = None) -> tuple[float, dict[str, torch.Tensor]]:
        terms = forward_backward(
            parts.module, parts.data, rows, [teacher], parts.accelerator, accumulation=accumulation, seed=1, step=0,
            length=length,
        )  # fmt: skip
        return terms.total.item(), gradients(parts.module)

    loss, expected = step(parts)
    plain = parts_of(text, wide, tmp_path, **start, **{"train.packing": False, "train.attention": "eager"})
    plain.module.load_state_dict(parts.module.state_dict())
    plain.module.train()
    for found, own in (step(parts, 3), step(parts, length=31), step(parts, length=60), step(plain)):
        assert found == pytest.approx(loss, rel=1e-5)
        assert_same_gradients(own, expected, rtol=1e-4)


def test_what_is_frozen_or_made_of_no_hidden_state_is_not_trained(text: Path, tiny_bert: Path, tmp_path: Path) -> None:
    def trained(**changes: Any) -> set[str]:
        module = parts_of(text, tiny_bert, tmp_path, **changes).module
        return {name for name, parameter in module.named_parameters() if parameter.requires_grad}

    whole = trained()
    assert not [name for name in whole if "pooler" in name]
    frozen = trained(**{"student.freeze_embeddings": True})
    assert whole - frozen == {name for name in whole if ".embeddings." in name} != set()


@pytest.mark.parametrize("bucketing", [True, False])
def test_batches_of_tokens_hold_every_text_once_and_about_as_many_tokens(bucketing: bool) -> None:
    draw = np.random.default_rng(0)
    lengths = draw.integers(3, 64, 5000)
    counts = set()
    for epoch in range(3):
        batches = epoch_batches(lengths, 1, seed=1, epoch=epoch, bucketing=bucketing, tokens=1024)
        assert np.array_equal(np.sort(np.concatenate(batches)), np.arange(5000))
        sizes = np.array([lengths[rows].sum() for rows in batches])
        assert (abs(sizes - sizes.mean()) <= 64).all()
        assert 1024 <= sizes.mean() < 1100
        counts.add(len(batches))
    assert len(counts) == 1  # the schedule needs to know it
    assert len(epoch_batches(lengths[:3], 1, seed=1, epoch=0, bucketing=bucketing, tokens=1024)) == 1
    padded = [len(rows) * lengths[rows].max() for rows in batches]
    assert (max(padded) < 2 * 1024) == bucketing


def test_texts_come_in_few_widths_and_never_beyond_the_longest(text: Path, tiny_bert: Path, tmp_path: Path) -> None:
    data = parts_of(text, tiny_bert, tmp_path, **{"task.max_length": 30}).data
    widths = {next(micro_batches(data, np.array([row]))).input_ids.shape[1] for row in range(len(data))}
    assert widths == {16, 30}


@pytest.mark.parametrize("make", [make_roberta, make_distilbert, make_bert])
def test_any_encoder_with_a_head_or_without_one_teaches(
    make: Callable[[Path], Path], text: Path, kdbert: Callable[..., Any], tmp_path: Path
) -> None:
    model = make(tmp_path / "teacher")
    done = kdbert(*words(text, model, "train.max_steps=2", "--output-dir", tmp_path / "run"))
    assert done.code == 0, done.err
    tokenizer, first = AutoTokenizer.from_pretrained(tmp_path / "run/model"), text.read_text().splitlines()[0]
    assert tokenizer(first)["input_ids"] == AutoTokenizer.from_pretrained(model)(first)["input_ids"]
    assert AutoModel.from_pretrained(tmp_path / "run/model").config.num_hidden_layers == 2


def test_its_run_is_the_start_of_any_task(
    general: Path, custom_files: tuple[Path, Path], kdbert: Callable[..., Any], tmp_path: Path
) -> None:
    files = ("--task", "custom", "--train-file", custom_files[0], "--dev-file", custom_files[1], "--max-length", 32)
    more = (*files, "--runs-dir", tmp_path, "train.max_steps=2", "-q")
    tuned = kdbert("finetune-teacher", "--model", general, *more)
    assert tuned.code == 0, tuned.err
    taught = kdbert("distill", "--student", general, "--teacher", tuned.out.strip(), *more)
    assert taught.code == 0, taught.err
    facts = manifest(Path(taught.out.strip()))
    assert (facts["layers"], facts["recipe"]["student"]["model"]) == (2, str(general))
    from kdbert.reporting.table import make_tables

    steps = manifest(general)["steps_done"]
    for paths in ([tmp_path, general], [tmp_path]):
        tables = make_tables(paths, rows=["method"])
        assert {cell.metric for table in tables for row in table.rows for cell in row.cells.values()} == {"accuracy"}
        (note,) = [note for table in tables for note in table.notes if general.name in note]  # its cost, once
        assert note.startswith("2 runs")
        assert f"{steps} steps" in note
    (alone,) = make_tables([general])
    assert alone.columns == ("corpus",)


@pytest.mark.long
def test_a_killed_run_ends_with_the_same_weights(
    wide: Path, tiny_bert: Path, text: Path, kdbert: Callable[..., Any], tmp_path: Path
) -> None:
    """With projections and deviations, which are the method's own."""

    def command(name: str) -> list[str]:
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        places = ("--runs-dir", folder / "runs", "--output-dir", folder / "run")
        more = ("--student", tiny_bert, "--epochs", 6, "train.checkpoint_steps=5", "train.accumulation=2", "-q")
        return [str(word) for word in words(text, wide, *more, *places, "train.batch_tokens=128")]

    assert kdbert(*command("whole")).code == 0
    killed = tmp_path / "killed" / "run"
    process = start(command("killed"), tmp_path / "output")
    try:
        wait_until(lambda: max(saved_steps(killed), default=0) >= 40, process.is_alive, "step 40")
    finally:
        process.kill()
        process.join()
    done = kdbert(*command("killed")[:-1], "train.batch_tokens=128")
    assert done.code == 0, done.err
    assert manifest(killed)["timings"]["resumed_from_step"] >= 40
    for name in ("metrics.jsonl", "model/model.safetensors", "method.safetensors", "predictions/dev.jsonl"):
        assert (killed / name).read_bytes() == (tmp_path / "whole" / "run" / name).read_bytes(), name


def test_what_makes_no_sense_is_refused_in_one_sentence(
    general: Path, tiny_bert: Path, text: Path, custom_files: tuple[Path, Path], kdbert: Callable[..., Any],
    tmp_path: Path,
) -> None:  # fmt: skip
    (tmp_path / "binary.txt").write_bytes(bytes(range(256)) * 20)
    (tmp_path / "zeros.txt").write_bytes(bytes(2000))
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "model.bin").write_bytes(bytes(range(256)))
    other = make_bert(tmp_path / "other", vocabulary=[*VOCABULARY[:5], *reversed(VOCABULARY[5:])])
    files = ("--task", "custom", "--train-file", custom_files[0], "--dev-file", custom_files[1], "--max-length", 32)
    end = ("--runs-dir", tmp_path / "runs")
    for command, told in (
        (words(tmp_path / "binary.txt", tiny_bert, *end), "binary.txt, line 1: "),
        (words(tmp_path / "zeros.txt", tiny_bert, *end), "line 1"),
        (words(tmp_path / "folder", tiny_bert, *end), "holds no text files"),
        (words(text, tiny_bert, "--student", other, *end), "different tokenizers"),
        (words(text, tiny_bert, "--layer-map", "4:1", *end), "--layer-map"),
        (words(text, tiny_bert, "--layer-map", "9:2", *end), "--layer-map"),
        (words(text, tiny_bert, "--variant", "original", *end), "original"),
        (words(text, tiny_bert, "--baseline", *end), "--baseline"),
        (words(text, tiny_bert, "train.batch_tokens=20", *end), "train.batch_tokens"),
        (words(text, tiny_bert, "--batch-sampler", "class-balanced", *end), "batch_"),
        (words(text, tiny_bert, "--label-smoothing", "0.1", *end), "--label-smoothing"),
        (["distill", "--corpus", text, "--method", "hidden", *end], "--teacher"),
        (["distill", *files, "--method", "hidden", "--teacher", tiny_bert, *end], "--corpus"),
        (["distill", *files, "--kind", "encoder", *end], "--kind"),
        (["distill", *files, "--teacher", general, *end], "finetune-teacher"),
        (["distill", "--config", general / "recipe.yaml", "--method", "ve-kd", *end], "hidden"),
        (["evaluate", general], "--student"),
        (["evaluate", general, "--corpus", text], "--student"),
        (["predict", general, custom_files[1]], "--student"),
        (["export", general], "--student"),
        (["benchmark", general], "--student"),
    ):
        done = kdbert(*command)
        assert (done.code, "Traceback" in done.err) == (2, False), (command, done.err)
        assert told in done.err, (command, done.err)
    assert not (tmp_path / "runs" / "corpus" / "hidden").exists()
