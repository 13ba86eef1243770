"""Where the files of registered tasks come from, and what they must be.

`files.tsv` has, for each file, its place below the data folder, the sha256 of its content, and its address: a file, or
`archive#member`. Addresses on raw.githubusercontent.com name a commit. Checksums are of copies that were compared with
the published row counts; those of GLUE's archives are the ones that `datasets` 1.x recorded for them.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path

from kdbert.data.download import download, unpack, write_checked
from kdbert.data.files import find_file, read_lines, unpacked_sha256
from kdbert.errors import UserError
from kdbert.tasks.spec import TaskSpec

log = logging.getLogger("kdbert")
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
# Files whose own checksum is not known; that of their archive is.
IN_ARCHIVES = {
    "QNLI/train.tsv": GLUE + "QNLIv2.zip#QNLI/train.tsv",
    **{f"QQP/{split}.tsv": f"{GLUE}QQP-clean.zip#QQP/{split}.tsv" for split in ("train", "dev", "test")},
    **{
        f"MNLI/{split}.tsv": f"{GLUE}MNLI.zip#MNLI/{split}.tsv"
        for split in ("train", "dev_matched", "dev_mismatched", "test_matched", "test_mismatched")
    },
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
    """A file of a data set: its place below the data folder, its sha256 ("" if not known), its address ("" if none)."""

    path: str
    sha256: str
    url: str


@cache
def known_files() -> dict[str, File]:
    """Place below the data folder -> what is known of the file."""
    lines = resources.files("kdbert.tasks").joinpath("files.tsv").read_text(encoding="utf-8").splitlines()[1:]
    found = {path: File(path, sha256, url) for path, sha256, url in (line.split("\t") for line in lines)}
    return found | {path: File(path, "", url) for path, url in IN_ARCHIVES.items()}


def checksum(spec: TaskSpec, path: Path) -> str | None:
    """What the sha256 of a task's local file must be; None if that is not known."""
    file = known_files().get(f"{spec.folder}/{path.name.removesuffix('.gz')}")
    return file.sha256 or None if file is not None else None


def wanted_files(spec: TaskSpec) -> list[File]:
    """The files of a task: those of its splits, and those that are read beside them."""
    if spec.folder.startswith("massive_"):
        locale = spec.folder.removeprefix("massive_")
        return [File(f"{spec.folder}/{locale}.jsonl", "", f"{MASSIVE}#1.1/data/{locale}.jsonl")]
    files = [file for file in known_files().values() if file.path.rpartition("/")[0] == spec.folder]
    if spec.folder == "clinc150":
        names = {name for split in spec.splits.values() for name in split.files}
        files = [file for file in files if file.path.rpartition("/")[2] in names]
    if spec.folder == "abuseval":  # the authors' labels, and the tweets that they belong to
        files = [file for file in files if file.url]
        files += [known_files()[f"olid/{name}"] for name in ("olid-training-v1.0.tsv", "testset-levela.tsv")]
    return files


def missing_files(spec: TaskSpec, data_dir: Path) -> list[File]:
    """The files of a task that are not there yet.

    Raises:
        UserError: nothing is known of its files; another file stands in one's place.
    """
    wanted = wanted_files(spec) if spec.folder else []
    if not wanted:
        raise UserError(f"task {spec.name!r} has no files to fetch; `kdbert data describe {spec.name}` says more")
    missing = []
    for file in wanted:
        there = find_file((data_dir / file.path).parent, (Path(file.path).name,))
        if there is None:
            missing.append(file)
        elif file.sha256 and unpacked_sha256(there) != file.sha256:
            raise UserError(f"{there} is there, but it is another file than the published one; move it away first")
    return missing


def fetch(spec: TaskSpec, data_dir: Path) -> list[Path]:
    """Fetch a task's files that are not there yet, each checked before it gets its name.

    Returns:
        The files that were written.

    Raises:
        UserError: nothing is known of where they come from; another file stands in a file's place; whatever
            `kdbert.data.download` raises.
    """
    missing = missing_files(spec, data_dir)
    written: list[Path] = []
    archives: dict[str, list[File]] = {}
    made = [file for file in missing if not file.url]
    for file in missing:
        if file.url and (spec.folder != "MRPC" or made):
            archives.setdefault(file.url.partition("#")[0], []).append(file)
    for url, files in archives.items():
        written += _fetch_address(url, files, data_dir)
    if made:
        maker = _MAKERS.get(spec.folder)
        if maker is None:
            cure = BY_HAND.get(spec.folder.partition("/")[0], "get them from " + spec.source)
            raise UserError(
                f"{spec.name}: {', '.join(Path(file.path).name for file in made)} cannot be fetched: "
                + cure.format(folder=data_dir / spec.folder.partition("/")[0])
            )
        written += maker(data_dir / spec.folder, {Path(file.path).name: file.sha256 for file in made})
    return written


def _fetch_address(url: str, files: list[File], data_dir: Path) -> list[Path]:
    """One file, or some members of one archive."""
    targets = [data_dir / file.path for file in files]
    if "#" not in files[0].url:
        download(url, targets[0], files[0].sha256 or None)
        return targets
    archive = data_dir / ".fetched" / url.rpartition("/")[2]
    download(url, archive, ARCHIVES[url])
    names = [file.url.partition("#")[2] for file in files]
    unpack(
        archive,
        dict(zip(names, targets, strict=True)),
        {name: file.sha256 for name, file in zip(names, files, strict=True) if file.sha256},
    )
    archive.unlink()
    with contextlib.suppress(OSError):  # it holds what another command is fetching
        archive.parent.rmdir()
    return targets


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


def make_emotion(folder: Path, checksums: Mapping[str, str]) -> list[Path]:
    """The emotion data's `text;label` files of the Hub's data set dair-ai/emotion."""
    import pyarrow.parquet

    hub = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    labels = ("sadness", "joy", "love", "anger", "fear", "surprise")  # the numbers' order on the Hub
    rows = {}
    for name in checksums:
        split = {"val": "validation"}.get(name.removesuffix(".txt"), name.removesuffix(".txt"))
        source = folder / f"{split}.parquet"
        download(f"{hub}/datasets/dair-ai/emotion/resolve/main/split/{split}-00000-of-00001.parquet", source, None)
        try:
            table = pyarrow.parquet.read_table(source, columns=["text", "label"]).to_pylist()
            rows[name] = [f"{row['text']};{labels[row['label']]}" for row in table]
        except (pyarrow.ArrowInvalid, OSError, KeyError, IndexError, TypeError) as error:
            raise UserError(f"the Hub's emotion data have another form than expected ({error})") from None
        finally:
            source.unlink()
    return _write(rows, folder, checksums)


_MAKERS: dict[str, Callable[[Path, Mapping[str, str]], list[Path]]] = {"MRPC": make_mrpc, "emotion": make_emotion}


def _part(folder: Path, name: str) -> Path:
    return find_file(folder, (name,)) or folder / name


def _write(rows: Mapping[str, list[str]], folder: Path, checksums: Mapping[str, str]) -> list[Path]:
    targets = []
    for name, lines in rows.items():
        write_checked(io.BytesIO(("\n".join(lines) + "\n").encode()), folder / name, checksums[name])
        targets.append(folder / name)
    return targets
