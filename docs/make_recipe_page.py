"""Writes docs/recipe.md from the recipe's own fields: `python docs/make_recipe_page.py`."""

from __future__ import annotations

from pathlib import Path

from kdbert.methods import all_methods
from kdbert.recipe import Recipe
from kdbert.recipe.sections import (
    MemorySection,
    OutputSection,
    Section,
    StageSection,
    StudentSection,
    TaskSection,
    TeacherSection,
    TeacherTraining,
    TrainSection,
)

SECTIONS: dict[str, type[Section]] = {
    "task": TaskSection,
    "teachers[]": TeacherSection,
    "teacher_training": TeacherTraining,
    "student": StudentSection,
    "memory": MemorySection,
    "train": TrainSection,
    "stages.NAME": StageSection,
    "output": OutputSection,
}
HEAD = """# The recipe

A recipe is everything that decides a run. It is made, in this order, from defaults, the task's own defaults
(`quickstart` and [plain text](domain.md) have some), a YAML file (`--config`), flags, and `--set key=value`. Unknown
keys are errors, and all errors are told at once. The resolved recipe is written to `recipe.yaml` in the run folder.

```bash
kdbert distill --config r.yaml --set train.learning_rate=3e-5 train.warmup=0.1 --seed 2
kdbert distill --config runs/rte/kd/…/recipe.yaml      # the same numbers again
```
"""


def page() -> str:
    """The whole page as Markdown."""
    lines = [HEAD]
    for name, section in SECTIONS.items():
        lines += [
            f"## {name}",
            "",
            (section.__doc__ or "").splitlines()[0],
            "",
            "| key | default | meaning |",
            "|---|---|---|",
        ]
        for key, field in section.model_fields.items():
            default = "required" if field.is_required() else repr(field.get_default(call_default_factory=True))
            lines.append(f"| `{name}.{key}` | {default} | {field.description or ''} |")
        lines.append("")
    lines += [
        "## method",
        "",
        "`method.name` and `method.variant` (`corrected` or `original`), and the method's own options:",
        "",
    ]
    lines += ["| method | key | default | meaning |", "|---|---|---|---|"]
    for method in all_methods().values():
        for key, field in method.Options.model_fields.items():
            if key not in ("name", "variant"):
                lines.append(f"| {method.name} | `method.{key}` | {field.default} | {field.description} |")
    lines += [
        "",
        "## seed",
        "",
        f"`seed` (default {Recipe.model_fields['seed'].default}): a fresh head, the order of the data, dropout.",
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    Path(__file__).with_name("recipe.md").write_text(page(), encoding="utf-8")
