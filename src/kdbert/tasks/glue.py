"""GLUE (Wang et al. 2018, https://gluebenchmark.com) from its official TSV files.

Columns and labels are those of the transformers 2.6 processors, which the published distillation codes use (golden case
`glue_processors`).
"""

from __future__ import annotations

from functools import partial
from typing import Any

from kdbert.tasks.readers import Columns, read_tsv
from kdbert.tasks.spec import Split, TaskSpec, counts

ENTAILMENT = ("entailment", "not_entailment")
ZERO_ONE = ("0", "1")
NLI = ("contradiction", "entailment", "neutral")


def _split(file: str, columns: Columns) -> Split:
    return Split((file,), partial(read_tsv, columns=columns), labelled=columns.label is not None)


def _glue(name: str, folder: str, train: Columns, test: Columns, **spec: Any) -> TaskSpec:
    """A GLUE task with train, dev and (unlabelled) test in files of these names."""
    spec.setdefault("splits", {
        "train": _split("train.tsv", train),
        "dev": _split("dev.tsv", train),
        "test": _split("test.tsv", test),
    })  # fmt: skip
    spec.setdefault("submission", {"test": f"{folder}.tsv"})
    return TaskSpec(
        name=name,
        folder=folder,
        pair=test.b is not None,
        data_dir="glue_data",
        source="https://gluebenchmark.com/tasks",
        licence="GLUE: each task keeps its authors' terms",
        **spec,
    )


_MNLI = Columns(a=8, b=9, label=-1, id=0)
_MNLI_TEST = Columns(a=8, b=9, id=0)
_PAIR = Columns(a=1, b=2, label=-1, id=0)
_PAIR_TEST = Columns(a=1, b=2, id=0)

TASKS = (
    _glue(
        "cola", "CoLA",
        train=Columns(a=3, label=1, header=False), test=Columns(a=1, id=0),
        title="Corpus of Linguistic Acceptability", kind="single_label",
        labels=ZERO_ONE, aliases={"0": ("unacceptable",), "1": ("acceptable",)},
        metrics=("matthews_correlation", "accuracy"), rows=counts(8551, 1043, 1063),
    ),
    _glue(
        "sst2", "SST-2",
        train=Columns(a=0, label=1), test=Columns(a=1, id=0),
        title="Stanford Sentiment Treebank", kind="single_label",
        labels=ZERO_ONE, aliases={"0": ("negative",), "1": ("positive",)},
        metrics=("accuracy",), rows=counts(67349, 872, 1821),
    ),
    _glue(
        "mrpc", "MRPC",
        train=Columns(a=3, b=4, label=0), test=Columns(a=3, b=4, id=0),
        title="Microsoft Research Paraphrase Corpus", kind="single_label",
        labels=ZERO_ONE, aliases={"0": ("not_equivalent",), "1": ("equivalent",)},
        metrics=("accuracy_and_f1", "accuracy", "f1"), rows=counts(3668, 408, 1725),
    ),
    _glue(
        "stsb", "STS-B",
        train=Columns(a=7, b=8, label=-1, id=0), test=Columns(a=7, b=8, id=0),
        title="Semantic Textual Similarity Benchmark", kind="regression",
        metrics=("pearson_and_spearman", "pearson", "spearman"), rows=counts(5749, 1500, 1379),
    ),
    _glue(
        "qqp", "QQP",
        train=Columns(a=3, b=4, label=5, id=0, skip_malformed=True),
        test=Columns(a=1, b=2, id=0, skip_malformed=True),
        title="Quora Question Pairs", kind="single_label",
        labels=ZERO_ONE, aliases={"0": ("not_duplicate",), "1": ("duplicate",)},
        metrics=("accuracy_and_f1", "accuracy", "f1"), rows=counts(363846, 40430, 390965),
    ),
    _glue(
        "mnli", "MNLI", train=_MNLI, test=_MNLI_TEST,
        title="Multi-Genre Natural Language Inference", kind="single_label",
        labels=NLI, metrics=("accuracy",),
        splits={
            "train": _split("train.tsv", _MNLI),
            "dev_matched": _split("dev_matched.tsv", _MNLI),
            "dev_mismatched": _split("dev_mismatched.tsv", _MNLI),
            "test_matched": _split("test_matched.tsv", _MNLI_TEST),
            "test_mismatched": _split("test_mismatched.tsv", _MNLI_TEST),
        },
        rows={
            "train": 392702, "dev_matched": 9815, "dev_mismatched": 9832, "test_matched": 9796, "test_mismatched": 9847
        },
        groups={"dev": ("dev_matched", "dev_mismatched"), "test": ("test_matched", "test_mismatched")},
        submission={"test_matched": "MNLI-m.tsv", "test_mismatched": "MNLI-mm.tsv"},
    ),
    _glue(
        "qnli", "QNLI", train=_PAIR, test=_PAIR_TEST,
        title="Question NLI", kind="single_label",
        labels=ENTAILMENT, metrics=("accuracy",), rows=counts(104743, 5463, 5463),
    ),
    _glue(
        "rte", "RTE", train=_PAIR, test=_PAIR_TEST,
        title="Recognizing Textual Entailment", kind="single_label",
        labels=ENTAILMENT, metrics=("accuracy",), rows=counts(2490, 277, 3000),
    ),
    _glue(
        "wnli", "WNLI", train=_PAIR, test=_PAIR_TEST,
        title="Winograd NLI", kind="single_label",
        labels=ZERO_ONE, aliases={"0": ("not_entailment",), "1": ("entailment",)},
        metrics=("accuracy",), rows=counts(635, 71, 146),
    ),
    _glue(
        "ax", "diagnostic", train=_PAIR_TEST, test=_PAIR_TEST,
        title="GLUE diagnostics (predicted with an MNLI model)", kind="single_label",
        labels=NLI, metrics=("matthews_correlation",), rows={"test": 1104},
        splits={"test": Split(("diagnostic.tsv", "AX/diagnostic.tsv"), partial(read_tsv, columns=_PAIR_TEST), False)},
        submission={"test": "AX.tsv"},
    ),
)  # fmt: skip
ALIASES = {"sst-2": "sst2", "sts-b": "stsb", "diagnostic": "ax", "mnli-m": "mnli"}
