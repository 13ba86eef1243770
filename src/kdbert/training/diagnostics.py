"""What `--diagnose` adds to a run: how similar student and teacher are inside, during training and at its end.

Everything is measured on dev examples, without dropout and without padding, so that numbers can be compared over time
and between runs. Training is not changed. The published code computes the same on each training batch
(docs/quirks.md, section 3.6).
"""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator

from kdbert.data.batches import Batch, collate, epoch_batches
from kdbert.data.encode import Encoded
from kdbert.disk.files import atomic_write, write_text
from kdbert.heads import Head
from kdbert.losses.cka import centered_gram, defined_cka
from kdbert.losses.neighbors import intra_class_cosine
from kdbert.losses.similarity import COMPARED, compare_cosines, compare_distances, patience
from kdbert.methods import HiddenStates, Models
from kdbert.models.layers import layerwise_pairs, told
from kdbert.training.forward import pass_over, run_model
from kdbert.training.precision import Precision

PROBE, PER_CLASS = 32, 4  # dev examples that the monitors look at, in groups of one class
MOST = 1000  # dev examples of the heat map


class Diagnostics:
    """Monitors of a student against its first teacher, and their layers' CKA.

    Args:
        student, teacher: the models. The teacher is run now, and not kept.
        data: dev as the student reads it.
        own: dev as the teacher reads it, if that differs.
    """

    def __init__(
        self,
        student: Any,
        teacher: Any,
        data: Encoded,
        own: Encoded | None,
        models: Models,
        head: Head,
        *,
        precision: Precision,
        batch_size: int,
        accelerator: Accelerator,
    ) -> None:
        assert data.labels is not None
        self.student, self.models, self.data, self.head, self.precision = student, models, data, head, precision
        self.settings: dict[str, Any] = {"batch_size": batch_size, "precision": precision, "accelerator": accelerator}
        self.same_tokens = own is None
        labels = torch.from_numpy(data.labels)
        classes = head.example_classes(labels) if head.has_example_classes else torch.zeros(len(data))
        batches = epoch_batches(
            data.lengths, PROBE, seed=0, epoch=0, bucketing=False, classes=classes.numpy(), per_class=PER_CLASS
        )
        rows = max(batches, key=len)
        self.batch = collate(data, rows).to(accelerator.device)
        probed = classes[torch.from_numpy(rows)].to(accelerator.device)
        self.same_class = probed[:, None] == probed[None, :]
        self.depths = depth, student_depth = models.teachers[0].layers, models.student.layers
        self.layerwise = layerwise_pairs(depth, student_depth) if student_depth > 1 else ()
        self.pair = (depth - 1, student_depth - 1) if min(self.depths) > 1 else self.depths
        layers = sorted({depth, self.pair[0], *(layer for layer, _ in self.layerwise)})
        read = data if own is None else own
        teacher.eval()
        with torch.no_grad():
            self.teacher = run_model(teacher, collate(read, rows).to(accelerator.device), precision, layers)
        self.teacher_pooled = self._pooled(teacher, read, depth)

    def numbers(self) -> dict[str, float]:
        """The monitors now, by the names under which they are logged."""
        last, depth = self.depths
        layers = sorted({depth, self.pair[1], *(layer for _, layer in self.layerwise)})
        training = self.student.training
        self.student.eval()
        with torch.no_grad():
            seen = run_model(self.student, self.batch, self.precision, layers)
        self.student.train(training)
        teacher, student = self.pair
        token_mask = self.batch.attention_mask
        found: dict[str, torch.Tensor] = {}
        for name, compare in (("distance", compare_distances), ("cosine", compare_cosines)):
            pairs = {"inter": compare(_flat(self.teacher, teacher), _flat(seen, student))}
            if self.same_tokens:
                pairs["intra"] = compare(self.teacher.hidden[teacher], seen.hidden[student], token_mask)
            for kind, values in pairs.items():
                found.update({f"{kind}_{name}/{part}": values[i] for i, part in enumerate(COMPARED)})
        if self.same_tokens and self.layerwise and self.models.teachers[0].width == self.models.student.width:
            found["patience"] = patience([(_flat(self.teacher, a), _flat(seen, b)) for a, b in self.layerwise])
        if self.head.has_example_classes:
            found["intra_class_cosine/student"] = intra_class_cosine(_flat(seen, depth), self.same_class)
            found["intra_class_cosine/teacher"] = intra_class_cosine(_flat(self.teacher, last), self.same_class)
        return {f"diagnostics/{name}": float(f"{float(value):.6g}") for name, value in found.items()}

    def _pooled(self, model: Any, data: Encoded, depth: int) -> list[torch.Tensor]:
        """Mean over real tokens of every layer's hidden states, [N, H] each, of at most `MOST` examples."""
        names = {layer: str(layer) for layer in range(depth + 1)}

        def compute(seen: HiddenStates, batch: Batch) -> dict[str, torch.Tensor]:
            weight = (seen.mask / seen.mask.sum(1, keepdim=True)).unsqueeze(-1)
            return {name: (seen.hidden[layer] * weight).sum(1) for layer, name in names.items()}

        found = pass_over(
            model, data, compute, dict.fromkeys(names.values(), "example"), layers=tuple(names), **self.settings
        )
        return [torch.from_numpy(array[:MOST]) for name in names.values() if (array := found[name]) is not None]

    def layer_cka(self) -> np.ndarray:
        """Linear CKA of every teacher layer (rows, from 0) and student layer (columns) of mean token vectors."""
        grams = []
        for side in (self.teacher_pooled, self._pooled(self.student, self.data, self.depths[1])):
            every = torch.ones(len(side[0]), dtype=torch.float64)
            grams.append([centered_gram(layer.double(), every) for layer in side])
        return np.array([[float(defined_cka(first, second)[0]) for second in grams[1]] for first in grams[0]])

    def write(self, folder: Path, values: np.ndarray, title: str) -> None:
        """`cka.csv` and `cka.png` of `layer_cka`."""
        folder.mkdir(parents=True, exist_ok=True)
        text = io.StringIO()
        table = csv.writer(text, lineterminator="\n")
        table.writerow(["teacher_layer", *(f"student_{layer}" for layer in range(values.shape[1]))])
        table.writerows([layer, *(f"{value:.4f}" for value in row)] for layer, row in enumerate(values))
        write_text(folder / "cka.csv", text.getvalue())
        atomic_write(folder / "cka.png", lambda temporary: _draw(temporary, values, title, len(self.teacher_pooled[0])))

    def words(self) -> str:
        """Which layers the monitors compare."""
        return f"monitors on {len(self.batch.example)} dev examples, layers {told([self.pair])}"


def _flat(outputs: HiddenStates, layer: int) -> torch.Tensor:
    """Hidden states as one row a sample, zero at padding."""
    return outputs.real(layer).flatten(1)


def _draw(path: Path, values: np.ndarray, title: str, examples: int) -> None:
    from matplotlib.figure import Figure

    rows, columns = values.shape
    figure = Figure(figsize=(2.8 + 0.62 * columns, 1.9 + 0.46 * rows), layout="constrained", dpi=150)
    axes = figure.add_subplot()
    image = axes.imshow(values, vmin=0, vmax=1, cmap="viridis", origin="lower", aspect="auto")
    axes.set_xticks(range(columns))
    axes.set_yticks(range(rows))
    axes.set_xlabel("student layer")
    axes.set_ylabel("teacher layer")
    axes.set_title(f"{title}\nlinear CKA, {examples} dev examples", fontsize=9)
    for row in range(rows):
        for column in range(columns):
            value = values[row, column]
            color = "black" if value > 0.6 else "white"
            axes.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=8, color=color)
    figure.colorbar(image, ax=axes, label="CKA")
    figure.savefig(path, format="png")
