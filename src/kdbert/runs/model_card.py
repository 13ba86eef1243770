"""README.md of a trained model: what it is, how well it does, how it was made, what to cite."""

from __future__ import annotations

import html
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from kdbert.errors import printable
from kdbert.methods import get_method
from kdbert.metrics import better
from kdbert.recipe import Recipe
from kdbert.tasks import TaskSpec
from kdbert.version import __version__

SHOWN = 40  # classes that are named


def model_card(
    recipe: Recipe, spec: TaskSpec, metrics: Mapping[str, Mapping[str, float]], facts: Mapping[str, Any]
) -> str:
    """The card as Markdown with the Hub's metadata block, scores included.

    What comes from data or from a person (titles, labels, names of models) is written so that it can neither be
    taken for Markdown nor for HTML.

    Args:
        metrics: split -> metric -> value.
        facts: entries of run.json: parameters, size_mib, layers, selection, constant_answer, one_answer, teachers,
            baseline, stage_before, timings, environment; and `hard_loss`, what changes it in words.
    """
    method = get_method(recipe.method.name)
    distilled = bool(recipe.teachers)
    start = str(recipe.student.model)
    data = ModelCardData(
        language="en" if recipe.task.name != "custom" else None,
        library_name="transformers",
        pipeline_tag=spec.head.pipeline,
        base_model=None if Path(start).exists() else start,
        tags=["kdbert", f"kdbert:{method.name}", *(["knowledge-distillation"] if distilled else [])],
        model_name=f"{spec.name}: {method.name}",
        eval_results=[
            EvalResult(
                task_type=spec.head.pipeline, dataset_type=spec.name, dataset_name=spec.title, dataset_split=split,
                metric_type=name, metric_value=value,
            )
            for split, values in metrics.items()
            for name, value in values.items()
        ],
    )  # fmt: skip
    taught: dict[str, dict[str, str]] = {}
    for teacher in facts["teachers"]:
        for split, values in teacher["metrics"].items():
            for name, value in values.items():
                before = taught.setdefault(split, {}).get(name)
                taught[split][name] = f"{before} / {value:.4f}" if before else f"{value:.4f}"
    without = (facts["baseline"] or {}).get("metrics", {})
    others = (without, facts["constant_answer"])
    rows = [
        f"| {split} | {name} | {value:.4f} | {taught.get(split, {}).get(name, '-')} | "
        + " | ".join(f"{one[split][name]:.4f}" if name in one.get(split, {}) else "-" for one in others)
        + " |"
        for split, values in metrics.items()
        for name, value in values.items()
    ]
    init = recipe.student.init
    kept = "numbers " + ", ".join(map(str, init)) if isinstance(init, list) else f"the {init} ones"
    auto = spec.head.auto_class
    layers = f"{facts['layers']} layers" + (
        f" ({kept} of {code(start)})" if recipe.student.layers else f", started from {code(start)}"
    )
    selected = (
        "The weights are those of the epoch that was best on dev, so the dev numbers are optimistic."
        if recipe.train.selection == "best"
        else "The weights are those of the last step; dev did not choose them."
    )
    lines = [
        f"# {plain(spec.title)}: {plain(method.name)}",
        "",
        f"A {spec.head.makes} for the task `{spec.name}`, {layers}, {facts['parameters']:,} parameters, "
        f"{facts['size_mib']:.1f} MiB, made with [kdbert](https://github.com/kdbert/kdbert) {__version__}.",
        f"Method: **{plain(method.name)}**, {plain(method.summary)}. Variant: {recipe.method.variant}.",
    ]
    if distilled:
        named = ", ".join(code(teacher.model) for teacher in recipe.teachers)
        lines.append(f"Teacher{'s' if len(recipe.teachers) > 1 else ''}: {named}.")
    if method.stages:
        before = facts.get("stage_before")
        after = f", after {plain(method.stages[0])} ({code(before['run'])})" if before else ""
        lines.append(f"Stage: **{plain(str(recipe.stage))}**{after}.")
    if recipe.method.nonsense():
        lines.append(f"Weights as the published code takes them: {plain('; '.join(recipe.method.nonsense()))}.")
    if facts["hard_loss"]:
        lines.append(f"In the loss against the labels: {plain('; '.join(facts['hard_loss']))}.")
    lines += [
        "",
        "## Results",
        "",
        f"One run, seed {recipe.seed}. {selected} {spec.head.score_note}"
        + (" Without a teacher: the same student, data order and schedule, fine-tuned." if without else ""),
        "",
        "| split | metric | this model | teacher | without a teacher | constant answer |",
        "|---|---|---|---|---|---|",
        *rows,
        *_nothing_learned(metrics, facts),
        *_cost(facts),
        "",
        "## Use",
        "",
        "```python",
        f"from transformers import {auto}, AutoTokenizer",
        "",
        'tokenizer = AutoTokenizer.from_pretrained("PATH")',
        f'model = {auto}.from_pretrained("PATH")',
        "```",
        *_limits(recipe, spec),
        "",
        "## Data",
        "",
        f"{plain(spec.title)}. Source: {html.escape(spec.source, quote=False) or 'not stated'}. "
        f"Licence: {html.escape(spec.licence, quote=False) or 'not stated'}.",
        *(
            [f"Classes: {', '.join(map(code, spec.labels[:SHOWN]))}{' …' * (len(spec.labels) > SHOWN)}."]
            * bool(spec.labels)
        ),
        "",
        "## Recipe",
        "",
        *_fenced("yaml", recipe.yaml().rstrip()),
        "",
        "## Citation",
        "",
        "Please cite the method and kdbert:",
        "",
        *(f"- {paper}" for paper in method.papers),
        "- The kdbert authors. kdbert: a toolkit for distilling BERT models. https://github.com/kdbert/kdbert",
    ]
    return f"---\n{data.to_yaml()}\n---\n\n" + "\n".join(lines) + "\n"


def _nothing_learned(metrics: Mapping[str, Mapping[str, float]], facts: Mapping[str, Any]) -> list[str]:
    """What has to be said of a model that answers as if it had not read the example."""
    found = []
    for split, values in metrics.items():
        floor = facts["constant_answer"].get(split, {}).get(facts["selection"])
        if split in facts["one_answer"]:
            answer = code(facts["one_answer"][split])
            found += ["", f"**On {split} it gives the same answer to every example: {answer}.**"]
        elif floor is not None and not better(facts["selection"], values[facts["selection"]], floor):
            found += ["", f"**On {split} it is no better than the constant answer.**"]
    return found


def _cost(facts: Mapping[str, Any]) -> list[str]:
    """What making it took, and on what."""
    times, machine = facts["timings"], facts["environment"]
    threads = "1 thread" if machine["threads"] == 1 else f"{machine['threads']} threads"
    devices = ", ".join(machine["accelerators"]) or f"{machine['processor']}, {threads}"
    teacher = f", {times['teacher_seconds']:.0f} s of the teacher" if facts["teachers"] else ""
    resumed = times["resumed_from_step"]
    return [
        "",
        "## Cost",
        "",
        f"{facts['steps_done']} steps in {times['train_seconds']:.0f} s ({times['examples_per_second']:.0f} examples a "
        f"second){teacher}, {times['eval_seconds']:.0f} s of scoring, on {plain(devices)}."
        + (f" These are the times since it was continued at step {resumed}." if resumed else ""),
    ]


def _limits(recipe: Recipe, spec: TaskSpec) -> list[str]:
    """What it should not be taken for."""
    found = [f"It was trained on at most {recipe.task.max_length} tokens per example; longer ones are cut."]
    if spec.labels:
        found.append("It knows the classes below and no others, and answers whatever the text is about.")
    if recipe.teachers:
        found.append("It repeats mistakes of its teacher. `kdbert report` shows where the two differ.")
    found.append("It is one run: another seed gives other scores. `kdbert table` shows the mean and spread of several.")
    if spec.warning:
        found.append(f"{plain(spec.warning)}.")
    return ["", "## Limits", "", *(f"- {one}" for one in found)]


def code(text: str) -> str:
    """A text as a code span, whatever is in it."""
    one = printable(" ".join(text.split()))
    ticks = "`" * (max(map(len, re.findall("`+", one)), default=0) + 1)
    gap = " " if "`" in one else ""
    return f"{ticks}{gap}{one}{gap}{ticks}"


def plain(text: str) -> str:
    """A text in which nothing is markup."""
    return re.sub(r"([\\`*_\[\]|#])", r"\\\1", html.escape(printable(" ".join(text.split())), quote=False))


def _fenced(language: str, text: str) -> list[str]:
    """A code block that ends where it should, whatever is in it."""
    ticks = "`" * max(3, max(map(len, re.findall("`+", text)), default=0) + 1)
    return [f"{ticks}{language}", text, ticks]
