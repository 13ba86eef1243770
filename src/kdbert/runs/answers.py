"""What a model answers: the one place that turns a model and a split into predictions and scores.

`answers` asks a model that is open; the end of a run, `evaluate`, `export` and `benchmark` use it. `SavedModel` is a
model on disk together with the task that it is asked about.
"""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator

from kdbert.data.batches import Batch
from kdbert.data.corpus import DEV_SEQUENCES, TextSplit, tokenised
from kdbert.data.encode import Encoded, encode
from kdbert.data.examples import Examples
from kdbert.data.masking import masking_of
from kdbert.disk.files import write_text
from kdbert.errors import Diverged, UserError, few
from kdbert.models.fast.late_head import use_late_head
from kdbert.models.labels import teacher_permutation
from kdbert.models.load import check_trained_head, check_weights, label_names, load_config, load_tokenizer
from kdbert.models.locate import LEAST_DIGITS, ModelPlace, locate, run_facts
from kdbert.models.open import open_classifier, open_of_plain_text
from kdbert.models.way import Asked, Way, check_length, decide, device_type, fit_tokenizer
from kdbert.recipe import Recipe
from kdbert.recipe.defaults import task_of
from kdbert.recipe.sections import TaskSection
from kdbert.runs.saved_task import saved_task
from kdbert.tasks import CORPUS, CUSTOM, TaskSpec, get_task, task_name
from kdbert.tasks.corpus import corpus_task
from kdbert.training.forward import NO_ATTENTION, check_runs, pass_over
from kdbert.training.precision import Precision, choose_precision

log = logging.getLogger("kdbert")


@dataclass(frozen=True)
class Answers:
    """A model's answers to a split.

    Attributes:
        part: the split.
        logits: one row for each label, in the task's order of classes (see `Head.label_logits`).
    """

    spec: TaskSpec
    part: Examples | TextSplit
    logits: np.ndarray

    @cached_property
    def scores(self) -> dict[str, float]:
        """The task's metrics; none of a split without labels."""
        return self.spec.score(self.logits, self.part)

    @property
    def one_answer(self) -> str | None:
        """The answer that is given to every example, in words; None where there are several."""
        return self.spec.head.same_answer(self.spec.head.predicted(self.logits))

    def agreement(self, other: Answers) -> float:
        """How alike two models answer; see `Head.agreement`."""
        head = self.spec.head
        return head.agreement(head.predicted(self.logits), head.predicted(other.logits))

    def write(self, path: Path) -> None:
        """Write a predictions file: JSON lines with id, label, prediction and scores (`Head.prediction_rows`)."""
        rows = self.spec.head.prediction_rows(self.part, self.logits)
        write_text(path, "\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n")

    def write_submission(self, path: Path) -> None:
        """Write the file that gluebenchmark.com takes: header `index<TAB>prediction`, label words, scores from 0 to 5.

        Scores (STS-B) are limited to their range and written with three decimals.
        """
        rows, head = ["index\tprediction"], self.spec.head
        for index, answer in enumerate(head.predicted(self.logits)):
            word = head.written(answer)
            rows.append(f"{index}\t{word if isinstance(word, str) else f'{min(max(word, 0.0), 5.0):.3f}'}")
        write_text(path, "\n".join(rows) + "\n")


def answers(
    model: Any,
    spec: TaskSpec,
    part: Examples | TextSplit,
    data: Encoded,
    *,
    batch_size: int,
    precision: Precision,
    accelerator: Accelerator,
    columns: Sequence[int] | None = None,
    told: str | None = None,
    whose: str = "the model's outputs",
    cure: str = "",
    outcome_of: Callable[[Any, Batch], torch.Tensor] | None = None,
    layers: Sequence[int] = (),
    attention: Mapping[int, str] = NO_ATTENTION,
) -> Answers:
    """Ask a model about a split. The same on every process.

    Args:
        part, data: the split, as examples and as the model reads it.
        columns: for each label of the task, the model's column that means it (None: they are in the task's order).
        told: what a progress bar says (None: no bar).
        whose, cure: for the message of an error.
        outcome_of: what is kept of the outputs (None: `Head.outcome`). layers: hidden states that it reads.
        attention: queries, keys and values that it reads, see `run_model`.

    Raises:
        Diverged: an output is not finite; with the ids of the examples.
    """
    kept = outcome_of or spec.head.outcome
    outcome = pass_over(
        model, data, lambda outputs, batch: {"outputs": kept(outputs, batch)}, {"outputs": data.logits_of},
        layers=layers, attention=attention, batch_size=batch_size, precision=precision, accelerator=accelerator,
        told=told,
    )["outputs"]  # fmt: skip
    assert outcome is not None
    bad = np.flatnonzero(~np.isfinite(outcome.reshape(len(outcome), -1)).all(1))
    if len(bad):
        if len(outcome) != len(data):  # one row for each token
            bad = np.unique(np.searchsorted(data.offsets, bad, side="right") - 1)
        examples = [part.ids[row] for row in bad.tolist()]
        where = {"examples": examples} | ({"split": part.split} if isinstance(part, Examples) else {})
        raise Diverged(f"{whose} are not finite for examples {few(examples, ', see run.json')}{cure}", where)
    return Answers(spec, part, spec.head.label_logits(outcome, data, columns))


def constant_answers(spec: TaskSpec, parts: Mapping[str, Examples | TextSplit]) -> dict[str, dict[str, float]]:
    """Split -> metric -> what the best constant answer reaches there."""
    found = {name: spec.constant_answer(part) for name, part in parts.items()}
    return {name: scores for name, scores in found.items() if scores is not None}


def same_answers(found: Mapping[str, Answers]) -> dict[str, str]:
    """Split -> the answer that is given to all of its examples, where it is one."""
    return {name: one for name, given in found.items() if (one := given.one_answer) is not None}


@dataclass(frozen=True)
class SavedModel:
    """A trained model on disk, and the task whose examples it answers.

    Attributes:
        given: what the person wrote.
        trained_on: of a run's model, the task of its recipe.
        labels: its labels in order, where its configuration does not name them.
        max_length: tokens per example.
        corpus: plain text that a person named, all of which a masked-LM is asked about.
    """

    given: str
    place: ModelPlace
    trained_on: TaskSection | None
    spec: TaskSpec
    data_dir: str | None
    labels: list[str] | None
    max_length: int
    corpus: str | None = None

    @cached_property
    def run(self) -> dict[str, Any]:
        """run.json of its run; {} of another model."""
        return {} if self.place.run is None else run_facts(self.place.run)

    def precision(self, asked: str, device: torch.device) -> Precision:
        """What it answers in. `auto` is float32 where its run was scored in float32, so that a run's model answers as
        the run did; else what suits the device (`choose_precision`).
        """
        if not self.way.half or (asked == "auto" and self.run.get("precision") == "fp32"):
            return "fp32"
        return choose_precision(asked, device)

    def load(self, split: str) -> Examples | TextSplit:
        """A split of its task."""
        return self._text() if self.spec.head.plain_text else self.examples(split)

    def examples(self, split: str) -> Examples:
        """A split of a task with labels."""
        self.check_task()
        part = self.spec.load(split, self.data_dir)
        if part.labelled is None:
            return part
        log.info("some rows of %s have no label, so it is not scored", split)
        return replace(part, labels=None, labelled=None)

    def check_task(self) -> None:
        """Refuse a masked-LM where a task with labels is asked about."""
        if self.spec.head.plain_text:
            raise UserError(
                f"{self.given!r} is a masked-LM, which answers no task yet; fine-tune it first: "
                f"`kdbert finetune-teacher --task TASK --model {self.given}`"
            )

    def _text(self) -> TextSplit:
        """Plain text as the model's run has read it; hidden are the tokens that its dev split hides."""
        own = self.trained_on if self.trained_on is not None and self.trained_on.name == CORPUS else None
        facts = self.run if own is not None else {}
        with tempfile.TemporaryDirectory() as folder:  # what is mapped stays readable when its name is gone
            texts = tokenised(
                self.spec.source, self.tokenizer, self.max_length, folder=Path(folder),
                packed=not facts or facts["recipe"]["method"]["variant"] == "corrected",
                part="dev" if self.corpus is None and own is not None and own.dev_file is None else None,
                unit=own.text_unit if own else "line",
            )  # fmt: skip
        masking = masking_of(
            self.tokenizer, known=facts.get("known_pieces"), probability=own.mask_probability if own else 0.15,
            words=bool(own and own.mask_words),
        )  # fmt: skip
        return (texts if self.corpus is not None else texts.first(DEV_SEQUENCES)).masked(masking)

    def encode(self, part: Examples | TextSplit) -> Encoded:
        """A split as the model reads it."""
        return part.encoded if isinstance(part, TextSplit) else encode(part, self.tokenizer, self.max_length)

    def check(self) -> None:
        """Refuse a model without a head for the task, with other labels, damaged, or too short for the length."""
        check_trained_head(load_config(self.place), self.given, self.spec)
        check_weights(self.place)
        _ = self.columns  # refuses other labels
        check_length(self.max_length, self.way.limit, self.given)

    @cached_property
    def way(self) -> Way:
        """How it is run: as its run ran it, where it is a run's model."""
        way = self.run.get("way", {})
        asked = Asked(**{field.name: way[field.name] for field in fields(Asked) if field.name in way})
        return decide(load_config(self.place), self.spec.head, self.given, asked, device_type())

    def network(self, way: Way | None = None) -> Any:
        """The model itself, in eval mode."""
        if not self.spec.head.plain_text:
            return open_classifier(self.place, self.spec, way or self.way, keep_head=True)[0]
        model, _ = open_of_plain_text(self.place, self.spec.head, self.tokenizer, way or self.way)
        use_late_head(model)
        return model

    @cached_property
    def columns(self) -> list[int] | None:
        """For each label of the task, the model's column that means it; None for plain text."""
        if self.spec.head.plain_text:
            return None
        return teacher_permutation(
            self.given, self.spec.name, self.spec.labels, self.spec.aliases, label_names(load_config(self.place)),
            self.labels, role="model", flag="--labels",
        )  # fmt: skip

    @cached_property
    def tokenizer(self) -> Any:
        """What it reads by."""
        return fit_tokenizer(load_tokenizer(self.place, words=self.spec.head.of_words), self.way, self.given)

    def answers(
        self, model: Any, part: Examples | TextSplit, *, batch_size: int, precision: Precision, accelerator: Accelerator
    ) -> Answers:
        """What its network, or an export of it, answers to a split.

        Raises:
            UserError: the network does not run.
            Diverged: an output is not finite.
        """
        data = self.encode(part)
        if next(model.parameters(), None) is not None:  # not an ONNX session
            check_runs(model.to(accelerator.device), data, self.given)
        split = part.split if isinstance(part, Examples) else "plain text"
        return answers(
            model, self.spec, part, data, columns=self.columns, batch_size=batch_size, precision=precision,
            accelerator=accelerator, told=f"{self.given} on {split}", whose=f"the outputs of {self.given} on {split}",
        )  # fmt: skip


def saved_model(
    model: str,
    task: str | None = None,
    *,
    corpus: str | None = None,
    data_dir: str | None = None,
    labels: list[str] | None = None,
    max_length: int | None = None,
    test_file: str | None = None,
    like: SavedModel | None = None,
) -> SavedModel:
    """A model with the task that it is asked about: the one named, or its run's own.

    Args:
        corpus: plain text, which is task `corpus`.
        test_file: in place of the test file of a run of own data.
        like: another model, whose task and length are taken instead.
    """
    place = locate(model)
    own = None
    if place.run is not None:
        # Its method may come from a plug-in that is not at hand, and makes no difference here.
        own = Recipe.of({"task": run_facts(place.run)["recipe"]["task"], "method": "finetune"}).task
    if like is not None:
        length = own.max_length if own is not None and own.name == like.spec.name else None
        return replace(
            like, given=model, place=place, trained_on=own, labels=labels, max_length=length or like.max_length
        )
    if corpus is not None or CORPUS in (task, own.name if own is not None and task is None else None):
        return _of_plain_text(model, place, own, corpus, task, max_length, test_file)
    if task is None and own is None:
        if not place.local and "/" not in model:
            raise UserError(
                f"no run or model folder {model!r}: check the name (a handle has at least {LEAST_DIGITS} digits); for "
                "a model of the Hub name its task with --task"
            )
        raise UserError(f"{model!r} is not a run folder, so its task is not known; name it with --task")
    if own is not None and (task is None or task_name(task) == own.name):
        if own.name == CUSTOM:
            assert place.run is not None
            spec = saved_task(place.run, run_facts(place.run), data_dir, test_file).measured_by(own.metrics)
        else:
            spec = task_of(own)
        data_dir = data_dir or own.data_dir
    else:
        assert task is not None
        if task_name(task) == CUSTOM:
            raise UserError("--task custom needs a run that was trained on the custom task")
        spec = get_task(task)
        if data_dir is None and own is not None and own.name != CUSTOM and task_of(own).data_dir == spec.data_dir:
            data_dir = own.data_dir  # GLUE's tasks lie side by side
    if test_file is not None and spec.own is None:
        raise UserError(f"--test-file goes with a run of own data (--task custom), not with task {spec.name!r}")
    length = max_length or (own.max_length if own is not None else None) or spec.max_length
    return SavedModel(model, place, own, spec, data_dir, labels, length)


def _of_plain_text(
    model: str,
    place: ModelPlace,
    trained_on: TaskSection | None,
    corpus: str | None,
    task: str | None,
    max_length: int | None,
    test_file: str | None,
) -> SavedModel:
    """A masked-LM, asked about a corpus or about what its own run has kept for that."""
    if task not in (None, CORPUS):
        raise UserError(f"--corpus is plain text, which is task corpus, not {task}")
    if test_file is not None:
        raise UserError("--test-file goes with a run of own data (--task custom); name plain text with --corpus")
    own = trained_on if trained_on is not None and trained_on.name == CORPUS else None
    if own is not None and own.kind == "encoder":
        raise UserError(
            f"{model!r} is a general student without a head, which answers nothing yet; fine-tune it on a task first: "
            f"`kdbert distill --task TASK --student {model}`"
        )
    source = corpus or (own.dev_file or own.train_file if own is not None else None)
    if source is None:
        raise UserError(f"{place.given!r} was not trained on plain text; name some with --corpus")
    found = SavedModel(model, place, trained_on, corpus_task(source), None, None, 0, corpus)
    check_trained_head(load_config(place), model, found.spec)
    limit = found.way.limit or found.spec.max_length
    length = max_length or (own.max_length if own else None) or min(found.spec.max_length, limit)
    return replace(found, max_length=length)
