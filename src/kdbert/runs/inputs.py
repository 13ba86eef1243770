"""What the jobs of one command have read, so that no file is read and no text is tokenised twice."""

from __future__ import annotations

from typing import Any, TypeVar

from kdbert.data.encode import Encoded, encode
from kdbert.data.examples import Examples
from kdbert.data.masking import tokenizer_digest
from kdbert.recipe.defaults import task_of
from kdbert.recipe.sections import TaskSection
from kdbert.tasks import TaskSpec

T = TypeVar("T")


class Inputs:
    """Tasks, examples and token ids by what they were asked for."""

    def __init__(self) -> None:
        self._known: dict[Any, Any] = {}

    def spec(self, task: TaskSection) -> TaskSpec:
        """The task of a recipe."""
        key = ("spec", *self._files(task))
        return self._known[key] if key in self._known else self._keep(key, task_of(task))

    def examples(self, task: TaskSection, split: str) -> Examples:
        """A split of the task."""
        key = ("examples", *self._files(task), split)
        return self._known[key] if key in self._known else self._keep(key, self.spec(task).load(split, task.data_dir))

    def encoded(self, task: TaskSection, split: str, tokenizer: Any) -> Encoded:
        """A split as a tokenizer reads it; of the training split the first `max_train_examples`."""
        assert task.max_length is not None
        most = task.max_train_examples if split == "train" else None
        reads = (tokenizer_digest(tokenizer), *tokenizer.model_input_names)
        key = ("encoded", *self._files(task), split, most, task.max_length, *reads)
        if key in self._known:
            return self._known[key]
        return self._keep(key, encode(self.examples(task, split).first(most), tokenizer, task.max_length))

    def _keep(self, key: Any, value: T) -> T:
        self._known[key] = value
        return value

    @staticmethod
    def _files(task: TaskSection) -> tuple[str, ...]:
        return (task.model_dump_json(exclude={"max_length", "max_train_examples"}),)
