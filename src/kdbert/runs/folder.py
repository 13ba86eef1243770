"""The run folder: its name, its manifest, its status, its lock. Every file is written whole or not at all."""

from __future__ import annotations

import contextlib
import logging
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdbert.disk.files import move_aside, remove, sha256, write_json
from kdbert.disk.lock import FileLock
from kdbert.disk.sealed import flatten, sealed
from kdbert.errors import RunBusy, UserError
from kdbert.models.locate import run_facts
from kdbert.recipe import Recipe

log = logging.getLogger("kdbert")
# What run.json vouches for: not the model card, which a person may edit, nor events and checkpoints.
HANDED_ON = ("metrics.jsonl", "method.safetensors", "diagnostics/*.csv", "model/*", "predictions/*.jsonl")
FOLDERS = ("predictions", "checkpoints", "diagnostics", "export")  # of a run, besides its model


@dataclass(frozen=True)
class RunResult:
    """What a finished run found.

    Attributes:
        path: the run folder; `path / "model"` loads with `from_pretrained`.
        metrics: split -> metric name -> value.
        selection: the metric by which runs of the task are compared.
        parameters: number of trainable parameters of the model.
        size_mib: size of the model's weights on disk, MiB.
        manifest: the whole of run.json.
        baseline: the same student without a teacher, where `distill` trained it too.
    """

    path: Path
    metrics: dict[str, dict[str, float]]
    selection: str
    parameters: int
    size_mib: float
    manifest: dict[str, Any]
    baseline: RunResult | None = None


class RunFolder:
    """A run's recipe.yaml, run.json, metrics.jsonl, TensorBoard events, predictions/, model/ and checkpoints/."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def manifest_path(self) -> Path:
        """Where the status and the results stand."""
        return self.path / "run.json"

    def manifest(self) -> dict[str, Any]:
        """run.json, or {} where there is none."""
        return run_facts(self.path)

    def update(self, **values: Any) -> None:
        """Set keys of run.json."""
        write_json(self.manifest_path, sealed({**self.manifest(), **values}))

    def written(self) -> dict[str, str]:
        """Path in the run folder -> sha256, of what a finished run hands on; run.json has it as `files`."""
        found = [file for place in HANDED_ON for file in self.path.glob(place)]
        return {str(file.relative_to(self.path)): sha256(file) for file in found if file.name != "README.md"}

    def rewritten(self, files: Iterable[Path]) -> None:
        """Note in a finished run's run.json that files of it were written anew."""
        new = {str(file.relative_to(self.path)): sha256(file) for file in files}
        lock = FileLock(self.path / "run.lock")
        lock.acquire(wait=True)  # of two that do this at once none forgets the other's
        try:
            known = self.manifest().get("files", {})
            if known != {**known, **new}:
                self.update(files={**known, **new})
        finally:
            lock.release()

    def result(self) -> RunResult:
        """The result of a finished run."""
        manifest = self.manifest()
        if manifest.get("status") != "finished":
            raise UserError(f"{self.path} is not a finished run (status: {manifest.get('status', 'no run.json')})")
        told = {key: manifest[key] for key in ("metrics", "selection", "parameters", "size_mib")}
        return RunResult(self.path, **told, manifest=manifest)

    def check_recipe(self, recipe: Recipe, fingerprints: Mapping[str, str]) -> None:
        """Refuse a folder that another recipe made (see `Recipe.identity`), or that is no run at all."""
        self.check_links()
        manifest = self.manifest()
        if not manifest:
            if self.path.exists() and any(p.name != "run.lock" for p in self.path.iterdir()):
                raise UserError(f"{self.path} is not a run folder (no run.json); choose another --output-dir")
            return
        there, here = flatten(manifest.get("identity", {})), flatten(identity_of(recipe, fingerprints))
        told_there, told_here = flatten(manifest.get("recipe", {})), flatten(recipe.model_dump(mode="json"))
        differ = [
            f"{key} ({told_there.get(key)!r} there, {told_here.get(key)!r} now)"
            if told_there.get(key) != told_here.get(key)
            else f"the content of {key} {told_here.get(key)!r}"
            for key in sorted({*there, *here})
            if there.get(key) != here.get(key)
        ]
        if differ:
            raise UserError(
                f"{self.path} holds a run of another recipe: {', '.join(differ)}; choose another folder, "
                "or pass --overwrite to move that run aside"
            )

    def begin(
        self,
        fingerprints: Mapping[str, str],
        machine: Mapping[str, Any],
        environment: Mapping[str, Any],
        *,
        needed: int,
        **facts: Any,
    ) -> None:
        """Open the folder for a run that starts or is continued.

        Args:
            fingerprints: of the data and models that it reads.
            machine: precision, device, processes and threads. environment: see `kdbert.runs.environment`.
            needed: bytes that its checkpoints and model will take.
            facts: what else run.json says from the start.
        """
        before = self.manifest()
        known = before.get("fingerprints", fingerprints)
        changed = [name for name, value in fingerprints.items() if known.get(name) != value]
        if known != fingerprints:
            raise UserError(
                f"{self.path} was begun with other inputs ({', '.join(changed)} changed since); pass --overwrite to "
                "move that run aside and start afresh"
            )
        self.clean()
        free = shutil.disk_usage(self.path).free
        if free < needed:
            raise UserError(
                f"{self.path}: {free / 2**20:.0f} MiB free on the disk, checkpoints and model need about "
                f"{needed / 2**20:.0f} MiB; make room or choose another --runs-dir"
            )
        now = {**machine, "processor": environment["processor"], **environment["versions"]}
        then = {**before.get("environment", {}), **before.get("environment", {}).get("versions", {}), **before}
        other = [f"{key} {then[key]} then, {now[key]} now" for key in now if then.get(key, now[key]) != now[key]]
        if other:
            log.warning(
                "continuing on another machine, or with other versions: weights will not be bit for bit the same (%s)",
                "; ".join(other),
            )
        self.update(
            status="running",
            message="",
            **({"divergence": {}} if before.get("divergence") else {}),
            started=before.get("started", time.strftime("%Y-%m-%dT%H:%M:%S%z")),
            fingerprints=dict(fingerprints),
            **machine,
            environment=environment,
            **facts,
        )

    def check_links(self) -> None:
        """Refuse to write through a link: who made the folder may have laid it to a file that is not the run's."""
        own = self.path.resolve()
        for place in (self.path, *(self.path / name for name in FOLDERS)):
            for path in [place, *place.glob("*")] if place.exists() else []:
                if path != self.path and path.is_symlink() and not path.resolve().is_relative_to(own):
                    raise UserError(
                        f"{path} is a link that leads out of the run folder; put what it leads to there instead"
                    )

    def clean(self) -> None:
        """Remove what a killed process left half-written; only the holder of the lock may do this."""
        for place in (self.path, *(self.path / name for name in FOLDERS)):
            for pattern in (".*.tmp", ".*.old"):
                for litter in place.glob(pattern):
                    remove(litter)

    def tidy(self) -> None:
        """Remove what a process left that was killed when the run was finished: its lock, checkpoints nobody keeps."""
        left = [self.path / "run.lock"]
        if not self.manifest().get("recipe", {}).get("output", {}).get("keep_checkpoints", True):
            left.append(self.path / "checkpoints")
        if any(path.exists() for path in left):
            with contextlib.suppress(UserError), self.locked():  # busy: that process does it; or not ours to write
                for folder in left[1:]:
                    shutil.rmtree(folder, ignore_errors=True)

    def move_aside(self) -> Path:
        """Rename the folder to `<name>.old-<time>`; nothing is deleted."""
        target = move_aside(self.path)
        (target / "run.lock").unlink(missing_ok=True)
        return target

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the run; the system lets go of it when the process ends, however it ends.

        Raises:
            RunBusy: another process holds it, with its id and host.
            UserError: the folder cannot be written.
        """
        lock = FileLock(self.path / "run.lock")
        try:
            taken = lock.acquire()
        except OSError as error:
            raise UserError(f"cannot write to {self.path}: {error.strerror}") from None
        if not taken:
            raise RunBusy(f"{self.path} is being written by another process ({lock.holder()})")
        try:
            yield
        finally:
            lock.release()
            with contextlib.suppress(OSError):
                self.path.rmdir()  # only if the run was refused before it wrote anything

    def wait(self) -> None:
        """Wait until no process holds the run."""
        lock = FileLock(self.path / "run.lock")
        lock.wait_for(str(self.path))
        lock.release()

    def busy(self) -> bool:
        """Whether some process holds the run now."""
        return FileLock(self.path / "run.lock").taken()


def identity_of(recipe: Recipe, fingerprints: Mapping[str, str]) -> dict[str, Any]:
    """`Recipe.identity` and the seed: what one run folder stands for."""
    return {**recipe.identity(fingerprints), "seed": recipe.seed}


def run_path(recipe: Recipe, fingerprints: Mapping[str, str], student: str) -> Path:
    """runs/<task>/<method>/<student>-<8 hex of the recipe>-seed<k>, or the folder asked for."""
    if recipe.output.dir is not None:
        return Path(recipe.output.dir).absolute()
    name = f"{student}-{recipe.digest(fingerprints)}-seed{recipe.seed}"
    return Path(recipe.output.runs_dir) / recipe.task.name / recipe.method.name / name
