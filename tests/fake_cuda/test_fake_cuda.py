"""A whole training step of every method on a GPU that computes shapes alone: one device, and no waiting for it.

What is not covered so: values, streams and memory that is really pinned (a copy from it is taken to be right),
kernels that CUDA lacks, and torch's own backward engine (gradients are pulled through the graph by `backward`, which is
compared with the engine here). tests/cuda has these, for a machine with a GPU.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fake_device import CUDA, FakeAccelerator, FakeCuda, HostWaits, backward, on_cuda, register_guard
from torch import nn
from transformers import BertConfig, BertForSequenceClassification, get_scheduler

from conftest import VOCABULARY, WORDS, make_bert, often
from feature_cases import METHODS, attention_of, batch_of, draw_centroids, draw_features, make_method, padded
from kdbert.data.batches import collate
from kdbert.methods import LossTerms, Models, Outputs, Shape, all_methods
from kdbert.recipe import Recipe
from kdbert.recipe.defaults import resolve_distill
from kdbert.runs.inputs import Inputs
from kdbert.runs.job import Job
from kdbert.runs.run import Run
from kdbert.training.features import live_features
from kdbert.training.finite import FiniteWatch
from kdbert.training.loop import build_optimizer, train, trained_rows
from kdbert.training.precision import LossScale
from kdbert.training.step import Training, training_step
from kdbert.training.teacher import Teacher, outputs_for
from small_heads import make_setting
from small_models import make_roberta
from small_run import FEATURES, HELD, Parts, Setting, gradients, make_teacher

# Here a live teacher is asked, too: for logits, states, queries and keys, what is reduced, what is made of gradients.
LIVE = ("kd", "kd eager", "kd of another tokenizer", "ics", "minilm", "cka-ilg", "ad-kd")
# Whole steps in every test run: one of each way in which a step is made. The terms of all methods are looked at below.
OFTEN = {
    **dict.fromkeys(("kd", "kd eager", "cka-ilg", "minilm", "ad-kd", "ve-kd", "hidden", "reptile"), "corrected"),
    **dict.fromkeys(("ics", "theseus"), "original"),
}
# Here constants are copied to the device in the first step.
FIRST = ("cka-g", "cka-ilg", "cka-ilg layerwise", "cka-g of another tokenizer", "kd weighed")
VARIANTS = ("corrected", "original")
CUDA_WAY = {"precision": "bf16", "student.layers": 3, "logging_steps": 100}
GENERAL = {
    "hidden": {"method.name": "hidden", "batch_tokens": 140},
    "minilm text": {"method.name": "minilm", "batch_tokens": 140},
    "tinybert text": {"method.name": "tinybert", "batch_tokens": 140},
}
MASKED = {
    "ve-kd": {"method.name": "ve-kd", "method.alpha_mse": 0.01, "method.tolerance": 0.2},
    "distilbert-mlm": {"method.name": "distilbert-mlm", "method.alpha_mse": 0.01},
    "masked-LM": {"method.name": "finetune"},
}
PLAIN = {
    "kd": {},
    "kd eager": {"attention": "eager"},
    "kd in two parts": {"accumulation": 2},
    "kd of another tokenizer": {},
    "cka-g of another tokenizer": FEATURES["cka-g"],
    "kd weighed": {"class_weights": "balanced", "label_smoothing": 0.1},
    "kd half": {"task.labelled_share": 0.5},
    "ics half": {**FEATURES["ics"], "task.labelled_share": 0.5},
    "finetune": {"method.name": "finetune"},
    "multi-kd": {"method.name": "multi-kd"},
}
RUNS: dict[str, dict[str, Any]] = {**PLAIN, **FEATURES, **HELD, **GENERAL, **MASKED}


@pytest.fixture
def cuda(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    """The device, to be entered, and what torch and transformers ask on a machine that has it."""
    register_guard(request.config.cache.mkdir("fake-cuda"))
    found = FakeCuda()
    monkeypatch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (found.free, 2**34))
    # The library looks at masks of real tensors only.
    monkeypatch.setattr("transformers.utils.import_utils.is_fake_tensor", lambda tensor: False)

    def grad(loss: torch.Tensor, by: torch.Tensor, retain_graph: bool = False, create_graph: bool = False) -> Any:
        return backward(loss, [by], create_graph)

    monkeypatch.setattr(torch.autograd, "grad", grad)
    return found


@pytest.fixture(scope="module")
def small(setting: Setting, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What makes recipe keys: of a task for each head, of teachers of other width, depth and tokens, of plain text."""
    root, draw = tmp_path_factory.mktemp("small"), random.Random(0)

    def few(name: str, lines: list[str], rows: int) -> Path:
        (root / name).write_text("\n".join(lines[: rows + 1]) + "\n", encoding="utf-8")
        return root / name

    files = [few(file.name, file.read_text().splitlines(), 40) for file in (setting.train, setting.dev)]
    scores = ["text\tlabel", *(f"a film {number}\t{number / 7}" for number in range(40))]
    tasks = {
        "single_label": replace(setting, train=files[0], dev=files[1]),
        "regression": Setting(
            few("train.tsv", scores, 40), few("dev.tsv", scores, 20),
            make_teacher(root / "scores", labels=("score",)), setting.student,
        ),
        **{kind: make_setting(kind, root / kind, setting.student) for kind in ("multi_label", "token")},
    }  # fmt: skip
    labels = ["negative", "positive"]
    text = few("text.txt", [" ".join(draw.choices(WORDS, k=draw.randint(3, 12))) for _ in range(81)], 80)
    return {
        **tasks,
        "wide": make_bert(root / "wide", hidden=48, base=False, labels=labels),
        "deep": make_bert(root / "deep", layers=6, base=False, labels=labels),
        "letters": make_roberta(root / "letters", pieces=262),
        "text": {"task.name": "corpus", "task.train_file": str(text), "task.dev_file": str(text)},
        "masked": make_bert(root / "masked", masked_lm=True),
        "grown": make_bert(root / "grown", vocabulary=[*VOCABULARY, "cataract", "glaucoma"], masked_lm=True),
        "inputs": Inputs(),
    }


Build = Callable[..., Parts]


@pytest.fixture
def build(small: dict[str, Any], tmp_path: Path, cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> Build:
    """A run as it is built where there is a GPU, its models on the device; called inside `cuda`."""

    def built(name: str, variant: str = "corrected", kind: str = "single_label", **changes: Any) -> Parts:
        setting, text = small[kind], name in GENERAL or name in MASKED
        first = setting.teacher
        if name in FEATURES and kind == "single_label":  # the published ones ask for equal widths
            first = small["wide" if variant == "corrected" else "deep"]
        elif name in MASKED:
            first = small["masked"]
        elif "another tokenizer" in name:
            first = small["letters"]
        teachers = {"finetune": [], "masked-LM": [], "multi-kd": [first, small["wide"]]}.get(name, [first])
        keys = {
            **setting.keys(**{**CUDA_WAY, **RUNS.get(name, {}), **changes}),
            **({"student.layers": 2} if name in HELD or text else {}),
            **(small["text"] if text else {}),
            **({"student.model": str(small["grown"])} if name in MASKED else {}),
            "teachers": [{"model": str(model)} for model in teachers],
            "method.variant": variant,
            "output.dir": str(tmp_path / "run"),
            "output.runs_dir": str(tmp_path / "runs"),
        }
        recipe = resolve_distill(Recipe.build(flags=keys))
        with monkeypatch.context() as patch, torch.utils._python_dispatch._disable_current_modes():
            patch.setattr(torch.accelerator, "current_accelerator", lambda check_available=False: CUDA)
            run = Run(Job("student", recipe, small["inputs"]))
            networks = [teacher.network for teacher in run.teachers]
            assert run.module is not None
        for model in (run.module, *networks):
            on_cuda(model)
        run.session = replace(run.session, accelerator=FakeAccelerator(cpu=True, device_placement=False))
        for teacher in run.teachers:
            teacher.session = run.session
        return Parts(recipe, run)

    return built


def step(parts: Parts, teachers: list[Teacher]) -> Callable[[], LossTerms]:
    """A training step, all of it, that is not logged: forward, backward, clipping, optimiser, FiniteWatch."""
    recipe, run, module = parts.recipe, parts.run, parts.module.train()
    optimizer, rows = build_optimizer(module, recipe.train), np.arange(min(recipe.train.batch_size, len(parts.data)))
    training = Training(
        options=recipe.train, seed=1, data=parts.data, teachers=teachers, module=module, wrapped=module,
        optimizer=optimizer, own=module.method.own_optimizer(optimizer),
        scheduler=get_scheduler("linear", optimizer, 2, 9), scale=LossScale(module.precision, CUDA),
        accelerator=parts.accelerator, steps=9, length=recipe.task.max_length if run.job.needs.reads_padding else None,
    )  # fmt: skip
    watch = FiniteWatch(CUDA)

    def taken() -> LossTerms:
        result = training_step(training, rows, 0, 1)
        watch.see(1, {**result.terms.terms, "gradient": result.grad_norm}, rows)
        return result.terms

    return taken


def on_device(found: dict[str, torch.Tensor]) -> bool:
    """Whether there are some, all on the device."""
    return bool(found) and {value.device for value in found.values()} == {CUDA}


def test_every_method_is_here() -> None:
    assert {keys.get("method.name", "kd") for keys in RUNS.values()} == {*all_methods()}


@pytest.mark.parametrize(
    ("name", "variant"),
    often(
        [(name, variant) for name in RUNS for variant in VARIANTS if (name, variant) != ("hidden", "original")],
        lambda case: OFTEN.get(case[0]) == case[1],
    ),
)
def test_a_step_is_of_one_device_and_waits_for_nothing(build: Build, cuda: FakeCuda, name: str, variant: str) -> None:
    with cuda:
        parts = build(name, variant)
        run, needs, recipe = parts.run, parts.run.job.needs, parts.recipe
        live = [teacher.live(needs, parts.module.method) for teacher in run.teachers if name in LIVE]
        ready = run.ready_teachers()  # what is kept of them is looked up; of some methods they are live
        cuda.free = 0
        on_host = run.ready_teachers() if name in LIVE else []  # the same, whose outputs of tokens lie on the host
        batch = collate(parts.data, np.arange(8), recipe.task.max_length if needs.reads_padding else None)
        rows = trained_rows(recipe.train, parts.data, parts.module)
        with nullcontext() if needs.holds_teachers else rows:
            taken = step(parts, ready)
            if name in FIRST:
                taken()
            with cuda.running():
                terms = taken()
                seen = [teacher.outputs(batch.to(CUDA)) for teacher in (*live, *on_host)]
        assert on_device(terms.terms)
        assert all(one.mask.device == CUDA for one in seen)


@pytest.mark.parametrize("name", often(["kd", "finetune"], ["kd"].__contains__))
@pytest.mark.parametrize("kind", ["multi_label", "regression", "token"])
def test_a_step_of_every_head(build: Build, cuda: FakeCuda, kind: str, name: str) -> None:
    with cuda:
        weighed = {} if kind == "regression" else {"class_weights": "balanced", "label_smoothing": 0.1}
        parts = build(name, kind=kind, **weighed)
        taken = step(parts, parts.run.ready_teachers())
        taken()
        with cuda.running():
            assert on_device(taken().terms)


EQUAL = Models(student=Shape(3, 4, 2, 2), teachers=(Shape(6, 4, 2, 2),))  # which the published methods ask for


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", often(METHODS, lambda name: " " not in name))
def test_the_terms_of_a_method_and_their_gradients(cuda: FakeCuda, name: str, variant: str) -> None:
    method = make_method({**METHODS[name], "variant": variant}, EQUAL, centroids=draw_centroids(EQUAL))
    needs, lengths = method.needs(method.options, EQUAL), [7, 3, 5, 2, 6, 4, 7, 3]
    features = draw_features(lengths, [0, 1, 0, 2, 0, 1, 0, 0], EQUAL)
    mask = (torch.arange(7)[None, :] < torch.tensor(lengths)[:, None]).long()
    batch = batch_of(features.labels, 7, mask)
    with cuda:
        on_cuda(method)
        models = []
        for sides, logits, shape in (
            (features.teacher, features.teacher_logits, EQUAL.teachers[0]),
            (features.student, features.student_logits, EQUAL.student),
        ):  # fmt: skip
            hidden = padded(sides, 7, 1.0).to(CUDA).requires_grad_()
            models.append(
                Outputs(
                    logits.to(CUDA).requires_grad_(),
                    mask=mask.to(CUDA),
                    hidden=dict(enumerate(hidden)),
                    attention=attention_of(hidden, shape),
                )
            )
        teacher, student = models
        outputs_for(method, needs, teacher)  # constants are copied to the device
        with cuda.running():
            terms = method(student, [outputs_for(method, needs, teacher)], batch.to(CUDA))
            backward(terms.total)
        assert on_device(terms.terms)


@pytest.mark.parametrize("sampler", often(["random", "class-balanced"], ["random"].__contains__))
def test_a_step_more_that_is_not_logged_adds_no_wait_to_a_run(
    build: Build, cuda: FakeCuda, sampler: str, tmp_path: Path
) -> None:
    waits = []
    for steps in (2, 3):
        with cuda:
            parts = build("kd", batch_sampler=sampler, max_steps=steps, batch_size=4)
            ready = parts.run.ready_teachers()
            cuda.waits.clear()
            train(
                parts.recipe.train, seed=1, data=parts.data, module=parts.module, teachers=ready,
                evaluate=lambda model, run=parts.run: {"dev/accuracy": run._answers(model, "dev").scores["accuracy"]},
                selection="dev/accuracy", folder=tmp_path / str(steps), accelerator=parts.accelerator, trackers=[],
            )  # fmt: skip
            waits.append(dict(cuda.waits))
    assert waits[0] == waits[1]
    assert {"reads a value", "copies to the host"} <= {*waits[0]}  # where it is logged and evaluated


def test_a_teacher_s_pass_waits_once_however_many_batches_it_has(build: Build, cuda: FakeCuda) -> None:
    waits = []
    for size in (8, 40):
        with cuda:
            parts = build("ics", eval_batch_size=size)  # its outputs are kept under a key that has the size
            cuda.waits.clear()
            parts.run.ready_teachers()
            waits.append(dict(cuda.waits))
    assert waits[0] == waits[1]
    assert waits[0]["copies to the host"] == 2  # logits, hidden states


@pytest.mark.parametrize("length", [None, 64])
def test_features_of_a_memory_are_made_on_the_device_and_copied_once(
    build: Build, cuda: FakeCuda, length: int | None
) -> None:
    with cuda:
        parts = build("kd")
        network = parts.run.teachers[0].network
        cuda.waits.clear()
        made = live_features(
            lambda: network, 2, parts.data, length=length, batch_size=16, precision="bf16", device=CUDA
        )  # fmt: skip
        found = list(made())
        assert {type(batch.features) for batch in found} == {torch.Tensor}  # for k-means, which runs on the host
        assert cuda.waits == {"copies to the host": len(found)}


# ---- the tests themselves


WRONG: dict[str, Callable[[LossTerms], object]] = {
    "reads a value": lambda terms: terms.total.item(),
    "asks a value": lambda terms: bool(terms.total > 0),
    "copies to the host": lambda terms: terms.total.detach().cpu(),
    "makes a tensor on the host": lambda terms: terms.total + torch.ones(2),
    "copies a number to the device": lambda terms: terms.total + torch.tensor(0.5, device=CUDA),
    "copies to the device": lambda terms: torch.ones(2).to(CUDA),
    "takes rows of the host": lambda terms: terms.total.reshape(1)[torch.tensor([0])],
    "takes rows by a list": lambda terms: terms.total.reshape(1)[[0, 0]],
    "asks for places": lambda terms: terms.total.nonzero(),
    "takes what is positive": lambda terms: terms.total.reshape(1)[terms.total.reshape(1) > 0],
}


@pytest.mark.parametrize("name", WRONG)
def test_what_a_step_must_not_do_is_found(build: Build, cuda: FakeCuda, name: str) -> None:
    with cuda:
        parts = build("finetune")
        taken = step(parts, [])

        def wrong(module: nn.Module, given: Any, terms: LossTerms) -> None:
            WRONG[name](terms)

        parts.module.method.register_forward_hook(wrong)
        with pytest.raises(RuntimeError if name == "makes a tensor on the host" else HostWaits), cuda.running():
            taken()


def test_gradients_are_those_of_the_engine() -> None:
    options = BertConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32
    )
    model = BertForSequenceClassification(options).eval()
    loss = model(torch.arange(21).view(3, 7)).logits.square().sum()
    loss.backward(retain_graph=True)
    expected = gradients(model)
    backward(loss)
    torch.testing.assert_close(gradients(model), expected)
