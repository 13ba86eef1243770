"""`kdbert evaluate`: score a saved model on a split and write its predictions."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from kdbert.data.corpus import corpus_digest
from kdbert.errors import UserError
from kdbert.models.locate import short_name
from kdbert.runs.answers import SavedModel, constant_answers, same_answers, saved_model
from kdbert.runs.folder import RunFolder
from kdbert.tasks import CUSTOM
from kdbert.training.precision import Precision, make_accelerator

log = logging.getLogger("kdbert")


@dataclass(frozen=True)
class Evaluation:
    """Scores and files of one evaluated model.

    Attributes:
        metrics: split -> metric -> value, of the splits that carry labels.
        files: those written.
        selection: the metric by which models of the task are compared.
        constant: split -> metric -> what the constant answer reaches there.
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
    metrics: Sequence[str] | None = None,
    max_length: int | None = None,
    batch_size: int = 64,
    precision: str = "auto",
) -> Evaluation:
    """Score a saved model on a task's splits and write its predictions.

    Args:
        model: run folder, model folder, or Hub id of a fine-tuned model.
        task: a registered task; by default the run's own.
        corpus: plain text to score a masked-LM on, all of it (task `corpus`).
        split: `dev` (the default), `test`, or one split's name (`dev_matched`).
        test_file: of a run of own data: a file with the same columns, with labels or without, as the test split.
        output_dir: where predictions go; by default the run's `predictions/`, and where they are not the run's own
            (another model, task, text, file, length or precision) `predictions/<task>/<model>-<8 hex of all that>`.
        labels: the model's labels in order, where its configuration does not name them.
        metrics: names of docs/metrics.md; by default those of the run, or the task's.
        max_length: tokens per example; by default the run's, or the task's.
        precision: of the encoder. `auto`: fp32 where the model's run was scored so, else what suits the device.

    Returns:
        Metrics of the splits that carry labels, and the files written: `<split>.jsonl`, and the GLUE upload file for a
        GLUE test split.

    Raises:
        UserError: no such model, task, split, file or metric; a model with another head or other labels.
        Diverged: an output is not finite.
    """
    if test_file is not None and split not in (None, "test"):
        raise UserError(f"--test-file is a test split, not {split}; omit --split")
    saved = saved_model(
        model, task, corpus=corpus, data_dir=data_dir, labels=labels, max_length=max_length, test_file=test_file
    )
    saved = replace(saved, spec=saved.spec.measured_by(metrics))
    spec, own = saved.spec, saved.trained_on
    split = split or ("dev" if test_file is None else "test")
    if spec.head.plain_text and split != "dev":
        raise UserError(f"plain text has no {split} split; name a file with --corpus")
    if spec.own is not None and split == "test" and "test" not in spec.splits:
        raise UserError(f"{model} was made without a test file; name one with --test-file")
    parts = {name: saved.load(name) for name in spec.split_names(split)}
    saved.check()
    before = spec.name if own is None or own.name == CUSTOM else own.name
    if before != spec.name and (spec.name, before) != ("ax", "mnli"):
        log.warning("%s was trained on %s and is scored on %s", model, before, spec.name)
    accelerator = make_accelerator()
    chosen = saved.precision(precision, accelerator.device)
    network = saved.network()
    folder = _folder(saved, output_dir, chosen, test_file)
    found = {
        name: saved.answers(network, part, batch_size=batch_size, precision=chosen, accelerator=accelerator)
        for name, part in parts.items()
    }
    files = []
    if accelerator.is_main_process:
        try:  # only now, so that earlier predictions stay where the outputs are not finite
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            cure = "choose another --output-dir"
            raise UserError(f"cannot write predictions to {folder}: {error.strerror}; {cure}") from None
        for name, given in found.items():
            given.write(folder / f"{name}.jsonl")
            files.append(folder / f"{name}.jsonl")
            if name in spec.submission:
                given.write_submission(folder / spec.submission[name])
                files.append(folder / spec.submission[name])
        if saved.place.run is not None and folder == saved.place.run / "predictions":
            RunFolder(saved.place.run).rewritten(files)
    scores = {name: given.scores for name, given in found.items() if given.scores}
    return Evaluation(spec.name, scores, files, spec.metrics[0], constant_answers(spec, parts), same_answers(found))


def _folder(saved: SavedModel, output_dir: str | None, precision: Precision, test_file: str | None) -> Path:
    """Where the predictions go: the run's own folder for its own splits, else one of their own, so that none replaces
    another's.
    """
    if output_dir is not None:
        return Path(output_dir)
    place, own, spec = saved.place, saved.trained_on, saved.spec
    foreign = corpus_digest(saved.corpus) if saved.corpus is not None else ""
    if test_file is not None and spec.own is not None:
        foreign = spec.own.digests["test"]
    # With another length or precision the scores are not those of the run's own results.
    own_way = own is not None and (own.name, own.max_length) == (spec.name, saved.max_length)
    if place.run is not None and own_way and saved.run.get("precision") == precision and not foreign:
        RunFolder(place.run).check_links()
        return place.run / "predictions"
    about = [place.fingerprint(), saved.max_length, precision, *filter(None, [foreign, saved.labels])]
    digest = hashlib.sha256(repr(tuple(about)).encode()).hexdigest()[:8]
    return Path("predictions") / spec.name / f"{short_name(str(place.run or place.given))}-{digest}"
