"""What a job of a cluster runs: the `kdbert` command, asked to save when the cluster wants its node back.

Compute nodes import this module before they start the command, so it imports nothing heavy.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from types import FrameType

from submitit import JobEnvironment
from submitit.helpers import DelayedSubmission


class Submitted:
    """Calls `kdbert` with `words`. submitit pickles it, and these words are all that it holds.

    Slurm signals every process of a job, this one and the command:

    - SIGUSR2 before the time limit (and at preemption, if a cluster is set up so). It is submitit's, which calls
      `checkpoint` and asks Slurm to queue the job again. The command ignores it.
    - SIGTERM at preemption and at `scancel`. The command saves and ends. Only a preempted job is queued again.
    """

    def __init__(self, words: list[str]) -> None:
        self.words = words

    def __call__(self) -> None:
        """Run the command; if it fails, this process ends with the same exit code."""
        self._asked_to_end = False
        self._process = subprocess.Popen(
            [sys.executable, "-m", "kdbert", *self.words],
            # An ignored signal stays ignored in the new program; otherwise it would end it.
            preexec_fn=lambda: signal.signal(_save_signal(), signal.SIG_IGN),
        )
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._pass_on)
        self._wait()
        code = self._process.wait()
        if code != 0 and self._asked_to_end and _holds_its_node():
            signal.raise_signal(_save_signal())  # submitit asks for the requeue, and ends this process
        if code != 0:
            sys.exit(code if code > 0 else 128 - code)

    def checkpoint(self) -> DelayedSubmission:
        """Let the command save and end; the same words continue it. submitit calls this in a signal handler."""
        process = getattr(self, "_process", None)
        if process is not None:
            process.send_signal(signal.SIGTERM)
            self._wait()
        return DelayedSubmission(Submitted(self.words))

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        self._asked_to_end = True
        self._process.send_signal(signal.SIGTERM)

    def _wait(self) -> None:
        """Wait until the command has ended, but leave its exit code to `Popen.wait`.

        `Popen.wait` holds a lock while it waits; a signal handler would wait for that lock forever.
        """
        with contextlib.suppress(ChildProcessError):  # `Popen.wait` has it already
            os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT)


def _save_signal() -> signal.Signals:
    """The signal by which Slurm warns a job: SIGUSR2, or what submitit's environment variable says."""
    return signal.Signals["SIG" + JobEnvironment.USR_SIG]


def _holds_its_node() -> bool:
    """Whether Slurm lists this job as running, as it does during preemption.

    A job that is being cancelled is listed as completing; a requeue would bring it back.
    """
    environment = JobEnvironment()
    if environment.cluster != "slurm":
        return False
    command = ["squeue", "--noheader", "--format=%T", f"--jobs={environment.job_id}"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=60).stdout.split() == ["RUNNING"]
    except (OSError, subprocess.TimeoutExpired):
        return False
