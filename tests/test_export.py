"""`kdbert export`: the ONNX file answers as the model does, without kdbert and torch, or there is none."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from conftest import make_bert
from kdbert.disk.sealed import sealed
from small_heads import make_setting
from small_models import make_distilbert, make_roberta
from small_run import Setting, predict, predictions

KDBERT = Any


@pytest.fixture(scope="module")
def run(kdbert: KDBERT, setting: Setting, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished distillation on the small task, in float32."""
    return finish(kdbert, setting.words(tmp_path_factory.mktemp("place") / "run", precision="fp32"))


def finish(kdbert: KDBERT, words: list[str]) -> Path:
    """Run a command to the end; its folder."""
    done = kdbert(*words, "--quiet")
    assert done.code == 0, done.err
    return Path(done.out.strip())


def finetune(kdbert: KDBERT, folder: Path, suffix: str, model: Path, **keys: Any) -> Path:
    """One epoch on the files `train` and `dev` of a folder."""
    files = ["--train-file", folder / f"train{suffix}", "--dev-file", folder / f"dev{suffix}"]
    sets = [f"{key}={value}" for key, value in {"epochs": 1, "precision": "fp32", **keys}.items()]
    words = ["finetune-teacher", "--task", "custom", *files, "--model", model, "--runs-dir", folder / "runs"]
    return finish(kdbert, [*map(str, words), "--max-length", "24", "--set", *(f"train.{one}" for one in sets)])


def answer_without_kdbert(folder: Path, asked: str) -> str:
    """What the Python of the export's own README prints, with its example replaced."""
    readme = (folder / "README.md").read_text(encoding="utf-8")
    code = readme.split("```python\n")[1].split("```")[0]
    for example in ('("a first sentence", "a second one")', '["words", "of", "a", "sentence"]', '"a sentence"'):
        if example in code:
            code = code.replace(example, asked)
            break
    else:
        raise AssertionError(code)
    blocked = "import sys\nfor name in ('torch', 'transformers', 'kdbert'):\n    sys.modules[name] = None\n"
    found = subprocess.run([sys.executable, "-c", blocked + code], cwd=folder, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    return found.stdout.strip()


def undecided(model: Path, texts: list[str]) -> None:
    """Shift a classifier's bias, so that half of the texts lie on either side of its border, close to it."""
    network = AutoModelForSequenceClassification.from_pretrained(model, dtype=torch.float32).eval()
    asked = AutoTokenizer.from_pretrained(model)(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        logits = network(**asked).logits
        network.classifier.bias[0] += (logits[:, 1] - logits[:, 0]).median()
    network.save_pretrained(model)


def dev_rows(setting: Setting) -> list[tuple[str, str]]:
    lines = setting.dev.read_text(encoding="utf-8").splitlines()[1:]
    return [(text, label) for text, _, label in (line.rpartition(",") for line in lines)]


def test_an_export_answers_as_its_run_did_and_needs_neither_kdbert_nor_torch(
    kdbert: KDBERT, run: Path, setting: Setting
) -> None:
    done = kdbert("export", run)
    assert done.code == 0, done.err
    folder = run / "export" / "onnx"
    assert done.out.splitlines()[-1].endswith(str(folder))
    checks = json.loads((folder / "export.json").read_text())["checks"]["dev"]
    ran = json.loads((run / "run.json").read_text())["metrics"]["dev"]
    assert checks["export"] == pytest.approx(ran)
    assert checks["agreement"] == 1.0
    assert checks["largest_difference"] < 1e-4
    for row, (text, _) in list(zip(predictions(run), dev_rows(setting), strict=True))[:3]:
        assert answer_without_kdbert(folder, repr(text)) == row["prediction"]
    again = kdbert("export", run)
    assert (again.code, again.out) == (0, done.out)
    assert "already exported" in again.err


def test_eight_bits_are_smaller_and_say_how_far_they_are_off(kdbert: KDBERT, run: Path) -> None:
    done = kdbert("export", run, "--format", "onnx-int8", "--min-agreement", "0.5", "--max-drop", "1")
    assert done.code == 0, done.err
    folder = run / "export" / "onnx-int8"
    about = json.loads((folder / "export.json").read_text())
    assert about["checks"]["dev"]["largest_difference"] > 0
    assert kdbert("export", run).code == 0
    assert (folder / "model.onnx").stat().st_size < (run / "export" / "onnx" / "model.onnx").stat().st_size
    assert {file.name for file in folder.iterdir()} == {
        "README.md", "config.json", "export.json", "model.onnx", "tokenizer.json", "tokenizer_config.json",
    }  # fmt: skip
    # What passed a loose bound does not pass a tight one, though it is there.
    strict = kdbert("export", run, "--format", "onnx-int8", "--max-drop", "0", "--min-agreement", "1")
    if about["checks"]["dev"]["agreement"] < 1:
        assert strict.code == 1


def test_an_export_that_answers_otherwise_is_refused_and_not_kept(kdbert: KDBERT, tmp_path: Path) -> None:
    labels = ["negative", "positive"]
    model = make_bert(tmp_path / "model", base=False, labels=labels)
    texts = [f"{'good bad ' * (number % 7)}cat {number}" for number in range(300)]
    for name, rows in (("train", 8), ("dev", 300)):
        lines = [f"{text},{labels[number % 2]}" for number, text in enumerate(texts[:rows])]
        (tmp_path / f"{name}.csv").write_text("\n".join(["text,label", *lines]) + "\n")
    undecided(model, texts)
    folder = finetune(kdbert, tmp_path, ".csv", model, learning_rate=1e-9)
    done = kdbert("export", folder, "--format", "onnx-int8", "--min-agreement", "1", "--max-drop", "1")
    assert done.code == 1
    assert "not exported: on dev (300 examples) agreement is 0." in done.err
    assert "(--min-agreement 1)" in done.err
    assert not (folder / "export" / "onnx-int8").exists()
    assert list((folder / "export").iterdir()) == []


@pytest.mark.parametrize("kind", ["token", "multi_label"])
def test_other_heads(kdbert: KDBERT, tiny_bert: Path, tmp_path: Path, kind: str) -> None:
    setting = make_setting(kind, tmp_path, tiny_bert)
    folder = finish(kdbert, setting.words(tmp_path / "runs", precision="fp32"))
    assert kdbert("export", folder).code == 0
    checks = json.loads((folder / "export" / "onnx" / "export.json").read_text())["checks"]["dev"]
    assert checks["export"] == pytest.approx(json.loads((folder / "run.json").read_text())["metrics"]["dev"])
    row = predictions(folder)[0]
    if kind == "token":
        words = json.loads((setting.data_dir / "dev.json").read_text().splitlines()[0])["tokens"]
        told = eval(answer_without_kdbert(folder / "export" / "onnx", repr(words)))
        assert {tag for token, tag in told if not token.startswith(("##", "[CLS]", "[SEP]"))} == {*row["prediction"]}


@pytest.mark.parametrize("make", [make_roberta, make_distilbert])
def test_other_encoders_and_pairs_of_texts(kdbert: KDBERT, tmp_path: Path, make: Any) -> None:
    model = make(tmp_path / "model")
    for name in ("train", "dev"):
        rows = [
            {"sentence1": "the cat is good " * (n % 5 + 1), "sentence2": f"dog {n}", "label": n % 6 + 0.5}
            for n in range(40)
        ]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    folder = finetune(kdbert, tmp_path, ".jsonl", model)
    done = kdbert("export", folder)
    assert done.code == 0, done.err
    first = predictions(folder)[0]
    told = answer_without_kdbert(folder / "export" / "onnx", repr(("the cat is good ", "dog 0")))
    assert float(told) == pytest.approx(first["prediction"], abs=1e-4)


def test_nothing_of_a_persons_is_replaced(kdbert: KDBERT, run: Path, tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.mkdir()
    (own / "notes.txt").write_text("mine")
    done = kdbert("export", run, "--output-dir", own, "--overwrite")
    assert done.code == 2
    assert "holds no export" in done.err
    assert [file.name for file in own.iterdir()] == ["notes.txt"]
    other = tmp_path / "other"
    assert kdbert("export", run, "--output-dir", other).code == 0
    about = json.loads((other / "export.json").read_text())
    (other / "export.json").write_text(json.dumps(sealed({**about, "model_fingerprint": "another"})))
    done = kdbert("export", run, "--output-dir", other)
    assert done.code == 2
    assert "holds the export of something else; choose another --output-dir, or pass --overwrite" in done.err
    assert kdbert("export", run, "--output-dir", other, "--overwrite").code == 0
    assert len(list(tmp_path.glob("other.old-*"))) == 1


def test_a_damaged_export_is_refused_by_all_that_read_it(kdbert: KDBERT, run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "export"
    assert kdbert("export", run, "--output-dir", folder).code == 0
    for name in ("model.onnx", "tokenizer.json", "export.json"):
        whole = (folder / name).read_bytes()
        for damage in (whole[: len(whole) // 2], whole[:-20] + bytes([whole[-20] ^ 1]) + whole[-19:]):
            (folder / name).write_bytes(damage)
            for words in (("export", run, "--output-dir", folder), ("benchmark", folder, "--task", "custom")):
                done = kdbert(*words)
                assert (done.code, done.err.count("\n")) == (2, 1), done.err
                assert f"{folder / name} is damaged" in done.err
        (folder / name).write_bytes(whole)
    assert "already exported" in kdbert("export", run, "--output-dir", folder).err


def test_what_cannot_be_exported_is_refused_in_one_sentence(
    kdbert: KDBERT, run: Path, tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    (damaged / "export.json").write_text("{")
    masked = make_bert(tmp_path / "masked", masked_lm=True)
    for words, told in {
        ("export", run, "--format", "onx"): "--format 'onx'",
        ("export", tiny_bert): "--task",
        ("export", tiny_bert, "--task", "rte"): "has no trained head for task",
        ("export", masked, "--task", "corpus"): str(masked),
        ("export", run, "--output-dir", damaged): "export.json is damaged",
    }.items():
        done = kdbert(*words)
        assert (done.code, done.err.count("\n")) == (2, 1), done.err
        assert told in done.err
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    done = kdbert("export", run)
    assert done.code == 2
    assert "pip install 'kdbert[export]'" in done.err
    shutil.rmtree(damaged)


def test_numbers_of_a_batch_do_not_depend_on_padding_in_float32(run: Path, kdbert: KDBERT) -> None:
    from kdbert.data.encode import encode
    from kdbert.export import OnnxModel
    from kdbert.runs.answers import saved_model

    assert kdbert("export", run).code == 0
    saved = saved_model(str(run))
    data = encode(saved.examples("dev"), saved.tokenizer, saved.max_length)
    model = OnnxModel(run / "export" / "onnx", saved.way)
    one, many = (predict(model, data, size) for size in (1, 32))
    np.testing.assert_allclose(one, many, rtol=1e-4, atol=1e-5)
