"""What the tests of the sweep share: a folder with small models and files, words of small sweeps, what came of them."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from in_processes import manifest
from kdbert.sweep.grid import Cell, expand

STARTED = re.compile(r"^\[\d+/\d+\] started   (.*)$", re.MULTILINE)
THREADS = max(1, len(os.sched_getaffinity(0)) // 2)  # of each of two jobs


@dataclass(frozen=True)
class Place:
    """A folder of its own for one story: data, a pretrained model, and the runs."""

    folder: Path

    @classmethod
    def make(cls, folder: Path, model: Path, files: tuple[Path, Path]) -> Place:
        """Copy model and files, so that a test may spoil them."""
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copytree(model, folder / "bert")
        for file in files:
            shutil.copy(file, folder)
        return cls(folder)

    @property
    def runs(self) -> Path:
        """Root of the run folders."""
        return self.folder / "runs"

    @property
    def shared(self) -> dict[str, object]:
        """Recipe keys of all cells: two layers, one epoch of batches of 16."""
        return {
            "task.name": "custom",
            "task.train_file": self.folder / "train.csv",
            "task.dev_file": self.folder / "dev.csv",
            "task.max_length": 32,
            "teacher_training.model": self.folder / "bert",
            "teacher_training.epochs": 1,
            "student.model": self.folder / "bert",
            "student.layers": 2,
            "train.batch_size": 16,
            "train.epochs": 1,
            "train.learning_rate": "2e-3",
            "train.precision": "fp32",
        }

    def words(self, *grid: str, leave_out: tuple[str, ...] = (), runs: Path | None = None) -> list[str]:
        """Words of a sweep of these axes; other words, such as a file or `--jobs`, are put in as they are."""
        words = ["sweep"]
        for text in grid:
            words += [text] if text.startswith("-") or "=" not in text else ["--grid", text]
        words += [f"{key}={value}" for key, value in self.shared.items() if key not in leave_out]
        return [*words, "--runs-dir", str(runs or self.runs)]

    def cells(self, *grid: str, **changes: object) -> list[Cell]:
        """The cells of a sweep of these axes; a change to None leaves a shared key out."""
        keys = {**self.shared, "output.runs_dir": self.runs, **changes}
        return expand(grid=grid, sets=[f"{key}={value}" for key, value in keys.items() if value is not None])

    def run_folders(self) -> list[Path]:
        """Every run folder."""
        return sorted(path.parent for path in self.runs.glob("*/*/*/run.json"))

    def statuses(self) -> list[str]:
        """How the runs stand."""
        return sorted(manifest(run)["status"] for run in self.run_folders())

    def manifests(self) -> dict[Path, bytes]:
        """Every run.json as it lies on the disk."""
        return {run: (run / "run.json").read_bytes() for run in self.run_folders()}

    def litter(self) -> list[Path]:
        """Claims and half-written files."""
        return [*self.runs.glob(".sweep/claims/*"), *self.runs.glob(".sweep/clock-*"), *self.runs.rglob("*.tmp")]


def weights(run: Path) -> str:
    """What a run's weights are known by."""
    return hashlib.sha256((run / "model" / "model.safetensors").read_bytes()).hexdigest()
