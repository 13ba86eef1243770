"""What the commands do, as functions: `finetune`, `train_memory`, `distill`, `sweep`, `evaluate`."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from kdbert.data.corpus import DEV_SEQUENCES, tokenised
from kdbert.data.encode import encode
from kdbert.data.masking import masking_of
from kdbert.errors import RunBusy, UserError
from kdbert.methods import get_method
from kdbert.metrics import masked_lm_scores, score
from kdbert.models.kernels import use_first_token, use_late_head, use_packing
from kdbert.models.labels import teacher_permutation
from kdbert.models.load import (
    check_trained_head,
    label_names,
    load_classifier,
    load_config,
    load_masked_lm,
    load_tokenizer,
)
from kdbert.models.locate import ModelPlace, locate
from kdbert.plan import Plan, check_length, student_before_teacher
from kdbert.recipe import MemorySection, Recipe
from kdbert.reporting.predictions import predicted, write_hidden, write_predictions, write_submission
from kdbert.resolve import (
    baseline_recipe,
    missing_teachers,
    resolve_distill,
    resolve_finetune,
    task_of,
    teacher_recipes,
    with_teachers,
)
from kdbert.runs import RunFolder, RunResult, atomic_write, sha256
from kdbert.sweep.grid import Cell
from kdbert.sweep.jobs import Job, plan_jobs
from kdbert.sweep.local import run_jobs, threads_per_job
from kdbert.sweep.progress import Progress, counted, summary
from kdbert.tasks import CORPUS, CUSTOM, get_task, task_name
from kdbert.tasks.corpus import corpus_task
from kdbert.training.forward import predict
from kdbert.training.job import Job as TrainingJob
from kdbert.training.job import run_recipe
from kdbert.training.masked_lm import masked_lm_sums
from kdbert.training.precision import choose_attention, choose_precision, make_accelerator

if TYPE_CHECKING:
    from kdbert.sweep.slurm import Cluster

log = logging.getLogger("kdbert")


def finetune(recipe: Recipe, *, overwrite: bool = False) -> RunResult:
    """Fine-tune a whole model on a task, without a teacher.

    Args:
        recipe: its method must be `finetune`; `student.model` is what is fine-tuned.
        overwrite: move an existing run of the same folder aside and train again.

    Returns:
        The result; at once, if the run was finished before.

    Raises:
        UserError, Diverged, Interrupted: see `kdbert.errors`.
    """
    recipe = resolve_finetune(recipe)
    return run_recipe(recipe, overwrite=overwrite)


def distill(recipe: Recipe, *, overwrite: bool = False, baseline: bool | None = None) -> RunResult:
    """Train a student by the recipe's method; what it needs and nobody gave (teachers, a memory) is made first.

    Args:
        recipe: what to do; see `kdbert.recipe.Recipe`.
        overwrite: move an existing run of the same folder aside and train again (the teacher stays).
        baseline: also train the same student without a teacher (None: on the quickstart task only).

    Returns:
        The student's result, with `.baseline` if there is one; at once, if the run was finished before.

    Raises:
        UserError, Diverged, Interrupted: see `kdbert.errors`.
    """
    if missing_teachers(recipe):
        student_before_teacher(recipe)
        recipe = with_teachers(recipe, [_make_teacher(wanted).path for wanted in teacher_recipes(recipe)])
    recipe = resolve_distill(recipe)
    student = Plan(recipe)
    if student.folder.manifest().get("status") != "finished":
        student.check()  # before a baseline is trained
    without = None
    if baseline or (baseline is None and recipe.task.name == "quickstart"):
        without = run_recipe(baseline_recipe(recipe)) if recipe.method.name != "finetune" else None
    return replace(run_recipe(recipe, overwrite=overwrite), baseline=without)


def train_memory(recipe: Recipe, *, layer: int | None = None, output: str | None = None) -> Path:
    """Cluster the features of a teacher's layer into a memory, or find the one that is there.

    Args:
        recipe: task, teacher (one is fine-tuned first if none is named) and the section `memory`; its method and
            student say nothing here.
        layer: the teacher's layer, by default the last but one.
        output: copy the file there.

    Returns:
        The file.

    Raises:
        UserError: more centroids than examples, no such layer, `output` is another file, …
    """
    recipe = memory_recipe(recipe)
    target = Path(output) if output is not None else None
    if target is not None:
        if target.is_dir() or target.suffix != ".safetensors":
            raise UserError(f"--output {output!r}: expected the name of a file that ends in .safetensors")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot write to {target.parent}: {error.strerror}; choose another --output") from None
    if missing_teachers(recipe):
        recipe = with_teachers(recipe, [_make_teacher(wanted).path for wanted in teacher_recipes(recipe)])
    job = TrainingJob(memory_plan(recipe, layer))
    assert job.teachers.memory is not None
    path = job.teachers.memory_path
    if target is None or target.absolute() == path.absolute():
        return path
    if target.exists() and sha256(target) != sha256(path):
        raise UserError(f"--output {output!r} is another file already; choose another name")
    try:
        atomic_write(target, lambda temporary: shutil.copyfile(path, temporary))
    except OSError as error:
        raise UserError(f"cannot write {target}: {error.strerror}; the memory is in {path}") from None
    return target


def memory_recipe(recipe: Recipe) -> Recipe:
    """The recipe of a run that reads the memory to be made.

    Raises:
        UserError: it names a memory, or forbids to make one.
    """
    section = recipe.memory or MemorySection()
    if section.file is not None:
        raise UserError("memory.file names a memory that is there; leave it away to make one")
    if section.train == "never":
        raise UserError("memory.train=never forbids what train-memory is for; leave it away")
    variant = "original" if section.algorithm == "legacy" else "corrected"
    options = get_method("cka-g").Options.model_validate({"variant": variant})
    return recipe.model_copy(update={"method": options, "memory": section})


def memory_plan(recipe: Recipe, layer: int | None) -> Plan:
    """The plan of what `memory_recipe` gave, checked; its teacher is there.

    Raises:
        UserError: no such layer, more centroids than examples, whatever a run would refuse.
    """
    (teacher,) = recipe.teachers
    depth = load_config(locate(teacher.model)).num_hidden_layers
    layer = max(depth - 1, 0) if layer is None else layer
    if not 0 <= layer <= depth:
        raise UserError(f"--layer {layer}: teacher {teacher.model!r} has layers 0 (embeddings) to {depth}")
    # A student of one layer stands in for all of them: the memory knows nothing of students.
    options = recipe.method.model_copy(update={"layer_map": [(layer, 1)]})
    student = recipe.student.model_copy(update={"model": teacher.model, "layers": 1, "init": "first"})
    plan = Plan(resolve_distill(recipe.model_copy(update={"method": options, "student": student})))
    plan.check()
    return plan


def _make_teacher(wanted: Recipe) -> RunResult:
    """Fine-tune a missing teacher; if another process is at it, wait for that one's."""
    while True:
        try:
            return finetune(wanted)
        except RunBusy:
            if int(os.environ.get("WORLD_SIZE", "1")) > 1:  # the other processes of this run cannot wait along
                raise
            Plan(resolve_finetune(wanted)).folder.wait()


def finished_run(recipe: Recipe) -> Path | None:
    """The folder of a fine-tuning run if it is finished, without starting it."""
    folder = Plan(resolve_finetune(recipe)).folder
    return folder.path if folder.manifest().get("status") == "finished" else None


@dataclass(frozen=True)
class SweepResult:
    """How the cells of a sweep ended: run folders of the finished ones; names and reasons of the others."""

    finished: list[Path]
    diverged: dict[str, str]
    failed: dict[str, str]


def sweep(cells: list[Cell], *, jobs: int = 1, cluster: Cluster | None = None) -> SweepResult:
    """Run every cell that is not finished, each as a `kdbert` process of its own; teachers that are missing first.

    Args:
        cells: from `kdbert.sweep.grid.expand`.
        jobs: processes at a time on this machine; the cores are shared out among them.
        cluster: where the runs are submitted to, instead of running here: `kdbert.sweep.slurm.slurm_cluster`.

    Raises:
        UserError: what can be refused before anything starts, of all cells at once.
        Interrupted: a signal; the running jobs have saved their state (those of a cluster stay queued).
    """
    planned = plan_jobs(cells)
    missing = [job for job in planned if job.state == "waiting"]
    threads = f", each with {counted(threads_per_job(jobs), 'thread')}" if jobs > 1 else ""
    here = f", {jobs} at a time{threads}" if cluster is None else ""
    log.info("%s: %s", sweep_size(planned), f"{len(missing)} to run{here}" if missing else "nothing to run")
    progress = Progress(planned, jobs)
    if cluster is None:
        run_jobs(planned, jobs, progress)
    else:
        from kdbert.sweep.slurm import run_on_cluster

        run_on_cluster(planned, cluster, progress)
    log.log(
        logging.WARNING if any(job.state == "failed" for job in planned) else logging.INFO,
        "%s", summary(planned, Path(cells[0].recipe.output.runs_dir)),
    )  # fmt: skip
    students = [job for job in planned if job.command == "distill"]
    return SweepResult(
        finished=[job.folder.path for job in students if job.state == "finished"],
        diverged={job.name: job.message for job in students if job.state == "diverged"},
        failed={job.name: job.message for job in students if job.state == "failed"},
    )


def sweep_size(planned: list[Job]) -> str:
    """`36 runs and 3 teachers`."""
    runs = sum(job.command == "distill" for job in planned)
    teachers = len(planned) - runs
    return counted(runs, "run") + (f" and {counted(teachers, 'teacher')}" if teachers else "")


@dataclass(frozen=True)
class Evaluation:
    """Scores and files of one evaluated model: its task; split -> metric -> value; the files written."""

    task: str
    metrics: dict[str, dict[str, float]]
    files: list[Path]


def evaluate(
    model: str,
    task: str | None = None,
    *,
    corpus: str | None = None,
    split: str = "dev",
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
        split: `dev`, `test`, or one split's name (`dev_matched`).
        output_dir: where predictions go; by default the run's `predictions/`; `predictions/<task>` for another
            model, task, length or precision.
        labels: the model's labels in order, where its configuration does not name them.
        max_length: tokens per example; by default the run's, or the task's.

    Returns:
        Metrics of the splits that carry labels, and the files written: `<split>.jsonl`, and the GLUE
        upload file for a GLUE test split.
    """
    place = locate(model)
    trained: Recipe | None = None
    if place.run is not None:
        # Its method may come from a plug-in that is not at hand, and makes no difference here.
        trained = Recipe.of({"task": RunFolder(place.run).manifest()["recipe"]["task"], "method": "finetune"})
    if corpus is not None or CORPUS in (task, trained.task.name if trained is not None and task is None else None):
        if task not in (None, CORPUS):
            raise UserError(f"--corpus is plain text, which is task corpus, not {task}")
        return _evaluate_text(
            place, trained, corpus, split=split, output_dir=output_dir, max_length=max_length, batch_size=batch_size,
            precision=precision,
        )  # fmt: skip
    if task is None and trained is None:
        raise UserError(f"{model!r} is no run folder, so its task is not known; name it with --task")
    if trained is not None and (task is None or task_name(task) == trained.task.name):
        spec = task_of(trained)
        data_dir = data_dir or trained.task.data_dir
    else:
        assert task is not None
        if task_name(task) == CUSTOM:
            raise UserError("evaluate --task custom needs a run that was trained on the custom task")
        spec = get_task(task)
        if data_dir is None and trained is not None and task_of(trained).data_dir == spec.data_dir:
            data_dir = trained.task.data_dir  # GLUE's tasks lie side by side
    length = max_length
    if length is None:
        length = (trained.task.max_length if trained else None) or spec.max_length
    splits = spec.split_names(split)
    examples = {name: spec.load(name, data_dir) for name in splits}

    config = load_config(place)
    check_trained_head(config, model, spec)
    permutation = teacher_permutation(
        model, spec.name, spec.labels, spec.aliases, label_names(config), labels, role="model", flag="--labels"
    )
    check_length(length, config, model)
    other = trained is not None and trained.task.name not in (CUSTOM, spec.name)
    if trained is not None and other and (spec.name, trained.task.name) != ("ax", "mnli"):
        log.warning("%s was trained on %s and is scored on %s", model, trained.task.name, spec.name)
    accelerator = make_accelerator()
    chosen = choose_precision(precision, accelerator.device)
    tokenizer = load_tokenizer(place, words=spec.kind == "token")
    network, _ = load_classifier(place, spec, attention=choose_attention("auto", accelerator.device), keep_head=True)
    use_first_token(network)  # as in the run that trained it
    use_packing(network)
    network.to(accelerator.device)
    folder = Path("predictions") / spec.name if output_dir is None else Path(output_dir)
    if output_dir is None and place.run is not None and trained is not None:
        # With another length or precision the scores are not those of the run's own results.
        own = (trained.task.name, trained.task.max_length, RunFolder(place.run).manifest().get("precision"))
        if own == (spec.name, length, chosen):
            folder = place.run / "predictions"
    _make(folder)
    metrics: dict[str, dict[str, float]] = {}
    files = []
    for name, part in examples.items():
        data = encode(part, tokenizer, length)
        logits = predict(network, data, batch_size=batch_size, precision=chosen, accelerator=accelerator)
        logits = data.label_logits(logits[:, permutation], spec.labels)
        if part.labels is not None:
            groups = spec.label_groups(part)
            metrics[name] = score(spec.metrics, predicted(spec, logits), part.labels, groups, spec.labels)
        if accelerator.is_main_process:
            write_predictions(folder / f"{name}.jsonl", spec, part, logits)
            files.append(folder / f"{name}.jsonl")
            if name in spec.submission:
                write_submission(folder / spec.submission[name], spec, logits)
                files.append(folder / spec.submission[name])
    return Evaluation(spec.name, metrics, files)


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
    length = max_length or (own.max_length if own else None) or min(spec.max_length, config.max_position_embeddings)
    check_length(length, config, place.given)
    tokenizer = load_tokenizer(place)
    folder = Path(output_dir) if output_dir is not None else Path("predictions") / CORPUS
    if output_dir is None and corpus is None and place.run is not None and own is not None and length == own.max_length:
        folder = place.run / "predictions"
    _make(folder)
    accelerator = make_accelerator()
    model, _ = load_masked_lm(place, tokenizer, attention=choose_attention("auto", accelerator.device))
    use_late_head(model)
    use_packing(model)
    model.to(accelerator.device)
    with tempfile.TemporaryDirectory() as temporary:
        part = "dev" if corpus is None and own is not None and own.dev_file is None else None
        texts = tokenised(source, tokenizer, length, folder=Path(temporary), packed=True, part=part)
        texts = texts if corpus is not None else texts.head(DEV_SEQUENCES)
        probability = own.mask_probability if own else 0.15
        sums = masked_lm_sums(
            model,
            texts.masked(masking_of(tokenizer, probability=probability, words=bool(own and own.mask_words))).encoded,
            batch_size=batch_size,
            precision=choose_precision(precision, accelerator.device),
            accelerator=accelerator,
        )
    if accelerator.is_main_process:
        write_hidden(folder / "dev.jsonl", sums)
    return Evaluation(CORPUS, {"dev": masked_lm_scores(spec.metrics, sums)}, [folder / "dev.jsonl"])


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
