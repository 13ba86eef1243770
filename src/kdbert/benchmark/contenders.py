"""What is benchmarked: each model with each backend, all of one task; and whose answers they are compared with."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from kdbert.disk.files import sha256
from kdbert.errors import UserError
from kdbert.export import FORMATS, MODEL, export_model, read_about
from kdbert.models.locate import locate, run_facts
from kdbert.reporting.collect import Run, read_run
from kdbert.reporting.labels import told_apart
from kdbert.runs.answers import SavedModel, saved_model

log = logging.getLogger("kdbert")


@dataclass
class Contender:
    """One engine: a model and what runs it."""

    saved: SavedModel  # and its task; of an export, the model that it was made of
    backend: str
    folder: str  # what the engine opens
    name: str = ""  # for tables
    timed: dict[str, Any] = field(default_factory=dict)  # what its process gave so far, see `time_rounds`
    parameters: int | None = None
    quality: dict[str, float] = field(default_factory=dict)
    agreement: float | None = None

    @property
    def exported(self) -> bool:
        return self.backend in FORMATS

    @property
    def weights(self) -> str:
        """What the content of its weights is known by."""
        return sha256(Path(self.folder) / MODEL) if self.exported else self.saved.place.fingerprint()

    @property
    def size_mib(self) -> float | None:
        """Weights on disk; None for a model of the Hub."""
        files = [file for file in Path(self.folder).glob("*") if file.suffix in (".safetensors", ".bin", ".onnx")]
        return sum(file.stat().st_size for file in files) / 2**20 if files else None


def contenders(models: Sequence[str], backends: Sequence[str], asked: Mapping[str, Any]) -> list[Contender]:
    """Every model with every backend; an export with its own.

    Args:
        asked: task, data folder and length, as for `saved_model`.
    """
    abouts = {given: read_about(Path(given)) for given in models}
    sources = {given: given if about is None else _source(given, about) for given, about in abouts.items()}
    # A model folder does not say what its task is: that of the first run.
    runs = [given for given in sources if locate(sources[given]).run is not None]
    first = saved_model(sources[runs[0]], **asked) if runs else None
    saved = {}
    for given, source in sources.items():
        like = first if given not in runs and asked["task"] is None else None
        saved[given] = one = saved_model(source, **asked, like=like)
        one.check()
        tokenizer = one.tokenizer  # refuses a damaged one here and not in the engine's process
        pads = one.way.padding and tokenizer.pad_token_id is not None
        if "pipeline" in backends and abouts[given] is None and not pads:
            raise UserError(
                f"a pipeline pads its texts, and {given!r} has no padding token or answers differently with padding; "
                "leave out --backend pipeline"
            )
    tasks = {one.spec.name: given for given, one in saved.items()}
    if len(tasks) > 1:
        told = ", ".join(f"{name} ({given})" for name, given in tasks.items())
        raise UserError(f"these models are of several tasks ({told}): benchmark one at a time, or choose with --task")
    for given, one in saved.items():
        for backend in {*FORMATS}.intersection(backends) if abouts[given] is None and one.place.run is None else ():
            raise UserError(
                f"{given!r} is not a run folder; export it first (`kdbert export {given} --format {backend} --task "
                f"{one.spec.name} --output-dir DIR`), and name DIR here"
            )
    found = []
    for given, one in saved.items():
        about = abouts[given]
        for backend in backends if about is None else (str(about["format"]),):
            folder = given if about is not None else one.place.source
            if about is None and backend in FORMATS:
                folder = str(export_model(given, backend, **asked).path)
            found.append(Contender(one, backend, folder))
    names = _names({one.saved.given: one.saved for one in found})
    return [replace(one, name=names[one.saved.given]) for one in found]


def _source(export: str, about: Mapping[str, Any]) -> str:
    """The model that an export was made of: the run that it lies in, else the one that it names."""
    above = Path(export).absolute().parent.parent
    return str(above) if (above / "run.json").exists() else str(about["model"])


def _names(models: Mapping[str, SavedModel]) -> dict[str, str]:
    """A short name for each model; what tells runs apart is added, and what the person wrote where nothing does."""
    runs: dict[str, list[tuple[str, Run]]] = {}
    names = {given: given for given in models}
    for given, saved in models.items():
        if saved.place.run is not None:
            run = read_run(saved.place.run)
            names[given] = f"{run.method}, {run.facts['layers']} layers, seed {run.seed}"
            runs.setdefault(names[given], []).append((given, run))
    for same in runs.values():
        words = told_apart([run for _, run in same])
        for given, run in same:
            names[given] = ", ".join(filter(None, (names[given], words[run.path])))
    told = list(names.values())
    return {given: name if told.count(name) == 1 else given for given, name in names.items()}


def check_own_data(models: Sequence[Contender], split: str) -> None:
    """Refuse runs on a person's own data with other columns, labels or another file of the split than the first."""
    first = models[0].saved
    for one in (model.saved for model in models):
        if one.spec.own and first.spec.own and one.spec.own.scored_on(split) != first.spec.own.scored_on(split):
            raise UserError(
                f"{first.given} and {one.given} are runs on different data of yours (the columns or the {split} file "
                "differ); benchmark them separately"
            )


def teacher_of(named: str | None, models: Sequence[Contender]) -> SavedModel | None:
    """Whose answers the others' are compared with: the model that is named, else the first run's teacher."""
    if named is not None:
        found = saved_model(named, like=models[0].saved)
        if found.trained is not None and found.trained.task.name != found.spec.name:
            raise UserError(f"--teacher {named!r} is a model of {found.trained.task.name}, not of {found.spec.name}")
        found.check()
        return found
    for one in (model.saved for model in models):
        facts = {} if one.place.run is None else run_facts(one.place.run)
        known = facts.get("fingerprints", {}).get("teacher0")  # by its content, whatever folder this is called from
        same = next((other.saved for other in models if known == other.saved.place.fingerprint()), None)
        if same is not None:
            return same
        for teacher in facts.get("recipe", {}).get("teachers", [])[:1]:
            try:
                found = saved_model(teacher["model"], labels=teacher.get("labels"), like=one)
                found.check()
                if known not in (None, found.place.fingerprint()):
                    raise UserError(f"{teacher['model']!r} is not the model that taught {one.given!r}")
            except UserError as error:
                log.warning("agreement with the teacher is left out (name it with --teacher): %s", error)
                return None
            return found
    return None
