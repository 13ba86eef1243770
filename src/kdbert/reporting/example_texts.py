"""The texts of examples, which run folders do not hold: from the task's files, if they can be found."""

from __future__ import annotations

import itertools

from kdbert.data.examples import Examples
from kdbert.errors import UserError
from kdbert.reporting.collect import Run
from kdbert.reporting.predicted import task_of_run
from kdbert.reporting.versus_teacher import Disagreement

MOST_CHARACTERS = 300  # of a shown text
AROUND = 12  # words shown before and after those that are tagged differently
Pieces = list[tuple[str, bool]]  # a text, and whether each part of it is marked


class ExampleTexts:
    """The texts of a task's split, if its files are those on which the run was scored."""

    def __init__(self, run: Run, split: str, data_dir: str | None) -> None:
        self.fault = ""  # why there are none
        self.warning = ""  # what a reader should know before texts of this task are shown
        self._examples: Examples | None = None
        self._number: dict[str, int] = {}
        try:
            spec = task_of_run(run, data_dir)
        except UserError as error:
            self.fault = str(error)
            return
        self.warning = spec.warning
        known = run.told.get(f"data.{split}")
        places = [place for place in (data_dir, run.told.get("task.data_dir")) if isinstance(place, str)]
        for place in places or (None,):
            try:
                if known is not None and spec.digest(split, place) not in ("", known):
                    raise UserError(f"the {split} file there is not the one of the runs")
                self._examples, self.fault = spec.load(split, place), ""
            except (UserError, OSError) as error:
                self.fault = self.fault or str(error)
                continue
            self._number = {name: i for i, name in enumerate(self._examples.ids)}
            return

    def parts(self, example: Disagreement) -> list[Pieces]:
        """The sentences of an example; empty where there is no text."""
        i = self._number.get(example.id)
        if self._examples is None or i is None:
            return []
        if self._examples.words is None or not example.words:
            texts = [some[i] for some in (self._examples.text_a, self._examples.text_b) if some is not None]
            return [[(_cut(text), False)] for text in texts]
        words = self._examples.words[i]
        first, last = max(example.words[0] - AROUND, 0), min(example.words[-1] + AROUND + 1, len(words))
        before, after = [("… ", False)] * (first > 0), [("…", False)] * (last < len(words))
        joined = [
            ("".join(f"{words[place]} " for place in places), marked)
            for marked, places in itertools.groupby(range(first, last), key=example.words.__contains__)
        ]
        return [[*before, *joined, *after]]


def _cut(text: str) -> str:
    return text if len(text) <= MOST_CHARACTERS else f"{text[:MOST_CHARACTERS]}…"
