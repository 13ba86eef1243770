"""Random and mutated inputs for everything that reads a file: a reader gives a result or tells what is wrong."""

from __future__ import annotations

import contextlib
import gzip
import io
import itertools
import json
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pyarrow
import pyarrow.parquet
import torch
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save, save_file

from kdbert.centroids.file import Centroids, _checksum
from kdbert.data.corpus import read_texts
from kdbert.data.data_file import open_data_file
from kdbert.data.download import unpack
from kdbert.data.files import read_lines
from kdbert.disk.files import sha256
from kdbert.disk.sealed import KEY, sealed
from kdbert.errors import UserError
from kdbert.models.locate import locate_tokenizer
from kdbert.models.vocabulary import given_pieces
from kdbert.recipe import Recipe
from kdbert.reporting.benchmarks import read_benchmark
from kdbert.reporting.collect import Run, read_run
from kdbert.reporting.curves import read_log
from kdbert.reporting.predicted import read_predictions, read_scores
from kdbert.runs.folder import RunFolder
from kdbert.tasks.intent import read_clinc
from kdbert.tasks.own.columns import infer_columns
from kdbert.tasks.own.task import own_rows
from kdbert.tasks.readers import Columns, read_multi_label, read_tagged, read_tsv
from kdbert.tasks.spec import Own
from kdbert.training.checkpoint import newest_checkpoint, save_checkpoint
from kdbert.training.store import _read

TABLE = b'text,label\ngood film,positive\n"a, quoted""one",negative\nfine,positive\n'
RECIPE = b"""\
task: {name: rte, max_length: 64}
method: {name: cka-ilg, variant: corrected, sigma: 0.5, layer_map: "2:1"}
teachers: [{model: runs/t, labels: [a, b]}]
student: {model: bert-base-uncased, init: [1, 3]}
memory: {centroids: 9, algorithm: kmeans}
train: {epochs: 3, learning_rate: 1e-4, warmup: 0.1, selection: best, patience: 2}
seed: 3
output: &o {runs_dir: runs, tracker: []}
"""
RUN: dict[str, Any] = {
    "status": "finished", "recipe": {"task": {"name": "rte"}, "method": {"name": "kd"}, "seed": 1, "teachers": []},
    "identity": {"teachers": [{"model": "x"}]}, "metrics": {"dev": {"accuracy": 0.5}}, "selection": "accuracy",
    "constant_answer": {"dev": {"accuracy": 0.5}}, "one_answer": {"dev": "yes"},
    "data": {"dev": "0123"}, "layers": 3, "model_fingerprint": "ab",
}  # fmt: skip
# Parts of the formats that are read, so that what is inserted is not noise alone.
TOKENS = [
    *b", : \" ' \\ { } [ ] # & * ! | > - null true .inf .nan 1e999 -1 0 label text grid".split(),
    *(b"\n", b"\t", b" ", b"\r\n", b"\x00", b"\xef\xbb\xbf", b"\xff\xfe", b"\xe9", b"\xed\xa0\x80", b"\xe2\x80\xa8"),
    *(b"!!python/object/apply:os.system", b"!!binary", b"<<: *o", b"\\ud83d", b"2001-99-99", b"=", b"? ", b"--- "),
    *(b"##", b"\x1f\x8b\x08", b"../", b"9" * 400, b"[" * 60, b'{"a":' * 60),
    *(b"[" * 3000, b'{"a":' * 3000, b"[" * 300 + b"]" * 300),
]


@dataclass(frozen=True)
class Target:
    """A reader, the name of the file that it is given, good contents to start from, and how many inputs it gets."""

    read: Callable[[Path], object]
    file: str
    samples: list[bytes]
    count: int
    refusals: tuple[type[Exception], ...] = (UserError,)


@st.composite
def contents(draw: st.DrawFn, samples: list[bytes]) -> bytes:
    """Bytes: any at all, or a good file in which up to five places are changed."""
    if draw(st.integers(0, 9)) == 9:  # hypothesis begins with the smallest
        return draw(st.binary(max_size=200))
    content = bytearray(draw(st.sampled_from(samples)))
    for _ in range(draw(st.integers(1, 5))):
        place, kind = draw(st.integers(0, max(0, len(content) - 1))), draw(st.integers(0, 4))
        if kind == 0:
            content[place : place + 1] = draw(st.binary(min_size=1, max_size=1))
        elif kind == 1:
            content[place:place] = draw(st.sampled_from(TOKENS))
        elif kind == 2:
            del content[place : place + draw(st.integers(1, 30))]
        elif kind == 3:
            del content[place:]
        else:
            content[place:place] = content[place : place + draw(st.integers(1, 60))]
    return bytes(content)


def read_custom(path: Path) -> object:
    """A person's own file, as task custom reads it."""
    table = open_data_file(path)
    columns = infer_columns(table)
    return list(own_rows(table, Own(columns.text, columns.label), True))


def read_recipe(path: Path) -> object:
    """A recipe, and what is made of it."""
    recipe = Recipe.build(config=path)
    return recipe.yaml(), recipe.digest({})


def read_sets(path: Path) -> object:
    """Lines as what stands behind --set."""
    return Recipe.build(sets=path.read_bytes().decode("utf-8", "surrogateescape").split("\n")).yaml()


def read_checkpoint(path: Path) -> object:
    """A checkpoint one of whose files was changed, its manifest along with it; another checkpoint is whole."""
    folder = path.parent
    facts = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    facts[path.name] = {"bytes": path.stat().st_size, "sha256": sha256(path)}
    (folder / "manifest.json").write_text(json.dumps(facts), encoding="utf-8")
    return newest_checkpoint(folder.parent)


def read_archive(path: Path) -> object:
    """A zip or tar of one wanted member; nothing else may come out of it, neither there nor in the folders above."""
    above = path.parent.parent.parent
    try:
        return unpack(path, {"a/b.txt": path.parent / "out" / "b.txt"}, {})
    finally:
        found = {str(file.relative_to(above)) for file in above.rglob("*")}
        inner = str(path.parent.relative_to(above))
        expected = {inner.partition("/")[0], inner, *(f"{inner}/{name}" for name in (path.name, "out", "out/b.txt"))}
        assert found <= expected


def sealed_anew(path: Path) -> None:
    """Give a JSON document the checksum of what it holds now, where it can be read at all."""
    with contextlib.suppress(ValueError, AttributeError, TypeError, RecursionError):
        path.write_text(json.dumps(sealed(json.loads(path.read_bytes()))), encoding="utf-8")


def read_memory(path: Path) -> object:
    """A memory file whose checksum is that of what it holds now, where it can be read at all."""
    with contextlib.suppress(Exception):
        with safe_open(path, framework="pt") as file:
            facts = json.loads(file.metadata()["kdbert"])
            tensors = {name: file.get_tensor(name) for name in ("centroids", "counts", "assignments")}
        facts["sha256"] = _checksum(tensors, facts["about"])
        save_file(tensors, path, {"kdbert": json.dumps(facts)})
    return Centroids.load(path)


def read_run_json(path: Path) -> object:
    """A run.json whose checksum is that of what it holds now: by its two readers."""
    sealed_anew(path)
    return read_run(path.parent), RunFolder(path.parent).manifest()


def read_expansion(path: Path) -> object:
    """A tokenizer folder whose expansion.json was changed and sealed anew."""
    sealed_anew(path)
    return locate_tokenizer(str(path.parent))


def of_a_run(read: Callable[[Run], object]) -> Callable[[Path], object]:
    """The reader of a file of a run, which lies in the run folder or in a folder of it."""
    return lambda path: read(Run(path.parents[1], "finished", 1, {"task.name": "rte"}, {}, {}, "", {}))


def archives() -> list[bytes]:
    """A zip and a tar.gz."""
    zipped, tarred = io.BytesIO(), io.BytesIO()
    with zipfile.ZipFile(zipped, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/b.txt", "text" * 9)
    with tarfile.open(fileobj=tarred, mode="w:gz") as tar:
        info = tarfile.TarInfo("a/b.txt")
        info.size = 4
        tar.addfile(info, io.BytesIO(b"text"))
    return [zipped.getvalue(), tarred.getvalue(), gzip.decompress(tarred.getvalue())]


def targets(folder: Path, tokenizer: Any) -> dict[str, Target]:
    """Every reader by its name; more than 20,000 inputs in all.

    Args:
        folder: where a memory and a checkpoint to start from are made.
        tokenizer: any fast one.
    """
    memory = folder / "sample.safetensors"
    centroids = Centroids(torch.ones(2, 3, 4), torch.tensor([1, 1]), {"task": "rte", "layer": 2})
    centroids.save(memory, torch.tensor([0, 1]))
    kept = save({"logits": torch.ones(3, 2)}, {"sha256": "0" * 64})
    weights = save({"a": torch.ones(2, 2)})
    json_lines = b'{"text": "good", "label": "x"}\n{"text": "bad", "label": 1.5, "id": null}\n'
    tagged = b'{"tokens": ["a", "b"], "ner_tags": ["O", "B-x"], "id": 3}\n'
    clinc = json.dumps({"train": [["hi", "greeting"], ["pay", "bill"]], "oos_train": [["x", "oos"]]}).encode()
    marks = b'{"text": "good", "label": [0, 1]}\n'
    glue = b"index\tsentence1\tsentence2\tlabel\n0\ta cat\ta dog\tentailment\n1\tb\tc\tnot_entailment\n"
    state = json.dumps({"step": 1, "version": 3}).encode()
    run = (UserError, ValueError)
    classes = {"info": {"features": {"label": {"names": ["bad", "good"], "_type": "ClassLabel"}}}}
    table = pyarrow.table({"text": ["good", "bad"], "label": [1, 0]}, metadata={"huggingface": json.dumps(classes)})
    pyarrow.parquet.write_table(table, folder / "sample.parquet")
    parquet = (folder / "sample.parquet").read_bytes()
    answers = "".join(
        json.dumps({"id": name, "label": label, "prediction": "entailment", "scores": [0.5, -0.5]}) + "\n"
        for name, label in (("0", "entailment"), ("1", "not_entailment"))
    ).encode()
    log = b'{"step": 1, "train/loss": 0.5}\n{"step": 2, "train/loss": 0.25, "epoch": 1}\n'
    engine = {
        "name": "a", "quality": {"accuracy": 0.5}, "size_mib": 1.0, "backend": "torch", "parameters": 9,
        "batches": [{"batch_size": 1, "total_ms": {"p50": 1.0, "p95": 2.0}, "examples_per_second": 3.0}],
    }  # fmt: skip
    timed = json.dumps({"metric": "accuracy", "task": "rte", "split": "dev", "engines": [engine]}).encode()
    expansion = json.dumps({"files": {"a.txt": "0" * 64}, "added": 3}).encode()
    return {
        "recipe": Target(read_recipe, "recipe.yaml", [RECIPE], 2000),
        "sets": Target(read_sets, "sets", [b"train.epochs=3\nmethod=kd\ntask.name=rte", b"method.name=cka-i"], 1500),
        "csv": Target(read_custom, "a.csv", [TABLE], 1500),
        "csv.gz": Target(read_custom, "a.csv.gz", [gzip.compress(TABLE)], 500),
        "tsv": Target(read_custom, "a.tsv", [TABLE.replace(b",", b"\t")], 1500),
        "json lines": Target(read_custom, "a.jsonl", [json_lines], 1500),
        "parquet": Target(read_custom, "a.parquet", [parquet], 1000),
        "glue tsv": Target(lambda path: list(read_tsv(path, Columns(1, 2, 3, 0))), "dev.tsv", [glue], 1500),
        "tagged": Target(lambda path: list(read_tagged(path)), "a.json", [tagged], 1000),
        "multi-label": Target(lambda path: list(read_multi_label(path, "text", ("a", "b"))), "b.json", [marks], 1000),
        "clinc": Target(lambda path: list(read_clinc(path, ("train", "oos_train"))), "c.json", [clinc], 1000),
        "corpus": Target(lambda path: list(read_texts(str(path), "document")), "a.txt", [b"a\nb\n\nc d\n"], 500),
        "vocabulary": Target(
            lambda path: given_pieces((line for _, line in read_lines(path)), tokenizer), "v.txt",
            [b"good\n##ness\ncell\n"], 1500,
        ),
        "memory": Target(read_memory, "m.safetensors", [memory.read_bytes()], 1500),
        "teacher's outputs": Target(
            lambda path: _read(path, "logits", 3, np.dtype(np.float32)), "logits.safetensors", [kept], 1000
        ),
        "weights of a checkpoint": Target(read_checkpoint, "step-2/weights.safetensors", [weights], 500),
        "state of a checkpoint": Target(read_checkpoint, "step-2/state.json", [state], 300),
        "manifest of a checkpoint": Target(
            lambda path: newest_checkpoint(path.parent.parent), "step-2/manifest.json",
            [json.dumps({"state.json": {"bytes": 9, "sha256": "00"}}).encode()], 300,
        ),
        "run": Target(read_run_json, "run.json", [json.dumps({**RUN, KEY: "0" * 64}).encode()], 1500, run),
        "predictions": Target(
            of_a_run(lambda run: (read_predictions(run, "dev"), read_scores(run, "dev", ["0"]))),
            "predictions/dev.jsonl", [answers], 500, run,
        ),
        "log": Target(
            of_a_run(lambda run: read_log(replace(run, path=run.path / "log"))), "log/metrics.jsonl", [log], 300, run
        ),
        "benchmark": Target(read_benchmark, "benchmark.json", [timed], 500, (ValueError,)),
        "expansion": Target(read_expansion, "expansion.json", [expansion], 400),
        "archive": Target(read_archive, "deep/inside/archive", archives(), 700),
    }  # fmt: skip


def fuzz(target: Target, folder: Path, count: int | None = None, seed: int | None = None) -> int:
    """Give a reader many contents of its file, each under the same path; the number of contents that it took.

    Args:
        count: how many (None: as many as the target says).
        seed: of the draws; None: the same ones every time.

    Raises:
        Exception: whatever the reader did not expect; hypothesis prints the smallest content that brings it about.
    """
    path = folder / target.file
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.parent.name == "step-2":  # beside a checkpoint that is whole
        for step in (1, 2):
            save_checkpoint(folder, step, {"weights": {"a": torch.ones(2)}, "optimizer": {}}, {"step": step})
    tried, taken = itertools.count(), 0

    def one(content: bytes) -> None:
        nonlocal taken
        next(tried)
        path.write_bytes(content)
        try:
            target.read(path)
            taken += 1
        except target.refusals:
            pass

    settings = hypothesis.settings(
        max_examples=count or target.count, derandomize=seed is None, database=None, deadline=None,
        suppress_health_check=list(hypothesis.HealthCheck), phases=[hypothesis.Phase.generate, hypothesis.Phase.shrink],
    )  # fmt: skip
    test = settings(hypothesis.given(contents(target.samples))(one))
    (test if seed is None else hypothesis.seed(seed)(test))()
    assert next(tried) >= (count or target.count)
    return taken
