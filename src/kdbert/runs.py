"""The run folder: its name, its manifest, its status, its lock. Every file is written whole or not at all."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import platform
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import IO, Any

from kdbert.data.download import no_link
from kdbert.errors import RunBusy, UserError
from kdbert.keys import flatten
from kdbert.recipe import Recipe
from kdbert.seal import sealed, unsealed

log = logging.getLogger("kdbert")
# What run.json vouches for: not the model card, which a person may edit, nor events and checkpoints.
HANDED_ON = ("metrics.jsonl", "method.safetensors", "diagnostics/*.csv", "model/*", "predictions/*.jsonl")
FOLDERS = ("predictions", "checkpoints", "diagnostics", "export")  # of a run, besides its model
PACKAGES = (
    "kdbert",
    "torch",
    "transformers",
    "tokenizers",
    "accelerate",
    "safetensors",
    "numpy",
    "scikit-learn",
    "scipy",
)


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
    """One run's folder.

    Layout: recipe.yaml, run.json, metrics.jsonl, TensorBoard events, predictions/, model/, checkpoints/.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def manifest_path(self) -> Path:
        """Where the status and the results stand."""
        return self.path / "run.json"

    def manifest(self) -> dict[str, Any]:
        """run.json, or {} where there is none.

        Raises:
            UserError: it is there but cannot be read.
        """
        try:
            return unsealed(self.manifest_path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except NotADirectoryError:
            raise UserError(f"{self.path} cannot be a run folder: a part of this path is a file") from None
        except (OSError, ValueError) as error:
            raise UserError(
                f"{self.manifest_path} is damaged ({error}); move the folder away, or train it again with --overwrite"
            ) from None

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

    def check_files(self, inside: str = "") -> None:
        """Refuse a finished run whose files are not those that it wrote.

        Args:
            inside: only those of a folder of the run. A model that was deleted as a whole is missed there only: the
                run is still known by its run.json.

        Raises:
            UserError: with the file.
        """
        left = inside or (self.path / "model").is_dir()
        files = {
            name: digest
            for name, digest in self.manifest().get("files", {}).items()
            if name.startswith(f"{inside}/" if inside else "") and (left or not name.startswith("model/"))
        }
        fault = damaged(self.path, files)
        if fault:
            copied = f" (a copy of the folder {inside} outside of the run is taken as it is)" if inside else ""
            raise UserError(f"{fault}: bring it back, or train the run again with --overwrite{copied}")

    def result(self) -> RunResult:
        """The result of a finished run.

        Raises:
            UserError: the run is not finished.
        """
        manifest = self.manifest()
        if manifest.get("status") != "finished":
            raise UserError(f"{self.path} is not a finished run (status: {manifest.get('status', 'no run.json')})")
        return RunResult(
            path=self.path,
            metrics=manifest["metrics"],
            selection=manifest["selection"],
            parameters=manifest["parameters"],
            size_mib=manifest["size_mib"],
            manifest=manifest,
        )

    def check_recipe(self, recipe: Recipe, fingerprints: Mapping[str, str]) -> None:
        """Refuse a folder that another recipe made, or that is no run at all.

        Args:
            fingerprints: what the recipe's model and data paths are known by (see `Recipe.identity`).

        Raises:
            UserError: with the keys that differ; or something in the folder is a link that leads out of it.
        """
        self.check_links()
        manifest = self.manifest()
        if not manifest:
            if self.path.exists() and any(p.name != "run.lock" for p in self.path.iterdir()):
                raise UserError(
                    f"{self.path} exists and is not a run folder (it has no run.json); move it away, or choose another "
                    "--output-dir"
                )
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

    def check_links(self) -> None:
        """Refuse to write through a link: who made the folder may have laid it to a file that is not the run's.

        Raises:
            UserError: something in the folder is a link that leads out of it.
        """
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
                    _remove(litter)

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
        log.info("waiting for %s, which %s is writing", self.path, lock.holder())
        lock.acquire(wait=True)
        lock.release()

    def busy(self) -> bool:
        """Whether some process holds the run now."""
        return FileLock(self.path / "run.lock").taken()


class FileLock:
    """An exclusive lock on a file (flock), held by the processes that have this very opening of it.

    The system lets go of it when the last of them ends, however it ends, so no lock is ever stale. A child
    process that inherits `fileno` holds it too. On a shared file system it works between machines where the mount
    passes flock on (NFSv4, Lustre and GPFS mounted with flock).
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: IO[str] | None = None

    def acquire(self, *, wait: bool = False) -> bool:
        """Take the lock; False if somebody else has it (with `wait`: wait for it).

        Raises:
            OSError: the file cannot be written, or its file system has no locks.
        """
        tries = 0
        while True:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(FileNotFoundError):  # a holder has just removed the file, or the folder
                file = open(self.path, "a+", encoding="utf-8", opener=no_link)
                try:
                    fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
                    if os.fstat(file.fileno()).st_ino == self.path.stat().st_ino:
                        break
                except BlockingIOError:
                    tries += 1
                    if tries == 3:
                        file.close()
                        return False
                    time.sleep(0.02)  # it may be a mere look by `taken`
                except OSError:
                    file.close()
                    raise
                file.close()
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        self._file = file
        return True

    def fileno(self) -> int:
        """The descriptor by which a child process holds the lock too."""
        assert self._file is not None
        return self._file.fileno()

    def holder(self) -> str:
        """Who wrote their name into the file."""
        try:
            told = self.path.read_text(encoding="utf-8", errors="replace")[:200]
            return " ".join("".join(letter if letter.isprintable() else " " for letter in told).split()) or "unknown"
        except OSError:
            return "unknown"

    def taken(self) -> bool:
        """Whether somebody has the lock; creates nothing."""
        try:
            with open(self.path, encoding="utf-8") as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                return False
        except FileNotFoundError:
            return False
        except OSError:
            return True

    def release(self) -> None:
        """Remove the file and let go."""
        assert self._file is not None
        with contextlib.suppress(OSError):
            if os.fstat(self._file.fileno()).st_ino == self.path.stat().st_ino:  # the folder may have been moved
                self.path.unlink()
        self._file.close()
        self._file = None


def identity_of(recipe: Recipe, fingerprints: Mapping[str, str]) -> dict[str, Any]:
    """`Recipe.identity` and the seed: what one run folder stands for."""
    return {**recipe.identity(fingerprints), "seed": recipe.seed}


def run_path(recipe: Recipe, fingerprints: Mapping[str, str], student: str) -> Path:
    """runs/<task>/<method>/<student>-<8 hex of the recipe>-seed<k>, or the folder asked for."""
    if recipe.output.dir is not None:
        return Path(recipe.output.dir).absolute()
    name = f"{student}-{recipe.digest(fingerprints)}-seed{recipe.seed}"
    return Path(recipe.output.runs_dir) / recipe.task.name / recipe.method.name / name


def short_name(model: str) -> str:
    """A model's path or Hub id as a part of a folder name."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", Path(model.rstrip("/")).name).strip("-.") or "model"


def atomic_write(path: Path, write: Callable[[Path], object], name: str | None = None) -> None:
    """Let `write` fill a temporary file beside `path`, flush it to disk, and rename it.

    Args:
        name: of the temporary file, for the holder of a lock: it takes the place of what a killed process left. Else
            it is one of this process, and those that killed ones left go.

    Raises:
        OSError: it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if name is None:
        _clear(path, "tmp")
    temporary = path.with_name(name) if name is not None else _own(path, "tmp")
    try:
        with full_disk(path):
            write(temporary)
        fsync(temporary)
        os.replace(temporary, path)
        fsync(path.parent)  # what is removed after it must not be gone before it is there
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def full_disk(path: Path) -> Iterator[None]:
    """Name `path` where something cannot be written: the system names no file that cannot grow, and safetensors and
    tokenizers raise exceptions of their own (of no class but `Exception`).
    """
    try:
        yield
    except Exception as error:
        told = re.search(r"\(os error (\d+)\)", str(error))
        number = error.errno if isinstance(error, OSError) and error.filename is None else told and int(told[1])
        if not number:
            raise
        raise OSError(number, os.strerror(number), str(path)) from None


def write_text(path: Path, text: str) -> None:
    """Write a whole text file or nothing."""
    atomic_write(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_json(path: Path, content: Any) -> None:
    """Write a whole JSON file or nothing."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def replace_folder(path: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a temporary folder beside `path`, and put it in `path`'s place.

    What killed processes left of such folders goes: what was half-written at once, what it was to replace when there is
    a new one.

    Raises:
        OSError: it cannot be written.
    """
    temporary = _own(path, "tmp")
    path.parent.mkdir(parents=True, exist_ok=True)
    _clear(path, "tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        with full_disk(path):
            write(temporary)
        for file in temporary.rglob("*"):
            if file.is_file():
                file.chmod(0o644)  # safetensors makes its files readable for their owner only
                fsync(file)
        if path.exists():
            old = _own(path, "old")
            path.rename(old)
            temporary.rename(path)
            shutil.rmtree(old, ignore_errors=True)
        else:
            temporary.rename(path)
        fsync(path.parent)
        _clear(path, "old")
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _own(path: Path, kind: str) -> Path:
    """A name beside `path` that is of this process, on whichever machine of a shared file system."""
    return path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}.{kind}")


def _clear(path: Path, kind: str) -> None:
    """Remove what `_own` names for processes that are no more; of another machine nobody here can tell."""
    name = re.compile(rf"\.{re.escape(path.name)}\.{re.escape(socket.gethostname())}\.(\d{{1,9}})\.{kind}")
    with contextlib.suppress(OSError):  # another process is at it, too; the folder may not be listed
        for litter in path.parent.iterdir():
            match = name.fullmatch(litter.name)
            if match and not _alive(int(match[1])):
                _remove(litter)


def _alive(process: int) -> bool:
    """Whether there is a process of this id on this machine."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's
        pass
    return True


def _remove(path: Path) -> None:
    """Remove a file, a link (not what it leads to), or a folder."""
    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def move_aside(path: Path) -> Path:
    """Rename a folder to `<name>.old-<time>`; nothing is deleted. Returns where it is now."""
    stamp = time.strftime("%Y%m%d-%H%M%S")
    target = path.with_name(f"{path.name}.old-{stamp}")
    for number in range(2, 1000):
        if not target.exists():
            break
        target = path.with_name(f"{path.name}.old-{stamp}-{number}")
    path.rename(target)
    return target


def fsync(path: Path) -> None:
    """Flush a file or folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256(path: Path) -> str:
    """Hex digest of a file; read once per process while size and time of change stay the same."""
    status = path.stat()
    return _sha256(path.absolute(), status.st_size, status.st_mtime_ns, status.st_ino)


@lru_cache(maxsize=1024)
def _sha256(path: Path, size: int, changed: int, inode: int) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def damaged(folder: Path, files: Mapping[str, str]) -> str | None:
    """The first file of a folder that does not have its sha256 any more, and what is wrong with it."""
    for name, digest in files.items():
        try:
            if sha256(folder / name) != digest:
                return f"{folder / name} is damaged (it is not what was written there)"
        except OSError as error:
            return f"{folder / name} cannot be read ({error.strerror})"
    return None


def content_digest(path: Path) -> str:
    """Hex digest of a file, or of every file of a folder with its name."""
    if path.is_file():
        return sha256(path)
    digest = hashlib.sha256()
    for file in sorted(path.rglob("*")):
        if file.is_file():
            digest.update(f"{file.relative_to(path)} {sha256(file)}\n".encode())
    return digest.hexdigest()


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
    root = Path(__file__).parents[2]
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
