"""Training's own step, ready to be timed; and the contestants of scripts/gpu-check, which make an epoch when asked."""

from __future__ import annotations

import os
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from typing import Any

import torch
from common import Contest, peak_gib
from torch import nn
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile, record_function

from kdbert.data.batches import Batch
from kdbert.methods import Outputs
from kdbert.models.fast.capture import captured
from kdbert.recipe import Recipe
from kdbert.runs.job import Job
from kdbert.runs.plan import plan
from kdbert.runs.run import Run
from kdbert.training.frozen_teacher import FrozenTeacher
from kdbert.training.loop import at_first_step, epoch_order, trained_rows
from kdbert.training.step import training_step
from kdbert.training.teacher import layers_read, outputs_for

LIVE = {"train.teacher_cache": False}
# Student and teacher as the library opens them.
LIBRARY = {"train.attention": "sdpa", "train.packing": False, "train.fast_dropout": False, "train.first_token": False}
TRACED = 3  # steps
WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize", "Memcpy DtoH")


def planned(keys: Mapping[str, Any]) -> Job:
    """The student's job of a recipe."""
    *_, job = plan(Recipe.build(flags=dict(keys)))
    assert isinstance(job, Job)
    return job


class Timed:
    """A run, ready to step."""

    def __init__(self, keys: Mapping[str, Any], clock: Callable[[], float] = time.perf_counter) -> None:
        self.job = planned(keys)
        self.recipe, self.run = self.job.recipe, Run(self.job)
        recipe = self.recipe
        module, data = self.run.module.train(), self.job.encoded["train"]
        self.rows = trained_rows(recipe.train, data, module)
        self.rows.__enter__()  # until the process ends
        self.training = at_first_step(
            recipe.train, seed=1, data=data, module=module, teachers=self.run.ready_teachers(),
            accelerator=self.run.session.accelerator,
            length=recipe.task.max_length if self.job.needs.reads_padding else None,
        )  # fmt: skip
        self.clock = clock
        self.times: list[float] = []

    def steps(self, first: int, steps: int, after_each: Callable[[], None] = lambda: None) -> None:
        """Make some steps, on the batches of the first epoch."""
        rows = epoch_order(self.recipe.train, self.training.data, self.job.spec.head, 1, 0)
        for step in range(first, first + steps):
            training_step(self.training, rows[step % len(rows)], 0, step)
            after_each()

    def round(self, first: int, steps: int) -> float:
        """Mean seconds of some steps."""
        device = self.run.session.accelerator.device
        wait_for(device)
        started = self.clock()
        self.steps(first, steps)
        wait_for(device)
        return (self.clock() - started) / steps


def wait_for(device: torch.device) -> None:
    """Until a GPU has done what it was asked."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class Turn:
    """Time and trace of an epoch, for the process at the other end of a pipe, which then says what comes next."""

    def __init__(self, pipe: Connection, device: torch.device) -> None:
        self.pipe, self.device = pipe, device
        self.tracing = False
        self.before_gib = peak_gib(device.type)  # models, the teacher's pass, a memory
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()

    def begin(self) -> None:
        """The first step comes now."""
        self.made = 0
        self.waits: dict[str, dict[str, float]] = {}
        wait_for(self.device)
        if self.tracing:
            kinds = [ProfilerActivity.CPU, *[ProfilerActivity.CUDA] * (self.device.type == "cuda")]
            self.profiler, self.traced = profile(activities=kinds), record_function("traced")
            self.profiler.__enter__()
            self.traced.__enter__()
        self.started = time.perf_counter()

    def step(self) -> None:
        """A step was made."""
        self.made += 1
        if self.tracing and self.made == TRACED:
            self.traced.__exit__(None, None, None)
            self.profiler.__exit__(None, None, None)  # waits for the device, which is no wait of the steps'
            self.waits = waits(self.profiler)

    def end(self) -> bool:
        """The last step was made; returns whether another epoch is asked for."""
        wait_for(self.device)
        seconds = (time.perf_counter() - self.started) / self.made
        self.pipe.send({
            "ms": 1000 * seconds, "peak_gib": peak_gib(self.device.type), "before_gib": self.before_gib,
            "waits": self.waits,
        })  # fmt: skip
        asked = self.pipe.recv()
        self.tracing = asked == "trace"
        return bool(asked != "stop")


def waits(profiler: profile) -> dict[str, dict[str, float]]:
    """Kind of wait of the host for the GPU -> how often, and how many ms, in each of the traced steps."""
    events = profiler.events() or []
    (end,) = (e.time_range.end for e in events if e.name == "traced" and e.device_type == DeviceType.CPU)
    found = {}
    for kind in WAITS:
        took = [e.time_range.elapsed_us() for e in events if e.name.startswith(kind) and e.time_range.start < end]
        found[kind] = {"count": len(took) / TRACED, "ms": sum(took) / 1000 / TRACED}
    return found


class InTrainer(nn.Module):
    """Student, frozen teacher and a kdbert method's loss as a Trainer's model; both models as the library runs them."""

    def __init__(self, run: Run) -> None:
        super().__init__()
        self.student, self.method, self.needs = run.student, run.module.method, run.job.needs
        (teacher,) = run.teachers
        assert isinstance(teacher, FrozenTeacher)
        self.teachers = [teacher.network.eval().requires_grad_(False)]  # a list: its parameters are not this module's

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, token_type_ids: torch.Tensor, labels: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """The loss of a batch."""
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask, "token_type_ids": token_type_ids}
        needs, tokens = self.needs, attention_mask.sum(1)
        # Left on the device, so that nobody waits for them.
        scales: Any = {"token_scale": 1 / tokens.sum(), "pair_scale": 1 / tokens.square().sum()}
        batch = Batch(
            input_ids, attention_mask, token_type_ids, labels, torch.arange(len(labels), device=labels.device),
            torch.ones_like(labels, dtype=torch.float32), scale=1 / len(labels), **scales,
        )  # fmt: skip
        self.method.before_forward(batch)
        with torch.no_grad():
            taught = seen(self.teachers[0], inputs, layers_read(needs), needs.teacher_attention)
            with torch.autocast(labels.device.type, enabled=False):
                taught = outputs_for(self.method, needs, taught, batch)
        own = seen(self.student, inputs, needs.student_hidden, needs.student_attention)
        with torch.autocast(labels.device.type, enabled=False):
            return {"loss": self.method(own, [taught], batch).total}


def seen(model: Any, inputs: Mapping[str, torch.Tensor], layers: Any, attention: Mapping[int, str]) -> Outputs:
    """What a method reads of a model, in float32."""
    with captured(model, attention) as states:
        out = model(**inputs, output_hidden_states=bool(layers))
    return Outputs(
        out.logits.float(), mask=inputs["attention_mask"],
        hidden={layer: out.hidden_states[layer].float() for layer in layers},
        attention={layer: {kind: value.float() for kind, value in one.items()} for layer, one in states.items()},
    )  # fmt: skip


def contestant(pipe: Connection, job: dict[str, Any]) -> None:
    """Body of a process: make an epoch, say what it took, and wait for the next word: `round`, `trace` or `stop`."""
    os.dup2(2, 1)  # Trainer prints what it logs
    try:
        torch.set_num_threads(job["threads"])
        (trainer if job["contestant"].startswith("trainer") else ours)(pipe, job)
    except Exception as error:  # whatever it is, the others go on
        pipe.send({"error": f"{type(error).__name__}: {error}", "traceback": traceback.format_exc()})


def ours(pipe: Connection, job: dict[str, Any]) -> None:
    """kdbert with its defaults: the teacher's outputs stored, or `kdbert-live`."""
    run = Timed(job["keys"] | (LIVE if job["contestant"] == "kdbert-live" else {}))
    turn = Turn(pipe, run.run.session.accelerator.device)
    going = True
    while going:
        turn.begin()
        run.steps(0, -(-len(job["train"]["labels"]) // job["batch_size"]), turn.step)
        going = turn.end()


def trainer(pipe: Connection, job: dict[str, Any]) -> None:
    """Trainer, stock or tuned, with the method's own loss."""
    from trainer import trainer_of
    from transformers import TrainerCallback

    contest = Contest(job)
    model = InTrainer(Run(planned({**job["keys"], **LIVE, **LIBRARY, "train.precision": "fp32"})))
    turn = Turn(pipe, contest.device)

    class InTurn(TrainerCallback):
        """An epoch when it is asked for."""

        def on_epoch_begin(self, *given: Any, **unused: Any) -> None:
            turn.begin()

        def on_step_end(self, *given: Any, **unused: Any) -> None:
            turn.step()

        def on_epoch_end(self, args: Any, state: Any, control: Any, **unused: Any) -> None:
            control.should_training_stop = not turn.end()

    with tempfile.TemporaryDirectory() as folder:
        tuned = job["contestant"] == "trainer-tuned"
        made = trainer_of(contest, model, contest.encode("train", padded=not tuned), None, folder)
        made.add_callback(InTurn())
        made.train()
