"""How a run ended stands in its run.json."""

from __future__ import annotations

from pathlib import Path

import pytest

from kdbert.errors import Diverged, Interrupted
from kdbert.runs.execute import noted_end
from kdbert.runs.folder import RunFolder


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (Interrupted("stopped", 2), "interrupted"),
        (KeyboardInterrupt(), "interrupted"),
        (Diverged("not finite", {"step": 3}), "diverged"),
        (RuntimeError("broken"), "failed"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else value,
)
@pytest.mark.parametrize("before", ["running", "finished"])
def test_an_error_is_noted_unless_the_run_is_finished(
    error: BaseException, status: str, before: str, tmp_path: Path
) -> None:
    folder = RunFolder(tmp_path)
    folder.update(status=before)
    with pytest.raises(type(error)), noted_end(folder):
        raise error
    assert folder.manifest()["status"] == (status if before == "running" else "finished")


def told_twice() -> None:
    try:
        raise Interrupted("stopped at step 3", 2)
    finally:
        raise Interrupted("stopped", 15)


def test_a_second_signal_while_it_ends_does_not_hide_how_far_it_is(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.update(status="running")
    with pytest.raises(Interrupted), noted_end(folder):
        told_twice()
    assert folder.manifest()["message"] == "stopped at step 3"
