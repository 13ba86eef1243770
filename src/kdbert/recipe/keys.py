"""Dotted keys in nested mappings: `train.learning_rate` is `tree["train"]["learning_rate"]`; which keys mean what."""

from __future__ import annotations

from typing import Any

# What two runs of one experiment may differ in: the seed, places, and how often something is told or saved.
OUTSIDE_IDENTITY = (
    "seed", "output", "task.data_dir", "train.eval_batch_size", "train.logging_steps", "train.checkpoint_steps",
    "memory.train", "train.cache_gib",
)  # fmt: skip
# Keys whose value is a path, which counts by what is in it, wherever it lies.
FILES_BY_CONTENT = ("task.train_file", "task.dev_file", "task.test_file")
MODELS_BY_CONTENT = ("teachers", "student.model", "student.tokenizer", "memory.file")


def put(tree: dict[str, Any], key: str, value: Any, problems: list[str], keep: bool = False) -> None:
    """Set a dotted key in a nested dict; `keep` leaves a value that is already there."""
    parts = key.split(".")
    node = tree
    for part in parts[:-1]:
        child = node.get(part)
        if isinstance(child, str) and part in ("method", "task"):
            child = {"name": child}
        if child is None:
            child = {}
        if not isinstance(child, dict):
            problems.append(f"key {key!r}: {part!r} is not a section")
            return
        node[part] = node = child
    last = parts[-1]
    if keep and last in node:
        return
    if key in ("method", "task") and isinstance(value, str) and isinstance(node.get(last), dict):
        node[last]["name"] = value  # the section's other keys stay
    else:
        node[last] = value
