"""A run before it runs: all that can be known of it early, and the refusal of all that cannot work."""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from kdbert.centroids.file import Memory
from kdbert.data.corpus import DEV_SEQUENCES, TextSplit, corpus_digest, tokenised
from kdbert.data.examples import Examples
from kdbert.data.masking import base_size, masking_of, tokenizer_digest, vocabulary_size
from kdbert.disk.files import content_digest
from kdbert.errors import UserError, near_miss
from kdbert.methods import Models, Needs, Shape, all_methods, get_method, source_of
from kdbert.models.architectures import architecture
from kdbert.models.labels import teacher_permutation
from kdbert.models.load import check_trained_head, label_names, load_config, load_tokenizer, same_tokenizer
from kdbert.models.locate import ModelPlace, locate, locate_tokenizer, short_name
from kdbert.models.student import check_cut, count_parameters, kept_layers
from kdbert.models.vocabulary import check_expansion
from kdbert.models.way import Asked, Way, check_length, decide, device_type, fit_tokenizer
from kdbert.recipe import Recipe
from kdbert.recipe.defaults import base_model, missing_teachers, resolve_distill, task_of
from kdbert.recipe.sections import MemorySection, warmup_steps
from kdbert.runs.folder import RunFolder, run_path
from kdbert.tasks import CORPUS, CUSTOM, TaskSpec

log = logging.getLogger("kdbert")


class Plan:
    """A resolved recipe with everything that can be known before training.

    Attributes are computed when first read, so that a run that is already finished opens no data
    and no weights, and `--dry-run` opens no weights.
    """

    def __init__(self, recipe: Recipe, teachers_to_come: Sequence[ModelPlace] = ()) -> None:
        """Args: the resolved recipe; the models that missing teachers will be made of."""
        self.recipe = recipe
        assert recipe.student.model is not None
        self.student_place = locate(recipe.student.model)
        self.teacher_places = [locate(teacher.model) for teacher in recipe.teachers]
        self.teachers_to_come = list(teachers_to_come)

    @cached_property
    def fingerprints(self) -> dict[str, str]:
        """What each model and data path of the recipe is known by, wherever it lies."""
        known = {place.given: place.fingerprint() for place in (self.student_place, *self.teacher_places)}
        task = self.recipe.task
        memory = self.recipe.memory.file if self.recipe.memory is not None else None
        for file in (task.train_file, task.dev_file, task.test_file, memory):
            if file is not None and Path(file).exists():
                known[file] = corpus_digest(file) if task.name == CORPUS else content_digest(Path(file))
        if self.recipe.student.tokenizer is not None:
            known[self.recipe.student.tokenizer] = tokenizer_digest(self.tokenizer)
        return known

    @cached_property
    def folder(self) -> RunFolder:
        """The run's folder."""
        return RunFolder(run_path(self.recipe, self.fingerprints, self.student_name))

    @property
    def student_name(self) -> str:
        """The student in the folder's name: what it starts from and which layers it keeps."""
        student = self.recipe.student
        place = self.student_place
        name = short_name(str(place.run) if place.run else place.given)
        if student.layers is None:
            return name
        kept = "-".join(map(str, student.init)) if isinstance(student.init, list) else f"{student.init}{student.layers}"
        return f"{name}-{kept}"

    @cached_property
    def spec(self) -> TaskSpec:
        """The task."""
        return task_of(self.recipe)

    @cached_property
    def train_examples(self) -> Examples | TextSplit:
        """The training split, cut to `max_train_examples`."""
        if self.spec.kind == "masked_lm":
            return self._text("train").first(self.recipe.task.max_train_examples)
        if "train" not in self.spec.splits:
            raise UserError(
                f"task {self.spec.name!r} has no training split; train on another task (ax: mnli) and use "
                f"`kdbert evaluate --task {self.spec.name}`"
            )
        return self.spec.load("train", self.recipe.task.data_dir).first(self.recipe.task.max_train_examples)

    @cached_property
    def eval_examples(self) -> Mapping[str, Examples | TextSplit]:
        """Every labelled dev and test split; of plain text, the dev split."""
        if self.spec.kind == "masked_lm":
            return {"dev": self._text("dev").first(DEV_SEQUENCES)}
        names = [*self.spec.split_names("dev")]
        if "test" in self.spec.splits and self.spec.splits["test"].labelled:
            names.append("test")
        return {name: self.spec.load(name, self.recipe.task.data_dir) for name in names}

    def _text(self, split: str) -> TextSplit:
        """A split of plain text, tokenised, with the way in which its tokens are hidden."""
        task, original = self.recipe.task, self.recipe.method.variant == "original"
        assert task.train_file is not None
        assert task.max_length is not None
        own = task.dev_file is not None
        found = tokenised(
            task.dev_file if split == "dev" and task.dev_file is not None else task.train_file,
            self.tokenizer,
            task.max_length,
            folder=Path(self.recipe.output.runs_dir) / CORPUS / "text",
            packed=not original,
            part=None if own else split,
            unit=task.text_unit,
        )
        # A teacher never reads a new piece; without one a model must learn to read them, too.
        taught = bool(self.models.teachers)
        try:
            masking = masking_of(
                self.tokenizer,
                known=self.known_pieces,
                probability=task.mask_probability,
                words=task.mask_words,
                new_always=taught or split == "dev",
            )
        except ValueError as error:
            raise UserError(f"the tokenizer of {self.tokenizer_name!r} cannot hide tokens: {error}") from None
        return found.masked(masking)

    def ids(self, split: str) -> Sequence[str] | None:
        """Name of each example of a split; None for plain text, whose texts have numbers only."""
        examples = self.train_examples if split == "train" else self.eval_examples[split]
        return examples.ids if isinstance(examples, Examples) else None

    @cached_property
    def known_pieces(self) -> int:
        """Pieces of the teacher's vocabulary; without a teacher, those before the tokenizer was expanded."""
        places = [*self.teacher_places, *self.teachers_to_come]
        return vocabulary_size(load_tokenizer(places[0])) if places else base_size(self.tokenizer)

    @cached_property
    def data_files(self) -> dict[str, str]:
        """Split -> what the content of its file is known by, of the labelled splits whose files are there.

        A custom task's files stand in the recipe itself (see `fingerprints`).
        """
        if self.recipe.task.name in (CUSTOM, CORPUS):
            return {}
        found = {
            name: self.spec.digest(name, self.recipe.task.data_dir)
            for name, split in self.spec.splits.items()
            if split.labelled
        }
        return {name: digest for name, digest in found.items() if digest}

    def check_data(self, manifest: Mapping[str, Any]) -> None:
        """Refuse to take a run for this one if it was made from other files of the same task.

        Raises:
            UserError: with the splits that differ.
        """
        before = manifest.get("data", {})
        differ = [name for name, digest in self.data_files.items() if before.get(name, digest) != digest]
        if differ:
            raise UserError(
                f"{self.folder.path} was made from other {self.spec.name} files than those at hand now "
                f"({', '.join(differ)} differ); choose another --runs-dir, or pass --overwrite to move that run aside"
            )

    @cached_property
    def student_config(self) -> Any:
        """Configuration of what the student starts from."""
        return load_config(self.student_place)

    @cached_property
    def kept_layers(self) -> list[int]:
        """The layers that the student keeps, numbered from 1."""
        student = self.recipe.student
        depth = self.student_config.num_hidden_layers
        return kept_layers(depth, student.layers, student.init if student.layers is not None else "first")

    @property
    def tokenizer_name(self) -> str:
        """Whose tokenizer the student reads by: the one that is named, its own, or the teacher's."""
        named = self.recipe.student.tokenizer
        if named is not None:
            return named
        if self.student_place.fresh and self.recipe.teachers:
            return self.recipe.teachers[0].model
        return self.student_place.given

    @cached_property
    def way(self) -> Way:
        """How the student is run."""
        return self._way(self.student_config, self.student_place.given)

    @cached_property
    def teacher_ways(self) -> list[Way]:
        """How each teacher is run, those to come among them."""
        return [self._way(load_config(p), p.given) for p in (*self.teacher_places, *self.teachers_to_come)]

    def _way(self, config: Any, name: str) -> Way:
        train = self.recipe.train
        packing = train.packing and not self.needs.reads_padding
        return decide(config, self.spec.kind, name, Asked(train.attention, packing, train.first_token), device_type())

    @cached_property
    def tokenizer(self) -> Any:
        """The student's tokenizer."""
        place = self.student_place if self.tokenizer_name == self.student_place.given else None
        if self.recipe.student.tokenizer is not None:
            place = locate_tokenizer(self.recipe.student.tokenizer)
        found = load_tokenizer(place or self.teacher_places[0], words=self.spec.kind == "token")
        return fit_tokenizer(found, self.way, self.student_place.given, grows=True)

    def _teacher_tokenizer(self, place: ModelPlace, way: Way) -> Any:
        found = load_tokenizer(place, words=self.spec.kind == "token")
        return fit_tokenizer(found, way, place.given)

    @cached_property
    def teacher_labels(self) -> list[list[str]]:
        """Each teacher's labels in the order of its logits: as told, or as its configuration names them."""
        return [
            told.labels or label_names(load_config(place))
            for told, place in zip(self.recipe.teachers, self.teacher_places, strict=True)
        ]

    @cached_property
    def teacher_permutations(self) -> list[list[int]]:
        """For each teacher, the column of its logits that means each task label; none for plain text."""
        for told, place in zip(self.recipe.teachers, self.teacher_places, strict=True):
            trained = place.task()
            if self.spec.kind == "masked_lm":  # whatever it was trained on, its head decides
                check_trained_head(load_config(place), place.given, self.spec)
                continue
            if trained not in (None, self.spec.name) and told.labels is None:
                raise UserError(
                    f"teacher {place.given!r} was fine-tuned on task {trained!r}, not on {self.spec.name!r}; "
                    "if it should teach all the same, name its labels with --teacher-labels"
                )
            check_trained_head(load_config(place), place.given, self.spec)
        if self.spec.kind == "masked_lm":
            return [[] for _ in self.teacher_places]
        return [
            teacher_permutation(
                told.model,
                self.spec.name,
                self.spec.labels,
                self.spec.aliases,
                label_names(load_config(place)),
                told.labels,
            )
            for told, place in zip(self.recipe.teachers, self.teacher_places, strict=True)
        ]

    @cached_property
    def models(self) -> Models:
        """Depths and widths of student and teachers."""
        teachers = [shape_of(load_config(place)) for place in (*self.teacher_places, *self.teachers_to_come)]
        student = shape_of(self.student_config)
        return Models(Shape(len(self.kept_layers), student.width), tuple(teachers))

    @cached_property
    def needs(self) -> Needs:
        """What the method reads of these models.

        Raises:
            UserError: layers that a model does not have.
        """
        method = get_method(self.recipe.method.name)
        needs = method.needs(self.recipe.method, self.models)
        read = {*needs.teacher_hidden, *(quantity.layer for quantity in needs.reduced)}
        for role, shape, layers in (
            *(("teacher", teacher, read) for teacher in self.models.teachers),
            ("student", self.models.student, set(needs.student_hidden)),
        ):
            wrong = [layer for layer in layers if not 0 <= layer <= shape.layers]
            if wrong:
                raise UserError(
                    f"method {method.name!r} reads layer {wrong[0]} of a {role} with layers 0 (embeddings) to "
                    f"{shape.layers}"
                )
        for role, config, layers in (
            *(("teacher", load_config(place), read) for place in (*self.teacher_places, *self.teachers_to_come)),
            ("student", self.student_config, set(needs.student_hidden)),
        ):
            reads = "--diagnose" if self.recipe.output.diagnose else f"method {method.name!r}" if layers else ""
            if reads and not architecture(config.model_type, role).hidden:
                cure = "leave it out" if self.recipe.output.diagnose else "use one that reads logits only, such as kd"
                raise UserError(
                    f"{reads} reads hidden states of each layer, and a {role} of type {config.model_type!r} has none "
                    f"of one size; {cure}"
                )
        return needs

    @property
    def micro_batch(self) -> int:
        """Examples of a full micro-batch."""
        return -(-self.recipe.train.batch_size // self.recipe.train.accumulation)

    def check(self) -> None:
        """Everything that can be refused before weights are opened.

        Raises:
            UserError: the first thing found.
        """
        recipe = self.recipe
        assert recipe.task.max_length is not None
        check_trackers(recipe.output.tracker)
        for name in recipe.train.cache_for:
            if source_of(get_method(name)):
                raise UserError(f"train.cache_for names {name!r}, which is no method of kdbert's own; leave it out")
        self._check_head()
        check_length(recipe.task.max_length, self.way.limit, self.student_place.given)
        if recipe.train.precision in ("bf16", "fp16") and not self.way.half:
            raise UserError(
                f"--precision {recipe.train.precision}: the library runs {self.student_place.given!r}, a model of type "
                f"{self.way.model_type!r}, in float32 only; leave --precision auto"
            )
        check_cut(self.student_config, self.spec.kind, self.kept_layers, self.student_place.given)
        _ = self.teacher_permutations, self.kept_layers, self.needs
        if self.spec.kind == "masked_lm":  # before a large corpus is read
            for place in (*self.teacher_places, *self.teachers_to_come):
                self.check_tokenizer(place)
        _ = self.tokenizer, self.train_examples, self.eval_examples
        known = [place.fingerprint() for place in self.teacher_places]
        if len(set(known)) < len(known):
            log.warning("the same teacher is named twice")
        warm = warmup_steps(recipe.train.warmup, self.steps)
        if warm and warm >= self.steps:
            log.warning("train.warmup is %d steps of %d: the rate never gets to its peak", warm, self.steps)
        if recipe.output.diagnose and not self.models.teachers:
            raise UserError(
                f"--diagnose compares the student with its teacher; method {recipe.method.name!r} reads none"
            )
        for place, way in zip((*self.teacher_places, *self.teachers_to_come), self.teacher_ways, strict=True):
            check_length(recipe.task.max_length, way.limit, place.given)
            self._teacher_tokenizer(place, way)
            if self.spec.kind != "masked_lm" and (self.needs.compares_tokens or self.spec.kind == "token"):
                self.check_tokenizer(place)
        self._check_memory()

    def _check_head(self) -> None:
        """Refuse what has no meaning for the task's kind of head."""
        method, kind = get_method(self.recipe.method.name), self.spec.kind
        words = {
            "token": "tags words", "multi_label": "takes any number of classes", "regression": "takes a score",
            "masked_lm": "is plain text", "single_label": "takes one of several classes",
        }  # fmt: skip
        if kind not in method.heads:
            fitting = ", ".join(name for name, other in all_methods().items() if kind in other.heads)
            cure = f"methods that are: {fitting}"
            if method.heads == ("masked_lm",):
                cure = "it learns from plain text: name some with --corpus"
            raise UserError(
                f"method {method.name!r} is not made for task {self.spec.name!r}, which {words[kind]}; {cure}"
            )
        if kind in ("token", "multi_label") and self.recipe.method.variant == "original" and self.models.teachers:
            raise UserError(
                f"task {self.spec.name!r} {words[kind]}; no published code distils that, so there is no variant "
                "original of it: use --variant corrected"
            )
        if kind in ("token", "masked_lm") and self.recipe.train.batch_sampler == "class-balanced":
            raise UserError(
                f"task {self.spec.name!r} {words[kind]}, so its examples are of no class: leave "
                "train.batch_sampler=random"
            )
        if kind == "masked_lm" and self.recipe.output.diagnose:
            raise UserError("--diagnose compares models on examples with labels; it does not go with task 'corpus'")

    def _check_memory(self) -> None:
        memory, layer = self.recipe.memory, self.needs.centroids_layer
        if memory is None or layer is None:
            return
        suits = {"corrected": "kmeans", "original": "legacy"}[self.recipe.method.variant]
        if memory.file is None and memory.algorithm != suits:
            raise UserError(
                f"memory.algorithm={memory.algorithm} goes with the other variant; variant "
                f"{self.recipe.method.variant} reads a memory by {suits}"
            )
        if memory.file is not None and not self.teacher_places:
            raise UserError(f"memory {memory.file!r} belongs to a teacher: name that one with --teacher")
        if memory.file is not None:
            found = Memory.load(Path(memory.file))
            found.check(memory.file, self.memory_of, self.recipe.method.variant)
        elif memory.train == "never" and not self._memory_is_there(memory):
            raise UserError(
                f"{self.recipe.method.name} needs a memory, and below {self.recipe.output.runs_dir!r} there is none of "
                "this task, teacher and length with these memory.* settings: make it with `kdbert train-memory`, or "
                "leave memory.train=auto"
            )
        elif memory.centroids is not None and memory.centroids > len(self.train_examples):
            raise UserError(
                f"memory.centroids is {memory.centroids}, but there are {len(self.train_examples)} training examples; "
                "set fewer with memory.centroids="
            )

    def _memory_is_there(self, memory: MemorySection) -> bool:
        """Whether some memory has been made as the recipe says."""
        if not self.teacher_places:
            return False
        wanted = {**self.memory_of, **memory.model_dump(exclude={"file", "train"})}
        for path in (Path(self.recipe.output.runs_dir) / self.spec.name / "memory").glob("*.safetensors"):
            with contextlib.suppress(UserError):
                about = Memory.load(path).about
                if all(about.get(key) == value for key, value in wanted.items()):
                    return True
        return False

    @property
    def memory_of(self) -> dict[str, Any]:
        """What the memory must be of."""
        return {
            "task": self.spec.name,
            "train_file": self.fingerprints.get(self.recipe.task.train_file or "", "")[:16],
            "teacher": self.teacher_places[0].fingerprint(),
            "layer": self.needs.centroids_layer,
            "width": self.models.teachers[0].width,
            "max_length": self.recipe.task.max_length,
        }

    def memory_words(self) -> str:
        """How the memory is made, for people."""
        memory = self.recipe.memory
        assert memory is not None
        return (
            f"{memory.centroids} centroids of the teacher's layer {self.needs.centroids_layer} by {memory.algorithm}, "
            "made on the way or reused"
        )

    def check_tokenizer(self, teacher: ModelPlace) -> None:
        """Refuse a teacher that reads other token ids than the student.

        Raises:
            UserError: the tokenizers differ.
        """
        if self.spec.kind == "masked_lm":
            check_expansion(load_tokenizer(teacher), self.tokenizer, teacher.given, self.tokenizer_name)
            return
        if not same_tokenizer(self.tokenizer, load_tokenizer(teacher, words=self.spec.kind == "token")):
            raise UserError(
                f"teacher {teacher.given!r} and student {self.student_place.given!r} have different tokenizers, and "
                + (
                    f"task {self.spec.name!r} tags words by their tokens; take a student with the teacher's vocabulary"
                    if self.spec.kind == "token"
                    else f"method {self.recipe.method.name!r} compares them token by token; take a student with the "
                    "teacher's vocabulary, or a method that compares whole examples (kd, multi-kd, cka-l, cka-g)"
                )
            )

    @cached_property
    def teacher_tokenizers(self) -> list[Any]:
        """Each teacher's own tokenizer; None where it reads exactly what the student reads."""
        own: list[Any] = []
        if self.spec.kind == "masked_lm":  # what it does not know is hidden from it
            return [None for _ in self.teacher_places]
        for place, way in zip(self.teacher_places, self.teacher_ways, strict=False):
            tokenizer = self._teacher_tokenizer(place, way)
            same = same_tokenizer(self.tokenizer, tokenizer)
            same &= set(tokenizer.model_input_names) == set(self.tokenizer.model_input_names)
            own.append(None if same else tokenizer)
        return own

    @property
    def steps(self) -> int:
        """Optimiser steps of the whole run."""
        options = self.recipe.train
        steps = options.epochs * math.ceil(len(self.train_examples) / options.batch_size)
        return min(steps, options.max_steps or steps)

    def parameters(self) -> tuple[int, list[int]]:
        """Numbers of parameters of the student and of each teacher, from their configurations."""
        whole = count_parameters(
            self.student_config, self.spec, self.student_place.given, self.kept_layers, vocabulary_size(self.tokenizer)
        )
        return whole, [count_parameters(load_config(place), self.spec, place.given) for place in self.teacher_places]

    def memory_estimate(self) -> float:
        """Bytes that training needs, roughly: weights, gradients, AdamW's two moments, activations.

        Activations are counted as 16 values per token, layer and hidden unit plus two attention maps per
        head, at the maximum length and float32, which is the upper end.
        """
        student, teachers = self.parameters()
        config = self.student_config
        length, rows = self.recipe.task.max_length or 0, self.micro_batch
        per_token = 16 * config.hidden_size + 2 * getattr(config, "num_attention_heads", 0) * length
        activations = 4.0 * rows * length * len(self.kept_layers) * per_token
        memory, centroids = self.recipe.memory, 0
        if memory is not None:
            count = len(Memory.load(Path(memory.file)).counts) if memory.file is not None else memory.centroids or 0
            centroids = count * length * config.hidden_size
        return 16.0 * (student + centroids) + 4.0 * sum(teachers) + activations


def student_before_teacher(recipe: Recipe) -> Recipe:
    """The resolved recipe of a student whose teacher is not made yet, checked as far as that goes.

    A mistake about the student must not be found only after hours of training its teacher.

    Raises:
        UserError: whatever can be refused without the teacher.
    """
    resolved = resolve_distill(recipe)
    base = locate(base_model(recipe))
    plan = Plan(resolved, teachers_to_come=[base] * missing_teachers(recipe))
    plan.check()
    return resolved


def shape_of(config: Any) -> Shape:
    """Depth and width of a model."""
    return Shape(config.num_hidden_layers, config.hidden_size)


def check_trackers(names: list[str]) -> None:
    """Refuse trackers that accelerate does not know or that are not installed.

    Raises:
        UserError: with the known names, or with what to install.
    """
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

    available = {str(getattr(name, "value", name)) for name in get_available_trackers()}
    for name in names:
        if name not in LOGGER_TYPE_TO_CLASS:
            known = ", ".join(sorted(LOGGER_TYPE_TO_CLASS))
            raise UserError(f"unknown tracker {name!r}{near_miss(name, LOGGER_TYPE_TO_CLASS)} (known: {known})")
        if name not in available:
            raise UserError(f"tracker {name!r} is not installed: pip install {name}")
