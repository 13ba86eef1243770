"""A teacher of a run: what is read of it is computed once and replayed, or computed at every step."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from accelerate import Accelerator

from kdbert.data.batches import Batch
from kdbert.data.encode import Encoded
from kdbert.data.masking import vocabulary_size
from kdbert.devices import room_for_outputs
from kdbert.methods import Method, Needs, Outputs, Shape, source_of
from kdbert.models.fast.late_head import use_late_head
from kdbert.models.load import label_names, load_config, load_tokenizer
from kdbert.models.locate import ModelPlace
from kdbert.models.open import open_classifier, open_of_plain_text
from kdbert.models.way import Way
from kdbert.recipe import Recipe
from kdbert.tasks import TaskSpec
from kdbert.training.forward import check_runs, pass_over, rows_of
from kdbert.training.precision import Precision
from kdbert.training.store import Allocate, NoRoom, in_memory, stored
from kdbert.training.teacher import (
    LiveTeacher,
    StoredTeacher,
    Teacher,
    attention_names,
    by_gradient,
    kinds_of,
    layers_read,
    only,
    quantities,
)

log = logging.getLogger("kdbert")
HALF = ".bf16"  # at the end of a file's name: kept in half precision
KEPT_SHARE = 0.5  # of this process's part of the machine's memory, for what is kept of a teacher


@dataclass(frozen=True)
class KnownTeacher:
    """A teacher before its weights are opened.

    Attributes:
        place: where it is; of one that is still to be made, the model that it will be made of.
        labels: its labels in the order of its logits, where a person has named them.
        made: whether it exists yet.
    """

    place: ModelPlace
    labels: list[str] | None = None
    made: bool = True

    def fingerprint(self) -> str:
        """What its content is known by."""
        return self.place.fingerprint()

    @property
    def config(self) -> Any:
        """Its configuration."""
        return load_config(self.place)

    @property
    def shape(self) -> Shape:
        """Its depth and width."""
        return shape_of(self.config)

    @property
    def label_names(self) -> list[str]:
        """Its labels in the order of its logits: as told, or as its configuration names them."""
        return self.labels or label_names(self.config)


def shape_of(config: Any) -> Shape:
    """Depth and width of a model, and its attention heads."""
    heads = getattr(config, "num_attention_heads", 0)
    if not isinstance(heads, int) or not heads:
        return Shape(config.num_hidden_layers, config.hidden_size)
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    return Shape(config.num_hidden_layers, config.hidden_size, heads, width)


@dataclass(frozen=True)
class Session:
    """What models run on: device and processes, arithmetic, and the machine as run.json has it."""

    accelerator: Accelerator
    precision: Precision
    environment: Mapping[str, Any]


@dataclass(eq=False)
class FrozenTeacher:
    """One teacher of a run. Its weights are opened when something is read of it that is not stored.

    Attributes:
        known: where it is.
        way: how it is run.
        columns: for each label of the task, the column of its logits that means it; None for plain text.
        encoded: every split as it reads it.
        own: whether that is another encoding than the student's.
        ids: split -> name of each example.
        whose: what messages call it.
    """

    known: KnownTeacher
    way: Way
    columns: list[int] | None
    spec: TaskSpec
    recipe: Recipe
    encoded: dict[str, Encoded]
    own: bool
    ids: Mapping[str, Sequence[str]]
    session: Session
    whose: str = "teacher"

    @cached_property
    def network(self) -> Any:
        """The model; it is not loaded at all where everything that is read of it is stored."""
        place = self.known.place
        if self.spec.head.plain_text:
            tokenizer = load_tokenizer(place)
            model, _ = open_of_plain_text(place, self.spec.head, tokenizer, self.way)
            if self.spec.head.hides_tokens:
                use_late_head(model, vocabulary_size(tokenizer))
        else:
            model, _ = open_classifier(place, self.spec, self.way, keep_head=True)
        model = model.to(self.session.accelerator.device)
        for part in self.encoded.values():
            check_runs(model, part, place.given)
        return model

    def release(self) -> None:
        """Free the network; it is loaded again if something more is read of it."""
        self.__dict__.pop("network", None)

    def for_training(self, needs: Needs, method: Method, made_with: str = "") -> Teacher:
        """The teacher in training: replayed if what is read of it can be kept, else run at every step; see `values`."""
        train, data = self.recipe.train, self.encoded["train"]
        if data.masking is not None:
            log.info("%s: runs at every step, since other tokens are hidden each time", self.whose)
        elif self.spec.head.plain_text:
            log.info("%s: runs at every step, since what it says of a corpus is too much to keep", self.whose)
        elif needs.holds_teachers and train.teacher_cache:
            log.info("%s: runs at every step, since its model is a part of the training", self.whose)
        elif needs.reads_padding and train.teacher_cache:
            log.info("%s: runs at every step, since positions of padding are read", self.whose)
        elif train.teacher_cache and (size := self._bytes_of_tokens(needs)) > self._room and needs.teacher_attention:
            log.info(
                "%s: runs at every step, since its queries, keys, values and hidden states would take %.1f GiB "
                "(train.cache_gib is %g)", self.whose, size / 2**30, train.cache_gib,
            )  # fmt: skip
        elif train.teacher_cache:
            try:
                values = self.values("train", needs, method, made_with=made_with)
                device = self.session.accelerator.device
                room = room_for_outputs(device)
                return StoredTeacher(values, data, self.columns or [], device, needs, self.own, room)
            except NoRoom as error:
                log.info(
                    "%s: runs at every step, since there is no room to keep its %s (train.cache_gib)", self.whose, error
                )
        return self.live(needs, method)

    def live(self, needs: Needs, method: Method | None = None) -> LiveTeacher:
        """The teacher, run on each batch of the training split."""
        length = self.recipe.task.max_length if needs.reads_padding else None
        own = self.encoded["train"] if self.own else None
        return LiveTeacher(self.network, self.columns or [], self.session.precision, needs, method, own, length)

    def values(
        self, split: str, needs: Needs, method: Method | None = None, *, made_with: str = "", exact: bool = False
    ) -> dict[str, np.ndarray]:
        """What is read of the teacher on a split, logits in its own order of labels; kept below the runs folder.

        Args:
            made_with: fingerprint of the centroids, where a quantity is reduced with them.
            exact: float32 only, whatever `train.cache_precision` says.

        Returns:
            Arrays in float32, or int16 for bf16 (of tokens, where `train.cache_precision` asks for it).

        Raises:
            NoRoom: they can be kept neither on the disk nor in memory.
        """
        recipe, session, data = self.recipe, self.session, self.encoded[split]
        files = self._files(needs, method, made_with, exact)
        kinds = {files[name]: kind for name, kind in kinds_of(needs, data.logits_of).items()}

        def compute(wanted: list[str], allocate: Allocate) -> dict[str, np.ndarray | None]:
            log.info("%s: one pass over %s for its %s", self.whose, split, ", ".join(wanted))
            names = {name: file for name, file in files.items() if file in wanted}
            read = only(needs, names)

            def computed(seen: Outputs, batch: Batch) -> dict[str, torch.Tensor]:
                found = quantities(read, method, seen, batch, self.columns)
                return {names[name]: value for name, value in found.items()}

            return pass_over(
                self.network, data, computed, kinds, layers=layers_read(read), attention=read.teacher_attention,
                graph=by_gradient(read), batch_size=self._rows_at_once(needs), precision=session.precision,
                accelerator=session.accelerator,
                told=f"{self.whose} on {split}", ids=self.ids[split], allocate=allocate,
            )  # fmt: skip

        size = rows_of(data)
        if not recipe.train.teacher_cache:
            computed = compute(list(files.values()), in_memory(self._memory_share))
            found = {file: values for file, values in computed.items() if values is not None}
        else:
            found = stored(
                Path(recipe.output.runs_dir), {file: size[kind] for file, kind in kinds.items()},
                self._about(split, data, needs), compute, session.accelerator, f"{self.whose} on {split}:",
                halves=frozenset(file for file in kinds if file.endswith(HALF)),
                budget=recipe.train.cache_gib * 2**30, memory=self._memory_share,
            )  # fmt: skip
        return {name: found[file] for name, file in files.items()}

    def _rows_at_once(self, needs: Needs) -> int:
        """Examples per forward pass; where that keeps a graph, no more than a micro-batch of training has."""
        train = self.recipe.train
        micro_batch = -(-train.batch_size // train.accumulation)
        return min(train.eval_batch_size, micro_batch) if by_gradient(needs) else train.eval_batch_size

    def _about(self, split: str, data: Encoded, needs: Needs) -> dict[str, Any]:
        """Everything that the values of a split depend on."""
        session, machine = self.session, self.session.environment
        return {
            "teacher": self.known.place.fingerprint(),
            "revision": getattr(self.known.config, "_commit_hash", None),
            "split": split,
            "data": data.fingerprint(),
            "max_length": self.recipe.task.max_length,
            # What may change the last bits of a number:
            "precision": session.precision,
            "way": self.way.record(),
            "batch_size": self._rows_at_once(needs),
            "processes": session.accelerator.num_processes,
            "device": session.accelerator.device.type,
            "machine": machine["accelerators"] or machine["processor"],
            "threads": machine["threads"],
            "versions": {name: machine["versions"][name] for name in ("torch", "transformers")},
        }

    def _files(self, needs: Needs, method: Method | None, made_with: str, exact: bool) -> dict[str, str]:
        """What is read of the teacher -> the name that it is kept under, which says what it was made with."""
        files = {name: name for name in kinds_of(needs, "example")}
        for quantity in needs.reduced:
            assert method is not None
            order = "-".join(map(str, self.columns or [])) if quantity.by_gradient else ""
            order = order and hashlib.sha256(order.encode()).hexdigest()[:8]
            parts = [quantity.name, made_with if quantity.by_centroids else "", order, source_of(type(method)) or ""]
            files[quantity.name] = ".".join(filter(None, parts))
        if self.recipe.train.cache_precision == "bf16" and not exact:
            states = [f"hidden.{layer}" for layer in needs.teacher_hidden] + list(attention_names(needs))
            files.update({name: name + HALF for name in states})
        return files

    def _bytes_of_tokens(self, needs: Needs) -> int:
        """What the hidden states, queries, keys and values that are read would take."""
        shape = self.known.shape
        numbers = len(needs.teacher_hidden) * shape.width + len(attention_names(needs)) * shape.heads * shape.head_width
        size = 2 if self.recipe.train.cache_precision == "bf16" else 4
        return rows_of(self.encoded["train"])["token"] * numbers * size

    @property
    def _room(self) -> float:
        """Bytes that may be kept on the disk or in memory."""
        return max(self.recipe.train.cache_gib * 2**30, self._memory_share)

    @property
    def _memory_share(self) -> float:
        """Bytes that may be kept in memory: `KEPT_SHARE` of this process's part of the machine's.

        Its part is that of its threads among the cores, as a sweep shares them out; not what is free just now, so that
        the same run does the same each time.
        """
        part = min(1.0, torch.get_num_threads() / (os.cpu_count() or 1)) / self.session.accelerator.num_processes
        return KEPT_SHARE * part * float(psutil.virtual_memory().total)
