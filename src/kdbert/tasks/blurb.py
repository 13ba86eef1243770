"""BLURB (Gu et al. 2021, https://microsoft.github.io/BLURB) in the files of LinkBERT and VE-KD.

The metrics are those of LinkBERT's scripts, whose hyper-parameters are in configs/blurb. BIOSSES is left out, as VE-KD
does not evaluate it.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from kdbert.tasks.readers import Reader, read_columns, read_multi_label, read_tagged
from kdbert.tasks.spec import Split, TaskSpec, counts

RELATION = ("relation_f1", "relation_precision", "relation_recall")
ENTITY = ("entity_f1", "entity_precision", "entity_recall")
SOURCE = "https://github.com/michiyasunaga/LinkBERT"


def _blurb(name: str, folder: str, read: Reader, rows: tuple[int, int, int], **spec: Any) -> TaskSpec:
    spec.setdefault("max_length", 512)
    return TaskSpec(
        name=name,
        splits={split: Split((f"{split}.json",), read) for split in ("train", "dev", "test")},
        folder=folder,
        rows=counts(*rows),
        licence="each corpus keeps its own terms",
        source=SOURCE,
        **spec,
    )


def _pairs(name: str, title: str, labels: tuple[str, ...], rows: tuple[int, int, int]) -> TaskSpec:
    return _blurb(
        name, f"blurb/seqcls/{name}_hf", partial(read_columns, text=("sentence1", "sentence2")), rows,
        title=title, kind="single_label", labels=labels, metrics=("accuracy", "macro_f1"), pair=True,
    )  # fmt: skip


def _relations(name: str, folder: str, title: str, labels: tuple[str, ...], rows: tuple[int, int, int]) -> TaskSpec:
    return _blurb(
        name, f"blurb/seqcls/{folder}_hf", partial(read_columns, text=("sentence",)), rows,
        title=title, kind="single_label", labels=labels, metrics=RELATION, max_length=256,
    )  # fmt: skip


def _entities(name: str, folder: str, title: str, rows: tuple[int, int, int]) -> TaskSpec:
    return _blurb(
        name, f"blurb/tokcls/{folder}_hf", read_tagged, rows,
        title=title, kind="token", labels=("B", "I", "O"), metrics=ENTITY,
    )  # fmt: skip


HALLMARKS = (
    "activating invasion and metastasis", "avoiding immune destruction", "cellular energetics",
    "enabling replicative immortality", "evading growth suppressors", "genomic instability and mutation",
    "inducing angiogenesis", "resisting cell death", "sustaining proliferative signaling",
    "tumor promoting inflammation",
)  # fmt: skip

TASKS = (
    _pairs("pubmedqa", "PubMedQA: does the abstract answer the question?", ("maybe", "no", "yes"), (450, 50, 500)),
    _pairs("bioasq", "BioASQ 7b: yes or no questions", ("no", "yes"), (670, 75, 140)),
    _blurb(
        "hoc", "blurb/seqcls/HoC_hf", partial(read_multi_label, text="sentence", labels=HALLMARKS), (12119, 1798, 3547),
        title="Hallmarks of Cancer: which hallmarks a sentence speaks of, scored by abstract",
        kind="multi_label", labels=HALLMARKS, metrics=("document_f1", "document_precision", "document_recall"),
        document=lambda name: name.partition("_")[0],
    ),
    _relations(
        "chemprot", "chemprot", "ChemProt: relations of chemicals and proteins",
        ("0", "CPR:3", "CPR:4", "CPR:5", "CPR:6", "CPR:9"), (18035, 11268, 15745),
    ),
    _relations(
        "ddi", "DDI", "DDI 2013: interactions of drugs",
        ("0", "DDI-advise", "DDI-effect", "DDI-int", "DDI-mechanism"), (25296, 2496, 5716),
    ),
    _relations("gad", "GAD", "GAD: associations of genes and diseases", ("0", "1"), (4261, 535, 534)),
    _entities("bc2gm", "BC2GM", "BioCreative II: genes", (12574, 2519, 5038)),
    _entities("bc5cdr-chem", "BC5CDR-chem", "BioCreative V: chemicals", (4560, 4581, 4797)),
    _entities("bc5cdr-disease", "BC5CDR-disease", "BioCreative V: diseases", (4560, 4581, 4797)),
    _entities("ncbi-disease", "NCBI-disease", "NCBI: diseases", (5424, 923, 940)),
    _entities("jnlpba", "JNLPBA", "JNLPBA: genes, proteins, cells", (0, 1739, 3856)),
    _blurb(
        "ebm-pico", "blurb/tokcls/ebmnlp_hf", read_tagged, (0, 0, 2076),
        title="EBM PICO: participants, interventions and outcomes, word by word",
        kind="token", labels=("B-INT", "B-OUT", "B-PAR", "O"),
        metrics=("macro_token_f1", "macro_token_precision", "macro_token_recall"),
    ),
)  # fmt: skip
# The BLURB score is the mean over these groups; a task counts with its first metric.
GROUPS = {
    "named entities": ("bc5cdr-chem", "bc5cdr-disease", "ncbi-disease", "bc2gm", "jnlpba"),
    "PICO": ("ebm-pico",),
    "relations": ("chemprot", "ddi", "gad"),
    "document classification": ("hoc",),
    "question answering": ("pubmedqa", "bioasq"),
}
ALIASES = {"bc5cdr-chemical": "bc5cdr-chem", "ebmnlp": "ebm-pico", "ncbi": "ncbi-disease"}
