"""Numbers that change over a run."""

from __future__ import annotations

import pytest

from kdbert.losses.schedules import annealed, epoch_of


@pytest.mark.parametrize("epochs", [1, 3, 7, 10])
@pytest.mark.parametrize("steps", [1, 13, 97])  # of an epoch
def test_the_epoch_of_every_step_is_that_of_the_loop(epochs: int, steps: int) -> None:
    found = [epoch_of(step / (epochs * steps), epochs) for step in range(epochs * steps)]
    assert found == [step // steps for step in range(epochs * steps)]


def test_a_temperature_falls_to_one() -> None:
    assert [annealed(4, epoch / 3, 3) for epoch in range(3)] == [4, 2.5, 1]
    assert annealed(4, 0) == 4
    assert annealed(4, 0.5) == 2.5
    assert annealed(4, 0.5, 1) == 4
