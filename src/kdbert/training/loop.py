"""The training loop: order, step, log, evaluate, save. One for fine-tuning and distillation.

    for each epoch:                        order = f(seed, epoch)
        for each global batch:
            training_step                  kdbert.training.step
            log, save, stop if asked or diverged
        evaluate on dev
        save; stop if dev is not better for `patience` epochs

The position in the data and every random draw are functions of (seed, step), so weights, optimiser, schedule and two
counters are the whole state: a run that is killed and continued ends with the same weights as one that was not.
"""

from __future__ import annotations

import contextlib
import logging
import signal
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn

from kdbert.data.batches import batches_of_tokens, epoch_batches
from kdbert.data.encode import Encoded
from kdbert.devices import by_device
from kdbert.errors import Interrupted, UserError
from kdbert.heads import Head
from kdbert.methods import LossTerms
from kdbert.metrics import better
from kdbert.models.fast.used_rows import training_used_rows
from kdbert.recipe.sections import TrainSection, warmup_steps
from kdbert.signals import StopRequest, stop_request
from kdbert.training.checkpoint import load_optimizer, newest_checkpoint, optimizer_tensors, save_checkpoint
from kdbert.training.finite import FiniteWatch
from kdbert.training.forward import StudentWithMethod
from kdbert.training.loggers import MetricsLog, progress_bar
from kdbert.training.precision import LossScale
from kdbert.training.step import StepResult, Training, parts_of, training_step
from kdbert.training.teacher import Teacher

log = logging.getLogger("kdbert")
# Raised whenever the order of the data or the random draws change: an older run is then not continued.
STATE_VERSION = 3


@dataclass
class Position:
    """How far a run has come.

    Attributes:
        epoch: finished epochs. done_in_epoch: steps of the one that is under way.
        best: the best evaluation so far, where `selection` is `best`; best_weights: the weights then.
        metrics_length, metrics_digest: of metrics.jsonl at this point.
    """

    step: int = 0
    epoch: int = 0
    done_in_epoch: int = 0
    best: dict[str, Any] = field(default_factory=dict)
    best_weights: dict[str, torch.Tensor] = field(default_factory=dict)
    metrics_length: int = 0
    metrics_digest: str | None = None

    def counters(self) -> dict[str, Any]:
        """All but the weights, for a checkpoint."""
        return {name: value for name, value in vars(self).items() if name != "best_weights"}


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
    run = at_first_step(
        options, seed=seed, data=data, module=module, teachers=teachers, accelerator=accelerator, length=length
    )
    total_steps = run.steps
    at = _restore(run, folder, total_steps)
    resumed_from, resume_at = at.step, (at.step, at.metrics_length, at.metrics_digest)
    record = MetricsLog(folder, accelerator, trackers=trackers, resume_at=resume_at)
    watch = FiniteWatch(accelerator.device, ids)
    checkpoints, measure = folder / "checkpoints", selection.rpartition("/")[2]
    every_step = by_device(accelerator.device).watched  # elsewhere reading a number waits for the device
    examples, train_seconds, eval_seconds = 0, 0.0, 0.0
    main = accelerator.is_main_process
    bar = progress_bar(None, "training", "step", main, total=total_steps, initial=at.step)

    def save() -> None:
        watch.check(checkpoints)
        if main:
            at.metrics_length, at.metrics_digest = record.length(), record.digest()
            _save(run, at, checkpoints, ended(options, at, total_steps))
        accelerator.wait_for_everyone()

    with contextlib.ExitStack() as stack:
        stack.callback(record.close)
        stack.callback(bar.close)
        request = stack.enter_context(stop_request())
        while not ended(options, at, total_steps):
            module.train()
            order = epoch_order(options, data, module.method.head, seed, at.epoch)
            coming = [(rows, at.epoch, at.step + number) for number, rows in enumerate(order[at.done_in_epoch :])]
            made = made_ahead(lambda one: parts_of(run, *one), coming, by_device(accelerator.device).ahead)
            started = time.perf_counter()
            for (rows, epoch, step), parts in made:
                result = training_step(run, rows, epoch, step, parts)
                at.step += 1
                at.done_in_epoch += 1
                examples += len(rows)
                gradient = {} if result.skipped else {"gradient": result.grad_norm}
                watch.see(at.step, {**result.terms.terms, **gradient}, rows)
                logs = at.step % options.logging_steps == 0 or at.step in (1, total_steps)
                if logs or every_step:
                    watch.check(checkpoints)
                if logs:
                    values = _logged(run, result)
                    epochs = at.epoch + at.done_in_epoch / len(order)
                    record.write(at.step, {"epoch": epochs, **values, **at_log(at.step)})
                    bar.set_postfix(loss=f"{values['loss']:.4f}", refresh=False)
                train_seconds += time.perf_counter() - started
                bar.update()
                if at.step == total_steps:
                    break
                if stop_agreed(request, accelerator, logs or every_step):
                    save()
                    raise stopped(request, at.step, total_steps, folder)
                if at.step % options.checkpoint_steps == 0 and at.done_in_epoch < len(order):
                    save()
                started = time.perf_counter()

            watch.check(checkpoints)
            started = time.perf_counter()
            metrics = evaluate(module.student)
            eval_seconds += time.perf_counter() - started
            finished_epoch = at.epoch
            if at.done_in_epoch == len(order):
                at.epoch, at.done_in_epoch = at.epoch + 1, 0
            record.write(at.step, {"epoch": at.epoch + at.done_in_epoch / len(order), **metrics})
            if not bar.disable:
                scores = ", ".join(f"{name} {value:.4f}" for name, value in metrics.items())
                bar.write(f"epoch {finished_epoch + 1}: {scores}", file=bar.fp)
            value = metrics[selection]
            if options.selection == "best" and (not at.best or better(measure, value, at.best["value"])):
                at.best = {"value": value, "metric": selection, "step": at.step, "epoch": finished_epoch + 1}
                at.best_weights = {name: value.detach().cpu().clone() for name, value in module.weights().items()}
            save()
            if stop_agreed(request, accelerator, True):
                raise stopped(request, at.step, total_steps, folder)
    if at.step < total_steps:
        log.info("stopped after epoch %d: %s was best after epoch %d", at.epoch, selection, at.best["epoch"])
    if at.best_weights:
        module.load_weights(at.best_weights)
    if run.scale.skipped:
        log.info("fp16: %d of %d steps were skipped because a gradient overflowed", run.scale.skipped, at.step)
    return TrainResult(at.step, examples, train_seconds, eval_seconds, resumed_from, at.best, run.scale.numbers())


def at_first_step(
    options: TrainSection,
    *,
    seed: int,
    data: Encoded,
    module: StudentWithMethod,
    teachers: Sequence[Teacher],
    accelerator: Accelerator,
    length: int | None = None,
) -> Training:
    """What the steps of a run read and change, before the first one. Arguments: see `train`."""
    from transformers import get_scheduler

    steps = steps_of(options, data, data.rows_with_label)
    optimizer = build_optimizer(module, options)
    own = module.method.own_optimizer(optimizer)
    schedule = "constant_with_warmup" if options.schedule == "constant" else options.schedule
    return Training(
        options=options, seed=seed, data=data, teachers=teachers, module=module,
        wrapped=accelerator.prepare_model(module), optimizer=optimizer, own=own,
        scheduler=get_scheduler(schedule, optimizer, warmup_steps(options.warmup, steps), steps),
        scale=LossScale(module.precision, accelerator.device), accelerator=accelerator, steps=steps, length=length,
    )  # fmt: skip


T = TypeVar("T")
Made = TypeVar("Made")


def made_ahead(make: Callable[[T], Made], of: Iterable[T], ahead: bool) -> Iterator[tuple[T, Made]]:
    """Each of these with what `make` makes of it; with `ahead` in a side thread, one before it is asked for."""
    if not ahead:
        yield from ((one, make(one)) for one in of)
        return
    with ThreadPoolExecutor(1, "kdbert-batches") as side:
        waiting: deque[tuple[T, Future[Made]]] = deque()
        for one in of:
            waiting.append((one, side.submit(make, one)))
            if len(waiting) > 1:
                first, future = waiting.popleft()
                yield first, future.result()
        for first, future in waiting:
            yield first, future.result()


def steps_of(options: TrainSection, data: Sized, labelled: int) -> int:
    """Optimiser steps of a whole run on a training split, `labelled` of whose rows have a label.

    With `batch_tokens` it must be tokenised.
    """
    rows, size = len(data), options.batch_size
    if options.unlabelled_rows:
        rows, size = labelled, size - options.unlabelled_rows
    if options.batch_tokens is None:
        whole = options.epochs * -(-rows // size)
    else:
        assert isinstance(data, Encoded)
        whole = options.epochs * batches_of_tokens(data.lengths, options.batch_tokens)
    return min(whole, options.max_steps or whole)


def build_optimizer(module: StudentWithMethod, options: TrainSection) -> torch.optim.Optimizer:
    """AdamW; weight decay on matrices only (no bias, no LayerNorm), as BERT is trained.

    The method's own parameters are in it too.
    """
    trained = module.method.trained_parameters(module.student)
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": options.weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        groups,
        lr=options.learning_rate,
        betas=(options.adam_beta1, options.adam_beta2),
        eps=options.adam_epsilon,
        fused=all(by_device(p.device).fused for p in trained),
    )


def _restore(run: Training, folder: Path, total_steps: int) -> Position:
    """Continue from the newest valid checkpoint, if there is one."""
    resumed = newest_checkpoint(folder / "checkpoints")
    if resumed is None:
        if (folder / "metrics.jsonl").exists():
            log.warning("%s has no checkpoint: it starts from the first step", folder)
        return Position()
    state = resumed.state
    if state["version"] != STATE_VERSION:
        raise UserError(
            f"{resumed.path} was saved by another version of kdbert, which orders the data differently; finish the "
            "run with that version, or pass --overwrite to start afresh"
        )
    run.module.load_weights(resumed.tensors["weights"])
    counters = {name: state[name] for name in Position().counters()}
    at = Position(**counters, best_weights=resumed.tensors.get("best", {}))
    if not ended(run.options, at, total_steps):
        load_optimizer(run.module, run.optimizer, resumed.tensors["optimizer"], resumed.path)
        if run.own is not None:
            load_optimizer(run.module, run.own, resumed.tensors["own_optimizer"], resumed.path)
    run.scheduler.load_state_dict(state["scheduler"])
    run.scale.load(state["scale"])
    for group, rate in zip(run.optimizer.param_groups, run.scheduler.get_last_lr(), strict=True):
        group["lr"] = rate
    log.info("continuing from step %d of %d (%s)", state["step"], total_steps, resumed.path.name)
    return at


def _save(run: Training, at: Position, checkpoints: Path, last: bool) -> None:
    """Write a checkpoint: weights, optimiser, schedule and the position. The last one needs no optimiser any more."""
    tensors = {
        "weights": run.module.weights(),
        "optimizer": {} if last else optimizer_tensors(run.module, run.optimizer),
    }
    if run.own is not None and not last:
        tensors["own_optimizer"] = optimizer_tensors(run.module, run.own)
    if at.best_weights:
        tensors["best"] = at.best_weights
    state = {"scheduler": run.scheduler.state_dict(), "scale": run.scale.state(), "version": STATE_VERSION}
    save_checkpoint(checkpoints, at.step, tensors, {**at.counters(), **state})


def _logged(run: Training, result: StepResult) -> dict[str, float]:
    """The numbers of a step that are written down, over all processes. Reads from the device."""
    gradient = {} if result.skipped else {"grad_norm": float(result.grad_norm)}
    numbers = logged_terms(result.terms, run.accelerator)
    return {**numbers, **gradient, "learning_rate": result.learning_rate, **run.scale.numbers()}


def trained_rows(options: TrainSection, data: Encoded, module: StudentWithMethod) -> AbstractContextManager[None]:
    """Within it, only the word vectors that the data uses are trained, where that gives the same result."""
    student: Any = module.student
    # With weight decay, unused rows shrink too.
    if not options.used_rows or not student.way.levers or options.weight_decay:
        return contextlib.nullcontext()
    return training_used_rows(module.student, data.pieces())


def logged_terms(terms: LossTerms, accelerator: Accelerator) -> dict[str, float]:
    """The batch's loss and terms as numbers, over all processes. Reads from the device."""
    names = [*(f"loss/{name}" for name in terms.terms), *terms.monitors]
    values = torch.stack([*terms.terms.values(), *terms.monitors.values(), terms.total.detach()])
    if accelerator.num_processes > 1:
        values = accelerator.reduce(values, reduction="mean")
    numbers = values.tolist()
    return {"loss": numbers[-1], **dict(zip(names, numbers, strict=False))}


def ended(options: TrainSection, at: Position, total_steps: int) -> bool:
    """Whether no step is left: all are done, or dev has not been better for `options.patience` epochs.

    The state alone decides, so a run that is continued after its last epoch stops there, too.
    """
    tired = options.patience is not None and bool(at.best) and at.epoch - at.best["epoch"] >= options.patience
    return tired or at.step >= total_steps


def epoch_order(options: TrainSection, data: Encoded, head: Head, seed: int, epoch: int) -> list[np.ndarray]:
    """The global batches of an epoch, as the options ask for them."""
    classes = None
    if options.batch_sampler == "class-balanced":
        assert data.labels is not None
        classes = head.example_classes(torch.from_numpy(data.labels)).numpy()
    return epoch_batches(
        data.lengths, options.batch_size, seed=seed, epoch=epoch, bucketing=options.bucketing, classes=classes,
        per_class=options.examples_per_class, tokens=options.batch_tokens, labelled=data.labelled,
        unlabelled=options.unlabelled_rows or None,
    )  # fmt: skip


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
