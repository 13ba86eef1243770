"""What each job of a sweep is given of the machine."""

from __future__ import annotations

import os

import pytest

from kdbert.sweep.local import job_environment, threads_per_job


def test_one_job_at_a_time_runs_in_the_environment_of_the_sweep(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    assert job_environment(0, 1) == dict(os.environ)


def test_jobs_share_cores_and_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3, GPU-5")
    given = [job_environment(slot, 3) for slot in range(3)]
    assert [one["CUDA_VISIBLE_DEVICES"] for one in given] == ["3", "GPU-5", "3"]
    share = str(threads_per_job(3))
    assert {one[name] for one in given for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")} == {share}


@pytest.mark.parametrize("visible", ["", "1"])
def test_with_one_gpu_or_none_the_choice_is_left_alone(monkeypatch: pytest.MonkeyPatch, visible: str) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert [job_environment(slot, 2)["CUDA_VISIBLE_DEVICES"] for slot in (0, 1)] == [visible, visible]


def test_a_job_has_one_thread_at_least() -> None:
    assert threads_per_job(10_000) == 1
    assert threads_per_job(1) >= threads_per_job(2)
