"""Two machines, each with an agent of torchrun (here both on this one), give the bits of one with two processes."""

from __future__ import annotations

import signal
import socket
import subprocess
from pathlib import Path

import psutil
import pytest

from in_processes import manifest, saved_steps, wait_until
from small_run import Setting, start_torchrun

pytestmark = pytest.mark.long


def start_both(words: list[str], others: list[str] | None = None) -> list[subprocess.Popen[str]]:
    """The command as docs/how-it-works.md has it, on either machine (`others`: on the second one)."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    agent = ["--nnodes", "2", "--nproc-per-node", "1", "--rdzv-backend", "c10d", "--rdzv-id", "kdbert"]
    agent += ["--rdzv-endpoint", f"127.0.0.1:{port}", "--local-addr", "127.0.0.1"]
    return [start_torchrun("-m", "kdbert", *given, agent=agent) for given in (words, others or words)]


def ended(agent: subprocess.Popen[str]) -> tuple[int, str]:
    """How an agent ended: exit code and what was printed."""
    out, err = agent.communicate(timeout=240)
    return agent.returncode, out + err


def kill_machine(agent: subprocess.Popen[str]) -> None:
    """End an agent and its process without a word."""
    for process in [*psutil.Process(agent.pid).children(recursive=True), agent]:
        process.send_signal(signal.SIGKILL)
    agent.communicate()


@pytest.mark.parametrize("dies", [0, 1])
def test_a_machine_dies_the_other_ends_and_the_same_command_gives_the_bits_of_one_machine(
    setting: Setting, tmp_path: Path, dies: int
) -> None:
    def words(folder: str) -> list[str]:
        return setting.words(tmp_path / folder / "run", epochs=2, checkpoint_steps=5)

    run = tmp_path / "two" / "run"
    both = start_both(words("two"))
    wait_until(lambda: bool(saved_steps(run)), lambda: all(one.poll() is None for one in both), "a checkpoint")
    kill_machine(both[dies])
    code, printed = ended(both[1 - dies])
    assert code != 0
    assert "the same command continues" in printed
    again = [ended(one) for one in start_both(words("two"))]
    assert [code for code, _ in again] == [0, 0], again
    assert sum("continuing from step" in printed for _, printed in again) == 1
    code, printed = ended(start_torchrun("-m", "kdbert", *words("one")))
    assert code == 0, printed
    one = tmp_path / "one" / "run"
    assert manifest(run)["processes"] == manifest(one)["processes"] == 2
    assert manifest(run)["metrics"] == manifest(one)["metrics"]
    for name in ("model/model.safetensors", "metrics.jsonl", "predictions/dev.jsonl"):
        assert (run / name).read_bytes() == (one / name).read_bytes(), name


def test_a_machine_that_does_not_see_the_run_folder_says_so(setting: Setting, tmp_path: Path) -> None:
    both = start_both(*(setting.words(tmp_path / folder / "run") for folder in ("one", "other")))
    results = [ended(one) for one in both]
    assert all(code != 0 for code, _ in results)
    assert sum("a disk that they share" in printed for _, printed in results) == 1
    assert sum("another process of this run has ended" in printed for _, printed in results) == 1
