"""A folder with the real data, the recipes, and small models under the names that recipes and documents use."""

from __future__ import annotations

from pathlib import Path

from conftest import ROOT, make_bert
from kdbert.tasks import get_task

TWELVE = ("bert-base-uncased", "GroNLP/hateBERT", "michiyasunaga/BioLinkBERT-base")
LAYERS = {"huawei-noah/TinyBERT_General_6L_768D": 6, "distilbert-base-uncased": 6, "prajjwal1/bert-tiny": 2}
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
        make_bert(folder / name, layers=layers, positions=512)
    for name, task in TRAINED.items():
        layers = 1 if name == "CLINC_STUDENT" else 12
        make_bert(folder / name, layers=layers, positions=512, base=False, labels=list(get_task(task).labels))
    return folder
