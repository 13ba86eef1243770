"""Writes docs/models.md from what `scripts/test-long` found: `python docs/make_models_page.py FOLDER`."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from kdbert.models.architectures import ARCHITECTURES, CONFIGURATIONS, REFUSED

HEAD = """# Models

kdbert runs encoders of texts, of the model types below, and refuses every other type in one sentence before anything is
trained (`--dry-run` too). What it decides of a model (attention function, form of the mask, segment ids, longest text,
whether texts of different lengths may share a forward pass) follows from the model's type and configuration. A run and
`--dry-run` say it, and `run.json` has it as `way`. `evaluate`, `export` and `benchmark` run a model as its own run did.

- **Attention** `kdbert` is kdbert's own, with packing and a last layer for the first token only; it is for types that
  were proved to give the same numbers. All others get the library's own attention and mask.
- **Padding**: where it changes a type's outputs in the library itself, only texts of the same length share a forward
  pass, in training too. That is correct, but slower.
- **Cut**: which layers a student may keep (`--student-layers`, `--student-init`); lists of one value a layer, such as
  `attention_window`, follow. What cannot be cut is refused before a teacher is trained.
- **Longest text** is what the configuration allows. BigBird's `block_sparse` attention draws blocks at random beyond a
  length, so that is its limit. Relative positions (DeBERTa, XLNet, Funnel) have none.
- **Export** to ONNX is checked against the model, and refused where the two disagree or the exporter fails.
- **Plain text** (`--corpus`, `ve-kd`): {masked}.
- **Attention that can be read** (`minilm`, `tinybert`): queries, keys and values of {attention}, of every layer,
  packed or padded, by any attention function. Tests compare them with the projections of the library's own model and
  its attention weights.
- **Taggers** with a byte-level tokenizer (RoBERTa's) get `add_prefix_space=true`, so that words are read as in a text.

Before anything is computed with a model, it is run on the shortest and the longest text of each split. One that fails,
or gives different outputs in a padded batch than alone though its type is not known for that, is refused.

At its end every run loads its saved model with the library alone (float32, eager attention) and compares its logits
with its own and with what it reports, on the shortest and the longest dev example; a run that differs fails.
"""


def page(folder: Path) -> str:
    """The page, from a folder of findings."""
    found: dict[str, dict[str, Any]] = {}
    for file in sorted(folder.glob("*.json")):
        one = json.loads(file.read_text(encoding="utf-8"))
        found.setdefault(one["name"], {})[one["form"]] = one
    names = [*sorted(ARCHITECTURES), *sorted(set(found) - set(ARCHITECTURES))]
    masked = ", ".join(sorted(name for name, known in ARCHITECTURES.items() if known.masked_lm))
    attention = ", ".join(sorted(name for name, known in ARCHITECTURES.items() if known.attention))
    lines = [
        HEAD.format(masked=masked, attention=attention),
        f"## What was found (transformers {version('transformers')}, torch {version('torch').partition('+')[0]})",
        "",
        "The largest difference of a logit from the library's own (eager attention, one text at a time, no padding,",
        "float32), as a share of the largest logit where that is above 1: of a run's predictions, of `kdbert evaluate`",
        "at batch sizes 1, 8 and 64, and of what is kept of a teacher. Tiny random models, texts of 1 to 56 words. A",
        "comma names another configuration of the type. Made by `scripts/test-long`.",
        "",
        "| model type | texts | pairs | tags | teacher | half: first, even, last | export | attention | padding |",
        "|---|---|---|---|---|---|---|---|---|",
        *(_row(name, found[name]) for name in names),
        "",
        "## What is refused",
        "",
        "| model type | why |",
        "|---|---|",
        *(f"| `{name}` | {reason} |" for name, reason in sorted(REFUSED.items())),
        "| every other | it reads from left to right (GPT, Llama), has a decoder (T5, BART), or was not tested |",
        "",
        "And of the types above, these configurations:",
        "",
        "| model type | key | why |",
        "|---|---|---|",
        *(f"| `{name}` | `{key}={value!r}` | {reason} |" for name, key, value, reason in CONFIGURATIONS),
        "| `nystromformer` | `num_landmarks` other than `segment_means_seq_len` | it reads texts of one length only |",
        "",
    ]
    return "\n".join(lines)


def _row(name: str, forms: Mapping[str, Any]) -> str:
    one = next(iter(forms.values()))
    way = one["way"]
    cells = [f"`{name}`", *(_worst(forms, [form], ["fine-tuned"]) for form in ("texts", "pairs", "words"))]
    cells.append(_worst(forms, forms, ["teacher", "its student"]))
    cells.append(", ".join(_worst(forms, forms, [init]) for init in ("first", "even", "last")))
    if cells[-1] == "refused, refused, refused":
        cells[-1] = "refused"
    cells += [
        _worst(forms, forms, ["export"]),
        way["attention"],
        "shared" if way["padding"] else "one length at a time",
    ]
    return f"| {' | '.join(cells)} |"


def _worst(forms: Mapping[str, Any], wanted: Any, roles: list[str]) -> str:
    parts = [forms[form]["found"] for form in wanted if form in forms]
    values = [part[role] for part in parts for role in roles if role in part]
    if not values:
        return "-"
    return "refused" if "refused" in values else f"{max(values):.0e}"


if __name__ == "__main__":
    target = Path(__file__).with_name("models.md")
    target.write_text(page(Path(sys.argv[1])), encoding="utf-8")
    print(f"written: {target}")
