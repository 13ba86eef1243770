"""Scores of documents are those of LinkBERT's script for HoC (docs/quirks.md, 5.1)."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from golden_cases import Case, Values, golden

from kdbert.metrics import score


@golden("blurb_metrics")
def test_documents_are_scored_as_the_original_does(case: Case) -> Iterator[Values]:
    groups = np.unique(case.inputs["doc"].numpy(), return_inverse=True)[1]
    names = {"F1": "document_f1", "precision": "document_precision", "recall": "document_recall"}
    found = score(list(names.values()), case.inputs["preds"].numpy() == 1, case.inputs["labels"].numpy() == 1, groups)
    yield {name: torch.tensor(found[ours], dtype=torch.float64) for name, ours in names.items()}
