"""What is decided by the type of the device: one place in the code, the table of docs/speed.md, and the same bits."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from conftest import ROOT
from kdbert.data.batches import collate
from kdbert.devices import CPU, CUDA, OTHER, by_device
from kdbert.methods import Outputs
from kdbert.training.forward import pass_over
from kdbert.training.loop import made_ahead
from kdbert.training.teacher import StoredTeacher
from small_run import FEATURES, Parts, Setting, build


def test_the_table_has_every_decision_as_the_code() -> None:
    assert (by_device("cpu"), by_device("cuda"), by_device(torch.device("mps"))) == (CPU, CUDA, OTHER)
    rows = []
    for one in fields(CPU):
        words = [one.metadata["yes" if getattr(device, one.name) else "no"] for device in (CPU, CUDA, OTHER)]
        rows.append(f"| {one.metadata['what']} | {' | '.join(words)} |")
    assert "\n".join(rows) in (ROOT / "docs" / "speed.md").read_text(encoding="utf-8"), "\n".join(rows)


def test_nothing_else_decides_by_the_type_of_a_device() -> None:
    asking = re.compile(r"""device(\.type)? (==|!=|in|not in) ["(]|is_available\(\)|\.type (==|!=|in|not in) ["(]""")
    found = {
        f"{path.relative_to(ROOT / 'src/kdbert')}: {line.strip()}"
        for path in (ROOT / "src/kdbert").rglob("*.py")
        for line in path.read_text(encoding="utf-8").splitlines()
        if asking.search(line) and path.name != "devices.py"
    }
    assert found == {
        "training/precision.py: accelerator = Accelerator(cpu=not torch.accelerator.is_available(), **options)"
    }


@pytest.fixture(scope="module")
def parts(setting: Setting, tmp_path_factory: pytest.TempPathFactory) -> Parts:
    """A run whose teacher gives logits, hidden states, and something reduced to each example and to pairs of tokens."""
    keys = {**FEATURES["cka-ilg"], "precision": "fp32"}
    return build(setting.recipe(tmp_path_factory.mktemp("run") / "run", **keys))


@pytest.mark.parametrize("halves", [False, True])
def test_outputs_gathered_on_the_device_are_those_of_each_batch(parts: Parts, halves: bool) -> None:
    def passed(gathered: int | None, told: str | None = None) -> dict[str, Any]:
        def compute(seen: Outputs, batch: Any) -> dict[str, torch.Tensor]:
            pairs = seen.hidden[4] @ seen.hidden[4].mT
            return {"logits": seen.logits, "states": seen.hidden[4], "pairs": pairs}

        def allocate(name: str, shape: tuple[int, ...]) -> np.ndarray:
            return np.zeros(shape, np.int16 if halves and name == "states" else np.float32)

        return pass_over(
            parts.run.teachers[0].network, parts.data, compute,
            {"logits": "example", "states": "token", "pairs": "token_pair"}, layers=(4,), batch_size=17,
            precision="fp32", accelerator=parts.accelerator, told=told, allocate=allocate, gathered=gathered,
        )  # fmt: skip

    expected = passed(None)
    assert all(value.any() for value in expected.values())
    for gathered in (150_000, 2**40):
        found = passed(gathered, "teacher")
        assert {name: value.tobytes() for name, value in found.items()} == {
            name: value.tobytes() for name, value in expected.items()
        }


@pytest.mark.parametrize("name", ["ics", "cka-i", "minilm"])
def test_outputs_of_tokens_kept_on_the_device_are_those_of_the_host(
    setting: Setting, tmp_path: Path, name: str
) -> None:
    parts = build(setting.recipe(tmp_path / "run", **FEATURES[name], precision="fp32"))
    host, batch = parts.stored_teacher(), collate(parts.data, np.arange(16))
    kept = {name: value.numpy() for name, value in host.kept.items()}
    there = StoredTeacher(kept, parts.data, [0, 1], torch.device("cpu"), host.needs, room=2**40)
    assert (host.tokens_there, there.tokens_there) == (False, True)
    for found, expected in zip(values_of(there.outputs(batch)), values_of(host.outputs(batch)), strict=True):
        assert torch.equal(found, expected)


def values_of(seen: Any) -> list[torch.Tensor]:
    """All that a teacher says of a batch."""
    states = [value for one in seen.attention.values() for value in one.values()]
    return [seen.logits, *seen.hidden.values(), *seen.reduced.values(), *states]


def test_batches_made_ahead_are_the_same_in_their_order(parts: Parts) -> None:
    rows = [np.arange(start, start + 16) for start in range(0, 160, 16)]
    plain, ahead = (list(made_ahead(lambda one: collate(parts.data, one), rows, on)) for on in (False, True))
    assert [one.tolist() for one, _ in ahead] == [one.tolist() for one in rows]
    for (_, first), (_, second) in zip(plain, ahead, strict=True):
        assert torch.equal(first.input_ids, second.input_ids)
    with pytest.raises(ZeroDivisionError):
        list(made_ahead(lambda one: 1 // one, [2, 1, 0], True))
