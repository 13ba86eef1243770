"""The teachers of a run: how they read the splits, what is read of them and kept, and the memory made of one."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from accelerate import Accelerator

from kdbert.centroids.file import Memory
from kdbert.data.batches import Batch
from kdbert.data.corpus import TextSplit
from kdbert.data.encode import Encoded, encode
from kdbert.data.masking import vocabulary_size
from kdbert.errors import UserError
from kdbert.methods import Method, Needs, Outputs, get_method, source_of
from kdbert.models.fast.late_head import use_late_head
from kdbert.models.load import load_config, load_tokenizer
from kdbert.models.open import open_classifier, open_masked_lm
from kdbert.runs.plan import Plan
from kdbert.training.forward import check_runs, pass_over
from kdbert.training.memory import about_memory, make_memory, memory_path
from kdbert.training.precision import Precision
from kdbert.training.store import Allocate, NoRoom, in_memory, stored
from kdbert.training.teacher import LiveTeacher, StoredTeacher, Teacher, kinds_of, layers_read, only, quantities

log = logging.getLogger("kdbert")
HALF = ".bf16"  # at the end of a file's name: kept in half precision
KEPT_SHARE = 0.5  # of this process's part of the machine's memory, for what is kept of a teacher


def encode_splits(plan: Plan, tokenizer: Any) -> dict[str, Encoded]:
    """Every split of the run's task as a tokenizer reads it."""
    assert plan.recipe.task.max_length is not None
    return {
        name: part.encoded if isinstance(part, TextSplit) else encode(part, tokenizer, plan.recipe.task.max_length)
        for name, part in {"train": plan.train_examples, **plan.eval_examples}.items()
    }


class Teachers:
    """A run's teachers.

    Args:
        encoded: the splits as the student reads them.
        environment: as run.json has it; what is kept of a teacher depends on machine, threads and versions.
    """

    def __init__(
        self,
        plan: Plan,
        encoded: dict[str, Encoded],
        *,
        accelerator: Accelerator,
        precision: Precision,
        environment: Mapping[str, Any],
    ) -> None:
        self.plan = plan
        self.student_encoded = encoded
        self.accelerator = accelerator
        self.precision = precision
        self.environment = environment

    @cached_property
    def encoded(self) -> list[dict[str, Encoded]]:
        """Every split as each teacher reads it: mostly as the student does."""
        tokenizers = self.plan.teacher_tokenizers
        return [self.student_encoded if own is None else encode_splits(self.plan, own) for own in tokenizers]

    @cached_property
    def models(self) -> list[Any]:
        """The networks; not loaded at all where everything that is read of them is stored."""
        found = []
        for number, (place, way) in enumerate(zip(self.plan.teacher_places, self.plan.teacher_ways, strict=True)):
            if self.plan.spec.kind == "masked_lm":
                tokenizer = load_tokenizer(place)
                model, _ = open_masked_lm(place, tokenizer, way)
                use_late_head(model, vocabulary_size(tokenizer))
            else:
                model, _ = open_classifier(place, self.plan.spec, way, keep_head=True)
            found.append(model.to(self.accelerator.device))
            for part in self.encoded[number].values():
                check_runs(found[-1], part, place.given)
        return found

    def release(self) -> None:
        """Let go of the networks; they are loaded again if something more is read of them."""
        self.__dict__.pop("models", None)

    @cached_property
    def memory_about(self) -> dict[str, Any]:
        """What the memory is of, and how one is made."""
        plan, recipe = self.plan, self.plan.recipe
        assert recipe.memory is not None
        data = self.encoded[0]["train"].fingerprint()
        return about_memory(recipe.memory, plan.memory_of, data=data, precision=self.precision)

    @property
    def memory_path(self) -> Path:
        """Where the memory is, or will be."""
        recipe, given = self.plan.recipe, self.plan.teacher_places[0]
        assert recipe.memory is not None
        if recipe.memory.file is not None:
            return Path(recipe.memory.file)
        return memory_path(recipe.output.runs_dir, str(given.run or given.given), self.memory_about)

    @cached_property
    def memory(self) -> Memory | None:
        """The memory that the method reads: the one that is named, one that is there, or one made now."""
        plan, recipe, section = self.plan, self.plan.recipe, self.plan.recipe.memory
        layer = plan.needs.centroids_layer
        if section is None or layer is None:
            return None
        data, about, path = self.encoded[0]["train"], self.memory_about, self.memory_path
        if section.file is not None:
            memory = Memory.load(path)
        else:
            if section.train == "never" and not path.exists():
                raise UserError(
                    f"{recipe.method.name} needs a memory and there is none at {path}: make it with `kdbert "
                    "train-memory`, or leave memory.train=auto"
                )
            memory = make_memory(
                path,
                section,
                about,
                data,
                hidden=lambda: self._kept_hidden(layer, data),
                model=lambda: self.models[0],
                accelerator=self.accelerator,
                precision=self.precision,
                batch_size=recipe.train.eval_batch_size,
            )
        memory.check(path, about, recipe.method.variant)
        memory.check_length(path, int(data.lengths.max()))
        if memory.about.get("data") != about["data"]:
            log.warning("memory %s was made of other training examples of the task than this run's", path)
        return memory

    @property
    def _memory_fingerprint(self) -> str:
        assert self.memory is not None
        return self.memory.fingerprint

    def _kept_hidden(self, layer: int, data: Encoded) -> np.ndarray | None:
        """A layer of the first teacher for every token of the training split; None if that is too large to keep."""
        with contextlib.suppress(NoRoom):
            return self.values(0, "train", Needs(teacher_hidden=(layer,)), exact=True)[f"hidden.{layer}"]
        return None

    @property
    def _memory_share(self) -> float:
        """Bytes that may be kept in memory: `KEPT_SHARE` of this process's part of the machine's.

        Its part is that of its threads among the cores, as a sweep shares them out; not what is free just now, so
        that the same run does the same each time.
        """
        part = min(1.0, torch.get_num_threads() / (os.cpu_count() or 1)) / self.accelerator.num_processes
        return KEPT_SHARE * part * float(psutil.virtual_memory().total)

    def for_training(self, number: int, method: Method) -> Teacher:
        """A teacher for training: replayed if what is read of it can be kept, else run at every step."""
        needs, data = self.plan.needs, self.encoded[number]["train"]
        columns = self.plan.teacher_permutations[number]
        own = data is not self.student_encoded["train"]
        if data.masking is not None:
            log.info("teacher: runs at every step, since other tokens are hidden each time")
        elif needs.reads_padding and self.plan.recipe.train.teacher_cache:
            log.info("teacher: runs at every step, since positions of padding are read")
        elif self.plan.recipe.train.teacher_cache:
            try:
                values = self.values(number, "train", needs, method)
                return StoredTeacher(values, data, columns, self.accelerator.device, needs, own)
            except NoRoom as error:
                log.info("teacher: runs at every step, since there is no room to keep its %s (train.cache_gib)", error)
        live = self.models[number]
        length = self.plan.recipe.task.max_length if needs.reads_padding else None
        return LiveTeacher(live, columns, self.precision, needs, method, data if own else None, length)

    def values(
        self, number: int, split: str, needs: Needs, method: Method | None = None, *, exact: bool = False
    ) -> dict[str, np.ndarray]:
        """What is read of a teacher on a split, logits in its own order of labels; kept below the runs folder.

        Arrays are float32, or int16 for bf16 (of tokens, where `train.cache_precision` asks for it; not if `exact`).

        Raises:
            NoRoom: they can be kept neither there nor in memory.
        """
        plan, recipe, data = self.plan, self.plan.recipe, self.encoded[number][split]
        files = self._files(needs, method, exact=exact)
        shares = [(needs, method, files)]
        if split == "train" and recipe.train.teacher_cache:
            shares += [(other, its, self._files(other, its)) for other, its in self._others(number)]
        kinds = {file: kinds_of(one, data.logits_of)[name] for one, _, kept in shares for name, file in kept.items()}

        def compute(wanted: list[str], allocate: Allocate) -> dict[str, np.ndarray | None]:
            log.info("teacher: one pass over %s for its %s", split, ", ".join(wanted))

            def computed(seen: Outputs, batch: Batch) -> dict[str, torch.Tensor]:
                found: dict[str, torch.Tensor] = {}
                for one, its, kept in shares:
                    read = only(one, [name for name, file in kept.items() if file in wanted and file not in found])
                    found.update({kept[name]: value for name, value in quantities(read, its, seen).items()})
                return found

            return pass_over(
                self.models[number],
                data,
                computed,
                kinds,
                layers=sorted({
                    layer
                    for one, _, kept in shares
                    for layer in layers_read(only(one, [name for name, file in kept.items() if file in wanted]))
                }),
                batch_size=recipe.train.eval_batch_size,
                precision=self.precision,
                accelerator=self.accelerator,
                told=f"teacher on {split}",
                ids=plan.ids(split),
                allocate=allocate,
            )  # fmt: skip

        if not recipe.train.teacher_cache:
            computed = compute(list(files.values()), in_memory(self._memory_share))
            found = {file: values for file, values in computed.items() if values is not None}
        else:
            place, machine = plan.teacher_places[number], self.environment
            about = {
                "teacher": place.fingerprint(),
                "revision": getattr(load_config(place), "_commit_hash", None),
                "split": split,
                "data": data.fingerprint(),
                "max_length": recipe.task.max_length,
                # What may change the last bits of a number:
                "precision": self.precision,
                "way": plan.teacher_ways[number].record(),
                "batch_size": recipe.train.eval_batch_size,
                "processes": self.accelerator.num_processes,
                "device": self.accelerator.device.type,
                "machine": machine["accelerators"] or machine["processor"],
                "threads": machine["threads"],
                "versions": {name: machine["versions"][name] for name in ("torch", "transformers")},
            }
            size = {"example": len(data), "token": len(data.input_ids), "token_pair": int(data.pair_offsets[-1])}
            rows = {file: size[kind] for file, kind in kinds.items()}
            whose = f"teacher {number + 1} on {split}:" if len(recipe.teachers) > 1 else f"teacher on {split}:"
            found = stored(
                Path(recipe.output.runs_dir), {file: rows[file] for file in files.values()}, about, compute,
                self.accelerator, whose, also={file: rows[file] for file in rows if file not in files.values()},
                halves=frozenset(file for file in rows if file.endswith(HALF)),
                budget=recipe.train.cache_gib * 2**30, memory=self._memory_share,
            )  # fmt: skip
        return {name: found[file] for name, file in files.items()}

    def _files(self, needs: Needs, method: Method | None, *, exact: bool = False) -> dict[str, str]:
        """What is read of a teacher -> the name that it is kept under: that of what it was reduced with, or rounded."""
        files = {name: name for name in kinds_of(needs, "example")}
        for quantity in needs.reduced:
            assert method is not None
            made_with = [self._memory_fingerprint] if quantity.by_centroids else []
            made_with += [source] if (source := source_of(type(method))) else []
            files[quantity.name] = ".".join([quantity.name, *made_with])
        if self.plan.recipe.train.cache_precision == "bf16" and not exact:
            files.update({f"hidden.{layer}": f"hidden.{layer}{HALF}" for layer in needs.teacher_hidden})
        return files

    def _others(self, number: int) -> list[tuple[Needs, Method]]:
        """What the methods of `train.cache_for` read of a teacher by default, but for what needs memory or padding."""
        found, depth = [], self.plan.models.teachers[number].layers
        for name in self.plan.recipe.train.cache_for:
            kind = get_method(name)
            options = kind.Options.model_validate({"name": kind.name})
            try:
                needs = kind.needs(options, self.plan.models)
            except UserError:  # it could not run with this student by default
                continue
            if not needs.reads_padding and all(0 <= layer <= depth for layer in layers_read(needs)):
                reduced = tuple(quantity for quantity in needs.reduced if not quantity.by_centroids)
                found.append((replace(needs, reduced=reduced), kind(options)))
        return found
