"""One side of `same-weights`: runs commands of one checkout in children forked from a process with the imports done.

Says first where its kdbert lies. Then reads one JSON object a line from standard input, runs it, and answers with the
exit code. This saves the seconds that each command needs to import torch and transformers.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
from typing import Any

import accelerate  # noqa: F401 (imported for the children)
import sklearn.metrics  # noqa: F401
import torch.utils.tensorboard  # noqa: F401
import transformers.models.bert.modeling_bert  # noqa: F401
from torch.optim.optimizer import register_optimizer_step_post_hook

import kdbert


def run(words: list[str], output: str, kill_at: int | None, number: int) -> None:
    """Body of a child: the command, which gets signal `number` after optimiser step `kill_at`."""
    for descriptor, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(f"{output}.{name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
    steps = 0

    def stepped(*_: Any) -> None:
        nonlocal steps
        steps += 1
        if steps == kill_at:
            os.kill(os.getpid(), number)

    register_optimizer_step_post_hook(stepped)
    from kdbert.cli import main

    sys.argv = ["kdbert", *words]
    main()


def serve() -> None:
    """Answer until standard input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the script that asks ends this process
    print(kdbert.__file__, flush=True)
    fork = multiprocessing.get_context("fork")
    for line in sys.stdin:
        child = fork.Process(target=run, kwargs=json.loads(line))
        child.start()
        child.join()
        print(child.exitcode, flush=True)


if __name__ == "__main__":
    serve()
