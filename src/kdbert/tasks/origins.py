"""Where the files of registered tasks come from, and their checksums.

`files.tsv` has, for each file, its path below the data folder, the sha256 of its content, its address (a file, or
`archive#member`), and `made_here` for copies that the project's tests read and that are not the official bytes.
Addresses on raw.githubusercontent.com name a commit. Checksums are of copies that were compared with the published row
counts; those of GLUE's archives are the ones that `datasets` 1.x recorded for them.
"""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path

from kdbert.data.data_file import FAULTS, first_line
from kdbert.data.download import download, unpack, write_checked
from kdbert.data.files import find_file, read_lines, unpacked_sha256
from kdbert.disk.lock import alone
from kdbert.errors import UserError, without_credentials
from kdbert.tasks.sentiment import EMOTION
from kdbert.tasks.spec import TaskSpec

GLUE = "https://dl.fbaipublicfiles.com/glue/data/"
MASSIVE = "https://amazon-massive-nlu-dataset.s3.amazonaws.com/amazon-massive-dataset-1.1.tar.gz"
ARCHIVES = {
    GLUE + "CoLA.zip": "f212fcd832b8f7b435fb991f101abf89f96b933ab400603bf198960dfc32cbff",
    GLUE + "SST-2.zip": "d67e16fb55739c1b32cdce9877596db1c127dc322d93c082281f64057c16deaa",
    GLUE + "STS-B.zip": "e60a6393de5a8b5b9bac5020a1554b54e3691f9d600b775bd131e613ac179c85",
    GLUE + "QQP-clean.zip": "40e7c862c04eb26ee04b67fd900e76c45c6ba8e6d8fab4f8f1f8072a1a3fbae0",
    GLUE + "MNLI.zip": "e7c1d896d26ed6caf700110645df426cc2d8ebf02a5ab743d5a5c68ac1c83633",
    GLUE + "QNLIv2.zip": "e634e78627a29adaecd4f955359b22bf5e70f2cbd93b493f2d624138a0c0e5f5",
    GLUE + "RTE.zip": "6bf86de103ecd335f3441bd43574d23fef87ecc695977a63b82d5efb206556ee",
    GLUE + "WNLI.zip": "ae0e8e4d16f4d46d4a0a566ec7ecceccfd3fbfaa4a7a4b4e02848c0f2561ac46",
    MASSIVE: "4cba5faa11c71437928e17cb1b9b3d8b8e727e7ea363a3a9a8045e19c0491577",
}
BY_HAND = {
    "hateval2019": (
        "the organisers hand HatEval's files out on request (https://github.com/msang/hateval); "
        "`kdbert data fetch tweeteval-hate` fetches the same tweets as TweetEval distributes them"
    ),
    "blurb": (
        "unpack https://nlp.stanford.edu/projects/myasu/LinkBERT/data.zip yourself and put its folders seqcls and "
        "tokcls into {folder}; no checksum of it is known"
    ),
}


@dataclass(frozen=True)
class File:
    """A file of a data set, as a row of `files.tsv`: `path` is its place below the data folder, "" is unknown."""

    path: str
    sha256: str
    url: str = ""
    made_here: str = ""

    @property
    def name(self) -> str:
        """Its name without the folder."""
        return self.path.rpartition("/")[2]


@cache
def known_files() -> dict[str, File]:
    """Place below the data folder -> what is known of the file."""
    lines = resources.files("kdbert.tasks").joinpath("files.tsv").read_text(encoding="utf-8").splitlines()[1:]
    return {file.path: file for file in (File(*line.split("\t")) for line in lines)}


def known(spec: TaskSpec, name: str) -> File:
    """What is known of a task's file of this name, plain or gzip."""
    name = name.removesuffix(".gz")
    path = f"{spec.folder}/{name}"
    if spec.folder.startswith("massive_") and name == f"{spec.folder.removeprefix('massive_')}.jsonl":
        return File(path, "", f"{MASSIVE}#1.1/data/{name}")
    return known_files().get(path, File(path, ""))


@dataclass(frozen=True)
class Wanted:
    """A missing file and where it goes. `how` says what it is made of, or how to get it by hand."""

    file: File
    target: Path
    how: str = ""
    by_hand: bool = False

    def __str__(self) -> str:
        return f"{self.target} ({'get it by hand: ' if self.by_hand else ''}{self.file.url or self.how})"


def base_folder(spec: TaskSpec, data_dir: str | None) -> Path:
    """The folder of a task's files; `data_dir` may be that folder or its parent, as everywhere."""
    if not spec.folder:
        raise UserError(f"task {spec.name!r} has no files to fetch: they are part of kdbert")
    found = [path.parent for split in spec.splits if (path := spec.path(split, data_dir)) is not None]
    return found[0] if found else spec.root(data_dir) / spec.folder


def missing_files(spec: TaskSpec, data_dir: str | None) -> list[Wanted]:
    """The files that are missing for reading every split of a task."""
    base = base_folder(spec, data_dir)
    wanted: dict[Path, Wanted] = {}

    def want(file: File, folder: Path = base) -> None:
        if find_file(folder, (file.name,)) is None:
            wanted[folder / file.name] = _wanted(spec, file, folder)

    for name, split in spec.splits.items():
        files = spec.files(name, data_dir)
        candidates = [known(spec, one) for one in split.files if "/" not in one]
        if not files:
            want(next((file for file in candidates if file.url), candidates[0]))
        for one in split.beside:
            want(known(spec, one))
    if spec.folder in MADE and wanted:
        for one in MADE[spec.folder].parts:
            want(known(spec, one))
    if spec.folder == "abuseval" and wanted:  # the authors' labels; their tweets are OLID's
        for one in ("olid-training-v1.0.tsv", "testset-levela.tsv"):
            want(known_files()[f"olid/{one}"], base.parent / "olid")
    return list(wanted.values())


def check_published(spec: TaskSpec, data_dir: str | None) -> None:
    """Refuse to fetch if some of a task's files differ from the published ones."""
    for name in spec.splits:
        for path in spec.files(name, data_dir):
            file = known(spec, path.name)
            if file.sha256 and not file.made_here and unpacked_sha256(path) != file.sha256:
                raise UserError(f"{path} differs from the published file; move it away first")


def _wanted(spec: TaskSpec, file: File, folder: Path) -> Wanted:
    target = folder / file.name
    if file.url:
        return Wanted(file, target)
    if spec.folder in MADE:
        return Wanted(file, target, f"made of {MADE[spec.folder].source(file.name)}")
    root = target.parents[len(Path(spec.folder).parts)] / spec.folder.partition("/")[0]
    cure = BY_HAND.get(spec.folder.partition("/")[0], f"get it from {spec.source}").format(folder=root)
    return Wanted(file, target, cure, by_hand=True)


def fetch(spec: TaskSpec, data_dir: str | None) -> list[Path]:
    """Fetch a task's files that are not there yet, each checked before it gets its name; returns those written."""
    base = base_folder(spec, data_dir)
    try:
        with alone(base.parent / ".fetch"):
            return _fetch(spec, data_dir)
    except OSError as error:
        raise UserError(f"cannot write to {base}: {error.strerror or error}") from None


def _fetch(spec: TaskSpec, data_dir: str | None) -> list[Path]:
    check_published(spec, data_dir)
    missing = missing_files(spec, data_dir)
    written: list[Path] = []
    for url in dict.fromkeys(one.file.url.partition("#")[0] for one in missing if one.file.url):
        written += _fetch_address(url, [one for one in missing if one.file.url.partition("#")[0] == url])
    made = {one.file.name: one.file.sha256 for one in missing if not one.file.url and not one.by_hand}
    if made:
        written += MADE[spec.folder].make(base_folder(spec, data_dir), made)
    lost = [one for one in missing if one.by_hand]
    if lost:
        names = ", ".join(one.file.name for one in lost)
        raise UserError(f"{spec.name}: {names} cannot be fetched: {lost[0].how}")
    return written


def _fetch_address(url: str, wanted: list[Wanted]) -> list[Path]:
    """One file, or some members of one archive."""
    targets = [one.target for one in wanted]
    if "#" not in wanted[0].file.url:
        download(url, targets[0], wanted[0].file.sha256 or None)
        return targets
    members = {one.file.url.partition("#")[2]: one for one in wanted}
    with temporary_folder(targets[0].parent.parent) as folder:
        archive = folder / url.rpartition("/")[2]
        download(url, archive, ARCHIVES[url])
        checksums = {name: one.file.sha256 for name, one in members.items() if one.file.sha256}
        unpack(archive, {name: one.target for name, one in members.items()}, checksums)
        archive.unlink()
    return targets


@contextlib.contextmanager
def temporary_folder(parent: Path) -> Iterator[Path]:
    """A folder for archives and other intermediate files. A broken transfer stays there and is continued."""
    folder = parent / ".fetched"
    try:
        yield folder
    finally:
        with contextlib.suppress(OSError):  # it is not there, or not empty
            folder.rmdir()


def make_mrpc(folder: Path, checksums: Mapping[str, str]) -> list[Path]:
    """MRPC's three files, made of the MSR corpus and GLUE's list of dev ids as GLUE's own script makes them."""
    ids = {tuple(line.split("\t")) for _, line in read_lines(_part(folder, "dev_ids.tsv")) if line}
    lines = [line.strip() for _, line in read_lines(_part(folder, "msr_paraphrase_train.txt"))]
    header = "\ufeff" + lines[0]
    rows: dict[str, list[str]] = {"train.tsv": [header], "dev.tsv": [header]}
    for line in lines[1:]:
        cells = line.split("\t")
        if len(cells) == 5:
            rows["dev.tsv" if tuple(cells[1:3]) in ids else "train.tsv"].append(line)
    test = [line.strip().split("\t") for _, line in read_lines(_part(folder, "msr_paraphrase_test.txt"))][1:]
    rows["test.tsv"] = ["index\t#1 ID\t#2 ID\t#1 String\t#2 String"]
    rows["test.tsv"] += ["\t".join([str(number), *cells[1:]]) for number, cells in enumerate(test) if len(cells) == 5]
    return _write({name: rows[name] for name in checksums}, folder, checksums)


def _emotion_address(name: str) -> str:
    hub = (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")
    split = {"val": "validation"}.get(name.removesuffix(".txt"), name.removesuffix(".txt"))
    return f"{hub}/datasets/dair-ai/emotion/resolve/main/split/{split}-00000-of-00001.parquet"


def make_emotion(folder: Path, checksums: Mapping[str, str]) -> list[Path]:
    """The emotion data's `text;label` files of the Hub's data set dair-ai/emotion."""
    import pyarrow.parquet

    rows = {}
    with temporary_folder(folder.parent) as parts:
        for name in checksums:
            source = parts / f"emotion-{name}.parquet"
            download(_emotion_address(name), source, None)
            try:
                table = pyarrow.parquet.read_table(source, columns=["text", "label"]).to_pylist()
                rows[name] = [f"{row['text']};{EMOTION.labels[row['label']]}" for row in table]
            except (pyarrow.ArrowException, *FAULTS) as error:
                place = without_credentials(_emotion_address(name))
                raise UserError(f"{place} does not have the expected form ({first_line(error)})") from None
            finally:
                source.unlink()
    return _write(rows, folder, checksums)


def _part(folder: Path, name: str) -> Path:
    return find_file(folder, (name,)) or folder / name


def _write(rows: Mapping[str, list[str]], folder: Path, checksums: Mapping[str, str]) -> list[Path]:
    targets = []
    for name, lines in rows.items():
        write_checked(io.BytesIO(("\n".join(lines) + "\n").encode()), folder / name, checksums[name])
        targets.append(folder / name)
    return targets


@dataclass(frozen=True)
class Made:
    """How the files of a folder are made from others, because nobody distributes them as they are."""

    source: Callable[[str], str]  # name of a file -> what it is made of, for a person
    make: Callable[[Path, Mapping[str, str]], list[Path]]  # writes files (name -> sha256) and returns them
    parts: tuple[str, ...] = ()  # files that are fetched first


MADE = {
    "MRPC": Made(
        lambda name: "the MSR corpus and GLUE's dev ids",
        make_mrpc,
        ("msr_paraphrase_train.txt", "msr_paraphrase_test.txt", "dev_ids.tsv"),
    ),
    "emotion": Made(lambda name: without_credentials(_emotion_address(name)), make_emotion),
}
