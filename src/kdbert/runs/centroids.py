"""The job that makes the centroids of a teacher's features: what `train-memory` makes, and some methods read."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch

from kdbert.centroids.builder import centroids_path
from kdbert.centroids.file import Centroids, Description, Origin
from kdbert.data.corpus import corpus_digest
from kdbert.data.encode import Encoded
from kdbert.data.examples import Examples
from kdbert.data.hub_data import local_data
from kdbert.disk.files import content_digest
from kdbert.models.load import load_tokenizer
from kdbert.models.way import Asked, Way, decide, device_type, fit_tokenizer
from kdbert.recipe import Recipe
from kdbert.recipe.sections import MemorySection, TaskSection
from kdbert.runs.inputs import Inputs
from kdbert.tasks import TaskSpec
from kdbert.training.frozen_teacher import KnownTeacher
from kdbert.training.precision import choose_precision


@dataclass(eq=False)
class CentroidsJob:
    """Centroids of a teacher's layer over a training split. It needs a teacher and data, and knows no student.

    Attributes:
        recipe: resolved; what counts is its task, its section `memory` and how things are computed.
        find_layer: gives the teacher's layer, once it is asked for; a finished run asks for none.
    """

    role: ClassVar[Literal["centroids"]] = "centroids"

    recipe: Recipe
    inputs: Inputs
    teacher: KnownTeacher
    find_layer: Callable[[], int | None]

    @property
    def section(self) -> MemorySection:
        """How they are made, or their file."""
        assert self.recipe.memory is not None
        return self.recipe.memory

    @cached_property
    def layer(self) -> int:
        """The teacher's layer whose hidden states are clustered."""
        layer = self.find_layer()
        assert layer is not None
        return layer

    @property
    def reads(self) -> list[str]:
        """The teacher, if it is made already."""
        return [self.teacher.place.given] if self.teacher.made else []

    @property
    def writes(self) -> Path | None:
        """The file; None as long as the teacher, which is part of the name, is to be made."""
        return self.path if self.teacher.made else None

    @cached_property
    def task(self) -> TaskSection:
        """The task section of the recipe, see `Inputs.task`."""
        return self.inputs.task(self.recipe)

    @property
    def spec(self) -> TaskSpec:
        """The task."""
        return self.inputs.spec(self.task)

    @property
    def legacy(self) -> bool:
        """Whether it is made as the published code does, padding included."""
        return self.section.algorithm == "legacy"

    @cached_property
    def way(self) -> Way:
        """How the teacher is run."""
        train = self.recipe.train
        asked = Asked(train.attention, train.packing and not self.legacy, train.first_token, train.fused_layers)
        return decide(self.teacher.config, self.spec.head, self.teacher.place.given, asked, device_type())

    @cached_property
    def tokenizer(self) -> Any:
        """What the teacher reads by."""
        place = self.teacher.place
        return fit_tokenizer(load_tokenizer(place, words=self.spec.head.of_words), self.way, place.given)

    @property
    def train(self) -> Encoded:
        """The training split as the teacher reads it."""
        return self.inputs.encoded(self.task, "train", self.tokenizer)

    @property
    def examples(self) -> Examples:
        """The training split, with labels or without."""
        return self.inputs.examples(self.task, "train")

    @cached_property
    def origin(self) -> Origin:
        """What the centroids are of."""
        task = self.recipe.task
        assert task.max_length is not None
        own = ""
        if self.spec.own is not None:
            own = content_digest(self.spec.files("train", None)[0])
            if part := self.spec.own.trained_on:
                own = hashlib.sha256(f"{own} {part}".encode()).hexdigest()
        elif task.train_file is not None and Path(task.train_file).exists():
            own = corpus_digest(task.train_file)
        if task.unlabelled_file is not None:
            own = hashlib.sha256(f"{own} {content_digest(local_data(task.unlabelled_file))}".encode()).hexdigest()
        return Origin(
            task=self.spec.name, train_file=own[:16], teacher=self.teacher.place.fingerprint(), layer=self.layer,
            width=self.teacher.shape.width, max_length=task.max_length,
        )  # fmt: skip

    @cached_property
    def description(self) -> Description:
        """The origin, and how they are made: equal descriptions mean equal centroids."""
        section, origin = self.section, self.origin
        assert section.centroids is not None
        assert section.algorithm is not None
        assert section.passes is not None
        asked = self.recipe.train.precision if self.way.half else "fp32"
        return Description(
            **vars(origin), data=self.train.fingerprint(),
            precision=choose_precision(asked, torch.device(device_type())), centroids=section.centroids,
            algorithm=section.algorithm, passes=section.passes, batch_size=section.batch_size, seed=section.seed,
        )  # fmt: skip

    @property
    def path(self) -> Path:
        """The file that is named, or where kdbert keeps it."""
        if self.section.file is not None:
            return Path(self.section.file)
        place = self.teacher.place
        return centroids_path(self.recipe.output.runs_dir, str(place.run or place.given), self.description)

    @property
    def count(self) -> int:
        """How many centroids there are."""
        if self.section.file is not None:
            return len(Centroids.load(self.path).counts)
        return self.section.centroids or 0

    def words(self) -> str:
        """How they are made, for people."""
        return (
            f"{self.section.centroids} centroids of the teacher's layer {self.layer} by {self.section.algorithm}, made "
            "first or reused"
        )
