"""The file that `kdbert train-memory` writes: centroids, and what they are centroids of."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from kdbert.disk.files import atomic_write
from kdbert.disk.sealed import parse_json
from kdbert.errors import UserError

FORMAT = "kdbert memory 1"


def _whole(tensors: Mapping[str, torch.Tensor], about: Mapping[str, Any]) -> str:
    """Hex digest of all that stands in a memory's file."""
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
    for _, tensor in sorted(tensors.items()):
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()


@dataclass(frozen=True)
class Memory:
    """Centroids and what they are centroids of.

    Attributes:
        centroids: float32 [K, length, H].
        counts: int64 [K], examples of each.
        about: task, teacher (fingerprint), layer, length, algorithm, … as `save` writes them.
    """

    centroids: torch.Tensor
    counts: torch.Tensor
    about: dict[str, Any]

    @property
    def fingerprint(self) -> str:
        """16 hex digits of the centroids."""
        return hashlib.sha256(self.centroids.numpy().tobytes()).hexdigest()[:16]

    def save(self, path: Path, assignments: torch.Tensor) -> None:
        """Write one safetensors file: `centroids`, `counts`, `assignments` [N]; the rest as JSON in its metadata."""
        from safetensors.torch import save_file

        tensors = {
            "centroids": self.centroids.contiguous(),
            "counts": self.counts,
            "assignments": assignments.to(torch.int32),
        }
        # In one entry, since safetensors writes several in any order, and equal memories should be equal files.
        facts = {
            "format": FORMAT,
            "about": self.about,
            "sha256": self.fingerprint,
            "whole": _whole(tensors, self.about),
        }
        metadata = {"memory": json.dumps(facts, sort_keys=True)}
        atomic_write(path, lambda temporary: save_file(tensors, temporary, metadata), f".{path.name}.tmp")

    @classmethod
    def load(cls, path: Path) -> Memory:
        """Read a memory.

        Raises:
            UserError: no such file, no memory, or damaged.
        """
        from safetensors import SafetensorError, safe_open

        try:
            path.open("rb").close()  # safetensors calls a file that may not be read missing
            with safe_open(path, framework="pt") as file:
                facts = parse_json((file.metadata() or {}).get("memory", "{}"))
                if not isinstance(facts, dict) or facts.get("format") != FORMAT:
                    raise UserError(f"{path} is no memory of kdbert; make one with `kdbert train-memory`")
                tensors = {name: file.get_tensor(name) for name in ("centroids", "counts", "assignments")}
                memory = cls(tensors["centroids"], tensors["counts"], dict(facts["about"]))
                whole = _whole(tensors, memory.about)
        except FileNotFoundError:
            raise UserError(
                f"no memory file {str(path)!r}: check the path, or make one with `kdbert train-memory`"
            ) from None
        except (OSError, SafetensorError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise UserError(
                f"memory file {path} cannot be read ({error}); make it again with `kdbert train-memory`"
            ) from None
        same = memory.fingerprint == facts.get("sha256") and facts.get("whole", whole) == whole
        if memory.centroids.ndim != 3 or not same:
            raise UserError(f"memory file {path} is damaged (its content is not what was written); make it again")
        return memory

    def check(self, path: str | Path, wanted: Mapping[str, Any], variant: str) -> None:
        """Refuse a memory that is not of this run's teacher, task, layer and length.

        Args:
            wanted: `task`, `train_file`, `teacher`, `layer`, `width`, `max_length` of the run.
            variant: `corrected` takes no memory in which padding counts.

        Raises:
            UserError: with what differs.
        """
        words = {
            "task": "task {there!r}, not {here!r}",
            "train_file": "other training examples",
            "teacher": "another teacher (fingerprint {there}, this run's is {here})",
            "layer": "the teacher's layer {there}, not {here}",
            "width": "a teacher of width {there}, not {here}",
            "max_length": "--max-length {there}, not {here}",
        }
        differ = [
            text.format(there=self.about.get(key), here=wanted[key])
            for key, text in words.items()
            if self.about.get(key) != wanted[key]
        ]
        if differ:
            raise UserError(
                f"memory {path} is of {', of '.join(differ)}: make one with `kdbert train-memory`, or leave --memory "
                "away"
            )
        legacy = self.about.get("algorithm") == "legacy"
        if legacy and variant == "corrected":
            raise UserError(
                f"memory {path} was made by the published procedure, in which padding counts; variant corrected needs "
                "true centroids: leave --memory away, or use --variant original"
            )
        if not legacy and variant == "original":
            raise UserError(
                f"memory {path} holds true centroids, without padding; variant original reads what the published "
                "procedure makes (`kdbert train-memory --algorithm legacy`): leave --memory away, or use --variant "
                "corrected"
            )

    def check_length(self, path: str | Path, longest: int) -> None:
        """Refuse a memory that is shorter than the longest training example.

        Raises:
            UserError: it was made of other examples.
        """
        if longest > self.centroids.shape[1]:
            raise UserError(
                f"memory {path} is {self.centroids.shape[1]} tokens long, the longest training example has {longest}: "
                "it was made of other examples; make one with `kdbert train-memory`"
            )
