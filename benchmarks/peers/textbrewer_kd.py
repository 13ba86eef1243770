"""TextBrewer's GeneralDistiller with its KD loss on logits and the hard loss, in TextBrewer's own environment."""

from __future__ import annotations

import tempfile
from typing import Any

import torch
from common import Contest
from textbrewer import DistillationConfig, GeneralDistiller, TrainingConfig
from torch.utils.data import DataLoader


def main() -> None:
    """Train and evaluate once."""
    contest = Contest()
    job = contest.job
    teacher, student = contest.model("teacher").eval(), contest.model("student")
    contest.lap("load")
    train, dev = contest.encode("train", padded=True), contest.tensors(contest.encode("dev", padded=True))
    contest.lap("tokenise")
    if job["num_labels"] == 1:
        for row in train:
            row["labels"] = float(row["labels"])

    def adaptor(batch: Any, outputs: Any) -> dict[str, Any]:
        return {"logits": outputs.logits, "losses": outputs.loss}

    optimizer = torch.optim.AdamW(student.parameters(), lr=job["learning_rate"], weight_decay=0.0)
    with tempfile.TemporaryDirectory() as folder:
        distiller = GeneralDistiller(
            TrainingConfig(
                output_dir=folder, log_dir=None, device=contest.device, ckpt_steps=10**9, ckpt_epoch_frequency=10**9
            ),
            DistillationConfig(
                temperature=job["temperature"], kd_loss_type="mse" if job["num_labels"] == 1 else "ce",
                hard_label_weight=job["alpha"], kd_loss_weight=1 - job["alpha"],
            ),
            teacher, student, adaptor, adaptor,
        )  # fmt: skip
        loader = DataLoader(train, batch_size=job["batch_size"], shuffle=True, collate_fn=contest.tensors)
        schedule = torch.optim.lr_scheduler.LambdaLR
        rates = {"lr_lambda": lambda step: max(0.0, 1 - step / contest.planned)}
        with distiller:
            distiller.train(
                optimizer, loader, num_epochs=job["epochs"], num_steps=job["steps"], scheduler_class=schedule,
                scheduler_args=rates, callback=None, max_grad_norm=1.0,
            )  # fmt: skip
        contest.lap("train")
    logits = contest.predict(student, dev)
    contest.lap("evaluate")
    contest.finish(contest.steps, logits)


if __name__ == "__main__":
    main()
