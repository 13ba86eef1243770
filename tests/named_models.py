"""A folder with the real data, the recipes, and small models under the names that recipes and documents use."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

from conftest import ROOT, VOCABULARY, make_bert
from kdbert.expansion import expand_vocab
from kdbert.tasks import get_task

TWELVE = ("bert-base-uncased", "GroNLP/hateBERT", "michiyasunaga/BioLinkBERT-base")
LAYERS = {
    "huawei-noah/TinyBERT_General_6L_768D": 6,
    "distilbert-base-uncased": 6,
    "google/bert_uncased_L-6_H-768_A-12": 6,
    "prajjwal1/bert-tiny": 2,
}
# Classifiers, and what they were fine-tuned on.
TRAINED = {
    "transformersbook/bert-base-uncased-finetuned-clinc": "clinc150",
    "TEACHER": "rte",
    "HATE_TEACHER": "hateval",
    "MASSIVE_TEACHER": "massive",
    "MASSIVE_OTHER": "massive",
    "EMOTION_TEACHER": "emotion",
    "EMOTION_OTHER": "emotion",
    "SST2_TEACHER": "sst2",
    "CLINC_STUDENT": "clinc150",
}


def make_place(folder: Path, data_dir: Path) -> Path:
    """Fill the folder."""
    (folder / "data").symlink_to(data_dir.resolve())
    (folder / "glue_data").symlink_to((data_dir / "glue").resolve())
    (folder / "configs").symlink_to(ROOT / "configs")
    for name, layers in {**dict.fromkeys(TWELVE, 12), **LAYERS}.items():
        make_bert(folder / name, layers=layers, positions=512, masked_lm=True)
    for name, task in TRAINED.items():
        layers = 1 if name == "CLINC_STUDENT" else 12
        make_bert(folder / name, layers=layers, positions=512, base=False, labels=list(get_task(task).labels))
    make_vekd(folder, data_dir)
    return folder


def make_vekd(folder: Path, data_dir: Path) -> None:
    """VE-KD's repository, as far as its command names it, and the tokenizer that its list of pieces gives."""
    with gzip.open(data_dir / "corpora" / "vekd_sample.txt.gz", "rt", encoding="utf-8") as sample:
        lines = sample.read().splitlines()[:60]
    configurations = folder / "distillation" / "training_configs"
    configurations.mkdir(parents=True)
    (folder / "distillation" / "sample.txt").write_text("\n".join(lines), encoding="utf-8")
    (folder / "distillation" / "vocab.txt").write_text("\n".join([*VOCABULARY, "patient", "##itis"]), encoding="utf-8")
    small = {"model_type": "distilbert", "dim": 32, "n_layers": 6, "n_heads": 2, "hidden_dim": 64, "vocab_size": 30522}
    (configurations / "distilbert-base-uncased.json").write_text(json.dumps(small), encoding="utf-8")
    pieces = str(folder / "distillation" / "vocab.txt")
    expand_vocab(str(folder / "bert-base-uncased"), str(folder / "vocab"), pieces=pieces)
