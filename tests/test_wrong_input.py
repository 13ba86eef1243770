"""Wrong input: one sentence that names the thing, exit code 2, no traceback, nothing left behind.

Each case is a function that makes what it needs in an empty working folder and returns the command line;
its decorator says what the sentence must hold.
"""

from __future__ import annotations

import gzip
import io
import json
import pickle
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from bombs import bombs
from conftest import VOCABULARY, make_bert
from kdbert.data.data_file import open_data_file
from kdbert.disk.sealed import sealed
from kdbert.errors import UserError
from kdbert.tasks.own.columns import infer_columns
from kdbert.tasks.own.task import own_rows
from kdbert.tasks.spec import Own

Words = list[Any]
DEEP = "[" * 100_000  # JSON that Python's reader does not get to the end of


@dataclass
class World:
    """What a case may use: an empty working folder, good files, good models."""

    here: Path
    train: Path
    dev: Path
    bert: Path
    models: Path

    def write(self, name: str, content: str | bytes) -> Path:
        """A file in the working folder."""
        path = self.here / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    def finetune(self, *words: Any, train: Path | None = None, dev: Path | None = None) -> Words:
        """Fine-tuning on custom files: right but for `words`."""
        files = ["--train-file", train or self.train, "--dev-file", dev or self.dev]
        return ["finetune-teacher", "--task", "custom", *files, "--model", self.bert, "--max-length", 32, *words]

    def distill(self, *words: Any) -> Words:
        """Distillation of the good teacher on the good files: right but for `words`."""
        if "--teacher" not in words:
            words = ("--teacher", self.models / "teacher", *words)
        if "--max-length" not in words:
            words = ("--max-length", 32, *words)
        return [
            "distill",
            "--method",
            "kd",
            "--task",
            "custom",
            "--train-file",
            self.train,
            "--dev-file",
            self.dev,
            *words,
        ]

    def rte(self, train: str | bytes | None = None, dev: str | bytes | None = None, *words: Any) -> Words:
        """Fine-tuning on an RTE folder with these bytes instead of good ones."""
        self.write("glue/RTE/train.tsv", train if train is not None else RTE)
        self.write("glue/RTE/dev.tsv", dev if dev is not None else RTE)
        return [
            "finetune-teacher",
            "--task",
            "rte",
            "--data-dir",
            "glue",
            "--model",
            self.bert,
            "--max-length",
            32,
            *words,
        ]


RTE = "index\tsentence1\tsentence2\tlabel\n" + "".join(
    f"{i}\tthe cat {i}\ta dog\t{'not_' * (i % 2)}entailment\n" for i in range(6)
)


@dataclass
class Case:
    """One wrong invocation."""

    name: str
    build: Callable[[World], Words]
    told: tuple[str, ...]
    marks: list[pytest.MarkDecorator] = field(default_factory=list)


CASES: list[Case] = []


def wrong(*told: str) -> Callable[[Callable[[World], Words]], Callable[[World], Words]]:
    """Register a case whose message names all of `told`."""

    def register(build: Callable[[World], Words]) -> Callable[[World], Words]:
        CASES.append(Case(build.__name__, build, told))
        return build

    return register


def table(told: dict[str, tuple[Words, tuple[str, ...]]], start: Callable[[World], Words]) -> None:
    """Register cases that differ by some words after `start`."""
    for name, (words, parts) in told.items():
        CASES.append(Case(name, lambda world, words=words: [*start(world), *words], parts))  # type: ignore[misc]


# ---- recipe and flags

table(
    {
        "unknown_task": (["--task", "rtee"], ("'rtee'", "'rte'")),
        "unknown_method": (["--method", "hintn"], ("'hintn'", "'hinton'")),
        "unknown_key": (["--set", "train.learning_rat=1"], ("train.learning_rat", "train.learning_rate")),
        "unknown_section": (["--set", "trane.epochs=1"], ("'trane'", "'train'")),
        "unknown_method_option": (["--set", "method.temprature=1"], ("method.temprature", "method.temperature")),
        "unknown_precision": (["--precision", "fp8"], ("--precision", "'fp8'", "'bf16'")),
        "unknown_variant": (["--variant", "orginal"], ("--variant", "'orginal'")),
        "unknown_schedule": (["--set", "train.schedule=step"], ("train.schedule", "'linear'")),
        "seed_of_no_machine": (["--seed", 10**23], ("seed", "4294967295")),
        "teacher_seed_of_no_machine": (["--set", f"teacher_training.seed={2**32}"], ("teacher_training.seed",)),
        "epochs_without_end": (["--epochs", 10**20], ("--epochs", "1000000")),
        "a_section_that_is_a_number": (["--set", "train=3"], ("train",)),
        "empty_teacher": (["--teacher", ""], ()),
        "layers_that_are_not_there": (["--student-init", "7,8,9"], ("7, 8, 9",)),
        "no_epochs": (["--epochs", 0], ("--epochs", "0")),
        "empty_batch": (["--batch-size", 0], ("--batch-size",)),
        "negative_rate": (["--learning-rate", -1], ("--learning-rate",)),
        "rate_not_a_number": (["--learning-rate", "nan"], ("--learning-rate",)),
        "negative_seed": (["--seed", -1], ("seed",)),
        "zero_temperature": (["method.temperature=0"], ("method.temperature",)),
        "alpha_above_one": (["method.alpha=1.5"], ("method", "alpha", "1.5")),
        "tiny_length": (["--max-length", 2], ("--max-length",)),
        "set_without_value": (["--set", "train.epochs"], ("train.epochs", "key=value")),
        "set_bad_yaml": (["--set", "train.epochs=[1"], ("train.epochs=[1", "YAML")),
        "set_into_a_value": (["--set", "seed.more=1"], ("seed",)),
        "accumulation_beyond_batch": (["train.accumulation=64"], ("accumulation (64)", "batch_size (32)")),
        "student_init_word": (["--student-init", "middle"], ("--student-init", "first, last, even")),
        "student_init_zero": (["--student-init", "0,1"], ("student",)),
        "student_init_twice": (["--student-init", "1,1"], ("student",)),
        "layers_against_init": (["--student-layers", 3, "--student-init", "1,2"], ("3", "2")),
        "unknown_tracker": (["--tracker", "weights-and-biases"], ("weights-and-biases",)),
        "train_file_of_a_glue_task": (["--task", "rte", "--train-file", "a.csv"], ("--train-file", "--task custom")),
        "custom_without_dev_file": (["--task", "custom", "--train-file", "a.csv"], ("custom", "--dev-file")),
        "custom_without_files": (["--task", "custom"], ("--train-file",)),
        "several_at_once": (
            ["--task", "rtee", "--epochs", 0, "--set", "colour=red"],
            ("'rtee'", "--epochs", "'colour'"),
        ),
    },
    lambda world: ["distill"],
)
table(
    {
        "unknown_command": (["distil"], ("'distill'",)),
        "unlike_any_command": (["train"], ("train", "distill")),
        "unknown_flag": (["distill", "--temperature", "3"], ("--temperature",)),
        "flag_without_value": (["distill", "--seed"], ("--seed",)),
        "seed_a_word": (["distill", "--seed", "one"], ("--seed",)),
        "epochs_a_half": (["distill", "--epochs", "1.5"], ("--epochs",)),
        "teacher_labels_alone": (["distill", "--teacher-labels", "a,b"], ("--teacher-labels", "--teacher")),
        "evaluate_nothing": (["evaluate"], ()),
        "evaluate_batch_size": (["evaluate", "x", "--batch-size", "0"], ("--batch-size",)),
    },
    lambda world: [],
)
table(
    {
        "methods_show_unknown": (["methods", "show", "hintn"], ("'hintn'", "'hinton'")),
        "data_describe_unknown": (["data", "describe", "clink150"], ("'clink150'", "'clinc150'")),
        "data_verify_unknown": (["data", "verify", "clink150"], ("'clink150'",)),
        "data_verify_custom": (["data", "verify", "custom"], ("custom",)),
        "data_verify_missing_files": (["data", "verify", "rte", "--data-dir", "nowhere"], ("3", "'rte'")),
    },
    lambda world: [],
)


@wrong("none.yaml")
def config_missing(world: World) -> Words:
    return ["distill", "--config", "none.yaml"]


@wrong("recipes")
def config_is_a_folder(world: World) -> Words:
    (world.here / "recipes").mkdir()
    return ["distill", "--config", "recipes"]


def config(content: str | bytes) -> Callable[[World], Words]:
    """A recipe file with this content."""
    return lambda world: ["distill", "--config", world.write("recipe.yaml", content)]


def laughs(first: str, of_ten: Callable[[str], str]) -> str:
    """YAML whose every line stands for ten of the line before: a billion values and more in a few hundred bytes."""
    lines = [f"l0: &l0 {first}"]
    for number in range(1, 13):
        lines.append(f"l{number}: &l{number} {of_ten(', '.join([f'*l{number - 1}'] * 10))}")
    return "\n".join(lines) + "\n"


BOMB = laughs("lol", lambda ten: f"[{ten}]")
MERGED_BOMB = laughs("{a: lol}", lambda ten: f"{{<<: [{ten}]}}")
LONG_BOMB = f"a: &a {'x' * 9_000}\nb: [{', '.join(['*a'] * 999)}]\n"


for name, content, told in (
    ("config_bad_yaml", "train: {epochs: 3\nseed: 1", ("recipe.yaml",)),
    ("config_empty", "", ("recipe.yaml",)),
    ("config_list", "- train\n- task\n", ("recipe.yaml",)),
    ("config_not_utf8", b"task: caf\xe9\n", ("recipe.yaml",)),
    ("config_unknown_key", "train: {epochz: 3}\n", ("train.epochz", "train.epochs")),
    ("config_wrong_kind", "train: 5\n", ("train",)),
    ("config_method_wrong_kind", "method: [kd]\n", ("method",)),
    ("config_teacher_wrong_kind", "teachers: runs/teacher\n", ("teachers",)),
    ("config_number_as_key", "train: {1: 2}\n", ("train",)),
    ("config_bottomless", "&a [*a]\n", ("recipe.yaml",)),
    ("config_of_a_billion_values", BOMB, ("recipe.yaml", "1,000,000 values")),
    ("config_of_a_billion_merged_keys", MERGED_BOMB, ("recipe.yaml", "1,000,000 values")),
    ("config_of_a_billion_characters", LONG_BOMB, ("recipe.yaml", "1,000,000 values")),
):
    CASES.append(Case(name, config(content), told))
for name, words in {
    "config_scalar_task": "task: 5\n",
    "config_null_method": "method: {name: null}\n",
    "config_date_as_seed": "seed: 2024-01-01\n",
    "config_infinite_rate": "train: {learning_rate: .inf}\n",
}.items():
    CASES.append(Case(name, config(words), (words.split(":")[0],)))


@wrong()
def a_runs_folder_below_a_file(world: World) -> Words:
    """`--runs-dir` names a file."""
    return world.distill(
        "--teacher", world.models / "teacher", "--student", world.bert, "--runs-dir", world.write("f", "x")
    )


@wrong("recipe.yaml")
def config_that_is_a_program(world: World) -> Words:
    """Bytes that no text has."""
    return ["distill", "--config", world.write("recipe.yaml", b"\x7fELF\xff\xfe")]


BOMB_OF_ONE_VALUE = f"[{', '.join(line.partition(': ')[2] for line in BOMB.splitlines())}]"
for name, words, told in (
    (
        "set_to_a_billion_values",
        ["distill", "--set", f"train.epochs={BOMB_OF_ONE_VALUE}"],
        ("train.epochs=", "YAML"),
    ),
    ("grid_of_a_billion_values", ["sweep", "--grid", f"train.epochs={BOMB_OF_ONE_VALUE}"], ("train.epochs=", "YAML")),
):
    CASES.append(Case(name, lambda world, words=words: words, told))  # type: ignore[misc]


@wrong("sweep.yaml", "1,000,000 values")
def sweep_file_of_a_billion_values(world: World) -> Words:
    return ["sweep", world.write("sweep.yaml", BOMB)]


# ---- models


@wrong("nowhere/model")
def model_missing(world: World) -> Words:
    return world.finetune("--model", "./nowhere/model")


@wrong("nowhere")
def teacher_missing(world: World) -> Words:
    return world.distill("--teacher", world.here / "nowhere")


@wrong("no-such-owner/no-such-bert")
def model_missing_on_the_hub(world: World) -> Words:
    return world.finetune("--model", "no-such-owner/no-such-bert")


@wrong("~nobody-of-that-name/model")
def model_of_an_unknown_user(world: World) -> Words:
    return world.finetune("--model", "~nobody-of-that-name/model")


@wrong("weights.bin")
def model_is_a_file(world: World) -> Words:
    return world.finetune("--model", world.write("weights.bin", "x"))


@wrong("--model")
def model_not_named(world: World) -> Words:
    return ["finetune-teacher", "--task", "rte"]


@wrong("empty-folder")
def folder_without_model(world: World) -> Words:
    world.write("empty-folder/notes.txt", "nothing")
    return world.distill("--student", "empty-folder")


def copied(world: World, source: str = "bert") -> Path:
    """A copy of a good model, to be spoiled."""
    return Path(shutil.copytree(world.bert if source == "bert" else world.models / source, world.here / "spoiled"))


@wrong("spoiled")
def model_without_weights(world: World) -> Words:
    folder = copied(world)
    (folder / "model.safetensors").unlink()
    return world.finetune("--model", folder)


@wrong("spoiled", "config.json")
def model_with_damaged_config(world: World) -> Words:
    folder = copied(world)
    (folder / "config.json").write_text('{"model_type": "bert"', encoding="utf-8")
    return world.finetune("--model", folder)


@wrong("spoiled")
def model_with_foreign_config(world: World) -> Words:
    folder = copied(world)
    (folder / "config.json").write_text('{"colour": "red"}', encoding="utf-8")
    return world.finetune("--model", folder)


@wrong("spoiled")
def model_without_tokenizer(world: World) -> Words:
    folder = copied(world)
    for name in ("tokenizer.json", "vocab.txt", "tokenizer_config.json", "special_tokens_map.json"):
        (folder / name).unlink(missing_ok=True)
    return world.finetune("--model", folder)


@wrong("spoiled")
def student_weights_cut_in_half(world: World) -> Words:
    weights = copied(world) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])
    return world.finetune("--model", "spoiled")


@wrong("spoiled")
def student_weights_overwritten(world: World) -> Words:
    (copied(world) / "model.safetensors").write_bytes(b"not at all what was here before" * 9)
    return world.finetune("--model", "spoiled")


@wrong("spoiled")
def teacher_weights_cut_in_half(world: World) -> Words:
    weights = copied(world, "teacher") / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    return world.distill("--teacher", "spoiled", "--student", world.bert)


@wrong("spoiled", "config.json")
def model_with_a_config_of_thousands_of_brackets(world: World) -> Words:
    folder = copied(world)
    (folder / "config.json").write_text(DEEP, encoding="utf-8")
    return world.finetune("--model", folder)


@wrong("deep.json")
def configuration_of_thousands_of_brackets(world: World) -> Words:
    return world.distill("--student", world.write("deep.json", DEEP))


@wrong("run.json")
def run_of_thousands_of_brackets(world: World) -> Words:
    world.write("broken-run/run.json", DEEP)
    return world.distill("--teacher", "broken-run")


def changed(world: World, file: str, **values: Any) -> str:
    """A copy of a good model in one of whose files some values are others."""
    place = copied(world) / file
    place.write_text(json.dumps({**json.loads(place.read_text(encoding="utf-8")), **values}), encoding="utf-8")
    return "spoiled"


for name, file, values in (
    ("config_of_a_word_for_a_number", "config.json", {"hidden_size": "x"}),
    ("config_of_no_heads", "config.json", {"num_attention_heads": 0}),
    ("config_of_a_negative_size", "config.json", {"intermediate_size": -5}),
    (
        "config_of_a_quantised_model",
        "config.json",
        {"quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True}},
    ),
    ("config_of_an_unknown_quantisation", "config.json", {"quantization_config": 5}),
    ("config_of_unknown_activation", "config.json", {"hidden_act": "zzz"}),
    ("config_of_labels_that_are_a_word", "config.json", {"id2label": "x"}),
    ("config_of_architectures_that_are_a_number", "config.json", {"architectures": 5}),
    ("tokenizer_whose_model_is_a_number", "tokenizer.json", {"model": 5}),
    ("tokenizer_of_a_version_to_come", "tokenizer.json", {"version": "99"}),
    ("tokenizer_of_a_number_for_a_class", "tokenizer_config.json", {"tokenizer_class": 5}),
):
    CASES.append(
        Case(
            name,
            lambda world, file=file, values=values: world.finetune("--model", changed(world, file, **values)),
            ("spoiled",),
        )  # type: ignore[misc]
    )


@wrong("spoiled", "'clip'")
def model_for_pictures(world: World) -> Words:
    (copied(world) / "config.json").write_text('{"model_type": "clip"}', encoding="utf-8")
    return world.finetune("--model", "spoiled")


@wrong("unfinished")
def unfinished_run_as_teacher(world: World) -> Words:
    world.write("unfinished/run.json", json.dumps(sealed({"status": "running"})))
    return world.distill("--teacher", "unfinished")


@wrong("broken-run", "run.json")
def damaged_run_as_teacher(world: World) -> Words:
    world.write("broken-run/run.json", '{"status": "fini')
    return world.distill("--teacher", "broken-run")


# ---- files


FILES: list[tuple[Callable[[World], Path], tuple[str, ...]]] = []
LATER = {"missing_label", "null_label", "half_a_character"}  # are refused behind the reader, which takes them
UNLABELLED = {"missing_label", "null_label"}  # in a training file: rows without a label, which are no fault


def both(spoil: Callable[[World], Path]) -> None:
    """Register a faulty file: for its reader, and every third one for the command too, as training or as dev file."""
    name = spoil.__name__
    told = WANTED[name]
    if (len(FILES) % 6 == 0 or name in LATER) and name not in UNLABELLED:
        CASES.append(Case(f"train_{name}", lambda world: world.finetune(train=spoil(world)), told))
    if len(FILES) % 6 == 3 or name in LATER:
        CASES.append(Case(f"dev_{name}", lambda world: world.finetune(dev=spoil(world)), told))
    if name not in LATER:
        FILES.append((spoil, told))


WANTED = {
    "missing": ("bad.csv",),
    "empty": ("bad.csv",),
    "header_only": ("bad.csv",),
    "half_a_gzip": ("bad.csv.gz",),
    "no_gzip": ("bad.csv.gz",),
    "open_quote": ("bad.csv, line 3",),
    "too_few_columns": ("bad.tsv, line 3", "1", "2"),
    "too_many_columns": ("bad.csv, line 2", "3", "2"),
    "not_utf8": ("bad.csv, line 3", "UTF-8", "0xe9"),
    "half_a_json_line": ("bad.jsonl, line 2", "JSON"),
    "json_of_lists": ("bad.jsonl, line 1",),
    "half_a_parquet": ("bad.parquet", "parquet"),
    "parquet_not_utf8": ("bad.parquet", "parquet", "utf-8"),
    "parquet_of_noted_nothing": ("bad.parquet",),
    "parquet_of_half_a_note": ("bad.parquet",),
    "json_of_thousands_of_brackets": ("bad.jsonl, line 1", "JSON"),
    "json_of_thousands_of_digits": ("bad.jsonl, line 1", "JSON"),
    "unknown_kind": ("bad.xlsx",),
    "foreign_folder": ("bad", "save_to_disk"),
    "half_a_saved_dataset": ("bad",),
    "missing_label_column": ("bad.csv", "label"),
    "missing_label": ("bad.csv, line 3",),
    "null_label": ("bad.jsonl, line 2",),
    "number_as_text": ("bad.jsonl, line 2", "'text'"),
    "null_text": ("bad.jsonl, line 1", "'text'"),
    "half_a_character": ("bad.jsonl",),
    "column_twice": ("bad.csv, line 1",),
    "label_of_a_list": ("bad.jsonl, line 2",),
    "rows_in_a_quoted_field": ("bad.csv, line 3",),
    "tagged_words": ("bad.conll",),
}


@both
def missing(world: World) -> Path:
    return world.here / "bad.csv"


@both
def empty(world: World) -> Path:
    return world.write("bad.csv", "")


@both
def header_only(world: World) -> Path:
    return world.write("bad.csv", "text,label\n")


@both
def half_a_gzip(world: World) -> Path:
    packed = gzip.compress(world.train.read_bytes())
    return world.write("bad.csv.gz", packed[: len(packed) // 2])


@both
def no_gzip(world: World) -> Path:
    return world.write("bad.csv.gz", world.train.read_bytes())


@both
def open_quote(world: World) -> Path:
    return world.write("bad.csv", 'text,label\ngood,positive\n"bad,negative\npoor,negative\n')


@both
def too_few_columns(world: World) -> Path:
    return world.write("bad.tsv", "text\tlabel\ngood\tpositive\nbad\n")


@both
def too_many_columns(world: World) -> Path:
    return world.write("bad.csv", "text,label\ngood, very good,positive\nbad,negative\n")


@both
def not_utf8(world: World) -> Path:
    return world.write("bad.csv", b"text,label\ngood,positive\ncaf\xe9,negative\n")


@both
def half_a_json_line(world: World) -> Path:
    return world.write("bad.jsonl", '{"text": "good", "label": "positive"}\n{"text": "ba')


@both
def json_of_lists(world: World) -> Path:
    return world.write("bad.jsonl", '["good", "positive"]\n["bad", "negative"]\n')


@both
def half_a_parquet(world: World) -> Path:
    import pyarrow.parquet

    rows = [{"text": f"words {i}", "label": "positive" if i % 2 else "negative"} for i in range(50)]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), world.here / "bad.parquet")
    whole = (world.here / "bad.parquet").read_bytes()
    return world.write("bad.parquet", whole[: len(whole) // 2])


@both
def parquet_not_utf8(world: World) -> Path:
    import pyarrow
    import pyarrow.parquet

    texts = pyarrow.Array.from_buffers(
        pyarrow.string(), 1, [None, pyarrow.py_buffer(b"\0\0\0\0\4\0\0\0"), pyarrow.py_buffer(b"caf\xe9")]
    )
    pyarrow.parquet.write_table(pyarrow.table({"text": texts, "label": ["positive"]}), world.here / "bad.parquet")
    return world.here / "bad.parquet"


def parquet_with_note(world: World, note: str) -> Path:
    """A parquet file in whose metadata this stands where `datasets` describes the columns."""
    import pyarrow
    import pyarrow.parquet

    rows = pyarrow.table({"text": ["good", "bad"], "label": [1, 0]}, metadata={"huggingface": note})
    pyarrow.parquet.write_table(rows, world.here / "bad.parquet")
    return world.here / "bad.parquet"


@both
def parquet_of_noted_nothing(world: World) -> Path:
    return parquet_with_note(world, '{"info": null}')


@both
def parquet_of_half_a_note(world: World) -> Path:
    return parquet_with_note(world, "{")


@both
def json_of_thousands_of_brackets(world: World) -> Path:
    return world.write("bad.jsonl", DEEP)


@both
def json_of_thousands_of_digits(world: World) -> Path:
    return world.write("bad.jsonl", f'{{"text": "good", "label": {"9" * 5000}}}\n')


@both
def unknown_kind(world: World) -> Path:
    return world.write("bad.xlsx", "text,label\ngood,positive\n")


@both
def foreign_folder(world: World) -> Path:
    return world.write("bad/notes.txt", "nothing").parent


@both
def half_a_saved_dataset(world: World) -> Path:
    import datasets

    rows = [{"text": f"words {i}", "label": "positive" if i % 2 else "negative"} for i in range(50)]
    datasets.Dataset.from_list(rows).save_to_disk(str(world.here / "bad"))
    arrow = next((world.here / "bad").glob("*.arrow"))
    arrow.write_bytes(arrow.read_bytes()[:300])
    return world.here / "bad"


@both
def missing_label_column(world: World) -> Path:
    return world.write("bad.csv", "text,id,remark\ngood,1,x\nbad,2,y\n")


@both
def missing_label(world: World) -> Path:
    return world.write("bad.csv", "text,label\ngood,positive\nbad,\npoor,negative\n")


@both
def null_label(world: World) -> Path:
    return world.write(
        "bad.jsonl",
        '{"text": "a", "label": "positive"}\n{"text": "b", "label": null}\n{"text": "c", "label": "negative"}\n',
    )


@both
def number_as_text(world: World) -> Path:
    return world.write("bad.jsonl", '{"text": "a", "label": "positive"}\n{"text": 7, "label": "negative"}\n')


@both
def null_text(world: World) -> Path:
    return world.write("bad.jsonl", '{"text": null, "label": "positive"}\n{"text": "b", "label": "negative"}\n')


@both
def half_a_character(world: World) -> Path:
    return world.write(
        "bad.jsonl", '{"text": "a \\ud83d b", "label": "positive"}\n{"text": "b", "label": "negative"}\n'
    )


@both
def column_twice(world: World) -> Path:
    return world.write("bad.csv", "text,label,label\ngood,positive,x\nbad,negative,x\n")


@both
def label_of_a_list(world: World) -> Path:
    return world.write(
        "bad.jsonl", '{"text": "a", "label": "positive"}\n{"text": "b", "label": ["positive", "negative"]}\n'
    )


@both
def rows_in_a_quoted_field(world: World) -> Path:
    rows = ["good,positive", '"bad,negative', 'fine",positive', "poor,negative"]
    return world.write("bad.csv", "\n".join(["text,label", *rows]))


@both
def tagged_words(world: World) -> Path:
    return world.write("bad.conll", "EU B-ORG\nrejects O\n")


# ---- columns and labels

table(
    {
        "kind_of_no_such_name": (["--kind", "scores"], ("--kind", "'regression'", "'scores'")),
        "words_as_scores": (["--kind", "regression"], ("train.csv, line 2", "--kind regression")),
        "kind_of_a_registered_task": (["--task", "rte", "--kind", "regression"], ("--train-file", "--task custom")),
        "label_column_missing": (["--label-column", "lable"], ("train.csv", "'lable'", "'label'")),
        "text_column_missing": (["--text-columns", "sentence"], ("train.csv", "'sentence'", "text, label")),
        "three_text_columns": (["--text-columns", "text,text,text"], ("--text-columns",)),
        "text_as_label": (
            ["--label-column", "text", "--text-columns", "label"],
            ("train.csv", "'text'"),
        ),
    },
    lambda world: world.finetune(),
)


@wrong("train.csv", "'positive'")
def one_class_only(world: World) -> Words:
    return world.finetune(train=world.write("train.csv", "text,label\ngood,positive\ngreat,positive\n"))


@wrong("dev.csv, line 3", "'neutral'", "negative, positive")
def label_only_in_dev(world: World) -> Words:
    return world.finetune(dev=world.write("dev.csv", "text,label\ngood,positive\nmeh,neutral\n"))


@wrong("test.csv, line 2", "'positve'", "'positive'")
def label_only_in_test(world: World) -> Words:
    return world.finetune("--test-file", world.write("test.csv", "text,label\ngood,positve\n"))


@wrong("dev.csv, line 2", "'high'")
def word_among_scores(world: World) -> Words:
    train = world.write("train.csv", "text,score\na,0.5\nb,1.25\nc,3.0\n")
    return world.finetune(train=train, dev=world.write("dev.csv", "text,score\na,high\n"))


@wrong("train.csv", "title, text", "--text-columns")
def two_columns_of_text(world: World) -> Words:
    return world.finetune(train=world.write("train.csv", "title,text,label\na b,c d,positive\ne f,g h,negative\n"))


@wrong()
def dev_is_train(world: World) -> Words:
    return world.finetune(dev=world.train)


@wrong("train.tsv, line 4", "'entails'", "entailment")
def glue_train_label_outside(world: World) -> Words:
    return world.rte(train=RTE.replace("2\tthe cat 2\ta dog\tentailment", "2\tthe cat 2\ta dog\tentails"))


@wrong("dev.tsv, line 2", "'maybe'", "entailment, not_entailment")
def glue_dev_label_outside(world: World) -> Words:
    return world.rte(dev="index\tsentence1\tsentence2\tlabel\n0\ta\tb\tmaybe\n")


@wrong("dev.tsv, line 3")
def glue_label_missing(world: World) -> Words:
    return world.rte(dev="index\tsentence1\tsentence2\tlabel\n0\ta\tb\tentailment\n1\ta\tb\t\n")


@wrong("train.tsv, line 7", "2")
def glue_train_truncated(world: World) -> Words:
    return world.rte(train=RTE[: RTE.rindex("the cat 5") + 5])


@wrong("dev.tsv")
def glue_dev_empty(world: World) -> Words:
    return world.rte(dev="")


@wrong("dev.tsv")
def glue_dev_header_only(world: World) -> Words:
    return world.rte(dev=RTE.splitlines()[0] + "\n")


@wrong("train.tsv, line 2", "UTF-8")
def glue_train_not_utf8(world: World) -> Words:
    return world.rte(train=RTE.encode().replace(b"cat 0", b"cat \xff"))


@wrong("rte", "'nowhere'", "--data-dir")
def glue_files_missing(world: World) -> Words:
    return world.rte(None, None, "--data-dir", "nowhere")


@wrong("'rte'", "dev.tsv")
def glue_dev_missing(world: World) -> Words:
    words = world.rte()
    (world.here / "glue/RTE/dev.tsv").unlink()
    return words


@wrong("data_oos_plus.json", "JSON")
def clinc_truncated(world: World) -> Words:
    world.write("data/data_oos_plus.json", '{"train": [["hello", "greeting"], ["pay my')
    return ["finetune-teacher", "--task", "clinc150", "--data-dir", "data", "--model", world.bert]


@wrong("data_oos_plus.json")
def clinc_of_thousands_of_brackets(world: World) -> Words:
    world.write("data/data_oos_plus.json", DEEP)
    return ["finetune-teacher", "--task", "clinc150", "--data-dir", "data", "--model", world.bert]


@wrong("data_oos_plus.json", "'train'")
def clinc_of_a_number(world: World) -> Words:
    world.write("data/data_oos_plus.json", '{"train": 5, "oos_train": []}')
    return ["finetune-teacher", "--task", "clinc150", "--data-dir", "data", "--model", world.bert]


@wrong("'ax'", "mnli")
def ax_has_no_training_split(world: World) -> Words:
    return ["finetune-teacher", "--task", "ax", "--model", world.bert, "--max-length", 32]


@wrong("'ax'")
def ax_cannot_be_distilled(world: World) -> Words:
    return ["distill", "--task", "ax", "--teacher", world.models / "nli", "--max-length", 32]


# ---- teacher and student


@wrong("teacher", "bert")
def tokenizers_disagree(world: World) -> Words:
    return world.distill("--student", world.models / "other-words", "--method", "cka-i", "--layer-map", "2:1")


@wrong()
def tokenizers_in_another_order(world: World) -> Words:
    return world.distill("--student", world.models / "shuffled-words", "--method", "ics")


@wrong("nli", "3", "2", "finetune-teacher --task custom")
def teacher_head_too_large(world: World) -> Words:
    return world.distill("--teacher", world.models / "nli")


@wrong("score", "1", "2")
def teacher_with_one_score(world: World) -> Words:
    return world.distill("--teacher", world.models / "score")


@wrong("generic", "LABEL_0", "--teacher-labels", "negative, positive")
def teacher_with_generic_labels(world: World) -> Words:
    return world.distill("--teacher", world.models / "generic")


@wrong("yes-no", "negative, positive", "yes, no", "--teacher-labels")
def teacher_with_other_labels(world: World) -> Words:
    return world.distill("--teacher", world.models / "yes-no")


@wrong("--teacher-labels", "3", "2")
def too_many_teacher_labels(world: World) -> Words:
    return world.distill("--teacher", world.models / "generic", "--teacher-labels", "a,b,c")


@wrong("generic", "positive")
def misspelt_teacher_label(world: World) -> Words:
    return world.distill("--teacher", world.models / "generic", "--teacher-labels", "negative,positiv")


@wrong("bert", "head")
def teacher_that_was_never_fine_tuned(world: World) -> Words:
    return world.distill("--teacher", world.bert, "--teacher-labels", "negative,positive")


@wrong("'kd'", "1 teacher", "2")
def two_teachers(world: World) -> Words:
    return world.distill("--teacher", world.models / "teacher", "--teacher", world.models / "generic")


@wrong("--max-length 65", "64")
def longer_than_the_students_positions(world: World) -> Words:
    return world.distill("--max-length", 65)


@wrong("--max-length 32", "16", "short")
def longer_than_the_teachers_positions(world: World) -> Words:
    return world.distill("--teacher", world.models / "short", "--student", world.bert)


@wrong("--max-length 128", "64")
def default_length_beyond_the_positions(world: World) -> Words:
    words = world.finetune()
    at = words.index("--max-length")
    return words[:at] + words[at + 2 :]


@wrong("4", "9")
def more_layers_than_there_are(world: World) -> Words:
    return world.distill("--student", world.bert, "--student-layers", 9)


@wrong("4", "9")
def more_even_layers_than_there_are(world: World) -> Words:
    return world.distill("--student", world.bert, "--student-layers", 9, "--student-init", "even")


@wrong("4", "1, 9")
def a_layer_that_is_not_there(world: World) -> Words:
    return world.distill("--student", world.bert, "--student-init", "1,9")


@wrong("kd")
def finetune_teacher_by_distillation(world: World) -> Words:
    return world.finetune("--set", "method.name=kd")


# ---- objectives, layers, several teachers


def by(method: str) -> Callable[[World], Words]:
    """Distillation of the good teacher (two layers, the student has one) by a method."""
    return lambda world: world.distill("--method", method)


table(
    {
        "layer_map_malformed": (["--layer-map", "2;1"], ("--layer-map", "'2;1'")),
        "layer_map_half": (["--layer-map", "2"], ("--layer-map", "'2'")),
        "layer_map_negative": (["--layer-map=-1:1"], ("--layer-map", "'-1:1'")),
        "layer_map_empty": (["--layer-map", ""], ("--layer-map",)),
        "layer_map_set_to_a_number": (["method.layer_map=5"], ("method.layer_map", "5")),
        "layer_map_beyond_the_teacher": (["--layer-map", "9:1"], ("9:1", "to 2")),
        "layer_map_beyond_the_student": (["--layer-map", "1:2"], ("1:2", "to 1")),
        "layer_map_set_beyond": (["method.layer_map=11:5"], ("11:5", "11")),
        "layer_map_twice": (["--layer-map", "1:1,1:1"], ("--layer-map",)),
        "layer_map_and_layerwise": (["--layer-map", "1:1", "method.layerwise=true"], ("layer_map",)),
        "no_last_layer_but_one": ([], ("--layer-map 2:1",)),
        "no_layers_for_layerwise": (["method.layerwise=true"], ("--layer-map",)),
        "beta_below_zero": (["method.beta=-3"], ("-3",)),
        "beta_not_a_number": (["method.beta=nan"], ("method.beta", "nan")),
        "an_option_of_another_method": (["method.sigma=0.5"], ("'sigma'",)),
    },
    by("cka-i"),
)
table(
    {
        "ics_without_neighbors": (["method.neighbors=0"], ("method.neighbors", "1")),
        "ics_half_a_neighbor": (["method.neighbors=1.5"], ("method.neighbors", "1.5")),
        "ics_negative_alpha": (["method.alpha_ce=-1"], ("alpha_ce", "-1")),
        "ics_quirk_in_corrected": (["method.k_state=run"], ("k_state=run",)),
        "unknown_batch_sampler": (
            ["--batch-sampler", "balanced"],
            ("--batch-sampler", "'class-balanced'", "'balanced'"),
        ),
        "groups_beyond_the_batch": (
            ["--batch-sampler", "class-balanced", "--batch-size", 8, "train.examples_per_class=9"],
            ("examples_per_class (9)", "(8)"),
        ),
        "groups_beyond_the_micro_batch": (
            ["--batch-sampler", "class-balanced", "--batch-size", 8, "train.accumulation=4"],
            ("examples_per_class (4)", "(8)"),
        ),
        "empty_groups": (["train.examples_per_class=0"], ("train.examples_per_class",)),
    },
    by("ics"),
)
table(
    {
        "one_teacher_for_two": ([], ("'multi-kd'", "2", "1", "--teacher")),
        "weights_for_more_teachers": (["method.weights=[1, 1, 1]"], ("3", "1")),
        "weights_of_nothing": (["method.weights=[0, 0]"], ("weights",)),
        "no_weights": (["method.weights=[]"], ("weights",)),
        "negative_weight": (["method.weights=[2, -1]"], ("-1",)),
        "weights_in_words": (["method.weights=[one, two]"], ("method.weights", "'one'")),
        "weights_left_away": (["method.reduction=weights"], ("reduction=weights", "weights")),
        "weights_and_mean": (["method.reduction=mean", "method.weights=[1, 2]"], ("reduction=weights",)),
        "unknown_reduction": (["method.reduction=max"], ("method.reduction", "'weights'")),
    },
    by("multi-kd"),
)
table(
    {
        "sigma_above_one": (["method.sigma=5"], ("sigma", "5")),
        "gamma_below_zero": (["method.gamma=-0.5"], ("gamma",)),
        "negative_epsilon": (["method.epsilon=-1"], ("epsilon",)),
        "two_global_pairs": (["method.global_layer_map=2:1,1:1"], ("method.global_layer_map",)),
    },
    by("cka-ilg"),
)


@wrong("--diagnose", "'finetune'")
def diagnose_without_a_teacher(world: World) -> Words:
    words = world.distill("--method", "finetune", "--student", world.bert, "--diagnose")
    return [word for word in words if word not in ("--teacher", world.models / "teacher")]


@wrong("'cka-i'", "1 teacher", "2", "multi-kd")
def two_teachers_for_a_method_of_one(world: World) -> Words:
    return world.distill(
        "--method", "cka-i", "--teacher", world.models / "teacher", "--teacher", world.models / "short"
    )


@wrong("short", "--max-length 32", "16")
def second_teacher_too_short(world: World) -> Words:
    return world.distill(
        "--method", "multi-kd", "--teacher", world.models / "teacher", "--teacher", world.models / "short"
    )


@wrong("nli", "3")
def second_teacher_of_another_task(world: World) -> Words:
    return world.distill(
        "--method", "multi-kd", "--teacher", world.models / "teacher", "--teacher", world.models / "nli"
    )


# ---- memories


def with_memory(content: str | bytes) -> Callable[[World], Words]:
    """A run that names a file of this content as its memory."""
    return lambda world: [*by("cka-g")(world), "--layer-map", "2:1", "--memory", world.write("m.safetensors", content)]


for name, content, told in (
    ("memory_empty", b"", ("m.safetensors", "kdbert train-memory")),
    ("memory_of_text", "no tensors at all, but long enough for a header", ("m.safetensors", "kdbert train-memory")),
    ("memory_pickled", pickle.dumps({"centroid": [1.0]}), ("m.safetensors", "kdbert train-memory")),
    ("memory_of_another_program", b"\x02\0\0\0\0\0\0\0{}", ("m.safetensors",)),
):
    CASES.append(Case(name, with_memory(content), told))


@wrong("model.safetensors")
def memory_is_a_model(world: World) -> Words:
    return [*by("cka-g")(world), "--layer-map", "2:1", "--memory", world.models / "teacher" / "model.safetensors"]


@wrong()
def memory_is_a_folder(world: World) -> Words:
    (world.here / "memories").mkdir()
    return [*by("cka-g")(world), "--layer-map", "2:1", "--memory", "memories"]


table(
    {
        "memory_missing": (["--memory", "none.safetensors"], ("none.safetensors", "train-memory")),
        "memory_named_and_described": (["--memory", "m", "memory.centroids=5"], ("memory.file", "memory.centroids")),
        "memory_named_and_never": (["--memory", "m", "memory.train=never"], ("memory.file", "memory.train")),
        "more_centroids_than_examples": (
            ["memory.centroids=204"],
            ("204", "203", "memory.centroids="),
        ),
        "no_centroids": (["memory.centroids=0"], ("memory.centroids",)),
        "memory_algorithm": (["memory.algorithm=k-means"], ("memory.algorithm", "'kmeans'")),
        "memory_passes": (["memory.passes=0"], ("memory.passes",)),
        "memory_train": (["memory.train=always"], ("memory.train", "'auto'")),
        "memory_key": (["memory.centroid=9"], ("memory.centroid", "'memory.centroids'")),
        "memory_not_there": (["memory.train=never"], ("kdbert train-memory", "memory.train=auto")),
        "memory_of_two_layers": (["--layer-map", "2:1,1:1"], ()),
    },
    lambda world: [*by("cka-g")(world), "--layer-map", "2:1"],
)
table(
    {
        "train_memory_too_many": (["--centroids", 204], ("204", "203")),
        "train_memory_layer": (["--layer", 3], ("--layer 3", "to 2")),
        "train_memory_negative_layer": (["--layer", -1], ("--layer -1", "0")),
        "train_memory_algorithm": (["--algorithm", "kmeens"], ("--algorithm", "'kmeens'")),
        "train_memory_seed": (["--seed", -1], ("--seed",)),
        "train_memory_length": (["--max-length", 65], ("--max-length 65", "64")),
        "train_memory_output_name": (["--output", "memory.pt"], ("--output 'memory.pt'", ".safetensors")),
        "train_memory_second_teacher": (["--teacher", "./nowhere"], ("1",)),
        "train_memory_key": (["memory.centroid=9"], ("'memory.centroids'",)),
    },
    lambda world: [
        "train-memory", "--task", "custom", "--train-file", world.train, "--dev-file", world.dev, "--max-length", 32,
        "--teacher", world.models / "teacher", "--centroids", 5,
    ],
)  # fmt: skip
table(
    {
        "train_memory_labels_alone": (["train-memory", "--teacher-labels", "a,b"], ("--teacher-labels", "--teacher")),
        "train_memory_two_teachers": (
            ["train-memory", "--teacher", "a", "--teacher-model", "b"], ("--teacher-model", "--teacher"),
        ),
        "train_memory_half_a_layer": (["train-memory", "--layer", "1.5"], ("--layer",)),
        "distill_with_a_flag_of_train_memory": (["distill", "--centroids", "5"], ("--centroids",)),
    },
    lambda world: [],
)  # fmt: skip


def train_memory(world: World, *words: Any) -> Words:
    """A memory of the good teacher on the good files: right but for `words`."""
    return [
        "train-memory", "--task", "custom", "--train-file", world.train, "--dev-file", world.dev, "--max-length", 32,
        "--teacher", world.models / "teacher", "--centroids", 5, *words,
    ]  # fmt: skip


@wrong("mine")
def train_memory_below_a_file(world: World) -> Words:
    world.write("mine", "years of work")
    return train_memory(world, "--runs-dir", "mine")


@wrong("mine")
def train_memory_to_a_place_below_a_file(world: World) -> Words:
    world.write("mine", "years of work")
    return train_memory(world, "--output", "mine/m.safetensors")


@wrong("memory.file")
def train_memory_of_a_file(world: World) -> Words:
    words = [word for word in train_memory(world) if word not in ("--centroids", 5)]
    return [*words, "memory.file=m.safetensors"]


@wrong("bert", "finetune-teacher")
def train_memory_of_a_model_that_was_never_fine_tuned(world: World) -> Words:
    return [world.bert if word == world.models / "teacher" else word for word in train_memory(world)]


@wrong("nowhere")
def train_memory_teacher(world: World) -> Words:
    return ["./nowhere" if word == world.models / "teacher" else word for word in train_memory(world)]


# ---- plug-ins


def plugin(content: str) -> Callable[[World], Words]:
    """A run that names a plug-in of this content."""
    return lambda world: world.distill("--plugin", world.write("mine.py", content))


for name, content, told in (
    ("plugin_with_a_syntax_error", "def (:\n", ("mine.py", "SyntaxError")),
    ("plugin_that_fails", "import no_such_package_at_all\n", ("mine.py", "no_such_package_at_all")),
    ("plugin_without_a_method", "beta = 3\n", ("mine.py", "kdbert.methods.Method")),
    (
        "plugin_of_a_taken_name",
        "from kdbert.methods import *\nclass Mine(Method):\n    name = 'kd'\n    summary = formula = ''\n"
        "    papers = ()\n    class Options(MethodOptions):\n        name: str = 'kd'\n",
        ("mine.py", "'kd'"),
    ),
    (
        "plugin_of_half_a_method",
        "from kdbert.methods import *\nclass Mine(Method):\n    name = 'mine'\n",
        ("mine.py", "Mine", "summary, formula, papers, Options"),
    ),
):
    CASES.append(Case(name, plugin(content), told))
table(
    {
        "plugin_missing": (["--plugin", "none.py"], ("--plugin 'none.py'",)),
        "plugin_is_a_folder": (["--plugin", "."], ("--plugin '.'",)),
        "method_of_a_plugin_that_is_not_named": (["--method", "logit-mse"], ("'logit-mse'",)),
    },
    lambda world: world.distill(),
)
table(
    {
        "methods_of_a_missing_plugin": (["methods", "show", "kd", "--plugin", "none.py"], ("--plugin 'none.py'",)),
        "sweep_of_a_missing_plugin": (["sweep", "--plugin", "none.py"], ("--plugin 'none.py'",)),
    },
    lambda world: [],
)


# ---- run folders


@wrong("mine", "--output-dir")
def output_into_a_foreign_folder(world: World) -> Words:
    world.write("mine/thesis.tex", "years of work")
    return world.finetune("--output-dir", "mine")


@wrong("mine")
def output_into_a_file(world: World) -> Words:
    world.write("mine", "years of work")
    return world.finetune("--output-dir", "mine")


@wrong("mine")
def runs_below_a_file(world: World) -> Words:
    world.write("mine", "years of work")
    return world.finetune("--runs-dir", "mine")


def old_run(world: World) -> None:
    """A short finished run in `old-run`."""
    from kdbert import Recipe, finetune

    task = {"name": "custom", "train_file": str(world.train), "dev_file": str(world.dev), "max_length": 32}
    finetune(Recipe.of({
        "task": task, "student": {"model": str(world.bert)}, "method": "finetune", "train": {"max_steps": 1},
        "output": {"dir": "old-run"},
    }))  # fmt: skip


@wrong("old-run", "train.epochs", "--overwrite")
def output_into_a_run_of_another_recipe(world: World) -> Words:
    old_run(world)
    return world.finetune("--output-dir", "old-run", "--epochs", 2, "train.max_steps=1")


@wrong("old-run", "seed")
def output_into_a_run_of_another_seed(world: World) -> Words:
    old_run(world)
    return world.finetune("--output-dir", "old-run", "--seed", 2, "train.max_steps=1")


@wrong("old-run", "task.dev_file")
def output_into_a_run_on_other_data(world: World) -> Words:
    old_run(world)
    other = world.write("other.csv", world.dev.read_text(encoding="utf-8") + "one more,positive\n")
    return world.finetune("--output-dir", "old-run", "train.max_steps=1", dev=other)


@wrong("old-run", "run.json")
def output_into_a_damaged_run(world: World) -> Words:
    world.write("old-run/run.json", '{"status": "fini')
    return world.finetune("--output-dir", "old-run")


# ---- evaluate


@wrong("--task")
def evaluate_without_a_task(world: World) -> Words:
    return ["evaluate", world.models / "nli"]


@wrong("nowhere")
def evaluate_a_missing_run(world: World) -> Words:
    return ["evaluate", "./nowhere", "--task", "rte"]


@wrong("'rte'", "'tset'", "dev, test, train")
def evaluate_an_unknown_split(world: World) -> Words:
    return ["evaluate", world.models / "nli", "--task", "rte", "--split", "tset"]


@wrong("'rtee'", "'rte'")
def evaluate_an_unknown_task(world: World) -> Words:
    return ["evaluate", world.models / "nli", "--task", "rtee"]


@wrong("'rte'", "test.tsv", "--data-dir")
def evaluate_a_missing_file(world: World) -> Words:
    return ["evaluate", world.models / "nli", "--task", "rte", "--split", "test", "--data-dir", "nowhere"]


@wrong("--test-file", "--task custom")
def evaluate_a_test_file_of_a_registered_task(world: World) -> Words:
    return evaluate_rte(world, "rte", "--test-file", "glue/RTE/dev.tsv")


@wrong("custom")
def evaluate_custom_without_a_run(world: World) -> Words:
    return ["evaluate", world.models / "nli", "--task", "custom"]


@wrong("custom")
def evaluate_capital_custom_without_a_run(world: World) -> Words:
    return ["evaluate", world.models / "nli", "--task", "Custom"]


def evaluate_rte(world: World, model: str, *words: Any) -> Words:
    """Evaluation on a small RTE file."""
    world.rte()
    return ["evaluate", world.models / model, "--task", "rte", "--data-dir", "glue", *words]


@wrong("nli", "3", "2")
def evaluate_a_head_of_another_size(world: World) -> Words:
    return evaluate_rte(world, "nli")


@wrong("--max-length 65", "64")
def evaluate_beyond_the_positions(world: World) -> Words:
    return evaluate_rte(world, "rte", "--max-length", 65)


@wrong("--precision", "fp8")
def evaluate_in_an_unknown_precision(world: World) -> Words:
    return evaluate_rte(world, "rte", "--max-length", 32, "--precision", "fp8")


@wrong("max-length", "1")
def evaluate_to_a_negative_length(world: World) -> Words:
    return evaluate_rte(world, "rte", "--max-length", -5)


@wrong("max-length", "1")
def evaluate_to_no_length(world: World) -> Words:
    return evaluate_rte(world, "rte", "--max-length", 0)


@wrong("--labels", "1")
def evaluate_with_too_few_labels(world: World) -> Words:
    return evaluate_rte(world, "rte", "--max-length", 32, "--labels", "entailment")


# ---- benchmark, export

table(
    {
        "benchmark_backend": (["--backend", "tensorrt"], ("--backend 'tensorrt'", "torch, pipeline, onnx")),
        "benchmark_batch_of_none": (["--batch-size", 0], ("--batch-size 0", "1")),
        "benchmark_batch_beyond_memory": (["--batch-size", 10**14], ("--batch-size 100000000000000", "1")),
        "benchmark_threads_beyond_all": (["--threads", 10**8], ("--threads 100000000", "1")),
        "benchmark_few_calls": (["--calls", 10], ("--calls 10", "100")),
        "benchmark_no_rounds": (["--rounds", 0], ("--rounds 0", "100")),
        "benchmark_many_rounds": (["--rounds", 101], ("--rounds 101", "100")),
        "benchmark_split": (["--split", "tset"], ("'rte'", "tset", "train, dev, test")),
        "benchmark_teacher": (["--teacher", "./none"], ("./none",)),
        "benchmark_positions": (["--max-length", 65], ("--max-length 65", "64")),
    },
    lambda world: ["benchmark", *evaluate_rte(world, "rte", "--max-length", 32)[1:]],
)


@wrong("foreign")
def benchmark_into_a_foreign_folder(world: World) -> Words:
    world.write("foreign/thesis.tex", "years of work")
    return ["benchmark", *evaluate_rte(world, "rte", "--max-length", 32, "--output-dir", "foreign")[1:]]


@wrong("nli", "3", "2")
def benchmark_a_head_of_another_size(world: World) -> Words:
    return ["benchmark", *evaluate_rte(world, "nli", "--max-length", 32)[1:]]


table(
    {
        "benchmark_missing_model": (["benchmark", "./none"], ("./none",)),
        "export_missing_model": (["export", "./none"], ("./none",)),
    },
    lambda world: [],
)
table(
    {
        "benchmark_nothing": (["benchmark"], ()),
        "benchmark_no_batch_size": (["benchmark", "x", "--batch-size", ""], ("--batch-size",)),
        "benchmark_batch_size_a_word": (["benchmark", "x", "--batch-size", "a"], ("'a'",)),
        "benchmark_calls_a_word": (["benchmark", "x", "--calls", "many"], ("--calls",)),
        "export_nothing": (["export"], ()),
        "export_agreement_of_two": (["export", "x", "--min-agreement", 2], ("--min-agreement",)),
        "export_negative_drop": (["export", "x", "--max-drop=-1"], ("--max-drop",)),
        "export_no_length": (["export", "x", "--max-length", 0], ("--max-length",)),
    },
    lambda world: [],
)
table(
    {
        "export_format": (["--format", "onxx"], ("--format 'onxx'", "'onnx'")),
        "export_nowhere": ([], ("rte", "--output-dir")),
        "export_positions": (["--max-length", 65, "--output-dir", "e"], ("--max-length 65", "64")),
        "export_labels": (["--labels", "entailment", "--output-dir", "e"], ("--labels", "1")),
    },
    lambda world: ["export", *evaluate_rte(world, "rte", "--max-length", 32)[1:]],
)


@wrong("foreign", "--output-dir")
def export_into_a_foreign_folder(world: World) -> Words:
    world.write("foreign/thesis.tex", "years of work")
    return ["export", *evaluate_rte(world, "rte", "--max-length", 32, "--output-dir", "foreign")[1:]]


# ---- expand-vocab


def expand(*words: Any, corpus: str | bytes = "good bad film\n" * 9) -> Callable[[World], Words]:
    """An expansion by a small corpus: right but for `words`."""

    def build(world: World) -> Words:
        world.write("foreign/thesis.tex", "years of work")
        place = [] if "--corpus" in words or "--pieces" in words else ["--corpus", world.write("c.txt", corpus)]
        out = [] if "--out" in words else ["--out", "vocab"]
        return ["expand-vocab", "--tokenizer", world.bert, *place, *out, *words]

    return build


for name, build, told in (
    ("expand_missing_corpus", expand("--corpus", "./none"), ("./none",)),
    ("expand_empty_corpus", expand(corpus=""), ("c.txt",)),
    ("expand_blank_corpus", expand(corpus="\n\n"), ("c.txt",)),
    ("expand_corpus_not_utf8", expand(corpus=b"caf\xe9\n"), ("c.txt, line 1", "UTF-8")),
    ("expand_corpus_without_text_files", expand("--corpus", "foreign"), ("foreign",)),
    ("expand_into_a_foreign_folder", expand("--out", "foreign"), ("foreign",)),
    ("expand_below_a_file", expand("--out", "c.txt/vocab"), ("c.txt",)),
    ("expand_missing_pieces", expand("--pieces", "./none"), ("./none",)),
    ("expand_pieces_that_are_a_folder", expand("--pieces", "foreign"), ("foreign",)),
    ("expand_pieces_and_their_number", expand("--pieces", "c.txt", "--add", 5), ("--pieces", "--add")),
    ("expand_another_tokenizer", expand("--tokenizer", "./none"), ("./none",)),
):
    CASES.append(Case(name, build, told))
table(
    {
        "expand_nothing": (["expand-vocab"], ()),
        "expand_by_none": (["expand-vocab", "--tokenizer", "x", "--out", "y", "--add", 0], ("--add",)),
        "expand_negative_gain": (["expand-vocab", "--tokenizer", "x", "--out", "y", "--min-gain=-1"], ("--min-gain",)),
    },
    lambda world: [],
)


# ---- tables, reports, and what needs no run


@wrong("broken", "run.json")
def table_of_a_damaged_run(world: World) -> Words:
    world.write("broken/a/run.json", "{")
    return ["table", "broken"]


@wrong("broken", "run.json")
def report_of_a_damaged_run(world: World) -> Words:
    world.write("broken/a/run.json", "[]")
    return ["report", "broken"]


@wrong("file")
def table_of_a_file(world: World) -> Words:
    world.write("file", "x")
    return ["table", "file"]


table(
    {
        "table_of_nothing": (["table", "none"], ("'none'",)),
        "table_of_an_empty_folder": (["table", "."], ()),
        "table_format": (["table", "--format", "markdwon"], ("--format 'markdwon'", "'markdown'")),
        "table_where": (["table", "--where", "seed"], ("--where 'seed'", "KEY=VALUE")),
        "report_of_nothing": (["report", "none"], ("'none'",)),
        "report_where": (["report", "--where", "seed"], ("--where 'seed'", "KEY=VALUE")),
        "fetch_custom": (["data", "fetch", "custom"], ("custom",)),
        "fetch_corpus": (["data", "fetch", "corpus"], ("corpus",)),
        "fetch_unknown": (["data", "fetch", "rtee"], ("'rtee'", "'rte'")),
        "verify_corpus": (["data", "verify", "corpus"], ("corpus",)),
        "describe_by_a_missing_model": (["data", "describe", "rte", "--model", "./none"], ("./none",)),
        "sweep_grid_without_values": (["sweep", "--grid", "method"], ("method", "KEY=")),
        "sweep_grid_of_nothing": (["sweep", "--grid", "method="], ("method",)),
        "sweep_grid_unknown_key": (["sweep", "--grid", "metod=kd"], ("metod",)),
        "sweep_grid_unknown_method": (["sweep", "--grid", "method=kd,hintn"], ("'hintn'", "'hinton'")),
        "sweep_grid_of_a_wrong_value": (["sweep", "--grid", "train.epochs=0,1"], ("train.epochs", "0")),
        "sweep_of_a_missing_file": (["sweep", "none.yaml"], ("none.yaml",)),
        "sweep_no_seeds": (["sweep", "--grid", "method=kd", "--seeds", 0], ("--seeds '0'",)),
        "sweep_seeds_in_words": (["sweep", "--grid", "method=kd", "--seeds", "a"], ("--seeds 'a'",)),
        "sweep_slurm_key": (["sweep", "--engine", "slurm", "--slurm", "tme=1"], ("tme",)),
    },
    lambda world: [],
)
table(
    {
        "doctor_timeout_a_word": (["doctor", "--hub-timeout", "x"], ("--hub-timeout",)),
        "doctor_of_something": (["doctor", "this"], ("this",)),
        "describe_nothing": (["data", "describe"], ()),
        "describe_too_short": (["data", "describe", "rte", "--max-length", 2], ("--max-length",)),
        "describe_negative_examples": (["data", "describe", "rte", "--examples=-1"], ("--examples",)),
        "fetch_nothing": (["data", "fetch"], ()),
        "data_of_an_unknown_kind": (["data", "lst"], ("lst",)),
        "methods_show_nothing": (["methods", "show"], ()),
        "methods_of_an_unknown_kind": (["methods", "shw", "kd"], ("shw", "'show'")),
        "methods_without_a_verb": (["methods", "kd"], ("kdbert methods show kd",)),
        "data_without_a_verb": (["data", "rte"], ("kdbert data describe rte",)),
        "sweep_nothing": (["sweep", "--method", "kd"], ("--grid", "--seeds")),
        "sweep_no_jobs": (["sweep", "--jobs", 0], ("--jobs",)),
        "sweep_engine": (["sweep", "--engine", "pbs"], ("--engine", "slurm")),
        "sweep_slurm_key_here": (["sweep", "--slurm", "time=1"], ("--slurm", "--engine slurm")),
        "sweep_jobs_on_a_cluster": (["sweep", "--engine", "slurm", "--jobs", 2], ("--jobs", "array_parallelism=2")),
    },
    lambda world: [],
)


# ---- names that are no paths


TOO_LONG = "a" * 5000
table(
    {
        f"name_too_long_{name}": ([*words, TOO_LONG], ("aaa",))
        for name, words in {
            "table": ["table"], "report": ["report"], "evaluate": ["evaluate", "--task", "rte"],
            "export": ["export"], "benchmark": ["benchmark"], "sweep": ["sweep"], "config": ["distill", "--config"],
            "plugin": ["distill", "--plugin"], "data_dir": ["data", "describe", "rte", "--data-dir"],
            "tokenizer": ["expand-vocab", "--out", "o", "--corpus", "c", "--tokenizer"],
        }.items()
    },
    lambda world: [],
)  # fmt: skip
CASES.append(Case("name_too_long_train_file", lambda world: world.finetune(train=Path(TOO_LONG)), ("aaa",)))


@wrong("loop")
def link_to_itself_as_plugin(world: World) -> Words:
    (world.here / "loop").symlink_to("loop")
    return world.distill("--plugin", "loop")


@wrong("loop")
def link_to_itself_as_train_file(world: World) -> Words:
    (world.here / "loop").symlink_to("loop")
    return world.finetune(train=Path("loop"))


# ---- pickles and code: each of them would make the folder `executed` in the working folder (bombs.py)


def planted(command: str, file: str, form: str, *, without: tuple[str, ...] = ()) -> Callable[[World], Words]:
    """A command on a copy of a good model one of whose files is a bomb."""

    def build(world: World) -> Words:
        folder = copied(world, "rte" if command in ("evaluate", "export", "benchmark") else "teacher")
        for name in without:
            (folder / name).unlink()
        if file.endswith(".index.json"):
            shard = "shard.bin"
            (folder / shard).write_bytes(bombs()[form])
            (folder / file).write_text(json.dumps({"metadata": {}, "weight_map": {"bert.a": shard}}))
        else:
            (folder / file).write_bytes(bombs()[form])
        if command == "distill":
            return world.distill("--teacher", "spoiled", "--student", world.bert)
        if command == "finetune":
            return world.finetune("--model", "spoiled")
        if command == "expand":
            return expand("--tokenizer", "spoiled")(world)
        more = ["--output-dir", "e"] if command == "export" else []
        return [command, "spoiled", *evaluate_rte(world, "rte", "--max-length", 32, *more)[2:]]

    return build


WEIGHTS = "model.safetensors"
# Each command and each file meets one of the two forms of a bomb as the weights, and the other as something else.
FORMS = ("pickle", "torch")
for number, command in enumerate(("finetune", "distill", "evaluate", "export", "benchmark")):
    one, other = FORMS[number % 2], FORMS[1 - number % 2]
    CASES.append(Case(f"{one}_as_weights_{command}", planted(command, WEIGHTS, one), ("spoiled",)))
    bin_file = planted(command, "pytorch_model.bin", other, without=(WEIGHTS,))
    CASES.append(Case(f"{other}_as_bin_{command}", bin_file, ("spoiled",)))
for form, index in zip(FORMS, ("model.safetensors.index.json", "pytorch_model.bin.index.json"), strict=True):
    CASES.append(Case(f"{form}_in_{index}", planted("finetune", index, form, without=(WEIGHTS,)), ("spoiled",)))
for number, file in enumerate(("tokenizer.json", "config.json", "tokenizer_config.json")):
    form = FORMS[number % 2]
    CASES.append(Case(f"{form}_as_{file}", planted("finetune", file, form), ("spoiled",)))
CASES.append(Case("torch_as_tokenizer", planted("expand", "tokenizer.json", "torch"), ("spoiled",)))
CASES.append(Case("pickle_as_memory", lambda world: with_memory(bombs()["pickle"])(world), ("m.saf",)))
CASES.append(Case("torch_as_memory", lambda world: with_memory(bombs()["torch"])(world), ("m.saf",)))
for form in FORMS:
    for suffix in ("csv", "tsv", "jsonl", "parquet", "csv.gz"):

        def bomb(world: World, form: str = form, suffix: str = suffix) -> Path:
            """A bomb in a data file's place."""
            return world.write(f"b.{suffix}", bombs()[form])

        FILES.append((bomb, (f"b.{suffix}",)))
CASES.append(
    Case("pickle_as_csv", lambda world: world.finetune(train=world.write("b.csv", bombs()["pickle"])), ("b.csv",))
)


@wrong("bad")
def pickle_in_a_saved_dataset(world: World) -> Words:
    for name in ("data-00000-of-00001.arrow", "dataset_info.json", "state.json"):
        world.write(f"bad/{name}", bombs()["pickle"])
    return world.finetune(train=world.here / "bad")


def with_code(model_type: str, *places: str) -> Callable[[World], Words]:
    """Fine-tuning of a model that brings code of its own and says in these files that it is to be run."""

    def build(world: World) -> Words:
        folder = copied(world)
        (folder / "mine.py").write_text("import os\nos.mkdir('executed')\n", encoding="utf-8")
        for place in places:
            content = json.loads((folder / place).read_text(encoding="utf-8"))
            classes = ("AutoConfig", "AutoModel", "AutoModelForSequenceClassification", "AutoTokenizer")
            content["auto_map"] = {name: ["mine.A", "mine.A"] if "Tok" in name else "mine.A" for name in classes}
            if place == "config.json":
                content["model_type"] = model_type
            else:
                content["tokenizer_class"] = "MyTokenizer"
            (folder / place).write_text(json.dumps(content), encoding="utf-8")
        return world.finetune("--model", "spoiled")

    return build


CASES.append(Case("code_of_a_models_own", with_code("mine", "config.json"), ("spoiled",)))


def make_models(folder: Path) -> Path:
    """Models that are wrong for the good files, each in its way; `teacher` is right."""
    pair = ["negative", "positive"]
    make_bert(folder / "teacher", layers=2, labels=pair, base=False)
    make_bert(folder / "nli", layers=1, labels=["entailment", "neutral", "contradiction"], base=False)
    make_bert(folder / "rte", layers=1, labels=["entailment", "not_entailment"], base=False)
    make_bert(folder / "score", layers=1, labels=None, base=False)
    make_bert(folder / "generic", layers=1, labels=["LABEL_0", "LABEL_1"], base=False)
    make_bert(folder / "yes-no", layers=1, labels=["yes", "no"], base=False)
    make_bert(folder / "short", layers=1, labels=pair, base=False, positions=16)
    make_bert(folder / "other-words", layers=1, vocabulary=[*VOCABULARY, "zebra"])
    make_bert(folder / "shuffled-words", layers=1, vocabulary=[*VOCABULARY[:5], *VOCABULARY[:4:-1]])
    return folder


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All of them."""
    return make_models(tmp_path_factory.mktemp("wrong-models"))


@pytest.fixture
def world(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_bert: Path, custom_files: tuple[Path, Path], models: Path
) -> World:
    """An empty working folder, which is also where runs would go."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n" * 99))  # whatever is asked is agreed to
    return World(tmp_path, *custom_files, bert=tiny_bert, models=models)


def listing(*folders: Path) -> dict[str, int]:
    """Every file and folder with its size."""
    return {
        str(path): path.stat().st_size if path.is_file() else -1 for folder in folders for path in folder.rglob("*")
    }


def test_every_case_has_a_name() -> None:
    assert len({case.name for case in CASES}) == len(CASES)


def read(path: Path) -> None:
    """Read a person's own file to its end, as task custom does."""
    table = open_data_file(path)
    columns = infer_columns(table)
    list(own_rows(table, Own(columns.text, columns.label), True, ("negative", "positive")))


@pytest.mark.parametrize(("spoil", "told"), FILES)
def test_a_reader_refuses_its_file(spoil: Callable[[World], Path], told: tuple[str, ...], world: World) -> None:
    path = spoil(world)
    with pytest.raises(UserError) as refusal:
        read(path)
    for part in told:
        assert part in str(refusal.value)
    assert not (world.here / "executed").exists()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_wrong_input_is_refused(case: Case, world: World, kdbert: Callable[..., Any]) -> None:
    words = case.build(world)
    before = listing(world.here, world.models, world.bert)
    done = kdbert(*words)
    said = done.out + done.err
    assert "Traceback" not in said
    assert done.code == 2, said
    sentences = [line for line in done.err.splitlines() if line.startswith("kdbert: ")]
    assert len(sentences) == 1, done.err
    assert done.err.rstrip("\n").endswith(sentences[0]), "the sentence is not the last thing said"
    message = sentences[0]
    for part in case.told:
        assert part in message, f"{part!r} not in {message!r}"
    assert listing(world.here, world.models, world.bert) == before


def test_a_bomb_goes_off_where_somebody_unpickles_it(world: World) -> None:
    """Else the cases above would say nothing."""
    import torch

    pickle.loads(bombs()["pickle"])
    (world.here / "executed").rmdir()
    torch.load(io.BytesIO(bombs()["torch"]), weights_only=False)
    assert (world.here / "executed").is_dir()


@pytest.mark.parametrize(
    "places", [("config.json",), ("tokenizer_config.json",), ("config.json", "tokenizer_config.json")]
)
def test_code_beside_a_model_that_is_known_is_not_run(
    world: World, kdbert: Callable[..., Any], places: list[str]
) -> None:
    done = kdbert(*with_code("bert", *places)(world), "--dry-run")
    assert done.code == 0 or "spoiled" in done.err.splitlines()[-1], done.err
    assert "Traceback" not in done.err
    assert not (world.here / "executed").exists()


def test_a_yaml_tag_makes_no_object(world: World, kdbert: Callable[..., Any]) -> None:
    tags = (
        "!!python/object/apply:os.system ['touch made']",
        "!!python/object/new:pathlib.Path [made]",
        "!!python/name:os.system",
    )
    for tag in tags:
        path = world.write("recipe.yaml", f"seed: {tag}\n")
        done = kdbert("distill", "--config", path)
        assert (done.code, "recipe.yaml" in done.err, "Traceback" in done.err) == (2, True, False)
        done = kdbert("distill", "--set", f"seed={tag}")
        assert (done.code, "Traceback" in done.err) == (2, False)
    assert [path.name for path in world.here.iterdir()] == ["recipe.yaml"]


def test_debug_shows_the_traceback_and_the_sentence(world: World, kdbert: Callable[..., Any]) -> None:
    done = kdbert("distill", "--task", "rtee", "--debug")
    assert done.code == 2
    assert "Traceback" in done.err
    assert done.err.rstrip().splitlines()[-1].startswith("kdbert: ")


def test_the_foreign_folder_is_untouched_even_with_overwrite_of_a_wrong_recipe(
    world: World, kdbert: Callable[..., Any]
) -> None:
    world.write("mine/thesis.tex", "years of work")
    done = kdbert(*world.finetune("--output-dir", "mine", "--overwrite", "--max-length", 65))
    assert done.code == 2
    assert [path.name for path in world.here.iterdir()] == ["mine"]
    assert (world.here / "mine" / "thesis.tex").read_text(encoding="utf-8") == "years of work"


def test_the_real_process_ends_with_the_sentence_too(world: World, kdbert_process: Callable[..., Any]) -> None:
    done = kdbert_process("distill", "--task", "rtee", cwd=world.here)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("kdbert: ")
    assert len(done.stderr.splitlines()) == 1
