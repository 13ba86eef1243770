"""`kdbert export`: a classifier as ONNX, which runs without kdbert and torch; checked before it is kept."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import nn

from kdbert.data.data_file import first_line
from kdbert.data.examples import Examples
from kdbert.disk.files import damaged, move_aside, replace_folder, sha256, write_json
from kdbert.disk.sealed import sealed, unsealed
from kdbert.errors import KdbertError, UserError, near_miss
from kdbert.metrics import LOWER_IS_BETTER
from kdbert.models.load import load_config
from kdbert.models.way import INPUTS, Asked, Way, decide
from kdbert.runs.answers import Answers, SavedModel, saved_model
from kdbert.runs.folder import RunFolder
from kdbert.tasks import get_task
from kdbert.training.precision import make_accelerator
from kdbert.version import __version__

log = logging.getLogger("kdbert")
FORMATS = ("onnx", "onnx-int8")
MODEL, ABOUT = "model.onnx", "export.json"
OPSET = 17
PLAIN = Asked(attention="eager", packing=False, first_token=False)
LARGEST_DIFFERENCE = 1e-3  # of a float32 logit, times the largest logit where that is above 1
BUILT_IN = "built-in sentences"
MIN_AGREEMENT, MAX_DROP = 0.95, 0.02


class ExportRefused(KdbertError):
    """The exported model is not the model that was exported, or there is none."""


class CannotRun(KdbertError):
    """onnxruntime fails on an exported model."""


@dataclass(frozen=True)
class Exported:
    """An export: its folder, and what is known of it (`export.json`)."""

    path: Path
    about: Mapping[str, Any]


class OnnxModel(nn.Module):
    """An exported model in the form that `predict` runs, on the CPU.

    Args:
        way: that of the model that it was made of.
        threads: of one operator; 0: as many as there are cores.
    """

    def __init__(self, folder: Path, way: Way, threads: int = 0) -> None:
        super().__init__()
        self.config = SimpleNamespace(num_hidden_layers=0)
        self.base_model = None
        onnxruntime = _extra("onnxruntime")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        file = str(folder / MODEL)
        try:
            self.session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # its exceptions share no class of their own
            raise UserError(f"cannot open {file} ({str(error)[:200]}); export the model again") from None
        self.inputs = [one.name for one in self.session.get_inputs()]
        self.way = replace(
            way, attention="eager", own_mask=False, packing=False, fused_layers=False, first_token=False,
            inputs=tuple(self.inputs),
        )  # fmt: skip

    def forward(self, output_hidden_states: bool = False, **given: torch.Tensor) -> SimpleNamespace:
        """Logits of a padded batch, [B, C] or [B, L, C]."""
        try:
            inputs = {name: given[name].cpu().numpy().astype(np.int64) for name in self.inputs}
            (found,) = self.session.run(None, inputs)
        except Exception as error:  # onnxruntime's share no class of their own
            raise CannotRun(first_line(error)[:200]) from None
        return SimpleNamespace(logits=torch.from_numpy(found))


def answers(saved: SavedModel, model: Any, examples: Examples) -> Answers:
    """What a model (`saved.network()`) or an export of it answers to a split, in float32.

    In 8 bits all examples of a batch share a scale, so batches are the harder test.
    """
    return saved.answers(model, examples, batch_size=32, precision="fp32", accelerator=make_accelerator())


def export_model(
    model: str,
    format: str = "onnx",
    *,
    task: str | None = None,
    data_dir: str | None = None,
    output_dir: str | None = None,
    labels: list[str] | None = None,
    max_length: int | None = None,
    min_agreement: float = MIN_AGREEMENT,
    max_drop: float = MAX_DROP,
    overwrite: bool = False,
) -> Exported:
    """Write a model as ONNX, and answer the task's dev split by it and by the model itself; keep it if both agree.

    A run on a person's own data whose dev file is missing is exported too: both answer sentences that are built in,
    and the export says that dev was not checked.

    `onnx` is float32: no logit may differ by more than 1e-3 (times the largest logit where that is above 1).
    `onnx-int8` multiplies in 8 bits, with a scale for each output channel of a matrix, and of the inputs for each
    batch (`onnxruntime.quantization.quantize_dynamic`): there agreement and quality decide.

    Args:
        model: run folder, model folder or Hub id of a classifier, tagger or regressor.
        output_dir: by default `export/<format>` in the run folder.
        min_agreement: of answers on dev (of examples, or words); for scores, their Pearson correlation.
        max_drop: how much worse the task's first metric on dev may be.
        overwrite: move an export of something else aside.

    Returns:
        The folder; at once, if the same was exported there before.

    Raises:
        ExportRefused: the bound was passed; nothing is written.
    """
    if format not in FORMATS:
        raise UserError(f"--format {format!r} is unknown (known: {', '.join(FORMATS)}){near_miss(format, FORMATS)}")
    for package in ("onnx", "onnxruntime"):
        _extra(package)
    saved = saved_model(model, task, data_dir=data_dir, labels=labels, max_length=max_length)
    saved.check()
    folder = _folder(saved, format, output_dir)
    bounds = {"min_agreement": min_agreement, "max_drop": max_drop}
    identity = {
        "format": format, "model_fingerprint": saved.place.fingerprint(), "task": saved.spec.name,
        "max_length": saved.max_length,
    }  # fmt: skip
    there = read_about(folder)
    same = there is not None and identity.items() <= there.items()
    if there is not None and same and not (overwrite and there["unchecked"]):
        _refuse_beyond(there["checks"], format, bounds)
        log.info("already exported: %s", folder)
        if there["unchecked"]:
            log.warning("it was not checked on dev, whose file was not found; --overwrite exports and checks it again")
        return Exported(folder, there)
    if folder.exists() and any(folder.iterdir()) and not (overwrite and there is not None):
        what = "holds the export of something else" if there is not None else "is not empty and holds no export"
        cure = "choose another --output-dir" + (", or pass --overwrite to move it aside" if there is not None else "")
        raise UserError(f"{folder} {what}; {cure}")
    parts, unchecked = _dev(saved)
    about: dict[str, Any] = {**identity, "model": model, "kdbert": __version__, "bounds": bounds}

    def write(temporary: Path) -> None:
        _write_model(saved, format, temporary)
        checks = _compare(saved, temporary, parts)
        _refuse_beyond(checks, format, bounds)
        about.update(
            kind=saved.spec.kind, labels=list(saved.spec.labels), checks=checks, unchecked=unchecked, opset=OPSET,
            size_mib=(temporary / MODEL).stat().st_size / 2**20,
            packages={name: version(name) for name in ("torch", "transformers", "onnx", "onnxruntime")},
            files={file.name: sha256(file) for file in sorted(temporary.iterdir())},
        )  # fmt: skip
        write_json(temporary / ABOUT, sealed(about))
        (temporary / "README.md").write_text(_readme(saved, about), encoding="utf-8")

    if there is not None:
        log.info("moved the old export to %s", move_aside(folder))
    replace_folder(folder, write)
    return Exported(folder, about)


def read_about(folder: Path) -> dict[str, Any] | None:
    """`export.json` of an export; None where there is none. It, or a file that it names, may be refused as damaged."""
    try:
        content = unsealed((folder / ABOUT).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        raise UserError(f"{folder / ABOUT} is damaged ({error}); move the folder away") from None
    if [type(content.get(key)) for key in ("checks", "unchecked", "files")] != [dict, list, dict]:
        raise UserError(f"{folder / ABOUT} is damaged; move the folder away")
    fault = damaged(folder, content["files"])
    if fault:
        raise UserError(f"{fault}; move the folder away and export the model again")
    return content


def _extra(package: str) -> Any:
    """A package of the extra, imported."""
    try:
        return import_module(package)
    except ImportError:
        raise UserError(f"ONNX needs the package {package}: pip install 'kdbert[export]'") from None


def _folder(saved: SavedModel, format: str, output_dir: str | None) -> Path:
    if output_dir is not None:
        return Path(output_dir)
    own = saved.trained_on is not None and saved.trained_on.name == saved.spec.name
    if saved.place.run is None or not own:
        raise UserError(
            f"{saved.given!r} is not a run on {saved.spec.name}; say with --output-dir where the export goes"
        )
    RunFolder(saved.place.run).check_links()
    return saved.place.run / "export" / format


class _Logits(nn.Module):
    """The model's logits from its inputs by position, as the exporter calls it."""

    def __init__(self, model: Any, inputs: list[str]) -> None:
        super().__init__()
        self.model = model
        self.inputs = inputs

    def forward(self, *given: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.model(**dict(zip(self.inputs, given, strict=True))).logits
        return logits


def _write_model(saved: SavedModel, format: str, folder: Path) -> None:
    """The model's file, its configuration and its tokenizer."""
    # The plain attention function: the graph has all that it does, whatever the first batch looks like.
    network = saved.network(decide(load_config(saved.place), saved.spec.head, saved.given, PLAIN))
    tokenizer = saved.tokenizer
    inputs = [name for name in INPUTS if name in tokenizer.model_input_names]
    pads = tokenizer.pad_token_id is not None
    texts = ["a text", "and a longer one"] if pads else ["a text", "a text"]
    example = tokenizer(texts, padding=pads, return_tensors="pt")
    words = {0: "batch", 1: "tokens"}
    axes = {**dict.fromkeys(inputs, words), "logits": words if saved.spec.head.of_words else {0: "batch"}}
    plain = folder / MODEL
    log.info("export: %s as %s", saved.given, format)
    try:
        # It warns of each shape that it takes for a number, and prints the whole graph where it fails.
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), torch.no_grad():
            warnings.simplefilter("ignore")
            # The newer exporter (dynamo=True) needs one more package and gives the same logits.
            torch.onnx.export(
                _Logits(network, inputs).eval(), tuple(example[name] for name in inputs), str(plain), dynamo=False,
                input_names=inputs, output_names=["logits"], dynamic_axes=axes, opset_version=OPSET,
            )  # fmt: skip
    except (OSError, MemoryError):
        raise
    except Exception as error:  # whatever an operator that it does not know raises
        raise ExportRefused(_unable(saved, error)) from None
    if format == "onnx-int8":
        _quantize(plain)
    load_config(saved.place).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _unable(saved: SavedModel, error: Exception) -> str:
    """That a model cannot be exported, and why."""
    return (
        f"{saved.given!r}, a model of type {saved.way.model_type!r}, cannot be exported as ONNX "
        f"({first_line(error)[:200]}); benchmark and use it with torch"
    )


def _quantize(path: Path) -> None:
    """Turn the matrices of a float32 model into 8 bits, in place."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    whole = path.with_name("float32.onnx")
    path.rename(whole)
    root = logging.getLogger()
    level = root.level
    try:
        root.setLevel(logging.ERROR)  # it advises on standard error to do what was done
        quantize_dynamic(str(whole), str(path), per_channel=True, weight_type=QuantType.QInt8)
    finally:
        root.setLevel(level)
    whole.unlink()


def _dev(saved: SavedModel) -> tuple[list[Examples], list[str]]:
    """The task's dev splits; and the names of those of a person's own data whose file was not found.

    In the place of these are texts that are built in, without labels: the quickstart's dev sentences, for pairs each
    with the next.
    """
    parts, unchecked = [], []
    for split in saved.spec.split_names("dev"):
        try:
            parts.append(saved.examples(split))
        except UserError as error:
            if saved.spec.own is None:
                raise
            log.warning("not checked on %s: %s; logits are compared on sentences that are built in", split, error)
            unchecked.append(split)
            found = get_task("quickstart").load("dev", None)
            following = [*found.text_a[1:], *found.text_a[:1]] if saved.spec.pair else None
            parts.append(replace(found, split=BUILT_IN, text_b=following, labels=None))
            continue
        if parts[-1].labels is None:
            raise UserError(f"{split} of task {saved.spec.name!r} has no labels to check an export by")
    return parts, unchecked


def _compare(saved: SavedModel, folder: Path, parts: Sequence[Examples]) -> dict[str, Any]:
    """Split -> how far the answers of the model and of its export differ, and the scores of both."""
    checks: dict[str, Any] = {}
    network = saved.network()
    for part in parts:
        theirs = answers(saved, network, part)
        try:
            ours = answers(saved, OnnxModel(folder, saved.way), part)
        except CannotRun as error:
            raise ExportRefused(_unable(saved, error)) from None
        difference = np.abs(theirs.logits - ours.logits)
        checks[part.split] = {
            "examples": len(part),
            "largest_difference": float(difference.max()),
            "mean_difference": float(difference.mean()),
            "largest_logit": float(np.abs(theirs.logits).max()),
            "agreement": theirs.agreement(ours),
        }
        if part.labels is not None:
            scores = {"metric": saved.spec.metrics[0], "model": theirs.scores, "export": ours.scores}
            checks[part.split] |= scores
    return checks


def _refuse_beyond(checks: Mapping[str, Any], format: str, bounds: Mapping[str, float]) -> None:
    """Refuse an export whose answers differ from its model's."""
    for split, found in checks.items():
        allowed = LARGEST_DIFFERENCE * max(1.0, found["largest_logit"])
        metric = found.get("metric")
        drop = found["model"][metric] - found["export"][metric] if metric else 0.0
        drop = -drop if metric in LOWER_IS_BETTER else drop
        faults = []
        if format == "onnx" and not found["largest_difference"] <= allowed:
            faults.append(f"a logit differs by {found['largest_difference']:.2g} (at most {allowed:.2g})")
        if not found["agreement"] >= bounds["min_agreement"]:
            faults.append(f"agreement is {found['agreement']:.4f} (--min-agreement {bounds['min_agreement']:g})")
        if not drop <= bounds["max_drop"]:
            model = found["model"][metric]
            falls = "rises" if metric in LOWER_IS_BETTER else "falls"
            faults.append(f"{metric} {falls} from {model:.4f} by {drop:.4f} (--max-drop {bounds['max_drop']:g})")
        if faults:
            cure = "; export it as onnx instead, or allow more" if format != "onnx" else ""
            raise ExportRefused(f"not exported: on {split} ({found['examples']} examples) {'; '.join(faults)}{cure}")


def _readme(saved: SavedModel, about: Mapping[str, Any]) -> str:
    """How the folder is used without kdbert, and how it was checked."""
    rows = []
    for split, found in about["checks"].items():
        metric = found.get("metric")
        scores = f"{metric} | {found['model'][metric]:.4f} | {found['export'][metric]:.4f}" if metric else "- | - | -"
        same = f"{found['agreement']:.4f} | {found['largest_difference']:.2g}"
        rows.append(f"| {split} | {found['examples']} | {scores} | {same} |")
    for split in about["unchecked"]:
        rows += ["", f"Not checked on {split}, whose file was not found: scores."]
    head = saved.spec.head
    text = '"a first sentence", "a second one"' if saved.spec.pair else '"a sentence"'
    text = '["words", "of", "a", "sentence"], is_pretokenized=True' if head.of_words else text
    labels = ['labels = json.load(open(f"{folder}/config.json"))["id2label"]'] if head.classes else []
    return README.format(
        title=saved.spec.title, task=saved.spec.name, about=about, max_length=saved.max_length, model=MODEL, text=text,
        answer="\n".join([*labels, ANSWERS[head.kind]]), rows="\n".join(rows),
    )  # fmt: skip


# What a person's own Python does with logits.
ANSWERS = {
    "single_label": "print(labels[str(logits[0].argmax())])",
    "multi_label": "print([labels[str(i)] for i, logit in enumerate(logits[0]) if logit > 0])",
    "regression": "print(logits[0, 0])",
    "token": "print([(token, labels[str(i)]) for token, i in zip(encoded.tokens, logits[0].argmax(-1))])",
}
README = """\
# {title}: {about[format]}

`{model}` is a model for the task `{task}`, exported with kdbert {about[kdbert]} ({about[size_mib]:.1f} MiB, opset
{about[opset]}). It needs neither kdbert nor torch:

```python
import json

import numpy as np
import onnxruntime
from tokenizers import Tokenizer

folder = "."  # where this file is
tokenizer = Tokenizer.from_file(f"{{folder}}/tokenizer.json")
tokenizer.enable_truncation({max_length})
session = onnxruntime.InferenceSession(f"{{folder}}/{model}")
encoded = tokenizer.encode({text})
known = {{"input_ids": encoded.ids, "attention_mask": encoded.attention_mask, "token_type_ids": encoded.type_ids}}
inputs = {{one.name: np.array([known[one.name]], dtype=np.int64) for one in session.get_inputs()}}
(logits,) = session.run(None, inputs)
{answer}
```

Checked against the model in float32:

| split | examples | metric | model | export | agreement | largest difference of a logit |
|---|---|---|---|---|---|---|
{rows}
"""
