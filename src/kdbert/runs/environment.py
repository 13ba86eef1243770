"""What a reader of run.json needs to know of the machine and the code."""

from __future__ import annotations

import contextlib
import os
import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = (
    "kdbert", "torch", "transformers", "tokenizers", "accelerate", "safetensors", "numpy", "scikit-learn", "scipy",
)  # fmt: skip


def environment() -> dict[str, Any]:
    """What a reader of run.json needs to know of the machine and the code."""
    import torch

    versions = {}
    for package in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            versions[package] = version(package)
    return {
        "python": platform.python_version(),
        "versions": versions,
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "accelerators": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "git_revision": _git_revision(),
        "command": [Path(sys.argv[0]).name.replace("__main__.py", "kdbert"), *sys.argv[1:]],
    }


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _processor() -> str:
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as file:
        for line in file:
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor()


def _git_revision() -> str | None:
    """Revision of the working copy that kdbert runs from, with `+changes` if it is not clean."""
    root = Path(__file__).parents[3]
    if not (root / ".git").exists():
        return None

    def git(*words: str) -> str:
        # Without optional locks: a kill at this moment would leave one in a repository that is not ours.
        command = ("git", "--no-optional-locks", "-C", str(root), *words)
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain", "--", "src") else "")
    except (OSError, subprocess.SubprocessError):
        return None
