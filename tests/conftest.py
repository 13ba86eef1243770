"""Shared fixtures: real data, a tiny random BERT, the command in this process and in its own."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from small_run import Setting

# In the background of a shell this process ignores Ctrl-C, under nohup a closed terminal, and so would its commands.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # which nohup ignores
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# No test reaches the network, and no process that it starts: see there.
OFFLINE = Path(__file__).parent / "offline"
if str(OFFLINE) not in os.environ.get("PYTHONPATH", "").split(os.pathsep):
    os.environ["PYTHONPATH"] = os.pathsep.join([str(OFFLINE), *filter(None, [os.environ.get("PYTHONPATH")])])
import_module("offline.sitecustomize")
ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared"


def absent(reason: str) -> None:
    """Skip, or fail where the run must not go without (KDBERT_REQUIRE_DATA=1, as in .ci/run)."""
    if os.environ.get("KDBERT_REQUIRE_DATA") == "1":
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of real public data sets: KDBERT_TEST_DATA, by default ../shared/data."""
    folder = Path(os.environ.get("KDBERT_TEST_DATA", SHARED / "data"))
    if not (folder / "glue").is_dir():
        absent(f"no real data in {folder} (set KDBERT_TEST_DATA)")
    return folder


@pytest.fixture(scope="session")
def glue_dir(data_dir: Path) -> Path:
    """GLUE's official files."""
    return data_dir / "glue"


WORDS = (
    "the a of to and in is it that for on was with as he be at by have not are this but had his they from she "
    "which or we an were been has their would there what will all if can her said who one so up them some when "
    "could him into its then two more these may first like other out any very good bad film book time people "
    "cat dog man woman yes no great poor happy sad blue red green small large new old"
).split()
VOCABULARY = [
    "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS,
    *"abcdefghijklmnopqrstuvwxyz0123456789.,!?'", *(f"##{c}" for c in "abcdefghijklmnopqrstuvwxyz0123456789"),
]  # fmt: skip


def make_bert(
    folder: Path,
    *,
    layers: int = 4,
    hidden: int = 32,
    vocabulary: list[str] = VOCABULARY,
    labels: list[str] | None = None,
    positions: int = 64,
    seed: int = 0,
    base: bool = True,
    masked_lm: bool = False,
) -> Path:
    """A random BERT with a real WordPiece tokenizer, saved as a Hugging Face folder.

    `base` saves an encoder without a head, or with that of a masked-LM; else a classifier with `labels` (or one score).
    """
    import torch
    from tokenizers import BertWordPieceTokenizer
    from transformers import BertConfig, BertForMaskedLM, BertForSequenceClassification, BertModel, BertTokenizerFast

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(vocabulary), encoding="utf-8")
    BertWordPieceTokenizer(str(folder / "vocab.txt"), lowercase=True).save(str(folder / "tokenizer.json"))
    BertTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), model_max_length=512).save_pretrained(folder)
    config = BertConfig(
        vocab_size=len(vocabulary), hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=2,
        intermediate_size=2 * hidden, max_position_embeddings=positions,
    )  # fmt: skip
    torch.manual_seed(seed)
    if base:
        model = (BertForMaskedLM if masked_lm else BertModel)(config)
    else:
        config.num_labels = len(labels) if labels else 1
        if labels:
            config.id2label = dict(enumerate(labels))
            config.label2id = {label: i for i, label in enumerate(labels)}
        model = BertForSequenceClassification(config)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pretrained-like encoder: 4 layers, hidden 32, 64 positions, no head."""
    return make_bert(tmp_path_factory.mktemp("models") / "tiny-bert")


def make_custom_files(folder: Path) -> tuple[Path, Path]:
    """A small two-class csv task (train: 203 rows, so the last batch of 16 is ragged; dev: 61 rows)."""
    import random

    draw = random.Random(0)
    paths = []
    for name, rows in (("train.csv", 203), ("dev.csv", 61)):
        lines = ["text,label"]
        for _ in range(rows):
            good = draw.random() < 0.5
            telling = draw.choice(["good", "great", "happy"] if good else ["bad", "poor", "sad"])
            words = [*draw.choices(WORDS, k=draw.randint(3, 30)), telling]
            draw.shuffle(words)
            lines.append(f"{' '.join(words)},{'positive' if good else 'negative'}")
        (folder / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
        paths.append(folder / name)
    return paths[0], paths[1]


@pytest.fixture(scope="session")
def custom_files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The small two-class task."""
    return make_custom_files(tmp_path_factory.mktemp("custom"))


@pytest.fixture(scope="session")
def setting(tiny_bert: Path, custom_files: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Setting:
    """The small task with a teacher and what its students are cut from."""
    from small_run import Setting, make_teacher

    return Setting(*custom_files, make_teacher(tmp_path_factory.mktemp("teacher")), tiny_bert)


@dataclass
class Finished:
    """How a command ended."""

    code: int
    out: str
    err: str


@pytest.fixture(scope="session")
def kdbert() -> Callable[..., Finished]:
    """Run the command inside this process (fast; the real entry point with the real argument parsing)."""
    import typer.main

    # The flags of all commands are made anew for every call, which takes longer than most refusals.
    typer.main.get_command = cache(typer.main.get_command)  # type: ignore[assignment]

    def run(*words: object) -> Finished:
        from kdbert.cli import main

        out, err = io.StringIO(), io.StringIO()
        before = sys.argv
        sys.argv = ["kdbert", *map(str, words)]
        root = logging.getLogger()
        handlers = root.handlers[:]
        root.handlers[:] = []  # let the command set up logging to the stderr that is captured here
        code = 0
        try:
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                main()
        except SystemExit as end:
            code = int(end.code or 0)
        finally:
            sys.argv = before
            root.handlers[:] = handlers
        return Finished(code, out.getvalue(), err.getvalue())

    return run


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--long` runs the long tests, and nothing else."""
    parser.addoption("--long", action="store_true", help="run the tests marked long, and no others")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Long tests only where they are asked for; files with slow tests first, so that no process is left alone with one
    at the end.
    """
    items[:] = [item for item in items if bool(item.get_closest_marker("long")) == config.getoption("long")]
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: (item.path not in slow, item.path.name != "test_quickstart_run.py"))


def often(cases: Iterable[Any], chosen: Callable[[Any], bool]) -> list[Any]:
    """Cases to parametrize a test with: those that are not chosen are long, so that `scripts/test-long` runs them."""
    return [
        case if chosen(case) else pytest.param(*case if isinstance(case, tuple) else (case,), marks=pytest.mark.long)
        for case in cases
    ]


@pytest.fixture(autouse=True)
def without_plugins() -> Iterator[None]:
    """Each test starts without the plug-ins of others, as each call of the command does."""
    yield
    if methods := sys.modules.get("kdbert.methods"):
        methods.plugins.clear()


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    """Set torch's threads for one test."""
    import torch

    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture
def kdbert_process() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run the command in a process of its own."""

    def run(*words: object, timeout: float = 300, **options: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "kdbert", *map(str, words)],
            capture_output=True, text=True, timeout=timeout, **options,
        )  # fmt: skip

    return run
