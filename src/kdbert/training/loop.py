"""The training loop: one for fine-tuning and distillation.

    for each epoch:                        order = f(seed, epoch)
        for each global batch:
            for each micro-batch:          student forward, teacher outputs, method -> LossTerms, backward
            clip, step, schedule
            log, save, stop if asked or diverged
        evaluate on dev
        save; stop if dev is not better for `patience` epochs

The position in the data and every random draw are functions of (seed, step), so weights, optimiser,
schedule and two counters are the whole state: a run that is killed and continued ends with the same
weights as one that was not.
"""

from __future__ import annotations

import contextlib
import logging
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn
from tqdm import tqdm

from kdbert.data.batches import classes_of, epoch_batches, micro_batches
from kdbert.data.encode import Encoded
from kdbert.errors import Diverged, Interrupted, UserError, few
from kdbert.methods import LossTerms
from kdbert.models.fast.used_rows import training_used_rows
from kdbert.recipe.sections import TrainSection, warmup_steps
from kdbert.signals import StopRequest, stop_request
from kdbert.training.checkpoint import load_optimizer, newest_checkpoint, optimizer_tensors, save_checkpoint
from kdbert.training.forward import StudentWithMethod
from kdbert.training.loggers import MetricsLog
from kdbert.training.precision import LossScale
from kdbert.training.teacher import Teacher

log = logging.getLogger("kdbert")
# Raised whenever the order of the data or the random draws change: an older run is then not continued.
STATE_VERSION = 3


@dataclass
class TrainResult:
    """What the loop reports: all steps, the examples of this session, and where its time went (s)."""

    steps: int
    examples: int
    train_seconds: float
    eval_seconds: float
    resumed_from: int
    best: dict[str, Any] = field(default_factory=dict)
    scaling: dict[str, float] = field(default_factory=dict)  # see `LossScale.numbers`


def train(
    options: TrainSection,
    *,
    seed: int,
    data: Encoded,
    module: StudentWithMethod,
    teachers: Sequence[Teacher],
    evaluate: Callable[[nn.Module], dict[str, float]],
    selection: str,
    folder: Path,
    accelerator: Accelerator,
    trackers: list[str],
    length: int | None = None,
    at_log: Callable[[int], Mapping[str, float]] = lambda step: {},
    ids: Sequence[str] | None = None,
) -> TrainResult:
    """Train `module.student` (and the method's own parameters) in place.

    Args:
        data: the tokenised training split.
        evaluate: model -> metrics on dev, by names such as `dev/accuracy`; called after every epoch.
        selection: the name among them by which `options.selection == "best"` chooses.
        folder: the run folder: metrics.jsonl, events and checkpoints go there; an interrupted run
            is continued from its newest valid checkpoint.
        length: pad every batch to so many tokens (None: to its longest example).
        at_log: further numbers to write at a logged step; it must not change the state of a random generator.
        ids: name of each example, for messages (None: its number).

    Raises:
        Diverged: a loss or the gradient is not finite.
        Interrupted: a signal asked to stop; the state is saved.
    """
    batches_per_epoch = -(-len(data) // options.batch_size)
    whole = options.epochs * batches_per_epoch
    total_steps = min(whole, options.max_steps or whole)
    wrapped = accelerator.prepare_model(module)
    optimizer = build_optimizer(module, options)
    scheduler = _schedule(options, optimizer, total_steps)
    scale = LossScale(module.precision, accelerator.device)
    checkpoints = folder / "checkpoints"

    step = epoch = done_in_epoch = 0
    metrics_length, metrics_digest = 0, None
    best: dict[str, Any] = {}
    best_weights: dict[str, torch.Tensor] = {}
    resumed = newest_checkpoint(checkpoints)
    if resumed is not None:
        state = resumed.state
        if state["version"] != STATE_VERSION:
            raise UserError(
                f"{resumed.path} was saved by another version of kdbert, which orders the data differently; finish the "
                "run with that version, or pass --overwrite to start afresh"
            )
        step, epoch, done_in_epoch = state["step"], state["epoch"], state["done_in_epoch"]
        metrics_length, metrics_digest, best = state["metrics_length"], state.get("metrics_digest"), state["best"]
        module.load_weights(resumed.tensors["weights"])
        load_optimizer(module, optimizer, resumed.tensors["optimizer"], resumed.path)
        scheduler.load_state_dict(state["scheduler"])
        scale.load(state.get("scale", {}))
        for group, rate in zip(optimizer.param_groups, scheduler.get_last_lr(), strict=True):
            group["lr"] = rate
        best_weights = resumed.tensors.get("best", {})
        log.info("continuing from step %d of %d (%s)", step, total_steps, resumed.path.name)
    elif (folder / "metrics.jsonl").exists():
        log.warning("%s has no checkpoint: it starts from the first step", folder)
    resumed_from = step

    record = MetricsLog(folder, accelerator, trackers=trackers, resume_at=(step, metrics_length, metrics_digest))
    watch = FiniteWatch(accelerator.device, ids)
    examples, train_seconds, eval_seconds = 0, 0.0, 0.0

    def save() -> None:
        watch.check(checkpoints)
        if accelerator.is_main_process:
            tensors = {"weights": module.weights(), "optimizer": optimizer_tensors(module, optimizer)}
            if best_weights:
                tensors["best"] = best_weights
            save_checkpoint(
                checkpoints,
                step,
                tensors,
                {
                    "version": STATE_VERSION,
                    "step": step,
                    "epoch": epoch,
                    "done_in_epoch": done_in_epoch,
                    "metrics_length": record.length(),
                    "metrics_digest": record.digest(),
                    "scheduler": scheduler.state_dict(),
                    "scale": scale.state(),
                    "best": best,
                },
            )
        accelerator.wait_for_everyone()

    bar = tqdm(
        total=total_steps,
        initial=step,
        desc="training",
        unit="step",
        disable=not (log.isEnabledFor(logging.INFO) and accelerator.is_main_process),
        mininterval=0.5 if sys.stderr.isatty() else 30.0,  # a log file needs no animation
    )
    with contextlib.ExitStack() as stack:
        stack.callback(record.close)
        stack.callback(bar.close)
        request = stack.enter_context(stop_request())
        # Two numbers of the state decide, so that a run continued after its last epoch stops there, too.
        while step < total_steps and not out_of_patience(options, epoch, best):
            module.train()
            order = epoch_order(options, data, seed, epoch)
            for rows in order[done_in_epoch:]:
                started = time.perf_counter()
                terms = forward_backward(
                    wrapped,
                    data,
                    rows,
                    teachers,
                    accelerator,
                    accumulation=options.accumulation,
                    seed=seed,
                    epoch=epoch,
                    step=step,
                    length=length,
                    scaler=scale.scaler,
                )
                scale.scaler.unscale_(optimizer)
                grad_norm = nn.utils.clip_grad_norm_(module.parameters(), options.max_grad_norm or float("inf"))
                rate = scheduler.get_last_lr()[0]
                skipped = scale.step(optimizer)
                scheduler.step()
                optimizer.zero_grad(set_to_none=True)
                step += 1
                done_in_epoch += 1
                examples += len(rows)
                watch.see(step, {**terms.terms, **({} if skipped else {"gradient": grad_norm})}, rows)
                logs = step % options.logging_steps == 0 or step in (1, total_steps)
                if logs or accelerator.device.type == "cpu":  # elsewhere reading a number waits for the device
                    watch.check(checkpoints)
                if logs:
                    values = logged_terms(terms, accelerator)
                    record.write(
                        step,
                        {
                            "epoch": epoch + done_in_epoch / len(order),
                            **values,
                            **({} if skipped else {"grad_norm": float(grad_norm)}),
                            "learning_rate": rate,
                            **scale.numbers(),
                            **at_log(step),
                        },
                    )
                    bar.set_postfix(loss=f"{values['loss']:.4f}", refresh=False)
                train_seconds += time.perf_counter() - started
                bar.update()
                if step == total_steps:
                    break
                if stop_agreed(request, accelerator, logs or accelerator.device.type == "cpu"):
                    save()
                    raise stopped(request, step, total_steps, folder)
                if step % options.checkpoint_steps == 0 and done_in_epoch < len(order):
                    save()

            watch.check(checkpoints)
            started = time.perf_counter()
            metrics = evaluate(module.student)
            eval_seconds += time.perf_counter() - started
            finished_epoch = epoch
            if done_in_epoch == len(order):
                epoch, done_in_epoch = epoch + 1, 0
            record.write(step, {"epoch": epoch + done_in_epoch / len(order), **metrics})
            if log.isEnabledFor(logging.INFO) and accelerator.is_main_process:
                shown = ", ".join(f"{name} {value:.4f}" for name, value in metrics.items())
                bar.write(f"epoch {finished_epoch + 1}: {shown}", file=bar.fp)
            if options.selection == "best" and (not best or metrics[selection] > best["value"]):
                best = {
                    "value": metrics[selection],
                    "metric": selection,
                    "step": step,
                    "epoch": finished_epoch + 1,
                }
                best_weights = {name: value.detach().cpu().clone() for name, value in module.weights().items()}
            save()
            if stop_agreed(request, accelerator, True):
                raise stopped(request, step, total_steps, folder)
    if step < total_steps:
        log.info("stopped after epoch %d: %s was best after epoch %d", epoch, selection, best["epoch"])
    if best_weights:
        module.load_weights(best_weights)
    if scale.skipped:
        log.info("fp16: %d of %d steps were left out, since a gradient overflowed", scale.skipped, step)
    return TrainResult(step, examples, train_seconds, eval_seconds, resumed_from, best, scale.numbers())


def trained_rows(options: TrainSection, data: Encoded, module: StudentWithMethod) -> AbstractContextManager[None]:
    """Within it, only the word vectors that the data uses are trained, where that gives the same result."""
    student: Any = module.student
    if (
        not options.used_rows or not student.way.levers or options.weight_decay
    ):  # with weight decay, unused rows shrink too
        return contextlib.nullcontext()
    return training_used_rows(module.student, data.pieces())


def forward_backward(
    wrapped: nn.Module,
    data: Encoded,
    rows: np.ndarray,
    teachers: Sequence[Teacher],
    accelerator: Accelerator,
    *,
    accumulation: int,
    seed: int,
    epoch: int = 0,
    step: int,
    length: int | None = None,
    scaler: torch.amp.GradScaler | None = None,
) -> LossTerms:
    """Forward and backward of one global batch, micro-batch by micro-batch.

    Gradients are added to the parameters' `.grad`; over processes they are averaged, and `Batch.mean`
    is scaled so that this average is the gradient of the mean over all examples.

    Args:
        scaler: what the loss is multiplied by; so are the gradients.

    Returns:
        This process's terms, detached; their mean over processes is the value of the whole batch.
    """
    sums: dict[str, torch.Tensor] = {}
    monitors: dict[str, torch.Tensor] = {}
    weights: dict[str, float] = {}
    world, rank = accelerator.num_processes, accelerator.process_index
    parts = list(
        micro_batches(data, rows, accumulation=accumulation, rank=rank, world=world, length=length, draw=(seed, epoch))
    )
    for number, batch in enumerate(parts):
        batch = batch.to(accelerator.device)
        # Dropout is a function of (seed, step, micro-batch, process): nothing else has to be restored.
        torch.manual_seed(int(np.random.SeedSequence([seed, step, number, rank]).generate_state(1, np.uint64)[0] >> 1))
        last = number == len(parts) - 1
        with contextlib.nullcontext() if last else accelerator.no_sync(wrapped):
            terms = wrapped(batch, [teacher.outputs(batch) for teacher in teachers])
            accelerator.backward(terms.total if scaler is None else scaler.scale(terms.total))
        for total, values in ((sums, terms.terms), (monitors, terms.monitors)):
            for name, value in values.items():
                total[name] = total[name] + value.detach() if name in total else value.detach()
        weights = terms.weights
    return LossTerms(sums, weights, monitors)


def logged_terms(terms: LossTerms, accelerator: Accelerator) -> dict[str, float]:
    """The batch's loss and terms as numbers, over all processes. Reads from the device."""
    names = [*(f"loss/{name}" for name in terms.terms), *terms.monitors]
    values = torch.stack([*terms.terms.values(), *terms.monitors.values(), terms.total.detach()])
    if accelerator.num_processes > 1:
        values = accelerator.reduce(values, reduction="mean")
    numbers = values.tolist()
    return {
        "loss": numbers[-1],
        **dict(zip(names, numbers, strict=False)),
    }


def out_of_patience(options: TrainSection, epochs: int, best: Mapping[str, Any]) -> bool:
    """Whether so many epochs have passed since the best one that training ends (`options.patience`)."""
    return options.patience is not None and bool(best) and epochs - best["epoch"] >= options.patience


def epoch_order(options: TrainSection, data: Encoded, seed: int, epoch: int) -> list[np.ndarray]:
    """The global batches of an epoch, as the options ask for them."""
    classes = None
    if options.batch_sampler == "class-balanced":
        assert data.labels is not None
        classes = classes_of(torch.from_numpy(data.labels)).numpy()
    return epoch_batches(
        data.lengths,
        options.batch_size,
        seed=seed,
        epoch=epoch,
        bucketing=options.bucketing,
        classes=classes,
        per_class=options.examples_per_class,
    )


def build_optimizer(module: nn.Module, options: TrainSection) -> torch.optim.Optimizer:
    """AdamW; weight decay on matrices only (no bias, no LayerNorm), as BERT is trained.

    The method's own parameters are in it too.
    """
    trained = [p for p in module.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": options.weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        groups,
        lr=options.learning_rate,
        betas=(options.adam_beta1, options.adam_beta2),
        eps=options.adam_epsilon,
        fused=all(p.device.type in ("cpu", "cuda") for p in trained),
    )


def _schedule(options: TrainSection, optimizer: torch.optim.Optimizer, total_steps: int) -> Any:
    from transformers import get_scheduler

    name = "constant_with_warmup" if options.schedule == "constant" else options.schedule
    return get_scheduler(name, optimizer, warmup_steps(options.warmup, total_steps), total_steps)


def stop_agreed(request: StopRequest, accelerator: Accelerator, ask: bool) -> bool:
    """Whether to stop here. Processes must agree, so several `ask` each other: on a CPU at every step (torchrun waits
    for half a minute only), else at logged ones, since asking waits for the device.
    """
    if accelerator.num_processes == 1:
        return bool(request.number)
    if not ask:
        return False
    flag = torch.tensor([float(request.number)], device=accelerator.device)
    return bool(accelerator.reduce(flag, reduction="sum").item() > 0)


def stopped(request: StopRequest, step: int, total_steps: int, folder: Path) -> Interrupted:
    """What a run that was told to stop ends with; its state is saved."""
    number = request.number or int(signal.SIGTERM)
    return Interrupted(
        f"stopped by {signal.Signals(number).name} at step {step} of {total_steps}, state saved in {folder}; "
        "run the same command again to continue",
        number,
    )


class FiniteWatch:
    """Remembers, on the device, the first step at which each number was not finite.

    Args:
        ids: name of each example (None: its number).
    """

    def __init__(self, device: torch.device, ids: Sequence[str] | None = None) -> None:
        self.device = device
        self.ids = ids
        self.first: dict[str, torch.Tensor] = {}
        self.rows: dict[int, np.ndarray] = {}  # of the steps since the last check

    def see(self, step: int, values: Mapping[str, torch.Tensor], rows: np.ndarray) -> None:
        """Note this step's numbers, and the examples that they are of, without waiting for the device."""
        self.rows[step] = rows
        never = torch.full((len(values),), -1, dtype=torch.int64, device=self.device)
        first = torch.stack([self.first.get(name, never[0]) for name in values])
        bad = ~torch.isfinite(torch.stack([value.detach().float() for value in values.values()]))
        self.first.update(zip(values, first.masked_fill(bad & (first < 0), step), strict=True))

    def check(self, checkpoints: Path) -> None:
        """Raise if any number was not finite.

        Raises:
            Diverged: with the step, the term, the examples, and the last good checkpoint.
        """
        steps = torch.stack(list(self.first.values())).tolist() if self.first else []
        bad = [(step, order) for order, step in enumerate(steps) if step >= 0]
        if not bad:
            self.rows.clear()
            return
        step, order = min(bad)
        term = list(self.first)[order]
        examples = [self.ids[row] if self.ids is not None else str(row) for row in self.rows[step].tolist()]
        shown, newest = few(examples, ", see run.json"), newest_checkpoint(checkpoints)
        raise Diverged(
            f"diverged at step {step}: {term} is not finite in the batch of examples {shown}; "
            + (f"the last good checkpoint is {newest.path}" if newest else "no checkpoint had been saved")
            + "; try a lower train.learning_rate or some train.warmup",
            {"step": step, "term": term, "examples": examples},
        )
