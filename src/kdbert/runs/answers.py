"""What a saved model is asked, and how it answers: `evaluate`, and what export and benchmark share with it."""

from __future__ import annotations

import hashlib
import logging
import tempfile
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from kdbert.data.corpus import DEV_SEQUENCES, corpus_digest, tokenised
from kdbert.data.encode import Encoded, encode
from kdbert.data.examples import Examples
from kdbert.data.masking import masking_of
from kdbert.errors import UserError
from kdbert.metrics import constant_answer, masked_lm_scores, score
from kdbert.models.fast.late_head import use_late_head
from kdbert.models.labels import teacher_permutation
from kdbert.models.load import (
    check_trained_head,
    check_weights,
    label_names,
    load_config,
    load_tokenizer,
)
from kdbert.models.locate import ModelPlace, locate, short_name
from kdbert.models.open import open_classifier, open_masked_lm
from kdbert.models.way import Asked, Way, check_length, decide, device_type, fit_tokenizer
from kdbert.recipe import Recipe
from kdbert.recipe.defaults import task_of
from kdbert.runs.folder import RunFolder
from kdbert.runs.predictions import predicted, same_answer, write_hidden, write_predictions, write_submission
from kdbert.runs.saved_task import saved_task
from kdbert.tasks import CORPUS, CUSTOM, TaskSpec, get_task, task_name
from kdbert.tasks.corpus import corpus_task
from kdbert.training.forward import check_runs, predict
from kdbert.training.masked_lm import masked_lm_sums
from kdbert.training.precision import choose_precision, make_accelerator

log = logging.getLogger("kdbert")


@dataclass(frozen=True)
class Evaluation:
    """Scores and files of one evaluated model.

    Attributes:
        metrics: split -> metric -> value, of the splits that carry labels.
        files: those written.
        selection: the metric by which models of the task are compared.
        constant: split -> metric -> what the constant answer reaches there (see `kdbert.metrics.constant_answer`).
        same: split -> the answer that the model gives to every example, where it gives one only.
    """

    task: str
    metrics: dict[str, dict[str, float]]
    files: list[Path]
    selection: str
    constant: dict[str, dict[str, float]] = field(default_factory=dict)
    same: dict[str, str] = field(default_factory=dict)


def evaluate(
    model: str,
    task: str | None = None,
    *,
    corpus: str | None = None,
    split: str | None = None,
    test_file: str | None = None,
    data_dir: str | None = None,
    output_dir: str | None = None,
    labels: list[str] | None = None,
    max_length: int | None = None,
    batch_size: int = 64,
    precision: str = "auto",
) -> Evaluation:
    """Score a saved model on a split and write its predictions.

    Args:
        model: run folder, model folder or Hub id.
        task: registered task; by default the run's own.
        corpus: plain text to score a masked-LM on, all of it (task `corpus`).
        split: `dev` (the default), `test`, or one split's name (`dev_matched`).
        test_file: of a run of own data: a file with the same columns, with labels or without, as the test split.
        output_dir: where predictions go; by default the run's `predictions/`, and where they are not the run's own
            (another model, task, text, file, length or precision) `predictions/<task>/<model>-<8 hex of all that>`.
        labels: the model's labels in order, where its configuration does not name them.
        max_length: tokens per example; by default the run's, or the task's.

    Returns:
        Metrics of the splits that carry labels, and the files written: `<split>.jsonl`, and the GLUE
        upload file for a GLUE test split.
    """
    place, trained = trained_on(model)
    if corpus is not None or CORPUS in (task, trained.task.name if trained is not None and task is None else None):
        if task not in (None, CORPUS):
            raise UserError(f"--corpus is plain text, which is task corpus, not {task}")
        if test_file is not None:
            raise UserError("--test-file goes with a run of own data (--task custom); name plain text with --corpus")
        return _evaluate_text(
            place, trained, corpus, split=split or "dev", output_dir=output_dir, max_length=max_length,
            batch_size=batch_size, precision=precision,
        )  # fmt: skip
    if test_file is not None and split not in (None, "test"):
        raise UserError(f"--test-file is a test split, not {split}; leave --split out")
    saved = saved_classifier(model, task, data_dir=data_dir, labels=labels, max_length=max_length, test_file=test_file)
    spec = saved.spec
    split = split or ("dev" if test_file is None else "test")
    if spec.own is not None and split == "test" and "test" not in spec.splits:
        raise UserError(f"{model} was made without a test file; name one with --test-file")
    examples = {name: saved.load(name) for name in spec.split_names(split)}
    saved.check()
    before = spec.name if trained is None or trained.task.name == CUSTOM else trained.task.name
    if before != spec.name and (spec.name, before) != ("ax", "mnli"):
        log.warning("%s was trained on %s and is scored on %s", model, before, spec.name)
    accelerator = make_accelerator()
    chosen = choose_precision(precision if saved.way.half else "fp32", accelerator.device)
    tokenizer = saved.tokenizer()
    network = saved.network().to(accelerator.device)
    foreign = spec.own.digests["test"] if spec.own is not None and test_file is not None else ""
    folder = _own_folder(spec.name, place, output_dir, saved.max_length, chosen, *filter(None, [foreign, labels]))
    if output_dir is None and not foreign and place.run is not None and trained is not None:
        # With another length or precision the scores are not those of the run's own results.
        own = (trained.task.name, trained.task.max_length, RunFolder(place.run).manifest().get("precision"))
        if own == (spec.name, saved.max_length, chosen):
            RunFolder(place.run).check_links()
            folder = place.run / "predictions"
    answers: dict[str, np.ndarray] = {}
    for name, part in examples.items():
        data = encode(part, tokenizer, saved.max_length)
        check_runs(network, data, model)
        logits = predict(
            network, data, batch_size=batch_size, precision=chosen, accelerator=accelerator,
            told=f"{model} on {name}", ids=part.ids,
        )  # fmt: skip
        answers[name] = saved.label_logits(logits, data)
    _make(folder)  # only now, so that what is there stays where the outputs are not finite
    found = Evaluation(spec.name, {}, [], spec.metrics[0])
    files = found.files
    for name, part in examples.items():
        logits = answers[name]
        if part.labels is not None:
            found.metrics[name] = saved.score(logits, part)
            found.constant[name] = saved.constant(part)
        same = same_answer(spec, logits)
        if same is not None:
            found.same[name] = same
        if accelerator.is_main_process:
            write_predictions(folder / f"{name}.jsonl", spec, part, logits)
            files.append(folder / f"{name}.jsonl")
            if name in spec.submission:
                write_submission(folder / spec.submission[name], spec, logits)
                files.append(folder / spec.submission[name])
    if accelerator.is_main_process and place.run is not None and folder == place.run / "predictions":
        RunFolder(place.run).rewritten(files)
    return found


@dataclass(frozen=True)
class SavedClassifier:
    """A trained model, and the task whose examples it answers.

    Attributes:
        given: what the person wrote.
        trained: of a run's model, a recipe with its task.
        labels: its labels in order, where its configuration does not name them.
        max_length: tokens per example.
    """

    given: str
    place: ModelPlace
    trained: Recipe | None
    spec: TaskSpec
    data_dir: str | None
    labels: list[str] | None
    max_length: int

    def load(self, split: str) -> Examples:
        """A split of its task."""
        return self.spec.load(split, self.data_dir)

    def check(self) -> None:
        """Refuse a model without a head for the task, with other labels, damaged, or too short for the length.

        Raises:
            UserError: with the cure.
        """
        check_trained_head(load_config(self.place), self.given, self.spec)
        check_weights(self.place)
        _ = self.permutation  # refuses other labels
        check_length(self.max_length, self.way.limit, self.given)

    @cached_property
    def way(self) -> Way:
        """How it is run: as its run ran it, where it is a run's model."""
        return decide(load_config(self.place), self.spec.kind, self.given, asked_by(self.place), device_type())

    def network(self, way: Way | None = None) -> Any:
        """The model itself, in eval mode."""
        return open_classifier(self.place, self.spec, way or self.way, keep_head=True)[0]

    @cached_property
    def permutation(self) -> list[int]:
        """Where each of the task's labels stands among the model's."""
        return teacher_permutation(
            self.given, self.spec.name, self.spec.labels, self.spec.aliases, label_names(load_config(self.place)),
            self.labels, role="model", flag="--labels",
        )  # fmt: skip

    def tokenizer(self) -> Any:
        """What it reads by."""
        return fit_tokenizer(load_tokenizer(self.place, words=self.spec.kind == "token"), self.way, self.given)

    def label_logits(self, logits: np.ndarray, data: Encoded) -> np.ndarray:
        """The model's logits as logits of what has a label, in the order of the task's classes."""
        return data.label_logits(logits[:, self.permutation], self.spec.labels)

    def score(self, logits: np.ndarray, examples: Examples) -> dict[str, float]:
        """The task's metrics of `label_logits` on a split that has labels."""
        assert examples.labels is not None
        groups = self.spec.label_groups(examples)
        return score(self.spec.metrics, predicted(self.spec, logits), examples.labels, groups, self.spec.labels)

    def constant(self, examples: Examples) -> dict[str, float]:
        """What the constant answer reaches on a split that has labels."""
        assert examples.labels is not None
        return constant_answer(self.spec.metrics, examples.labels, self.spec.label_groups(examples), self.spec.labels)


def asked_by(place: ModelPlace) -> Asked:
    """The way that a model's own run asked for; for another model the default."""
    way = {} if place.run is None else RunFolder(place.run).manifest().get("way", {})
    return Asked(**{name: way[name] for name in ("attention", "packing", "first_token") if name in way})


def trained_on(model: str) -> tuple[ModelPlace, Recipe | None]:
    """Where a model lies, and of a run's model, a recipe with its task.

    Raises:
        UserError: see `locate`.
    """
    place = locate(model)
    if place.run is None:
        return place, None
    # Its method may come from a plug-in that is not at hand, and makes no difference here.
    return place, Recipe.of({"task": RunFolder(place.run).manifest()["recipe"]["task"], "method": "finetune"})


def saved_classifier(
    model: str,
    task: str | None = None,
    *,
    data_dir: str | None = None,
    labels: list[str] | None = None,
    max_length: int | None = None,
    test_file: str | None = None,
    like: SavedClassifier | None = None,
) -> SavedClassifier:
    """A model with the task that it is asked about: the one named, or its run's own.

    Args:
        test_file: in place of the test file of a run of own data.
        like: another model, whose task and length are taken instead.

    Raises:
        UserError: no such model or task, or none is known; a model of plain text.
    """
    place, trained = trained_on(model)
    if like is not None:
        own = trained.task.max_length if trained is not None and trained.task.name == like.spec.name else None
        return replace(
            like, given=model, place=place, trained=trained, labels=labels, max_length=own or like.max_length
        )
    if task is None and trained is None:
        raise UserError(f"{model!r} is no run folder, so its task is not known; name it with --task")
    if trained is not None and (task is None or task_name(task) == trained.task.name):
        if trained.task.name == CUSTOM:
            assert place.run is not None
            spec = saved_task(place.run, RunFolder(place.run).manifest(), data_dir, test_file)
        else:
            spec = task_of(trained)
        data_dir = data_dir or trained.task.data_dir
    else:
        assert task is not None
        if task_name(task) == CUSTOM:
            raise UserError("--task custom needs a run that was trained on the custom task")
        spec = get_task(task)
        registered = trained is not None and trained.task.name != CUSTOM
        if data_dir is None and trained is not None and registered and task_of(trained).data_dir == spec.data_dir:
            data_dir = trained.task.data_dir  # GLUE's tasks lie side by side
    if test_file is not None and spec.own is None:
        raise UserError(f"--test-file goes with a run of own data (--task custom), not with task {spec.name!r}")
    if spec.kind == "masked_lm":
        raise UserError(
            f"{model!r} is a masked-LM, which answers no task yet; fine-tune it first: "
            f"`kdbert finetune-teacher --task TASK --model {model}`"
        )
    length = max_length
    if length is None:
        length = (trained.task.max_length if trained else None) or spec.max_length
    return SavedClassifier(model, place, trained, spec, data_dir, labels, length)


def _evaluate_text(
    place: ModelPlace,
    trained: Recipe | None,
    corpus: str | None,
    *,
    split: str,
    output_dir: str | None,
    max_length: int | None,
    batch_size: int,
    precision: str,
) -> Evaluation:
    """`evaluate` of a masked-LM, on a corpus or on what its own run has kept for it."""
    own = trained.task if trained is not None and trained.task.name == CORPUS else None
    if split != "dev":
        raise UserError(f"plain text has no {split} split; name a file with --corpus")
    source = corpus
    if source is None and own is not None:
        source = own.dev_file or own.train_file
    if source is None:
        raise UserError(f"{place.given!r} was not trained on plain text; name some with --corpus")
    spec = corpus_task(source)
    config = load_config(place)
    check_trained_head(config, place.given, spec)
    way = decide(config, spec.kind, place.given, asked_by(place), device_type())
    length = max_length or (own.max_length if own else None) or min(spec.max_length, way.limit or spec.max_length)
    check_length(length, way.limit, place.given)
    tokenizer = fit_tokenizer(load_tokenizer(place), way, place.given)
    accelerator = make_accelerator()
    chosen = choose_precision(precision, accelerator.device)
    folder = _own_folder(CORPUS, place, output_dir, length, chosen, corpus_digest(source))
    if output_dir is None and corpus is None and place.run is not None and own is not None and length == own.max_length:
        RunFolder(place.run).check_links()
        folder = place.run / "predictions"
    _make(folder)
    model, _ = open_masked_lm(place, tokenizer, way)
    use_late_head(model)
    model.to(accelerator.device)
    with tempfile.TemporaryDirectory() as temporary:
        part = "dev" if corpus is None and own is not None and own.dev_file is None else None
        facts = RunFolder(place.run).manifest() if own is not None and place.run is not None else {}
        texts = tokenised(
            source,
            tokenizer,
            length,
            folder=Path(temporary),
            packed=not facts or facts["recipe"]["method"]["variant"] == "corrected",
            part=part,
            unit=own.text_unit if own else "line",
        )
        texts = texts if corpus is not None else texts.first(DEV_SEQUENCES)
        masking = masking_of(
            tokenizer,
            known=facts.get("known_pieces"),
            probability=own.mask_probability if own else 0.15,
            words=bool(own and own.mask_words),
        )
        sums = masked_lm_sums(
            model,
            texts.masked(masking).encoded,
            batch_size=batch_size,
            precision=chosen,
            accelerator=accelerator,
            told=f"{place.given} on plain text",
        )
    if accelerator.is_main_process:
        write_hidden(folder / "dev.jsonl", sums)
        if place.run is not None and folder == place.run / "predictions":
            RunFolder(place.run).rewritten([folder / "dev.jsonl"])
    metrics = {"dev": masked_lm_scores(spec.metrics, sums)}
    return Evaluation(CORPUS, metrics, [folder / "dev.jsonl"], spec.metrics[0])


def _own_folder(task: str, place: ModelPlace, output_dir: str | None, *about: object) -> Path:
    """Where predictions go that are not a run's own: a folder of their own, so that none replaces another's."""
    if output_dir is not None:
        return Path(output_dir)
    digest = hashlib.sha256(repr((place.fingerprint(), *about)).encode()).hexdigest()[:8]
    return Path("predictions") / task / f"{short_name(str(place.run or place.given))}-{digest}"


def _make(folder: Path) -> None:
    """Make a folder for predictions.

    Raises:
        UserError: it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"cannot write predictions to {folder}: {error.strerror}; choose another --output-dir"
        ) from None
