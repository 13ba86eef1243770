"""Doing one job of a plan: take its folder and run it. What is finished is returned as it is."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
from collections.abc import Iterator
from pathlib import Path

from kdbert.errors import Diverged, Interrupted, RunBusy, UserError
from kdbert.models.locate import check_run_files
from kdbert.runs.centroids import CentroidsJob
from kdbert.runs.checks import check_finished
from kdbert.runs.folder import RunFolder, RunResult
from kdbert.runs.job import Job
from kdbert.runs.run import Run, find_centroids, open_session
from kdbert.training.frozen_teacher import FrozenTeacher

log = logging.getLogger("kdbert")


def execute(job: Job, *, overwrite: bool = False) -> RunResult:
    """Train a job's model in its run folder, or return the result that is there.

    Args:
        job: checked (`kdbert.runs.checks`), its teachers are made.
        overwrite: move an existing run aside and train again.

    Raises:
        UserError: the folder holds another run, or its files are damaged.
        RunBusy: another process is writing it.
        Diverged, Interrupted: the run's status says so, and what was saved is kept.
    """
    folder, main = job.folder, _is_main()
    if not overwrite and (done := finished(job)) is not None:
        return done
    run = Run(job)
    if not main:
        return run.result()
    if overwrite and folder.path.exists():
        if not folder.manifest_path.exists():
            raise UserError(f"{folder.path} is not a run folder (no run.json); choose another --output-dir")
        with folder.locked():  # refuses to move a run that is being written
            moved = folder.move_aside()
        log.info("moved the old run to %s", moved)
    with folder.locked():
        if run.session.accelerator.num_processes == 1 and folder.manifest().get("status") == "finished":
            log.info("finished meanwhile by another process: %s", folder.path)
            return folder.result()
        with noted_end(folder):
            return run.result()


def finished(job: Job) -> RunResult | None:
    """The result of a run that is finished, after a look at its recipe and files; None if it has to be run."""
    folder = job.folder
    folder.check_recipe(job.recipe, job.fingerprints)
    if folder.manifest().get("status") != "finished":
        return None
    check_finished(job)
    check_run_files(folder.path)
    log.info("already finished: %s", folder.path)
    if _is_main():
        folder.tidy()
    if not (folder.path / "model").is_dir():
        log.warning("its model folder was deleted; pass --overwrite to train it again")
    if job.recipe.output.diagnose and not (folder.path / "diagnostics").is_dir():
        log.warning("it was made without --diagnose; pass --overwrite to train it again with it")
    return folder.result()


def execute_on_the_way(job: Job) -> RunResult:
    """`execute` for what is made on the way; if another process is making it, wait for that one's."""
    while True:
        try:
            return execute(job)
        except RunBusy:
            if int(os.environ.get("WORLD_SIZE", "1")) > 1:  # the other processes of this run cannot wait along
                raise
            job.folder.wait()


def execute_centroids(job: CentroidsJob) -> Path:
    """Make the file of a centroids job, or find it made; returns its path."""
    session, data = open_session(job.recipe, job.way.half), {"train": job.train}
    ids = {"train": job.examples.ids}
    teacher = FrozenTeacher(job.teacher, job.way, None, job.spec, job.recipe, data, False, ids, session)
    find_centroids(job, teacher, session)
    return job.path


@contextlib.contextmanager
def noted_end(folder: RunFolder) -> Iterator[None]:
    """Note in run.json how a run ended that did not finish."""
    try:
        yield
    except BaseException as error:
        status = {Interrupted: "interrupted", KeyboardInterrupt: "interrupted", Diverged: "diverged"}
        with contextlib.suppress(OSError, UserError):  # a full disk must not hide the error itself
            if folder.manifest().get("status", "finished") != "finished":  # which a late signal does not undo
                where = {"divergence": error.where} if isinstance(error, Diverged) else {}
                first = error
                while isinstance(error, Interrupted) and isinstance(first.__context__, Interrupted):
                    first = first.__context__  # told twice: the first, which the loop answered, says how far it is
                message = str(first) or type(error).__name__
                folder.update(status=status.get(type(error), "failed"), message=message, **where)
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS):
            raise UserError(
                f"cannot write to {folder.path}: {error}; earlier checkpoints are intact: make room and run the same "
                "command again"
            ) from None
        raise


def _is_main() -> bool:
    """Whether this is the first process (the only one, or rank 0 of those that torchrun started)."""
    return int(os.environ.get("RANK", "0")) == 0
