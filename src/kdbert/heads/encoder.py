"""Plain text that is read as it is: an encoder without a head learns to read as its teacher does."""

from __future__ import annotations

from typing import Any

import torch

from kdbert.heads.plain_text import PlainText


class Encoder(PlainText):
    """Nothing is predicted. What is scored is the method's own loss of each text, which takes the teacher.

    So the outcome of a text is made by `Method.loss_of_texts`: the loss as a sum, and what that is divided by.
    """

    kind = "encoder"
    makes = "general encoder of texts, without a head,"
    auto_class = "AutoModel"
    saved_as = ("Model",)
    pipeline = "feature-extraction"
    numbers_of = ("loss", "weight")
    score_note = (
        "It answers nothing yet: fine-tune it, for example with `kdbert distill --task TASK --student RUN`. The score "
        "is the loss by which it learned from its teacher, on texts that it did not learn from; lower is better. A "
        "pooler, if there is one, is what the model started with: nothing taught it."
    )

    @property
    def answers(self) -> str:
        return "none, it is read as its teacher reads it"

    def outcome(self, outputs: Any, batch: Any) -> torch.Tensor:
        raise TypeError("what an encoder has learned is measured against its teacher: Method.loss_of_texts")
