"""What `--dry-run` prints: the jobs of the plan and the goal itself, checked as a run would. Opens no weights."""

from __future__ import annotations

from kdbert.recipe import Recipe
from kdbert.runs.centroids import CentroidsJob
from kdbert.runs.checks import check, check_rows
from kdbert.runs.job import Job
from kdbert.runs.plan import AnyJob, Goal, plan
from kdbert.training.frozen_teacher import KnownTeacher

LATER = "known once what comes before is made"


def print_plan(
    recipe: Recipe, goal: Goal = "student", *, layer: int | None = None, baseline: bool = False, quiet: bool = False
) -> None:
    """Print what a command would do: a line for each job that leads to its goal, and all that is known of the goal;
    with `quiet` only the path of the result, if it is known yet.

    Raises:
        UserError: whatever a run would refuse before training.
    """
    *before, wanted = plan(recipe, goal, layer=layer, baseline=baseline)
    check(wanted)
    for job in before:
        if isinstance(job, Job) and job.role in ("teacher", "stage") and not job.finished:
            check(job)
        if isinstance(job, Job) and job.role == "baseline" and not job.finished:
            check_rows(job)
    if quiet:
        if wanted.writes:
            print(wanted.writes)
        return
    for job in before:
        print(f"# {job.role}: {_line(job)}")
    of_two = [job for job in before if isinstance(job, Job) and job.role == "stage"]
    print(f"# {wanted.role}{', which goes on from the stage above' if of_two else ''}:")
    if isinstance(wanted, CentroidsJob):
        _print_centroids(wanted)
    else:
        _print_job(wanted)


def _line(job: AnyJob) -> str:
    """What matters of a job on the way."""
    if isinstance(job, CentroidsJob):
        return f"{job.words()}; {job.writes or LATER}"
    recipe, train = job.recipe, job.recipe.train
    seen = f"{train.epochs} epochs, learning rate {train.learning_rate:g}, seed {recipe.seed}"
    state = "finished" if job.finished else "to be made"
    layers = f"{recipe.student.layers} layers of " if recipe.student.layers else ""
    how = f"stage {recipe.stage}" if job.role == "stage" else f"fine-tuned on {recipe.task.name}"
    return f"{layers}{job.place.given} {how}, {seen}; {state}: {job.writes or LATER}"


def _print_centroids(job: CentroidsJob) -> None:
    """What `train-memory` makes."""
    print(f"memory: {job.words()}")
    print(f"teacher: {job.teacher.place.given if job.teacher.made else 'the one above'}")
    print(f"examples: train {len(job.examples)}, of up to {job.recipe.task.max_length} tokens")
    print(f"folder: {job.recipe.output.runs_dir}/{job.spec.name}/memory")


def _print_job(job: Job) -> None:
    """The resolved recipe, what it reads and writes, how labels are matched, layers, steps, sizes."""
    recipe, spec = job.recipe, job.spec
    print(recipe.yaml(), end="")
    print(f"\nrun folder: {job.writes or LATER}")
    print(f"reads: {', '.join(dict.fromkeys(job.reads))}")
    print(f"task: {spec.title}")
    print("examples: " + ", ".join(f"{name} {len(part)}" for name, part in job.examples.items()))
    for teacher in job.teachers:
        if teacher.made:
            _print_teacher(job, teacher)
    for soft in job.soft_labels:
        print(f"labels of teacher {soft.given}: matched by name, row by row")
    labels = spec.head.answers
    if spec.labels:
        shown = ", ".join(spec.labels[:6]) + (", …" if len(spec.labels) > 6 else "")
        labels = f"{len(spec.labels)} ({shown})"
    print(f"labels: {labels}; selected by {spec.metrics[0]}")
    role = "student" if job.taught_by else "model"
    print(f"{role} layers: {', '.join(map(str, job.kept_layers))} of {job.config.num_hidden_layers}")
    for sentence in [*job.words(), *job.warnings()]:
        print(sentence)
    if job.centroids is not None and job.centroids.section.file is not None:
        print(f"memory: {job.centroids.section.file}")
    student, teachers = job.parameters()
    print(f"steps: {job.steps}")
    print(f"parameters: {role} {student / 1e6:.2f} M" + "".join(f", teacher {n / 1e6:.2f} M" for n in teachers))
    print(f"main memory: about {job.ram() / 2**30:.1f} GiB (estimate: weights, gradients, AdamW, activations)")


def _print_teacher(job: Job, teacher: KnownTeacher) -> None:
    """How a teacher's labels are matched with the task's."""
    columns, names = job.columns(teacher), teacher.label_names
    if columns is None:
        what = (
            f"a masked-LM of {job.known_pieces} pieces"
            if job.spec.head.hides_tokens
            else "an encoder, run at every step"
        )
        print(f"teacher {teacher.place.given}: {what}")
        return
    print(f"labels of teacher {teacher.place.given}:")
    for label, column in list(zip(job.spec.labels, columns, strict=False))[:20]:
        print(f"  {label} <- its output {column} ({names[column]})")
    if len(job.spec.labels) > 20:
        print(f"  … and {len(columns) - 20} more, matched by name")
    if not job.spec.labels:
        print("  one score")
