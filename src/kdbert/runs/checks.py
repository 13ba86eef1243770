"""What is refused before a run starts. Functions without side effects: each raises a `UserError`, or returns.

`check` is the whole list for a job that is to be run; `check_finished` is for one that is finished. A mistake about a
student must not be found only after hours of training its teacher, so a job whose teachers are still to be made is
checked as far as that goes; `check_teachers` is repeated when they are made.
"""

from __future__ import annotations

import logging
from collections.abc import Collection
from pathlib import Path

from kdbert.centroids.file import Centroids
from kdbert.data.examples import Examples
from kdbert.errors import UserError, near_miss
from kdbert.heads import HEADS
from kdbert.methods import all_methods, get_method
from kdbert.models.architectures import ARCHITECTURES, TWICE, architecture
from kdbert.models.load import check_trained_head, has_head, load_tokenizer, same_tokenizer
from kdbert.models.student import check_cut
from kdbert.models.vocabulary import check_expansion
from kdbert.models.way import Way, check_length, fit_tokenizer
from kdbert.recipe import Recipe
from kdbert.recipe.sections import warmup_steps
from kdbert.runs.centroids import CentroidsJob
from kdbert.runs.job import Job
from kdbert.tasks import CORPUS, TaskSpec
from kdbert.tasks.spec import DATA_DIR
from kdbert.training.frozen_teacher import KnownTeacher

log = logging.getLogger("kdbert")


def check(job: Job | CentroidsJob) -> None:
    """Everything that can be refused before weights are opened, cheap things first."""
    check_places(job.recipe)
    if isinstance(job, CentroidsJob):
        check_centroids(job)
        return
    check_head(job)
    check_rows(job)
    check_hard_loss(job)
    check_soft_labels(job)
    check_student(job)
    check_batches(job)
    check_layers(job)
    check_second_derivatives(job)
    check_teachers(job)
    check_held(job)
    check_data(job)
    if job.centroids is not None:
        check_centroids(job.centroids)


def check_head(job: Job) -> None:
    """Refuse a method, variant or option that has no meaning for the task's kind of head."""
    spec, method, recipe = job.spec, get_method(job.recipe.method.name), job.recipe
    if spec.kind not in method.heads:
        kinds = {"masked_lm", "encoder"} if spec.head.plain_text else {spec.kind}
        fitting = ", ".join(name for name, other in all_methods().items() if kinds & {*other.heads})
        cure = f"methods that are: {fitting}"
        if spec.head.plain_text:
            cure += " (leave task.kind out)" * (spec.kind == "encoder")
        elif all(HEADS[kind].plain_text for kind in method.heads):
            cure = "it learns from plain text: name some with --corpus"
        raise UserError(f"method {method.name!r} is not made for task {spec.name!r}, which {spec.head.takes}; {cure}")
    if spec.kind not in method.heads_for(recipe.method):
        raise UserError(
            f"method {method.name!r}, with these options, is not made for task {spec.name!r}, which {spec.head.takes}; "
            f"`kdbert methods show {method.name}` says what they mean"
        )
    if not spec.head.published and recipe.method.variant == "original" and job.taught_by:
        raise UserError(
            f"task {spec.name!r} {spec.head.takes}; no published code distils that, so it has no variant original: use "
            "--variant corrected"
        )
    if not method.published and recipe.method.variant == "original":
        raise UserError(
            f"method {method.name!r} is kdbert's own, so it has no variant original: use --variant corrected (`kdbert "
            f"methods show {method.name}` says what was published)"
        )
    recipe.method.check(spec.head)
    if not spec.head.has_example_classes and recipe.train.batch_sampler == "class-balanced":
        raise UserError(
            f"task {spec.name!r} {spec.head.takes}, so its examples have no class: use train.batch_sampler=random"
        )
    if recipe.output.diagnose and spec.head.plain_text:
        raise UserError("--diagnose compares models on examples with labels; it does not go with task 'corpus'")
    if recipe.output.diagnose and not job.taught_by:
        raise UserError(f"--diagnose compares the student with its teacher; method {method.name!r} reads none")


def check_rows(job: Job) -> None:
    """Refuse rows without a label where the method, or the way in which batches are made, needs them all labelled."""
    _ = job.train_examples  # refuses data without any label for a method that learns from labels alone
    name, options, train = job.recipe.method.name, job.recipe.method, job.recipe.train
    labelled, others = job.label_counts
    if train.unlabelled_share and not (labelled and others):
        which = "have no label" if others else "have a label"
        raise UserError(f"train.unlabelled_share mixes rows with and without a label, and all training rows {which}")
    if not others or job.labels_alone:
        return
    if not get_method(name).takes_unlabelled(options, job.head):
        raise UserError(
            f"method {name!r}, with these options, needs the label of every row, and {others} of {labelled + others} "
            f"training rows have none; use another method, such as kd, or see `kdbert methods show {name}`"
        )
    if train.batch_sampler == "class-balanced":
        raise UserError(
            f"train.batch_sampler=class-balanced groups rows by their labels, and {others} training rows have none: "
            "use train.batch_sampler=random"
        )
    if train.class_weights == "balanced" and not labelled:
        raise UserError("train.class_weights=balanced counts labels, and no training row has one: leave it out")


def check_hard_loss(job: Job) -> None:
    """Refuse weights of classes and label smoothing where the task has nothing that they could change."""
    head, train = job.spec.head, job.recipe.train
    without = f"task {job.spec.name!r} {head.takes}, so it has no classes; leave this key out"
    if train.class_weights is not None and not head.classes:
        raise UserError(f"train.class_weights: {without}")
    if train.label_smoothing and not (head.classes or head.hides_tokens):
        raise UserError(f"train.label_smoothing: {without}")
    if isinstance(train.class_weights, dict):
        head.given_weights(train.class_weights)


def check_student(job: Job) -> None:
    """Refuse a student that cannot be cut, run at this length or in this precision."""
    recipe, given = job.recipe, job.place.given
    assert recipe.task.max_length is not None
    check_length(recipe.task.max_length, job.way.limit, given)
    tokens = recipe.train.batch_tokens
    if tokens is not None and tokens < recipe.task.max_length * recipe.train.accumulation:
        raise UserError(
            f"train.batch_tokens is {tokens}, and a text may have {recipe.task.max_length} tokens"
            + (f" in each of {recipe.train.accumulation} micro-batches" if recipe.train.accumulation > 1 else "")
            + "; give more, or a smaller --max-length"
        )
    if recipe.train.precision in ("bf16", "fp16") and not job.way.half:
        raise UserError(
            f"--precision {recipe.train.precision}: the library runs {given!r}, a model of type "
            f"{job.way.model_type!r}, in float32 only; use --precision auto"
        )
    check_cut(job.config, job.spec.head, job.kept_layers, given)


def check_batches(job: Job) -> None:
    """Refuse a published term that is NaN for the smallest micro-batch of the run."""
    train, needs, rows = job.recipe.train, job.needs, len(job.train_examples)
    if needs.least_examples == 1 or train.batch_tokens is not None:
        return
    last = rows % train.batch_size if job.steps * train.batch_size >= rows else 0
    least = (last or min(train.batch_size, rows)) // train.accumulation
    if least < needs.least_examples:
        raise UserError(
            f"method {job.recipe.method.name!r}, as published, is NaN for a batch of {least} example"
            f"{'' if least == 1 else 's'}, and {rows} training rows in batches of {train.batch_size} make one: use "
            "--variant corrected, or another --batch-size"
        )


def check_layers(job: Job) -> None:
    """Refuse a method that reads layers which a model does not have."""
    needs, name = job.needs, job.recipe.method.name
    of_teacher = {*needs.teacher_hidden, *(quantity.layer for quantity in needs.reduced)}
    models = [
        ("teacher", teacher.config, teacher.shape.layers, of_teacher, needs.teacher_attention)
        for teacher in job.teachers
    ]
    models.append(
        ("student", job.config, job.models.student.layers, set(needs.student_hidden), needs.student_attention)
    )
    for role, config, depth, layers, attention in models:
        wrong = [layer for layer in layers if not 0 <= layer <= depth]
        if wrong:
            raise UserError(f"method {name!r} reads layer {wrong[0]} of a {role} with layers 0 (embeddings) to {depth}")
        wrong = [layer for layer in attention if not 1 <= layer <= depth]
        if wrong:
            raise UserError(f"method {name!r} reads the attention of layer {wrong[0]} of a {role} with {depth} layers")
        if attention and not architecture(config.model_type, role).attention:
            able = ", ".join(sorted(one for one, known in ARCHITECTURES.items() if known.attention))
            raise UserError(
                f"method {name!r} reads queries, keys and values of the {role}, which is of type "
                f"{config.model_type!r}; they can be read of {able}"
            )
        reads = "--diagnose" if job.recipe.output.diagnose else f"method {name!r}" if layers else ""
        if reads and not architecture(config.model_type, role).hidden:
            cure = "leave it out" if job.recipe.output.diagnose else "use one that reads logits only, such as kd"
            raise UserError(
                f"{reads} reads hidden states of each layer, and a {role} of type {config.model_type!r} has none of "
                f"one size; {cure}"
            )


def check_second_derivatives(job: Job) -> None:
    """Refuse what a method cannot be differentiated twice through."""
    recipe, name = job.recipe, job.recipe.method.name
    if not job.needs.differentiates_twice:
        return
    if recipe.train.attention not in ("auto", "eager"):
        raise UserError(
            f"train.attention={recipe.train.attention}: method {name!r} differentiates twice, and only the library's "
            "eager attention can; use train.attention=auto"
        )
    if recipe.student.freeze_embeddings:
        raise UserError(f"method {name!r} differentiates by the embeddings: use student.freeze_embeddings=false")
    for role, config in [*(("teacher", teacher.config) for teacher in job.teachers), ("student", job.config)]:
        if config.model_type not in TWICE:
            raise UserError(
                f"method {name!r} differentiates twice, and a {role} of type {config.model_type!r} does not let it; "
                f"types that do: {', '.join(sorted(TWICE))}"
            )


def check_soft_labels(job: Job) -> None:
    """Refuse soft labels where more than a teacher's answers is read."""
    for teacher in job.soft_labels:
        needs, name = job.needs, job.recipe.method.name
        if needs.holds_teachers:
            raise UserError(f"method {name!r} works with its teacher's model, and {teacher.given!r} is a file; use kd")
        if (
            needs.teacher_hidden or needs.teacher_attention or needs.reduced or needs.reads_centroids
            or job.recipe.output.diagnose
        ):  # fmt: skip
            what = "--diagnose" if job.recipe.output.diagnose else f"method {name!r}"
            raise UserError(
                f"{what} reads a teacher's hidden states, and {teacher.given!r} has answers only; use kd, multi-kd, "
                "dist, dkd or sinkd"
            )
        if job.spec.head.plain_text:
            raise UserError(f"{teacher.given!r} is a file of soft labels, and task {job.spec.name!r} has no labels")


def check_teachers(job: Job) -> None:
    """Refuse a teacher of another task, with other labels, another tokenizer, or too short for the length."""
    for teacher, way in zip(job.teachers, job.teacher_ways, strict=True):
        if teacher.made:
            check_taught(job.spec, teacher)
            job.columns(teacher)  # refuses other labels
        assert job.recipe.task.max_length is not None
        check_length(job.recipe.task.max_length, way.limit, teacher.place.given)
        check_tokenizer(job, teacher, way)
    known = [teacher.place.fingerprint() for teacher in job.teachers if teacher.made]
    if len(set(known)) < len(known):
        log.warning("the same teacher is named twice")


def check_held(job: Job) -> None:
    """Refuse what cannot work for a method that works with its teacher's model itself: student and teacher of two
    kinds, a student that is not cut from the teacher where it must be, and gradients that fp16 scales.
    """
    name, config = job.recipe.method.name, job.config
    if not job.needs.holds_teachers:
        return
    if job.recipe.train.precision == "fp16":
        raise UserError(f"method {name!r} works with gradients, which fp16 scales; use --precision bf16 or fp32")
    if not architecture(config.model_type, job.place.given).own_attention:
        known = ", ".join(name for name, one in ARCHITECTURES.items() if one.own_attention)
        raise UserError(f"method {name!r} works with the layers of {known}, and the student is a {config.model_type}")
    for teacher in job.teachers:
        if teacher.config.model_type != config.model_type:
            raise UserError(
                f"method {name!r} needs student and teacher of one type; they are {config.model_type} and "
                f"{teacher.config.model_type}"
            )
        columns = job.columns(teacher) if teacher.made else None
        if columns is not None and columns != sorted(columns) and not get_method(name).starts_from_teacher:
            raise UserError(
                f"method {name!r} draws the teacher's head to the student's, and the labels of {teacher.place.given!r} "
                "are in another order than the task's; fine-tune one with `kdbert finetune-teacher`"
            )
        from_it = job.place.fingerprint() == teacher.place.fingerprint()
        if teacher.made and get_method(name).starts_from_teacher and not from_it:
            raise UserError(f"method {name!r} cuts its student from its teacher: leave out --student")


def check_taught(spec: TaskSpec, teacher: KnownTeacher) -> None:
    """Refuse a teacher that was not fine-tuned on the task."""
    trained = teacher.place.task()
    if not spec.head.plain_text and trained == CORPUS and not has_head(teacher.config, spec.head):
        name = teacher.place.given
        raise UserError(
            f"teacher {name!r} learned from plain text and has no head for task {spec.name!r}; fine-tune it first: "
            f"`kdbert finetune-teacher --task {spec.name} --model {name}`"
        )
    if not spec.head.plain_text and trained not in (None, spec.name) and teacher.labels is None:
        alike = has_head(teacher.config, spec.head) and teacher.config.num_labels == len(spec.labels)
        raise UserError(
            f"teacher {teacher.place.given!r} was fine-tuned on task {trained!r}, not on {spec.name!r}: omit --teacher "
            f"to have one made, or run `kdbert finetune-teacher --task {spec.name} --model MODEL`"
            + ("; if its labels mean the same, name them with --teacher-labels" if alike else "")
        )
    check_trained_head(teacher.config, teacher.place.given, spec)


def check_tokenizer(job: Job, teacher: KnownTeacher, way: Way) -> None:
    """Refuse a teacher that reads other tokens than the student, where the method compares tokens."""
    own, name = load_tokenizer(teacher.place, words=job.spec.head.of_words), teacher.place.given
    if job.spec.head.hides_tokens:
        check_expansion(own, job.tokenizer, name, job.tokenizer_place.given)
        return
    own = fit_tokenizer(own, way, name)
    if not (job.needs.compares_tokens or job.spec.head.of_words) or same_tokenizer(job.tokenizer, own):
        return
    why = (
        f"task {job.spec.name!r} tags words by their tokens; take a student with the teacher's vocabulary"
        if job.spec.head.of_words
        else f"method {job.recipe.method.name!r} compares them token by token; take a student with the teacher's "
        "vocabulary, such as one cut from it with --student-layers"
        if job.spec.head.plain_text
        else f"method {job.recipe.method.name!r} compares them token by token; take a student with the teacher's "
        "vocabulary, or a method that compares whole examples (kd, multi-kd, cka-l, cka-g)"
    )
    raise UserError(f"teacher {name!r} and student {job.place.given!r} have different tokenizers, and {why}")


def check_data(job: Job) -> None:
    """Read splits and soft labels, which refuses what is wrong in them; warn of a rate that never gets to its peak."""
    part, _ = job.train_examples, job.eval_examples
    for teacher in job.soft_labels:
        assert isinstance(part, Examples)
        teacher.logits(job.spec, part, job.encoded["train"])
    warm = warmup_steps(job.recipe.train.warmup, job.steps)
    if warm and warm >= job.steps:
        log.warning("train.warmup is %d steps of %d: the rate never gets to its peak", warm, job.steps)


def check_centroids(job: CentroidsJob) -> None:
    """Refuse centroids that cannot be made, or a file that holds others."""
    section, teacher, variant = job.section, job.teacher, job.recipe.method.variant
    assert job.recipe.task.max_length is not None
    if not 0 <= job.layer <= teacher.shape.layers:
        raise UserError(
            f"--layer {job.layer}: teacher {teacher.place.given!r} has layers 0 (embeddings) to {teacher.shape.layers}"
        )
    check_length(job.recipe.task.max_length, job.way.limit, teacher.place.given)
    if teacher.made:
        check_taught(job.spec, teacher)
    if section.file is not None:
        if not teacher.made:
            raise UserError(f"memory {section.file!r} belongs to a teacher: name that teacher with --teacher")
        Centroids.load(job.path).check(job.path, job.origin, variant)
        return
    suits = {"corrected": "kmeans", "original": "legacy"}[variant]
    if section.algorithm != suits:
        raise UserError(
            f"memory.algorithm={section.algorithm} goes with the other variant; variant {variant} reads a memory made "
            f"by {suits}"
        )
    if section.train == "never" and not (teacher.made and job.path.exists()):
        raise UserError(
            f"{job.recipe.method.name} needs a memory, and below {job.recipe.output.runs_dir!r} there is none of this "
            "task, teacher and length with these memory.* settings: make it with `kdbert train-memory`, or set "
            "memory.train=auto"
        )
    examples = len(job.examples)
    if section.centroids is not None and section.centroids > examples:
        raise UserError(
            f"memory.centroids is {section.centroids}, but there are {examples} training examples; set fewer with "
            "memory.centroids="
        )


def check_finished(job: Job) -> None:
    """Refuse to take a finished run for this job: a flag that its folder's name does not tell is wrong, or it was made
    from other files of the same task.
    """
    check_places(job.recipe)
    before = job.folder.manifest().get("data", {})
    differ = [name for name, digest in job.data_files.items() if before.get(name, digest) != digest]
    if differ:
        raise UserError(
            f"{job.folder.path} was made from other {job.spec.name} files than those at hand now "
            f"({', '.join(differ)} differ); choose another --runs-dir, or pass --overwrite to move that run aside"
        )


def check_places(recipe: Recipe) -> None:
    """Refuse a data folder that is not there, and trackers that accelerate does not know or that are not installed."""
    folder, trackers = recipe.task.data_dir, recipe.output.tracker
    if folder is not None and not Path(folder).is_dir():
        origin = f"`kdbert data describe {recipe.task.name}` says where its files come from"
        raise UserError(f"no folder {folder!r} of data: check --data-dir or {DATA_DIR} ({origin})")
    if not trackers:
        return
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

    available = {str(getattr(name, "value", name)) for name in get_available_trackers()}
    for name in trackers:
        if name not in LOGGER_TYPE_TO_CLASS:
            known = ", ".join(sorted(LOGGER_TYPE_TO_CLASS))
            raise UserError(f"unknown tracker {name!r}{near_miss(name, LOGGER_TYPE_TO_CLASS)} (known: {known})")
        if name not in available:
            raise UserError(f"tracker {name!r} is not installed: pip install {name}")


def check_read(recipe: Recipe, typed: Collection[str]) -> None:
    """Refuse flags that the method reads with none of its options. (A sweep's methods share them, so it only warns.)

    Args:
        typed: the recipe keys that flags have set.
    """
    method, name = get_method(recipe.method.name), recipe.method.name
    needs = method.needs(method.Options.model_validate({"name": name}), None)
    if "teachers" in typed and needs.teachers == (0, 0):
        raise UserError(f"--teacher: method {name!r} reads no teacher; omit it, or choose what is trained by --student")
    if "memory.file" in typed and not needs.reads_centroids:
        raise UserError(f"--memory: method {name!r} reads no memory; omit it, or choose a method that does, cka-g say")
