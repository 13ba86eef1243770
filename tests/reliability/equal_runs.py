"""Whether two finished runs are the same, byte for byte, and whether anything temporary is left of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from in_processes import manifest, saved_steps

PASSING = {"run.json", "recipe.yaml", "model/README.md"}  # they tell times and places
FACTS = ("status", "metrics", "best", "steps_done", "teachers", "fingerprints", "model_fingerprint")


def differences(actual: Path, expected: Path) -> list[str]:
    """Files of two finished runs and keys of run.json that are not the same.

    Of checkpoints that are kept only the last one counts: there lies the optimiser's state.
    """
    last = max(saved_steps(expected), default=0)

    def counts(name: str) -> bool:
        older = name.startswith("checkpoints/step-") and last > 0 and not name.startswith(f"checkpoints/step-{last}/")
        return name not in PASSING and not Path(name).name.startswith("events.") and not older

    ends = [manifest(run) for run in (actual, expected)]
    facts = [f"run.json: {key}" for key in FACTS if ends[0][key] != ends[1][key]]
    return different_files(actual, expected, counts) + facts


def different_files(actual: Path, expected: Path, counts: Callable[[str], bool] = lambda name: True) -> list[str]:
    """Names of the files that only one of two folders has, or that differ."""
    found = []
    for name in sorted(set(files(actual)) | set(files(expected))):
        pair = (actual / name, expected / name)
        if counts(name) and (not all(p.is_file() for p in pair) or pair[0].read_bytes() != pair[1].read_bytes()):
            found.append(name)
    return found


def files(folder: Path) -> list[str]:
    """Every file below a folder, relative to it."""
    return [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()]


def half_written(folder: Path) -> list[str]:
    """Files and folders under temporary names, locks aside."""
    return [str(path.relative_to(folder)) for path in folder.rglob("*") if path.name.endswith((".tmp", ".old"))]
