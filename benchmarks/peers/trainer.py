"""Hugging Face Trainer with a KD `compute_loss`: stock (float32, padded), or with its best stock settings (`tuned`)."""

from __future__ import annotations

import tempfile
from typing import Any

import torch
from common import Contest
from transformers import DataCollatorWithPadding, PreTrainedTokenizerFast, Trainer, TrainingArguments


def trainer_of(
    contest: Contest, model: Any, train: list[dict[str, Any]], dev: Any, folder: str, kind: type[Trainer] = Trainer
) -> Trainer:
    """A Trainer of a job over tokenised rows: stock, or with its best stock settings."""
    job, best = contest.job, {}
    if job["contestant"] == "trainer-tuned":
        best = {"bf16": job["half"], "train_sampling_strategy": "group_by_length"}
        for row in train:
            row["length"] = len(row["input_ids"])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=f"{job['student']}/tokenizer.json", pad_token="[PAD]", unk_token="[UNK]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )  # fmt: skip
    return kind(
        model=model,
        args=TrainingArguments(
            output_dir=folder, num_train_epochs=job["epochs"], max_steps=job["steps"] or -1,
            per_device_train_batch_size=job["batch_size"], per_device_eval_batch_size=64,
            learning_rate=job["learning_rate"], weight_decay=0.0, lr_scheduler_type="linear", save_strategy="no",
            report_to=[], disable_tqdm=True, seed=job["seed"], use_cpu=contest.device.type == "cpu",
            logging_steps=20, label_names=["labels"], **best,
        ),
        train_dataset=train, eval_dataset=dev, data_collator=DataCollatorWithPadding(tokenizer),
    )  # fmt: skip


def main() -> None:
    """Train and evaluate once."""
    contest = Contest()
    job = contest.job
    tuned = job["contestant"] == "trainer-tuned"
    teacher, student = contest.model("teacher").eval(), contest.model("student")
    contest.lap("load")
    train, dev = contest.encode("train", padded=not tuned), contest.encode("dev", padded=not tuned)
    contest.lap("tokenise")

    class KDTrainer(Trainer):
        """The usual recipe: a live teacher inside compute_loss."""

        def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **unused: Any) -> Any:
            labels = inputs.pop("labels")
            outputs = model(**inputs)
            if not model.training:
                loss = torch.zeros(())
            else:
                # The library casts the model that it was given, not a teacher inside compute_loss.
                with (
                    torch.no_grad(),
                    torch.autocast(contest.device.type, torch.bfloat16, enabled=tuned and job["half"]),
                ):
                    taught = teacher(**inputs).logits
                loss = contest.kd_loss(outputs.logits.float(), taught.float(), labels)
            return (loss, outputs) if return_outputs else loss

    with tempfile.TemporaryDirectory() as folder:
        trainer = trainer_of(contest, student, train, dev, folder, KDTrainer)
        trainer.train()
        contest.lap("train")
        predicted = trainer.predict(dev)
    contest.lap("evaluate")
    contest.finish(trainer.state.global_step, torch.tensor(predicted.predictions))


if __name__ == "__main__":
    main()
