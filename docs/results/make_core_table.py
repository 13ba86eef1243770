"""Prints the tables of docs/results/README.md from run folders: `python docs/results/make_core_table.py runs`."""

from __future__ import annotations

import json
import statistics
import sys
from collections import defaultdict
from math import nan
from pathlib import Path
from typing import Any

GRID_SEED, TEACHER_SEED = 100, 0
TASKS = ("rte", "mrpc", "cola", "stsb", "sst2", "clinc150")


def finished_runs(root: Path) -> list[dict[str, Any]]:
    """The manifests of all finished runs below `root`."""
    found = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(root.glob("*/*/*/run.json"))]
    return [run for run in found if run["status"] == "finished"]


def score(run: dict[str, Any], split: str = "dev") -> float:
    """The task's selection metric on a split."""
    return run["metrics"][split][run["selection"]]


def spread(values: list[float]) -> str:
    """mean ± sample standard deviation (n)."""
    deviation = statistics.stdev(values) if len(values) > 1 else float("nan")
    return f"{statistics.mean(values):.4f} ± {deviation:.4f} ({len(values)})"


def main(root: Path) -> None:
    """Print the grid, the main table and the cost of the runs."""
    runs = finished_runs(root)
    grid: dict[tuple[str, float], dict[str, float]] = defaultdict(dict)
    main_runs: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    teachers = {}
    for run in runs:
        recipe = run["recipe"]
        task, method, rate = recipe["task"]["name"], recipe["method"]["name"], recipe["train"]["learning_rate"]
        if recipe["seed"] == TEACHER_SEED:
            teachers[task] = run
        elif recipe["seed"] == GRID_SEED:
            grid[method, rate][task] = score(run)
        else:
            main_runs[task, method].append(run)
    print("| method | learning rate | MRPC accuracy_and_f1 | CoLA matthews_correlation | mean |\n|---|---|---|---|---|")
    for (method, rate), scores in sorted(grid.items()):
        mean = statistics.mean(scores.values())
        print(f"| {method} | {rate:g} | {scores.get('mrpc', nan):.4f} | {scores.get('cola', nan):.4f} | {mean:.4f} |")
    print("\n| task | split, metric | commonest class | teacher, 6 layers (n = 1) ", end="")
    print("| finetune, 3 layers | kd, 3 layers | kd - finetune |\n|---|---|---|---|---|---|---|")
    for task in TASKS:
        for split in ("dev", "test") if task == "clinc150" else ("dev",):
            baseline = sorted(main_runs[task, "finetune"], key=lambda run: run["recipe"]["seed"])
            distilled = sorted(main_runs[task, "kd"], key=lambda run: run["recipe"]["seed"])
            if not baseline or not distilled or task not in teachers:
                print(f"| {task} | {split} | not finished | | | | |")
                continue
            pairs = zip(distilled, baseline, strict=False)
            difference = [score(a, split) - score(b, split) for a, b in pairs]
            teacher = teachers[task]
            print(
                f"| {task} | {split} {teacher['selection']} | {teacher['majority'][split][teacher['selection']]:.4f} "
                f"| {score(teacher, split):.4f} | {spread([score(run, split) for run in baseline])} "
                f"| {spread([score(run, split) for run in distilled])} | {spread(difference)} |"
            )
    seconds = sum(run["timings"]["total_seconds"] for run in runs)
    machines = {(run["environment"]["processor"], run["environment"]["threads"], run["precision"]) for run in runs}
    print(f"\n{len(runs)} runs, {seconds / 60:.0f} minutes in all; (processor, threads, precision): {sorted(machines)}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs"))
