"""The file that `kdbert train-memory` writes: centroids, what they were made of, and how."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from kdbert.disk.files import atomic_write
from kdbert.disk.sealed import parse_json
from kdbert.errors import UserError

FORMAT = "kdbert centroids 1"
VERSION = 1  # raise it when kdbert computes centroids in another way


@dataclass(frozen=True)
class Origin:
    """What centroids are made of."""

    task: str
    train_file: str  # fingerprint of a training file of one's own; "" for a task with known files
    teacher: str  # its fingerprint
    layer: int
    width: int  # of its hidden states
    max_length: int  # tokens per example


@dataclass(frozen=True)
class Description(Origin):
    """All that centroids depend on: equal descriptions mean equal centroids."""

    data: str  # fingerprint of the training split as the teacher reads it
    precision: str  # that the teacher runs in
    centroids: int  # this and the following: keys of the recipe's section `memory`
    algorithm: Literal["kmeans", "legacy"]
    passes: int
    batch_size: int
    seed: int
    version: int = VERSION


@dataclass(frozen=True)
class Centroids:
    """Centroids of a teacher's features."""

    values: torch.Tensor  # float32 [K, length, H]
    counts: torch.Tensor  # int64 [K], examples of each
    about: dict[str, Any]  # their description, and how the clustering ended

    @property
    def fingerprint(self) -> str:
        """16 hex digits of the values."""
        return hashlib.sha256(self.values.numpy().tobytes()).hexdigest()[:16]

    def save(self, path: Path, assignments: torch.Tensor) -> None:
        """Write one safetensors file: `centroids`, `counts`, `assignments` [N]; the rest as JSON in its metadata."""
        from safetensors.torch import save_file

        tensors = {"centroids": self.values.contiguous(), "counts": self.counts, "assignments": assignments.int()}
        # One entry only: safetensors writes several in any order, and equal centroids should be equal files.
        facts = {"format": FORMAT, "about": self.about, "sha256": _checksum(tensors, self.about)}
        metadata = {"kdbert": json.dumps(facts, sort_keys=True)}
        atomic_write(path, lambda temporary: save_file(tensors, temporary, metadata))

    @classmethod
    def load(cls, path: Path) -> Centroids:
        """Read a file that `save` wrote, unless it is damaged."""
        from safetensors import SafetensorError, safe_open

        try:
            path.open("rb").close()  # safetensors says of a file that it may not read that it is missing
            with safe_open(path, framework="pt") as file:
                facts = parse_json((file.metadata() or {}).get("kdbert", "{}"))
                if not isinstance(facts, dict) or facts.get("format") != FORMAT:
                    raise UserError(f"{path} is not a memory file; make one with `kdbert train-memory`")
                tensors = {name: file.get_tensor(name) for name in ("centroids", "counts", "assignments")}
                found = cls(tensors["centroids"], tensors["counts"], dict(facts["about"]))
                damaged = found.values.ndim != 3 or facts["sha256"] != _checksum(tensors, found.about)
        except FileNotFoundError:
            raise UserError(f"no memory file {str(path)!r}: check it, or make one with `kdbert train-memory`") from None
        except (OSError, SafetensorError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise UserError(f"memory file {path} cannot be read ({error}); run `kdbert train-memory` again") from None
        if damaged:
            raise UserError(f"memory file {path} is damaged (its checksum is wrong); run `kdbert train-memory` again")
        return found

    def check(self, path: str | Path, origin: Origin, variant: str, longest: int = 0) -> None:
        """Refuse centroids of another origin than the run's, and of the other variant.

        `longest` is the length of the longest training example, once that is known.
        """
        words = {
            "task": "task {there!r}, not {here!r}",
            "train_file": "other training examples",
            "teacher": "another teacher (fingerprint {there}, this run's is {here})",
            "layer": "the teacher's layer {there}, not {here}",
            "width": "a teacher of width {there}, not {here}",
            "max_length": "--max-length {there}, not {here}",
        }
        here = asdict(origin)
        there = {key: self.about.get(key) for key in words}
        differ = [
            text.format(there=there[key], here=here[key]) for key, text in words.items() if there[key] != here[key]
        ]
        if differ:
            raise UserError(
                f"memory {path} is of {', of '.join(differ)}: make one with `kdbert train-memory`, or omit --memory"
            )
        algorithm = self.about.get("algorithm")
        made_for = "original" if algorithm == "legacy" else "corrected"
        if made_for != variant:
            raise UserError(
                f"memory {path} was made by the algorithm {algorithm}, for variant {made_for}: omit --memory, or use "
                f"--variant {made_for}"
            )
        if longest > self.values.shape[1]:
            raise UserError(
                f"memory {path} is {self.values.shape[1]} tokens long, the longest training example has {longest}: "
                "it was made of other examples; omit --memory"
            )


def _checksum(tensors: Mapping[str, torch.Tensor], about: Mapping[str, Any]) -> str:
    """Hex digest of everything in the file."""
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
    for _, tensor in sorted(tensors.items()):
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()
