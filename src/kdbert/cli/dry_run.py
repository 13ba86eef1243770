"""What `--dry-run` prints: the resolved recipe, how labels are matched, steps, parameters, memory."""

from __future__ import annotations

from collections.abc import Sequence

from kdbert.models.layers import told
from kdbert.models.locate import ModelPlace, locate
from kdbert.recipe import Recipe
from kdbert.recipe.defaults import (
    base_model,
    missing_teachers,
    resolve_distill,
    resolve_finetune,
    teacher_recipes,
    with_teachers,
)
from kdbert.runs.commands import finished_run, memory_plan, memory_recipe
from kdbert.runs.plan import Plan, student_before_teacher


def print_distill_plan(recipe: Recipe) -> None:
    """The plan of `distill`: of the student's run, or of the teacher's where that has to be made first."""
    if missing_teachers(recipe):
        wanted = teacher_recipes(recipe)
        paths = [finished_run(one) for one in wanted]
        if None in paths:
            student = student_before_teacher(recipe)
            for one, path in zip(wanted, paths, strict=True):
                if path is None:
                    print_plan(resolve_finetune(one), heading="A teacher is missing: this run makes it")
                    print()
            print_plan(
                student,
                heading="Then the student's run, taught by it; its folder's name depends on the teacher",
                teachers_to_come=[locate(base_model(recipe))] * len(wanted),
            )
            return
        recipe = with_teachers(recipe, [path for path in paths if path is not None])
    print_plan(resolve_distill(recipe))


def print_memory_plan(recipe: Recipe, layer: int | None) -> None:
    """The plan of `train-memory`, or of the run that makes its teacher."""
    recipe = memory_recipe(recipe)
    if missing_teachers(recipe):
        (wanted,) = teacher_recipes(recipe)
        path = finished_run(wanted)
        if path is None:
            print_plan(
                resolve_finetune(wanted), heading="A teacher is missing: this run makes it, then the memory is made"
            )
            return
        recipe = with_teachers(recipe, [path])
    plan = memory_plan(recipe, layer)
    print(f"memory: {plan.memory_words()}")
    print(f"teacher: {recipe.teachers[0].model}")
    print(f"examples: train {len(plan.train_examples)}, of up to {plan.recipe.task.max_length} tokens")
    print(f"folder: {plan.recipe.output.runs_dir}/{plan.spec.name}/memory")


def print_plan(recipe: Recipe, heading: str | None = None, teachers_to_come: Sequence[ModelPlace] = ()) -> None:
    """Check a resolved recipe as a run would, and print what it would do. Opens no weights.

    Raises:
        UserError: whatever the run would refuse before training.
    """
    plan = Plan(recipe, teachers_to_come)
    plan.check()
    if heading:
        print(f"# {heading}")
    print(recipe.yaml(), end="")
    print(f"\nrun folder: {plan.folder.path if not teachers_to_come else 'decided when the teacher is there'}")
    print(f"task: {plan.spec.title}")
    sizes = {
        "train": len(plan.train_examples),
        **{name: len(part) for name, part in plan.eval_examples.items()},
    }
    print("examples: " + ", ".join(f"{name} {count}" for name, count in sizes.items()))
    for teacher, columns, names in zip(recipe.teachers, plan.teacher_permutations, plan.teacher_labels, strict=True):
        if plan.spec.kind == "masked_lm":
            print(f"teacher {teacher.model}: a masked-LM of {plan.known_pieces} pieces")
            continue
        print(f"labels of teacher {teacher.model}:")
        if plan.spec.labels:
            for label, column in list(zip(plan.spec.labels, columns, strict=True))[:20]:
                print(f"  {label} <- its output {column} ({names[column]})")
            if len(columns) > 20:
                print(f"  … and {len(columns) - 20} more, matched by name")
        else:
            print("  one score")
    selected = plan.spec.metrics[0]
    if plan.spec.labels:
        shown = ", ".join(plan.spec.labels[:6]) + (", …" if len(plan.spec.labels) > 6 else "")
        print(f"labels: {len(plan.spec.labels)} ({shown}); selected by {selected}")
    else:
        print(f"labels: {'hidden pieces' if plan.spec.kind == 'masked_lm' else 'a score'}; selected by {selected}")
    role = "student" if recipe.teachers or teachers_to_come else "model"
    print(f"{role} layers: {', '.join(map(str, plan.kept_layers))} of {plan.student_config.num_hidden_layers}")
    for way in dict.fromkeys([plan.way, *plan.teacher_ways]):
        print(way.words())
    for term, pairs in plan.needs.pairs.items():
        print(f"layers of {term} (teacher:student): {told(pairs)}")
    for sentence in recipe.method.nonsense():
        print(f"weights, as published: {sentence}")
    if recipe.memory is not None:
        print(f"memory: {recipe.memory.file or plan.memory_words()}")
    student, teachers = plan.parameters()
    print(f"steps: {plan.steps}")
    print(f"parameters: {role} {student / 1e6:.2f} M" + "".join(f", teacher {n / 1e6:.2f} M" for n in teachers))
    print(
        f"main memory: about {plan.memory_estimate() / 2**30:.1f} GiB (estimate: weights, gradients, AdamW, "
        "activations)"
    )
