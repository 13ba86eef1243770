"""Runs that share a root, a data folder and a cache do each other no harm.

(That a second start of one run is refused with the first one's process and host: test_resume.py.)
"""

from __future__ import annotations

from pathlib import Path

import pytest

from in_processes import manifest, start, wait_until
from kdbert.disk.lock import FileLock
from small_run import Setting


def words(setting: Setting, root: Path, seed: int) -> list[str]:
    """A `cka-g` run that has to make its teacher, its memory and what it reads of the teacher, all below one root."""
    return [
        "distill", "--method", "cka-g", "--task", "custom", "--train-file", str(setting.train), "--dev-file",
        str(setting.dev), "--max-length", "32", "--seed", str(seed), "--runs-dir", str(root), "--no-baseline",
        "--student-layers", "2", f"teacher_training.model={setting.teacher}", "teacher_training.epochs=1",
        "memory.centroids=6", "train.max_steps=12", "train.logging_steps=1", "train.checkpoint_steps=4",
    ]  # fmt: skip


@pytest.mark.slow
def test_two_runs_at_once_on_an_empty_root_end_as_each_does_alone(
    tiny_bert: Path, custom_files: tuple[Path, Path], tmp_path: Path
) -> None:
    setting = Setting(*custom_files, tiny_bert, tiny_bert)

    def read(output: Path) -> str:
        return output.read_text(encoding="utf-8") if output.exists() else ""

    def runs(root: Path, seeds: tuple[int, ...], hold: FileLock | None = None) -> str:
        """Started in one moment and waited for; what they told.

        Args:
            hold: what all of them want first; it is let go when all of them wait for it.
        """
        outputs = [tmp_path / f"{root.name}-{seed}" for seed in seeds]
        started = [start(words(setting, root, seed), output) for seed, output in zip(seeds, outputs, strict=True)]
        try:
            if hold is not None:
                for process, output in zip(started, outputs, strict=True):
                    wait_until(lambda o=output: "waiting for" in read(o), process.is_alive, "waiting")
                hold.release()
            for process in started:
                process.join(300)
        finally:
            for process in started:
                process.kill()
        told = "\n".join(map(read, outputs))
        assert [process.exitcode for process in started] == [0] * len(seeds), told
        return told

    runs(tmp_path / "alone", (1,))
    runs(tmp_path / "alone", (2,))
    (teacher,) = (tmp_path / "alone" / "custom" / "finetune").iterdir()
    lock = FileLock(tmp_path / "both" / "custom" / "finetune" / teacher.name / "run.lock")
    assert lock.acquire()
    both = runs(tmp_path / "both", (1, 2), lock)
    made, expected = (
        {
            str(path.relative_to(root)): path.read_bytes()
            for path in root.rglob("*")
            if path.name in ("metrics.jsonl", "dev.jsonl") or path.suffix == ".safetensors"
        }
        for root in (tmp_path / "both", tmp_path / "alone")
    )
    assert sorted(made) == sorted(expected)
    assert [name for name, content in made.items() if content != expected[name]] == []
    assert {Path(name).parts[1] for name in made if name.startswith("custom")} == {"cka-g", "finetune", "memory"}
    assert sum(name.endswith("metrics.jsonl") for name in made) == 3  # one teacher
    kept = [line.partition(": kept in ")[2] for line in both.splitlines() if ": kept in " in line]
    assert sorted(kept) == sorted(map(str, (tmp_path / "both" / ".teacher-outputs").rglob("*.safetensors")))
    assert all(manifest(path.parent)["status"] == "finished" for path in (tmp_path / "both").rglob("run.json"))
    assert not [path for path in (tmp_path / "both").rglob("*") if path.name.endswith((".tmp", ".old", ".lock"))]
