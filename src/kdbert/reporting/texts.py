"""Texts of examples, which run folders do not hold: from the task's files, where they are at hand."""

from __future__ import annotations

import itertools

from kdbert.data.examples import Examples
from kdbert.errors import UserError
from kdbert.recipe import Recipe
from kdbert.recipe.defaults import task_of
from kdbert.reporting.answers import Example
from kdbert.reporting.collect import Run, mapping
from kdbert.runs.saved_task import saved_task
from kdbert.tasks import CUSTOM

MOST_CHARACTERS = 300  # of a shown text
AROUND = 12  # words shown before and behind those that are tagged differently


class Texts:
    """The texts of a task's split, where its files are at hand and are those on which the run was scored.

    Attributes:
        fault: why there is none ("": there are some).
        warning: what the task says that a reader should know before examples are shown.
    """

    def __init__(self, run: Run, split: str, data_dir: str | None) -> None:
        self.found: Examples | None = None
        self.fault = self.warning = ""
        own = run.task == CUSTOM
        try:
            if own:
                spec = saved_task(run.path, run.facts, data_dir, None)
            else:
                spec = task_of(Recipe.of({"task": run.facts["recipe"]["task"], "method": "finetune"}).task)
        except UserError as error:
            self.fault = str(error)
            return
        self.warning = spec.warning
        places = [place for place in (data_dir, run.told.get("task.data_dir")) if isinstance(place, str)]
        for place in places or (None,):
            try:
                known, there = mapping(run.facts.get("data")).get(split), "" if own else spec.digest(split, place)
                if there and known not in (None, there):
                    raise UserError(f"the {split} file there is not the one of the runs")
                self.found, self.fault = spec.load(split, place), ""
            except (UserError, OSError) as error:
                self.fault = self.fault or str(error)
                continue
            self.number = {name: i for i, name in enumerate(self.found.ids)}
            return

    def parts(self, example: Example) -> list[list[tuple[str, bool]]]:
        """The sentences of an example as pieces, each with whether it is marked; none where there is no text."""
        if self.found is None or example.id not in self.number:
            return []
        i = self.number[example.id]
        if self.found.words is None or not example.words:
            texts = [self.found.text_a[i], *([self.found.text_b[i]] if self.found.text_b is not None else [])]
            return [[(_cut(text), False)] for text in texts]
        words = self.found.words[i]
        first, last = max(example.words[0] - AROUND, 0), min(example.words[-1] + AROUND + 1, len(words))
        marked = set(example.words)
        pieces = [(f"{word} ", place in marked) for place, word in enumerate(words)][first:last]
        before, behind = [("… ", False)] * (first > 0), [("…", False)] * (last < len(words))
        joined = [
            ("".join(word for word, _ in group), mark)
            for mark, group in itertools.groupby(pieces, key=lambda piece: piece[1])
        ]
        return [[*before, *joined, *behind]]


def _cut(text: str) -> str:
    return text if len(text) <= MOST_CHARACTERS else f"{text[:MOST_CHARACTERS]}…"
