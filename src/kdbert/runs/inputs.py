"""What the jobs of one command have read, so that no file is read and no text is tokenised twice."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from kdbert.data.encode import Encoded, encode
from kdbert.data.examples import Examples
from kdbert.data.masking import tokenizer_digest
from kdbert.recipe.defaults import task_of
from kdbert.recipe.sections import TaskSection
from kdbert.tasks import TaskSpec
from kdbert.tasks.own import no_dev

T = TypeVar("T")


class Inputs:
    """Tasks, examples and token ids by what they were asked for."""

    def __init__(self) -> None:
        self._known: dict[Any, Any] = {}

    def spec(self, task: TaskSection) -> TaskSpec:
        """The task of a recipe."""
        spec = self._once(task, (task.metrics and tuple(task.metrics),), lambda: task_of(task))
        if spec.own is not None and "dev" not in spec.splits:
            raise no_dev(spec.source)
        return spec

    def examples(self, task: TaskSection, split: str) -> Examples:
        """A split of the task."""
        return self._once(task, (split,), lambda: self.spec(task).load(split, task.data_dir))

    def encoded(self, task: TaskSection, split: str, tokenizer: Any) -> Encoded:
        """A split as a tokenizer reads it; of the training split the first `max_train_examples`."""
        length, most = task.max_length, task.max_train_examples if split == "train" else None
        assert length is not None
        return self._once(
            task, (split, most, length, tokenizer_digest(tokenizer), *tokenizer.model_input_names),
            lambda: encode(self.examples(task, split).first(most), tokenizer, length),
        )  # fmt: skip

    def _once(self, task: TaskSection, what: tuple[Any, ...], read: Callable[[], T]) -> T:
        key = task.model_dump_json(exclude={"max_length", "max_train_examples", "metrics"}), *what
        if key not in self._known:
            self._known[key] = read()
        found: T = self._known[key]
        return found
