"""What is saved is what was scored: a run ends by asking its saved model the way that anybody else will."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from kdbert.data.batches import collate
from kdbert.data.encode import Encoded
from kdbert.data.examples import Examples
from kdbert.errors import KdbertError, few
from kdbert.methods import MaskedLMOutputs, Outputs
from kdbert.models.load import NO_CODE, auto_class
from kdbert.runs.answers import Answers
from kdbert.training.forward import run_model
from kdbert.training.precision import Precision

ALLOWED, ALLOWED_HALF = 1e-4, 5e-2  # of a logit, times the largest logit where that is above 1
TRAINED, REPORTED = "the trained model in float32", "what the run reports"


@torch.no_grad()
def check_saved(folder: Path, model: Any, given: Answers, data: Encoded, precision: Precision, max_length: int) -> None:
    """Load a saved model with the library alone (float32, eager attention) and compare its logits (of an encoder: its
    last hidden states).

    Of the shortest and the longest example of a split, in one padded batch (alone, where padding changes a model's
    outputs): with the trained model's own way in float32, and with what the run reports.

    Args:
        folder: the saved model and tokenizer. model: the trained one.
        given: the run's answers to the split, computed in `precision`; those to plain text are not compared.
        data: the split as the model reads it.

    Raises:
        KdbertError: they differ, or are not finite.
    """
    from transformers import AutoTokenizer

    examples, reported = given.part if isinstance(given.part, Examples) else None, given.logits
    rows = np.unique([int(data.lengths.argmin()), int(data.lengths.argmax())])
    device = next(model.parameters()).device
    batch = collate(data, rows)
    training = model.training
    last = model.config.num_hidden_layers
    encoder = given.spec.kind == "encoder"
    seen = run_model(model.eval(), batch.to(device), "fp32", (last,) if encoder else ())
    model.train(training)
    library = auto_class(given.spec.head).from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", **NO_CODE
    )
    tokenizer = AutoTokenizer.from_pretrained(folder, **NO_CODE)
    together = model.way.padding and tokenizer.pad_token_id is not None
    groups = [np.arange(len(rows))] if together else np.split(np.arange(len(rows)), len(rows))
    largest = max(1.0, float(np.abs(reported[np.isfinite(reported)]).max(initial=0))) if examples is not None else 1.0
    names = [examples.ids[row] if examples is not None else str(row) for row in rows.tolist()]

    def compare(found: torch.Tensor, expected: torch.Tensor, allowed: float, what: str) -> None:
        difference = float((found - expected).abs().max()) if found.numel() else 0.0
        if not difference <= allowed:
            cure = f"its model ({model.way.model_type}) should not be trusted: please report this"
            if what == REPORTED and precision != "fp32":
                cure = f"{precision} rounds too much here: train it again with --precision fp32"
            raise KdbertError(
                f"the saved model, loaded by transformers alone, disagrees with {what}: a logit of examples "
                f"{few(names)} differs by {difference:.2g} (at most {allowed:.2g}); the run is not finished; {cure}"
            )

    for group in groups:
        if examples is not None:
            inputs = _encoded(tokenizer, examples, rows[group], max_length)
        else:
            width = int(data.lengths[rows[group]].max())
            inputs = {
                "input_ids": batch.input_ids[group, :width],
                "attention_mask": batch.attention_mask[group, :width],
            }
        out = library(**{name: inputs[name] for name in model.way.inputs if name in inputs})
        theirs = out.last_hidden_state if encoder else out.logits
        for place, one in enumerate(group):
            row, real = int(rows[one]), inputs["attention_mask"][place].bool()
            if inputs["input_ids"][place][real].tolist() != batch.input_ids[one, : data.lengths[row]].tolist():
                raise KdbertError(
                    f"the saved tokenizer reads example {names[one]} differently than the run did; the run is not "
                    "finished"
                )
            answer = theirs[place]
            if encoder:
                mine = seen.hidden[last][one].cpu()[: int(real.sum())]
                compare(mine, answer[real], ALLOWED * max(1.0, float(mine.abs().max())), TRAINED)
                continue
            if examples is None:
                assert isinstance(seen, MaskedLMOutputs)
                positions = int(one) * batch.input_ids.shape[1] + torch.arange(int(real.sum()), device=device)
                mine = seen.head(positions).cpu()
                answer = answer[real][:, : mine.shape[1]]
                compare(mine, answer, ALLOWED * max(1.0, float(mine.abs().max())), TRAINED)
                continue
            assert isinstance(seen, Outputs)
            mine, kept = seen.logits[one].cpu(), reported[row : row + 1]
            if data.word_tokens is not None:
                words = slice(int(examples.word_offsets[row]), int(examples.word_offsets[row + 1]))
                tokens = data.word_tokens[words]
                mine, answer, kept = mine[: int(real.sum())], answer[real], reported[words][tokens >= 0]
            compare(mine, answer, ALLOWED * largest, TRAINED)
            if data.word_tokens is not None:
                answer = answer[torch.from_numpy(tokens[tokens >= 0] - data.offsets[row])]
            allowed = (ALLOWED if precision == "fp32" else ALLOWED_HALF) * largest
            compare(torch.from_numpy(np.array(kept)).view_as(answer), answer, allowed, REPORTED)


def _encoded(tokenizer: Any, examples: Examples, rows: np.ndarray, max_length: int) -> dict[str, torch.Tensor]:
    """Some examples as the saved tokenizer reads them, padded."""
    words = examples.words
    first = [examples.text_a[row] if words is None else list(words[row]) for row in rows.tolist()]
    second = None if examples.text_b is None else [examples.text_b[row] for row in rows.tolist()]
    found: dict[str, torch.Tensor] = tokenizer(
        first, second, padding=len(rows) > 1, padding_side="right", truncation="longest_first", max_length=max_length,
        return_tensors="pt", return_attention_mask=True, is_split_into_words=words is not None,
    )  # fmt: skip
    return found
