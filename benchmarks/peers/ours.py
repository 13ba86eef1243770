"""kdbert itself: `kdbert distill` from Python with its defaults, or with every lever off (`plain`), store empty."""

from __future__ import annotations

# isort: off
import kdbert  # noqa: F401  (before torch, as the command does: it sets what torch reads once)

# isort: on
import json
import logging
import sys
import tempfile
import time
from pathlib import Path

import torch
import transformers.models.bert.modeling_bert  # noqa: F401  (imported before the clock starts, by everybody)
from common import peak_gib

from kdbert.recipe import Recipe
from kdbert.runs.commands import distill

PLAIN = {
    "train.precision": "fp32", "train.bucketing": False, "train.teacher_cache": False, "train.attention": "eager",
    "train.packing": False, "train.fast_dropout": False, "train.used_rows": False, "train.first_token": False,
}  # fmt: skip


def main() -> None:
    """Train and evaluate once."""
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    torch.set_num_threads(job["threads"])
    logging.getLogger("kdbert").setLevel(logging.WARNING)
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        keys = {
            "task.name": job["task"], "task.data_dir": job["data_dir"], "task.max_length": job["max_length"],
            "task.max_train_examples": job["max_train_examples"],
            "teachers": [{"model": job["teacher_run"]}], "student.model": job["student"],
            "method": {"name": job["method"]} | ({"alpha": job["alpha"], "temperature": job["temperature"]}),
            "train.epochs": job["epochs"], "train.batch_size": job["batch_size"], "train.max_steps": job["steps"],
            "train.learning_rate": job["learning_rate"], "seed": job["seed"], "output.dir": f"{folder}/run",
            "output.runs_dir": folder,
        }  # fmt: skip
        if job["method"] == "cka-ilg":
            keys["memory.file"] = job["memory"]
        if job["contestant"] == "kdbert-plain":
            keys |= PLAIN
        distill(Recipe.build(flags=keys), baseline=False)
        seconds = time.perf_counter() - started
        facts = json.loads((Path(folder) / "run" / "run.json").read_text(encoding="utf-8"))
    times, steps = facts["timings"], facts["steps"]
    planned = job["planned"]
    phases = {"teacher": times["teacher_seconds"], "train": times["train_seconds"], "evaluate": times["eval_seconds"]}
    phases["rest"] = seconds - sum(phases.values())
    whole = {**phases, "train": phases["train"] * planned / steps}
    if steps < planned:  # one evaluation was timed; there is one after every epoch
        whole["evaluate"] = phases["evaluate"] * job["epochs"]
    Path(sys.argv[2]).write_text(json.dumps({
        "steps": steps, "planned": planned, "metrics": facts["metrics"], "seconds": sum(whole.values()),
        "phases": whole, "measured": phases, "precision": facts["precision"],
        "peak_gib": peak_gib(job["device"]),
    }))  # fmt: skip


if __name__ == "__main__":
    main()
