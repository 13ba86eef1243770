"""The style of the published scripts: padded to the longest length, float32, live teacher, loops in the losses."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from common import Contest
from loops import batch_global, batch_relation, loop_ics, loop_inter, loop_intra


def watched(model: Any, into: list[torch.Tensor]) -> None:
    """Put queries, keys and values of the last layer into a list at every forward pass."""
    own = model.base_model.encoder.layer[-1].attention.self
    for part in (own.query, own.key, own.value):
        part.register_forward_hook(lambda module, given, found: into.append(found))


def main() -> None:
    """Train and evaluate once."""
    contest = Contest()
    job = contest.job
    teacher, student = contest.model("teacher").eval(), contest.model("student").train()
    method, layers = job["method"], (teacher.config.num_hidden_layers, student.config.num_hidden_layers)
    trained, memory, own = list(student.parameters()), torch.zeros(0), torch.zeros(0)
    if method == "cka-ilg":
        from safetensors.torch import load_file

        memory = load_file(job["memory"], device=str(contest.device))["centroids"]
        memory = F.pad(memory, (0, 0, 0, job["max_length"] - memory.shape[1])).flatten(1)
        own = torch.nn.Parameter(torch.randn(memory.shape, device=contest.device))
        trained.append(own)
    states: list[list[torch.Tensor]] = [[], []]
    if method == "minilm":
        for model, into in zip((student, teacher), states, strict=True):
            watched(model, into)
    contest.lap("load")
    train = contest.tensors(contest.encode("train", padded=True))
    dev = contest.tensors(contest.encode("dev", padded=True))
    contest.lap("tokenise")
    optimizer = torch.optim.AdamW(trained, lr=job["learning_rate"], weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: max(0.0, 1 - step / contest.planned))
    step, hidden = 0, method in ("ics", "cka-ilg")
    while step < contest.steps:
        order = torch.randperm(len(train["labels"]))
        for rows in order.split(job["batch_size"]):
            batch = {name: values[rows] for name, values in train.items()}
            labels = batch.pop("labels")
            with torch.no_grad():
                taught = teacher(**batch, output_hidden_states=hidden)
            seen = student(**batch, output_hidden_states=hidden)
            loss = contest.kd_loss(seen.logits, taught.logits, labels)
            if method == "ics":
                loss = loss + 0.01 * len(rows) * loop_ics(seen.hidden_states[-1], taught.hidden_states[-1], labels, 3)
            elif method == "cka-ilg":
                ours, theirs = seen.hidden_states[layers[1] - 1], taught.hidden_states[layers[0] - 1]
                local = 0.5 * (loop_intra(ours, theirs) + loop_inter(ours, theirs)) / 2
                loss = loss + 0.1 * (0.5 * batch_global(ours, theirs, own, memory, 0.5) + 0.5 * local)
            elif method == "minilm":  # 48 relation heads, or as many of fewer units as there can be
                width = states[0][0].shape[-1]
                heads = next(heads for heads in range(48, 0, -1) if width % heads == 0)
                parts = [batch_relation(*one, heads) for one in zip(*states, strict=True)]
                loss = loss + sum(parts, torch.zeros(())) / len(parts)
                for one in states:
                    one.clear()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            step += 1
            if step == contest.steps:
                break
    contest.lap("train")
    for one in states:
        one.clear()
    logits = contest.predict(student, dev)
    contest.lap("evaluate")
    contest.finish(step, logits)


if __name__ == "__main__":
    main()
