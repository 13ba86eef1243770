"""Plain text: hidden pieces of it are predicted (masked language modelling), or it is read as it is (`encoder`)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from kdbert.data.examples import RawExample
from kdbert.tasks.spec import Split, TaskSpec

CORPUS = "corpus"
METRICS = ("masked_accuracy", "mlm_loss", "pseudo_perplexity")
NEW = ("new_masked_accuracy", "new_mlm_loss", "new_pseudo_perplexity")
# of VE-KD's scripts
DEFAULTS = {
    "train.learning_rate": 5e-4, "train.warmup": 0.05, "train.adam_beta2": 0.98, "train.adam_epsilon": 1e-6,
    "train.max_grad_norm": 5.0,
}  # fmt: skip
# of a first trial of general distillation
READ_DEFAULTS = {
    "train.learning_rate": 5e-4, "train.warmup": 0.05, "train.dropout": 0.0, "train.bucketing": True,
    "train.batch_tokens": 4096,
}  # fmt: skip


def corpus_task(train: str, kind: str | None = None) -> TaskSpec:
    """A task of a person's own text, a file or folder, which `kdbert.data.corpus` reads: it may be larger than RAM.

    Args:
        kind: `encoder` where nothing is hidden.
    """
    read = kind == "encoder"
    return TaskSpec(
        name=CORPUS,
        title=f"plain text ({Path(train).name})",
        kind="encoder" if read else "masked_lm",
        splits={"train": Split((), _never, labelled=False), "dev": Split((), _never, labelled=False)},
        metrics=("distillation_loss",) if read else (*METRICS, *NEW),
        max_length=128 if read else 512,
        defaults=READ_DEFAULTS if read else DEFAULTS,
        source=train,
    )


def _never(path: Path) -> Iterator[RawExample]:
    raise TypeError("a corpus is read by kdbert.data.corpus")
