"""README.md of a trained model: what it is, how well it does, how it was made, what to cite."""

from __future__ import annotations

import html
import re
from collections.abc import Mapping
from typing import Any

from huggingface_hub import ModelCardData

from kdbert import __version__
from kdbert.methods import get_method
from kdbert.models.load import auto_class_name
from kdbert.recipe import Recipe
from kdbert.tasks import TaskSpec


def model_card(
    recipe: Recipe, spec: TaskSpec, metrics: Mapping[str, Mapping[str, float]], facts: Mapping[str, Any]
) -> str:
    """The card as Markdown with the Hub's metadata block; names of files, models and methods cannot be markup in it.

    Args:
        metrics: split -> metric -> value.
        facts: entries of run.json: parameters, size_mib, layers, majority, teachers.
    """
    method = get_method(recipe.method.name)
    distilled = bool(recipe.teachers)
    start = _code(recipe.student.model or "")
    data = ModelCardData(
        language="en" if recipe.task.name != "custom" else None,
        library_name="transformers",
        pipeline_tag={"token": "token-classification", "masked_lm": "fill-mask"}.get(spec.kind, "text-classification"),
        tags=["kdbert", f"kdbert:{method.name}", *(["knowledge-distillation"] if distilled else [])],
    )
    constant = facts["majority"]
    taught: dict[str, dict[str, str]] = {}
    for teacher in facts["teachers"]:
        for split, values in teacher["metrics"].items():
            for name, value in values.items():
                before = taught.setdefault(split, {}).get(name)
                taught[split][name] = f"{before} / {value:.4f}" if before else f"{value:.4f}"
    rows = [
        f"| {split} | {name} | {value:.4f} | {taught.get(split, {}).get(name, '-')} | "
        + (f"{constant[split][name]:.4f} |" if split in constant else "- |")
        for split, values in metrics.items()
        for name, value in values.items()
    ]
    init = recipe.student.init
    kept = "numbers " + ", ".join(map(str, init)) if isinstance(init, list) else f"the {init} ones"
    what = {
        "single_label": "text classifier",
        "multi_label": "text classifier (any number of classes)",
        "token": "tagger of words",
        "regression": "model that scores texts",
        "masked_lm": "masked language model",
    }[spec.kind]
    auto = auto_class_name(spec.kind)
    layers = f"{facts['layers']} layers" + (
        f" ({kept} of {start})" if recipe.student.layers else f", started from {start}"
    )
    selected = (
        "The weights are those of the epoch that was best on dev, so the dev numbers are optimistic."
        if recipe.train.selection == "best"
        else "The weights are those of the last step; dev did not choose them."
    )
    settings = recipe.yaml().rstrip()
    fence = "`" * max(3, 1 + _longest(settings))  # no name in the recipe can end the block
    lines = [
        f"# {_text(spec.title)}: {_text(method.name)}",
        "",
        f"A {what} for the task `{spec.name}`, {layers}, {facts['parameters']:,} parameters, "
        f"{facts['size_mib']:.1f} MiB, made with [kdbert](https://github.com/kdbert/kdbert) {__version__}.",
        f"Method: **{_text(method.name)}**, {_text(method.summary)}. Variant: {recipe.method.variant}.",
    ]
    if distilled:
        named = ", ".join(_code(teacher.model) for teacher in recipe.teachers)
        lines.append(f"Teacher{'s' if len(recipe.teachers) > 1 else ''}: {named}.")
    if recipe.method.nonsense():
        lines.append(f"Weights as the published code takes them: {_text('; '.join(recipe.method.nonsense()))}.")
    lines += [
        "",
        "## Results",
        "",
        f"One run, seed {recipe.seed}. {selected} "
        + (
            "Of pieces hidden at once (15 % unless the recipe says otherwise, and every new one); `new_` is of pieces "
            "that the vocabulary had not before it was expanded."
            if spec.kind == "masked_lm"
            else "The constant answer is the commonest class or tag, or the mean score."
        ),
        "",
        "| split | metric | this model | teacher | constant answer |",
        "|---|---|---|---|---|",
        *rows,
        "",
        "## Use",
        "",
        "```python",
        f"from transformers import {auto}, AutoTokenizer",
        "",
        'tokenizer = AutoTokenizer.from_pretrained("PATH")',
        f'model = {auto}.from_pretrained("PATH")',
        "```",
        "",
        f"It was trained on at most {recipe.task.max_length} tokens per example.",
        "",
        "## Data",
        "",
        f"{_text(spec.title)}. Source: {_text(spec.source) or 'not stated'}. "
        f"Licence: {_text(spec.licence) or 'not stated'}.",
        "",
        "## Recipe",
        "",
        f"{fence}yaml",
        settings,
        fence,
        "",
        "## Citation",
        "",
        "Please cite the method and kdbert:",
        "",
        *(f"- {_text(str(paper))}" for paper in method.papers),
        "- The kdbert authors. kdbert: a toolkit for distilling BERT models. https://github.com/kdbert/kdbert",
    ]
    return f"---\n{data.to_yaml()}\n---\n\n" + "\n".join(lines) + "\n"


def _text(words: str) -> str:
    """Words that no reader of Markdown takes for HTML, in one line."""
    return html.escape(" ".join(words.split()), quote=False)


def _code(words: str) -> str:
    """Words as they are, in a code span that they cannot end."""
    ticks = "`" * (1 + _longest(words))
    pad = " " * words[:1].count("`") or " " * words[-1:].count("`")
    return f"{ticks}{pad}{' '.join(words.split())}{pad}{ticks}"


def _longest(words: str) -> int:
    """Length of the longest row of backticks."""
    return max(map(len, re.findall("`+", words)), default=0)
