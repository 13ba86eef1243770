"""What `--dry-run` prints: missing teachers, baseline and goal, checked as a run would. Opens no weights."""

from __future__ import annotations

from kdbert.models.layers import told
from kdbert.recipe import Recipe
from kdbert.runs.centroids import CentroidsJob
from kdbert.runs.checks import check
from kdbert.runs.job import Job
from kdbert.runs.plan import Goal, plan
from kdbert.training.frozen_teacher import KnownTeacher


def print_plan(recipe: Recipe, goal: Goal = "student", *, layer: int | None = None, baseline: bool = False) -> None:
    """Print what a command would do: the teachers that are missing, whether a baseline is trained, and the goal itself.

    Raises:
        UserError: whatever a run would refuse before training.
    """
    jobs = plan(recipe, goal, layer=layer, baseline=baseline)
    missing = [job for job in jobs[:-1] if isinstance(job, Job) and job.role == "teacher" and not job.finished]
    wanted = jobs[-1]
    check(wanted)  # a mistake about it is told before its teacher is shown
    for job in missing:
        check(job)
        print("# A teacher is missing: this run makes it")
        _print_job(job)
        print()
    for one in jobs:
        if one.role == "baseline":
            print(f"# Also the same student without a teacher: {one.writes or 'once the teacher is made'}")
    if isinstance(wanted, CentroidsJob):
        _print_centroids(wanted)
        return
    if wanted.waits:
        print("# Then the student's run, taught by it; its folder's name depends on the teacher")
    _print_job(wanted)


def _print_centroids(job: CentroidsJob) -> None:
    """What `train-memory` makes."""
    count = len(job.inputs.examples(job.recipe.task, "train").first(job.recipe.task.max_train_examples))
    print(f"memory: {job.words()}")
    print(f"teacher: {job.teacher.place.given if job.teacher.made else 'the one above'}")
    print(f"examples: train {count}, of up to {job.recipe.task.max_length} tokens")
    print(f"folder: {job.recipe.output.runs_dir}/{job.spec.name}/memory")


def _print_job(job: Job) -> None:
    """The resolved recipe, how labels are matched, layers, steps, sizes."""
    recipe, spec = job.recipe, job.spec
    print(recipe.yaml(), end="")
    print(f"\nrun folder: {job.writes or 'known once the teacher is made'}")
    print(f"task: {spec.title}")
    sizes = {"train": len(job.train_examples), **{name: len(part) for name, part in job.eval_examples.items()}}
    print("examples: " + ", ".join(f"{name} {count}" for name, count in sizes.items()))
    for teacher in job.teachers:
        if teacher.made:
            _print_teacher(job, teacher)
    labels = spec.head.answers
    if spec.labels:
        shown = ", ".join(spec.labels[:6]) + (", …" if len(spec.labels) > 6 else "")
        labels = f"{len(spec.labels)} ({shown})"
    print(f"labels: {labels}; selected by {spec.metrics[0]}")
    role = "student" if job.teachers else "model"
    print(f"{role} layers: {', '.join(map(str, job.kept_layers))} of {job.config.num_hidden_layers}")
    for way in dict.fromkeys([job.way, *job.teacher_ways]):
        print(way.words())
    for term, pairs in job.needs.pairs.items():
        print(f"layers of {term} (teacher:student): {told(pairs)}")
    for sentence in recipe.method.nonsense():
        print(f"weights, as published: {sentence}")
    if job.centroids is not None:
        print(f"memory: {job.centroids.section.file or job.centroids.words()}")
    student, teachers = job.parameters()
    print(f"steps: {job.steps}")
    print(f"parameters: {role} {student / 1e6:.2f} M" + "".join(f", teacher {n / 1e6:.2f} M" for n in teachers))
    print(f"main memory: about {job.ram() / 2**30:.1f} GiB (estimate: weights, gradients, AdamW, activations)")


def _print_teacher(job: Job, teacher: KnownTeacher) -> None:
    """How a teacher's labels are matched with the task's."""
    columns, names = job.columns(teacher), teacher.label_names
    if columns is None:
        print(f"teacher {teacher.place.given}: a masked-LM of {job.known_pieces} pieces")
        return
    print(f"labels of teacher {teacher.place.given}:")
    for label, column in list(zip(job.spec.labels, columns, strict=False))[:20]:
        print(f"  {label} <- its output {column} ({names[column]})")
    if len(job.spec.labels) > 20:
        print(f"  … and {len(columns) - 20} more, matched by name")
    if not job.spec.labels:
        print("  one score")
