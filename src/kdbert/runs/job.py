"""A job: one model to be trained, and all that can be known of it before weights are opened."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from kdbert.data.batches import batches_of_tokens
from kdbert.data.corpus import DEV_SEQUENCES, TextSplit, corpus_digest, tokenised
from kdbert.data.encode import Encoded
from kdbert.data.examples import Examples
from kdbert.data.hub_data import local_data
from kdbert.data.masking import IGNORE_INDEX, base_size, masking_of, tokenizer_digest, vocabulary_size
from kdbert.disk.files import content_digest
from kdbert.errors import UserError
from kdbert.heads import Head
from kdbert.methods import Context, Models, Needs, get_method
from kdbert.models.labels import teacher_permutation
from kdbert.models.layers import told
from kdbert.models.load import label_names, load_config, load_tokenizer, same_tokenizer
from kdbert.models.locate import ModelPlace, locate, locate_tokenizer, short_name
from kdbert.models.student import count_parameters, kept_layers
from kdbert.models.way import Asked, Way, decide, device_type, fit_tokenizer
from kdbert.recipe import Recipe
from kdbert.recipe.defaults import labels_alone
from kdbert.recipe.sections import TaskSection
from kdbert.runs.centroids import CentroidsJob
from kdbert.runs.folder import RunFolder, run_path
from kdbert.runs.inputs import Inputs
from kdbert.tasks import CORPUS, CUSTOM, TaskSpec
from kdbert.training.frozen_teacher import KnownTeacher, shape_of
from kdbert.training.loop import steps_of
from kdbert.training.soft_labels import SoftLabels

Role = Literal["teacher", "stage", "baseline", "student"]


@dataclass(eq=False)
class Job:
    """A model to be trained. Properties are computed when first read: a finished run opens no data and no weights.

    Attributes:
        role: a teacher (or any model without one), the first stage or the baseline of a student, or the student.
        recipe: resolved.
        to_come: its teachers that are still to be made.
        waits: for teachers, or a stage before it, that are still to be made. Until then much is known of it, but not
            the name of its folder.
    """

    role: Role
    recipe: Recipe
    inputs: Inputs
    to_come: Sequence[KnownTeacher] = ()
    waits: bool = False

    def __post_init__(self) -> None:
        assert self.recipe.student.model is not None
        self.waits = self.waits or bool(self.to_come)
        self.place = locate(self.recipe.student.model)

    # ---- what it reads and writes

    @property
    def reads(self) -> list[str]:
        """The models that it starts from and learns from."""
        made = [teacher.place.given for teacher in self.teachers if teacher.made]
        return [self.place.given, *made, *(teacher.given for teacher in self.soft_labels)]

    @property
    def writes(self) -> Path | None:
        """Its run folder; None as long as its teachers or its start, which are part of the name, are to be made."""
        return None if self.waits else self.folder.path

    @cached_property
    def fingerprints(self) -> dict[str, str]:
        """Path of each model and data file of the recipe -> what its content is known by, wherever it lies."""
        places = (self.place, *(teacher.place for teacher in self.teachers if teacher.made))
        known = {place.given: place.fingerprint() for place in places}
        known.update({teacher.given: teacher.fingerprint() for teacher in self.soft_labels})
        task = self.recipe.task
        centroids = self.recipe.memory.file if self.recipe.memory is not None else None
        for file in (task.train_file, task.dev_file, task.test_file, task.unlabelled_file, centroids):
            of_hub = task.name == CUSTOM or file == task.unlabelled_file
            path = None if file is None else local_data(file) if of_hub else Path(file)
            if file is not None and path is not None and path.exists():
                known[file] = corpus_digest(file) if task.name == CORPUS else content_digest(path)
        if self.recipe.student.tokenizer is not None:
            known[self.recipe.student.tokenizer] = tokenizer_digest(self.tokenizer)
        return known

    @cached_property
    def folder(self) -> RunFolder:
        """The run's folder."""
        return RunFolder(run_path(self.recipe, self.fingerprints, self._start))

    @property
    def _start(self) -> str:
        """What the model starts from and which layers it keeps, in the name of the folder."""
        student, place = self.recipe.student, self.place
        name = short_name(str(place.run) if place.run else place.given)
        if student.layers is None:
            return name
        kept = "-".join(map(str, student.init)) if isinstance(student.init, list) else f"{student.init}{student.layers}"
        return f"{name}-{kept}"

    @property
    def finished(self) -> bool:
        """Whether its run is finished."""
        return not self.waits and self.folder.manifest().get("status") == "finished"

    # ---- data

    @cached_property
    def task(self) -> TaskSection:
        """The task section of the recipe, see `Inputs.task`."""
        return self.inputs.task(self.recipe)

    @cached_property
    def spec(self) -> TaskSpec:
        """The task."""
        return self.inputs.spec(self.task)

    @cached_property
    def labels_alone(self) -> bool:
        """Whether rows without a label are left out: the method learns from labels alone, or the recipe says so."""
        return not self.spec.head.plain_text and (labels_alone(self.recipe) or self.recipe.train.unlabelled_share == 0)

    @cached_property
    def train_examples(self) -> Examples | TextSplit:
        """The rows that are trained on."""
        if self.spec.head.plain_text:
            return self._text("train").first(self.recipe.task.max_train_examples)
        if "train" not in self.spec.splits:
            raise UserError(
                f"task {self.spec.name!r} has no training split; train on another task (ax: mnli) and use "
                f"`kdbert evaluate --task {self.spec.name}`"
            )
        found = self.inputs.examples(self.task, "train")
        if not self.labels_alone or found.labelled is None:
            return found
        if not found.labelled.any():
            cures = {
                "teacher": "; a student learns without labels from a teacher named with --teacher",
                "baseline": "; leave out the run without a teacher (--no-baseline)",
            }
            raise UserError(
                "no training row has a label, and this run learns from labels alone" + cures.get(self.role, "")
            )
        return found.with_label

    @cached_property
    def label_counts(self) -> tuple[int, int]:
        """How many rows of the training data have a label, and how many have none."""
        if self.spec.head.plain_text:
            return 0, 0
        labelled = self.inputs.examples(self.task, "train").labelled
        if labelled is None:
            return len(self.train_examples), 0
        return int(labelled.sum()), int((~labelled).sum())

    @cached_property
    def eval_examples(self) -> Mapping[str, Examples | TextSplit]:
        """Every labelled dev and test split; of plain text, the dev split."""
        if self.spec.head.plain_text:
            return {"dev": self._text("dev").first(DEV_SEQUENCES)}
        test = ["test"] if "test" in self.spec.splits and self.spec.splits["test"].labelled else []
        return {name: self.inputs.examples(self.task, name) for name in (*self.spec.split_names("dev"), *test)}

    @cached_property
    def head(self) -> Head:
        """The task's head, with the weights of classes and the label smoothing of the recipe in its hard loss.

        Balanced weights are of the rows that are trained on and have a label; of words those count whose tag the
        student reads.
        """
        train, head, weights = self.recipe.train, self.spec.head, ()
        if isinstance(train.class_weights, dict):
            weights = head.given_weights(train.class_weights)
        elif train.class_weights == "balanced":
            part = self.train_examples
            assert isinstance(part, Examples)
            labels = part.with_label.labels
            if head.of_words:
                data = self.encoded_by(self.tokenizer)["train"]
                of_tokens = data.token_labels
                if data.labelled is not None:
                    of_tokens = of_tokens[np.repeat(data.labelled, data.lengths)]
                labels = of_tokens[of_tokens != IGNORE_INDEX]
            assert labels is not None
            weights = head.balanced_weights(labels)
        return replace(head, class_weights=weights, label_smoothing=train.label_smoothing)

    @property
    def examples(self) -> dict[str, Examples | TextSplit]:
        """Every split that is trained on or scored."""
        return {"train": self.train_examples, **self.eval_examples}

    def encoded_by(self, tokenizer: Any) -> dict[str, Encoded]:
        """Every split as a tokenizer reads it."""

        def encoded(name: str) -> Encoded:
            alone = self.labels_alone and name == "train"
            return self.inputs.encoded(self.task, name, tokenizer, alone)

        return {
            name: part.encoded if isinstance(part, TextSplit) else encoded(name) for name, part in self.examples.items()
        }

    @cached_property
    def encoded(self) -> dict[str, Encoded]:
        """Every split as the student reads it."""
        return self.encoded_by(self.tokenizer)

    @cached_property
    def data_files(self) -> dict[str, str]:
        """Split -> what the content of its file is known by, of labelled splits. (Own files are in the recipe.)"""
        if self.recipe.task.name in (CUSTOM, CORPUS):
            return {}
        labelled = [name for name, split in self.spec.splits.items() if split.labelled]
        found = {name: self.spec.digest(name, self.recipe.task.data_dir) for name in labelled}
        return {name: digest for name, digest in found.items() if digest}

    def _text(self, split: str) -> TextSplit:
        """A split of plain text, tokenised, with the way in which its tokens are hidden, if they are."""
        task, original = self.recipe.task, self.recipe.method.variant == "original"
        assert task.train_file is not None
        assert task.max_length is not None
        hides = self.spec.head.hides_tokens
        found = tokenised(
            task.dev_file if split == "dev" and task.dev_file is not None else task.train_file, self.tokenizer,
            task.max_length, folder=Path(self.recipe.output.runs_dir) / CORPUS / "text", packed=hides and not original,
            part=split if task.dev_file is None else None, unit=task.text_unit,
        )  # fmt: skip
        if not hides:
            return found.in_few_shapes()
        try:
            masking = masking_of(
                self.tokenizer, known=self.known_pieces, probability=task.mask_probability, words=task.mask_words,
                # A teacher never reads a new piece; without one a model must learn to read them, too.
                new_always=bool(self.teachers) or split == "dev",
            )  # fmt: skip
        except ValueError as error:
            raise UserError(f"the tokenizer of {self.tokenizer_place.given!r} cannot hide tokens: {error}") from None
        return found.masked(masking)

    @cached_property
    def known_pieces(self) -> int:
        """Pieces of the teacher's vocabulary; without a teacher, those before the tokenizer was expanded."""
        if self.teachers:
            return vocabulary_size(load_tokenizer(self.teachers[0].place))
        return base_size(self.tokenizer)

    # ---- the model

    @cached_property
    def config(self) -> Any:
        """Configuration of what the model starts from."""
        return load_config(self.place)

    @cached_property
    def kept_layers(self) -> list[int]:
        """The layers that it keeps, numbered from 1."""
        student, depth = self.recipe.student, self.config.num_hidden_layers
        return kept_layers(depth, student.layers, student.init if student.layers is not None else "first")

    @cached_property
    def tokenizer_place(self) -> ModelPlace:
        """Whose tokenizer the model reads by: the one that is named, its own, or the teacher's."""
        named = self.recipe.student.tokenizer
        if named is not None:
            return locate_tokenizer(named)
        return self.teachers[0].place if self.place.fresh and self.recipe.teachers else self.place

    @cached_property
    def tokenizer(self) -> Any:
        """What the model reads by."""
        found = load_tokenizer(self.tokenizer_place, words=self.spec.head.of_words)
        return fit_tokenizer(found, self.way, self.place.given, grows=True)

    @cached_property
    def way(self) -> Way:
        """How the model is run."""
        return self._way(self.config, self.place.given)

    def _way(self, config: Any, name: str) -> Way:
        train, twice = self.recipe.train, self.needs.differentiates_twice
        packing = train.packing and not (self.needs.reads_padding or twice)
        asked = Asked("eager" if twice else train.attention, packing, train.first_token, train.fused_layers)
        return decide(config, self.spec.head, name, asked, device_type())

    # ---- its teachers

    @cached_property
    def taught_by(self) -> list[KnownTeacher | SoftLabels]:
        """Its teachers in their order, those that are still to be made too."""
        named = [
            SoftLabels(one.model, one.renormalise) if one.soft else KnownTeacher(locate(one.model), one.labels)
            for one in self.recipe.teachers
        ]
        return [*named, *self.to_come]

    @property
    def teachers(self) -> list[KnownTeacher]:
        """Those of its teachers that are models."""
        return [teacher for teacher in self.taught_by if isinstance(teacher, KnownTeacher)]

    @property
    def soft_labels(self) -> list[SoftLabels]:
        """Those of its teachers that are files of soft labels."""
        return [teacher for teacher in self.taught_by if isinstance(teacher, SoftLabels)]

    @cached_property
    def teacher_ways(self) -> list[Way]:
        """How each teacher is run."""
        return [self._way(teacher.config, teacher.place.given) for teacher in self.teachers]

    def columns(self, teacher: KnownTeacher) -> list[int] | None:
        """For each label of the task, the column of a teacher's logits that means it; None for plain text."""
        if self.spec.head.plain_text:
            return None
        spec = self.spec
        names = label_names(teacher.config)
        return teacher_permutation(teacher.place.given, spec.name, spec.labels, spec.aliases, names, teacher.labels)

    def tokenizer_of(self, teacher: KnownTeacher) -> Any:
        """A teacher's own tokenizer; the student's, where both read the same."""
        if self.spec.head.plain_text:  # what the teacher does not know is hidden from it; an encoder's is the same
            return self.tokenizer
        way = self._way(teacher.config, teacher.place.given)
        own = fit_tokenizer(load_tokenizer(teacher.place, words=self.spec.head.of_words), way, teacher.place.given)
        same = same_tokenizer(self.tokenizer, own)
        return self.tokenizer if same and set(own.model_input_names) == set(self.tokenizer.model_input_names) else own

    @cached_property
    def models(self) -> Models:
        """Depths and widths of student and teachers. Soft labels have none, and count as the student here."""
        student = replace(shape_of(self.config), layers=len(self.kept_layers))
        shapes = [student if isinstance(teacher, SoftLabels) else teacher.shape for teacher in self.taught_by]
        return Models(student, tuple(shapes), self.spec.kind == "encoder")

    @cached_property
    def needs(self) -> Needs:
        """What the method reads of these models."""
        return get_method(self.recipe.method.name).needs(self.recipe.method, self.models)

    def words(self) -> list[str]:
        """How its models are run, which layers are compared, and what changes the hard loss, for people."""
        ways = [way.words() for way in dict.fromkeys([self.way, *self.teacher_ways])]
        pairs = self.needs.pairs.items()
        layers = [f"{term}: layers (teacher:student) {told(layers)}" for term, layers in pairs]
        return [*ways, *layers, *self.hard_loss_words()]

    def warnings(self) -> list[str]:
        """What a person should know before training: what teaches nothing, what is as published only."""
        method, fewest = self.recipe.method, self.needs.compares_examples
        found = [f"variant original, as published: {one}" for one in method.nonsense()]
        if fewest > self.micro_batch:
            found.append(
                f"{method.name} compares {fewest} examples or more, and a micro-batch has {self.micro_batch}: what "
                "compares them teaches nothing"
            )
        return [*found, *method.warnings(self.context)]

    @property
    def context(self) -> Context:
        """What the method is told of the run; the centroids it gets when they are there."""
        return Context(
            models=self.models, head=self.head, batch_size=self.micro_batch, epochs=self.recipe.train.epochs,
            steps=self.steps, unlabelled=self.unlabelled,
        )  # fmt: skip

    @property
    def unlabelled(self) -> float:
        """Share of a step's rows that have no label, on average."""
        labelled, others = self.label_counts
        if self.labels_alone or not others:
            return 0.0
        train = self.recipe.train
        return train.unlabelled_rows / train.batch_size if train.unlabelled_share else others / (labelled + others)

    def hard_loss_words(self) -> list[str]:
        """Which rows have labels, the weights of classes and the label smoothing, for people."""
        head, (labelled, others), found = self.head, self.label_counts, []
        if others and self.labels_alone:
            found.append(f"{others} training rows without a label are left out")
        elif others:
            share = self.recipe.train.unlabelled_rows
            mixed = f"; of {self.recipe.train.batch_size} rows in a batch {share} have none" if share else ""
            found.append(f"{labelled} of {labelled + others} training rows have a label{mixed}")
        if head.class_weights:
            balanced = ", balanced" if self.recipe.train.class_weights == "balanced" else ""
            found.append(f"class weights{balanced}: {head.weights_in_words}")
        if head.label_smoothing:
            found.append(f"label smoothing: {head.label_smoothing:g}")
        return found

    @cached_property
    def centroids(self) -> CentroidsJob | None:
        """The job that makes the centroids that the method reads, or names their file."""
        if self.recipe.memory is None:
            return None
        return CentroidsJob(self.recipe, self.inputs, self.teachers[0], lambda: self.needs.centroids_layer)

    # ---- sizes

    @property
    def micro_batch(self) -> int:
        """Examples of a full micro-batch; on average, where batches are made by tokens."""
        train, rows = self.recipe.train, self.recipe.train.batch_size
        if train.batch_tokens is not None:
            lengths = self.encoded["train"].lengths
            rows = -(-len(lengths) // batches_of_tokens(lengths, train.batch_tokens))
        return -(-rows // train.accumulation)

    @property
    def steps(self) -> int:
        """Optimiser steps of the whole run."""
        data = self.train_examples if self.recipe.train.batch_tokens is None else self.encoded["train"]
        return steps_of(self.recipe.train, data, self.label_counts[0])

    def parameters(self) -> tuple[int, list[int]]:
        """Numbers of parameters of the student and of each teacher that is there, from their configurations."""
        pieces = vocabulary_size(self.tokenizer)
        whole = count_parameters(self.config, self.spec.head, self.place.given, self.kept_layers, pieces)
        made = [teacher for teacher in self.teachers if teacher.made]
        return whole, [count_parameters(one.config, self.spec.head, one.place.given) for one in made]

    def ram(self) -> float:
        """Bytes that training needs, roughly: weights, gradients, AdamW's two moments, activations.

        Activations are counted as 16 values per token, layer and hidden unit plus two attention maps per head, at the
        maximum length and float32, which is the upper end.
        """
        student, teachers = self.parameters()
        length, rows, width = self.recipe.task.max_length or 0, self.micro_batch, self.config.hidden_size
        if self.recipe.train.batch_tokens is not None:
            rows = -(-self.recipe.train.batch_tokens // (self.recipe.train.accumulation * length))
        per_token = 16 * width + 2 * getattr(self.config, "num_attention_heads", 0) * length
        activations = 4.0 * rows * length * len(self.kept_layers) * per_token
        centroids = self.centroids.count * length * width if self.centroids is not None else 0
        return 16.0 * (student + centroids) + 4.0 * sum(teachers) + activations
