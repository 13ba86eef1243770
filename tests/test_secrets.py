"""What a person's environment holds in confidence stands in no file and no message; links lead nowhere."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from kdbert.disk.sealed import sealed
from kdbert.errors import UserError, without_credentials
from kdbert.hub import push
from kdbert.runs.folder import RunFolder
from kdbert.training.checkpoint import save_checkpoint

PASSWORD = "hunter2-of-somebody"
SECRETS = {
    "HF_TOKEN": "hf_thisIsASecretOfSomebody",
    "AWS_SECRET_ACCESS_KEY": "aws/secret+of+somebody",
    "WANDB_API_KEY": "0123456789abcdef-wandb",
    "MLFLOW_TRACKING_PASSWORD": "mlflow-password",
    "https_proxy": f"http://user:{PASSWORD}@127.0.0.1:1",
}


def test_no_secret_of_the_environment_is_written_down(
    tiny_bert: Path, custom_files: tuple[Path, Path], kdbert: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    files = ["--train-file", custom_files[0], "--dev-file", custom_files[1]]
    ended = kdbert(
        "finetune-teacher", "--task", "custom", *files, "--model", tiny_bert, "--max-length", 32, "--set",
        "train.max_steps=2", "--set", "output.keep_checkpoints=true",
    )  # fmt: skip
    assert ended.code == 0, ended.err
    report = kdbert("report", "runs", "-o", "page.html")
    assert report.code == 0, report.err
    written = {file.name: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    assert {"run.json", "README.md", "metrics.jsonl", "page.html", "state.json"} <= set(written)
    told = {"out": ended.out.encode(), "err": ended.err.encode(), **written}
    for secret in [*SECRETS.values(), PASSWORD]:
        assert [name for name, content in told.items() if secret.encode() in content] == []


def test_the_password_of_an_address_is_not_told(tmp_path: Path) -> None:
    kept = {key: value for key, value in os.environ.items() if key != "HF_HUB_OFFLINE"}
    ended = subprocess.run(
        [sys.executable, "-m", "kdbert", "doctor"], capture_output=True, text=True, timeout=300, cwd=tmp_path,
        env={**kept, "HF_ENDPOINT": f"http://user:{PASSWORD}@127.0.0.1:1", "HF_HOME": str(tmp_path)},
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    assert "http://127.0.0.1:1 not reachable" in ended.stdout
    assert PASSWORD not in ended.stdout + ended.stderr


def test_nor_where_a_data_set_is_fetched(kdbert: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", f"http://user:{PASSWORD}@127.0.0.1:1")
    for words in (["data", "fetch", "emotion"], ["data", "fetch", "emotion", "--dry-run"]):
        ended = kdbert(*words, "--data-dir", tmp_path)
        assert PASSWORD not in ended.out + ended.err
    ended = kdbert("data", "fetch", "emotion", "--data-dir", tmp_path)
    assert ended.code == 2
    assert "http://127.0.0.1:1/datasets/dair-ai/emotion" in ended.err


def test_addresses_keep_all_but_the_credentials() -> None:
    told = "cannot reach https://user:pass@hub.example:8080/a@b, nor http://token@host; mail me@example.org"
    assert without_credentials(told) == (
        "cannot reach https://hub.example:8080/a@b, nor http://host; mail me@example.org"
    )
    assert without_credentials("http://user:p@ss@host/x") == "http://host/x"


def test_what_is_cleared_away_is_the_link_and_not_what_it_leads_to(tmp_path: Path) -> None:
    thesis = tmp_path / "thesis"
    thesis.mkdir()
    (thesis / "chapter.tex").write_text("years of work", encoding="utf-8")
    run = tmp_path / "run"
    (run / "predictions").mkdir(parents=True)
    for place in (run / ".model.1.tmp", run / ".model.1.old", run / "predictions" / ".dev.1.tmp"):
        place.symlink_to(thesis)
    RunFolder(run).clean()
    assert [path.name for path in run.rglob("*")] == ["predictions"]

    (run / "checkpoints").mkdir()
    for step in (1, 2):
        (run / "checkpoints" / f"step-{step}").symlink_to(thesis)
    (run / "checkpoints" / ".step-9.tmp").symlink_to(thesis)
    for step in (3, 4, 5):
        save_checkpoint(run / "checkpoints", step, {"weights": {"a": torch.ones(1)}, "optimizer": {}}, {})
    assert (thesis / "chapter.tex").read_text(encoding="utf-8") == "years of work"
    assert [path.name for path in thesis.iterdir()] == ["chapter.tex"]


def test_a_link_in_a_model_is_not_followed_to_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", SECRETS["HF_TOKEN"])
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    (tmp_path / "id_rsa").write_text("a private key", encoding="utf-8")
    model = tmp_path / "model"
    model.mkdir()
    (model / "notes.txt").symlink_to(tmp_path / "id_rsa")
    with pytest.raises(UserError, match=r"not pushed: .*notes\.txt is a link"):
        push(model, "someone/student")


@pytest.mark.parametrize("name", ["metrics.jsonl", "predictions", "checkpoints", "run.lock"])
def test_a_run_is_not_written_through_a_link(setting: Any, kdbert: Any, tmp_path: Path, name: str) -> None:
    """Whoever made the folder may have laid the link to a file that is none of the run's."""
    run, outside = tmp_path / "run", tmp_path / "outside"
    assert kdbert(*setting.words(run, max_steps=1)).code == 0
    (run / "run.json").write_text(
        json.dumps(sealed({**RunFolder(run).manifest(), "status": "interrupted"})), encoding="utf-8"
    )
    (run / name).rename(outside) if (run / name).exists() else outside.write_text("a diary", encoding="utf-8")
    (run / name).symlink_to(outside)
    before = {path: path.read_bytes() for path in (outside, *outside.rglob("*")) if path.is_file()}
    ended = kdbert(*setting.words(run, max_steps=1))
    assert ended.code == 2
    assert str(run / name) in ended.err
    assert "link" in ended.err
    assert {path: path.read_bytes() for path in (outside, *outside.rglob("*")) if path.is_file()} == before


def test_predictions_and_exports_are_not_written_through_a_link(setting: Any, kdbert: Any, tmp_path: Path) -> None:
    run, outside = tmp_path / "run", tmp_path / "outside"
    assert kdbert(*setting.words(run, max_steps=1)).code == 0
    outside.mkdir()
    (run / "predictions").rename(tmp_path / "before")
    (run / "predictions").symlink_to(outside)
    (run / "export").symlink_to(outside)
    for words in (("evaluate", run), ("export", run)):
        ended = kdbert(*words)
        assert ended.code == 2
        assert f"{run}/" in ended.err
        assert "is a link" in ended.err
    assert list(outside.iterdir()) == []


def test_links_within_a_run_and_to_the_whole_of_it_are_fine(setting: Any, kdbert: Any, tmp_path: Path) -> None:
    (tmp_path / "scratch").mkdir()
    (tmp_path / "run").symlink_to(tmp_path / "scratch")
    assert kdbert(*setting.words(tmp_path / "run", max_steps=1)).code == 0
    assert (tmp_path / "scratch" / "run.json").exists()


def test_labels_cannot_steer_the_terminal_or_the_card(tiny_bert: Path, kdbert: Any, tmp_path: Path) -> None:
    """Colours, titles of windows, and letters that turn the direction of writing."""
    names = ("\x1b]0;title\x07\x1b[31mred", "\u202eback to front")
    for split in ("train", "dev"):
        lines = [json.dumps({"text": f"a text {row}", "label": names[row % 2]}) for row in range(20)]
        (tmp_path / f"{split}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    ended = kdbert(
        "finetune-teacher", "--task", "custom", "--train-file", tmp_path / "train.jsonl", "--dev-file",
        tmp_path / "dev.jsonl", "--model", tiny_bert, "--max-length", 32, "--output-dir", tmp_path / "run",
        "train.max_steps=1",
    )  # fmt: skip
    assert ended.code == 0, ended.err
    card = (tmp_path / "run" / "model" / "README.md").read_text(encoding="utf-8")
    for text in (ended.err, ended.out, card):
        assert not set(text) & {"\x1b", "\x07", "\u202e"}
    assert "\ufffd[31mred" in card
