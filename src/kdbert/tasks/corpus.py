"""Plain text whose hidden pieces are predicted: masked language modelling."""

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


def corpus_task(train: str) -> TaskSpec:
    """A task of a person's own text, a file or folder, which `kdbert.data.corpus` reads: it may be larger than RAM."""
    return TaskSpec(
        name=CORPUS,
        title=f"plain text ({Path(train).name})",
        kind="masked_lm",
        splits={"train": Split((), _never, labelled=False), "dev": Split((), _never, labelled=False)},
        metrics=(*METRICS, *NEW),
        max_length=512,
        defaults=DEFAULTS,
        source=train,
    )


def _never(path: Path) -> Iterator[RawExample]:
    raise TypeError("a corpus is read by kdbert.data.corpus")
