"""run.json names the commit that a working copy's code is of."""

from __future__ import annotations

import subprocess

import pytest

from conftest import ROOT
from kdbert.runs.environment import environment


def test_the_commit_of_a_working_copy_is_named() -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("no working copy")
    head = subprocess.run(["git", "-C", str(ROOT), "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
    assert environment()["git_revision"].partition("+")[0] == head.stdout.strip()
