"""What the jobs of one command have read, so that no file is read and no text is tokenised twice."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from kdbert.data.encode import Encoded, encode
from kdbert.data.examples import Examples
from kdbert.data.masking import tokenizer_digest
from kdbert.models.load import kind_of_head, label_names, load_config
from kdbert.models.locate import locate
from kdbert.recipe import Recipe
from kdbert.recipe.defaults import task_of
from kdbert.recipe.sections import TaskSection
from kdbert.tasks import CUSTOM, TaskSpec
from kdbert.tasks.own import NoLabels, no_dev
from kdbert.tasks.unlabelled import hide_labels, unlabelled_examples, without_labels
from kdbert.training import soft_labels

T = TypeVar("T")
# Keys that change neither what a task is nor what is in its files.
_OF_USE = {"max_length", "max_train_examples", "metrics", "unlabelled_file", "labelled_share", "labelled_seed"}


class Inputs:
    """Tasks, examples and token ids by what they were asked for."""

    def __init__(self) -> None:
        self._known: dict[Any, Any] = {}
        self._digests: dict[int, tuple[Any, str]] = {}  # of tokenizers, by id

    def task(self, recipe: Recipe) -> TaskSection:
        """The task of a recipe; of own data in which no row has a label, with its teacher's kind and labels."""
        task = recipe.task
        if task.name != CUSTOM:
            return task
        try:
            self.spec(task)
            return task
        except NoLabels as error:
            if not recipe.teachers or task.labels is not None:
                cure = (
                    "a student learns without labels from a finished teacher alone: name it with --teacher, and leave "
                    "out a baseline; or name the labels with --labels"
                )
                raise NoLabels(f"{error}; {cure}" if task.labels is None else str(error)) from None
        teacher = recipe.teachers[0]
        if teacher.soft:
            return task.model_copy(update={"labels": soft_labels.label_names(teacher.model)})
        config = load_config(locate(teacher.model))
        kind = task.kind or kind_of_head(config)
        labels = None if kind == "regression" else teacher.labels or label_names(config)
        return task.model_copy(update={"kind": kind, "labels": labels})

    def spec(self, task: TaskSection) -> TaskSpec:
        """The task of a section."""
        spec = self._once(task, (task.metrics and tuple(task.metrics),), lambda: task_of(task))
        if spec.own is not None and "dev" not in spec.splits:
            raise no_dev(spec.source)
        return spec

    def examples(self, task: TaskSection, split: str) -> Examples:
        """A split of the task; the training split is the first `max_train_examples` of its file, with the labels that
        `labelled_share` leaves, and then `unlabelled_file`.
        """
        if split == "train":
            return self._once(task, (split, *self._use(task)), lambda: self._train(task))
        return self._once(task, (split,), lambda: self.spec(task).load(split, task.data_dir))

    def _train(self, task: TaskSection) -> Examples:
        spec = self.spec(task)
        found = self._once(task, ("file",), lambda: spec.load("train", task.data_dir)).first(task.max_train_examples)
        if found.labels is None:
            found = without_labels(found, spec)
        if task.labelled_share is not None:
            found = hide_labels(found, spec, task.labelled_share, task.labelled_seed)
        if task.unlabelled_file is None:
            return found
        return found.followed_by(unlabelled_examples(task.unlabelled_file, spec, task.text_columns))

    def encoded(self, task: TaskSection, split: str, tokenizer: Any, labels_alone: bool = False) -> Encoded:
        """A split as a tokenizer reads it; `labels_alone`: only the rows that have a label."""
        length = task.max_length
        assert length is not None

        def read() -> Encoded:
            part = self.examples(task, split)
            return encode(part.with_label if labels_alone else part, tokenizer, length)

        use = (*self._use(task), labels_alone) if split == "train" else ()
        if id(tokenizer) not in self._digests:
            self._digests[id(tokenizer)] = tokenizer, tokenizer_digest(tokenizer)  # kept, so that its id stays its own
        what = split, *use, length, self._digests[id(tokenizer)][1], *tokenizer.model_input_names
        return self._once(task, what, read)

    def _use(self, task: TaskSection) -> tuple[Any, ...]:
        """What says which rows are trained on, and with which labels."""
        return task.max_train_examples, task.labelled_share, task.labelled_seed, task.unlabelled_file

    def _once(self, task: TaskSection, what: tuple[Any, ...], read: Callable[[], T]) -> T:
        key = task.model_dump_json(exclude=_OF_USE), *what
        if key not in self._known:
            self._known[key] = read()
        found: T = self._known[key]
        return found
