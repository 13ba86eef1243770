"""What a task's files are and where they come from, on the real files and against a server on this machine."""

from __future__ import annotations

import gzip
import io
import re
import shutil
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from unittest.mock import Mock
from urllib.error import URLError

import pyarrow
import pyarrow.parquet
import pytest

from kdbert.data.files import read_lines, unpacked_sha256
from kdbert.errors import UserError
from kdbert.tasks import get_task, task_names
from kdbert.tasks.origins import ARCHIVES, fetch, known, known_files, make_mrpc, missing_files


def test_what_is_known_of_files_is_well_formed() -> None:
    for file in known_files().values():
        assert re.fullmatch(r"[0-9a-f]{64}|", file.sha256), file
        assert file.sha256 or file.url.partition("#")[0] in ARCHIVES, file
        assert not file.url or file.url.startswith("https://"), file
        if "raw.githubusercontent.com" in file.url:
            assert re.search(r"/[0-9a-f]{40}/", file.url), file
    for name in task_names():
        spec = get_task(name)
        if spec.folder:
            wanted = missing_files(spec, "/nowhere")
            assert len({one.target for one in wanted}) == len(wanted) > 0, name
            assert all(one.file.url or one.how for one in wanted), name


def test_copies_that_were_made_here_are_marked() -> None:
    made = {file.path: file.made_here for file in known_files().values() if file.made_here}
    assert made == {
        "blurb/seqcls/DDI_hf/train.json": "rebuilt",
        "blurb/seqcls/chemprot_hf/train.json": "rebuilt",
        "blurb/seqcls/chemprot_hf/test.json": "rebuilt",
        "blurb/tokcls/BC2GM_hf/train.json": "converted",
        "abuseval/abuseval_train_joined.tsv": "joined",
        "abuseval/abuseval_test_joined.tsv": "joined",
    }


@pytest.mark.real_data
def test_real_files_have_the_checksums(data_dir: Path) -> None:
    found = 0
    for name in task_names():
        spec = get_task(name)
        for split in spec.splits:
            if not spec.folder or name == "mnli":
                continue
            for path in spec.files(split, str(data_dir)) or spec.files(split, str(data_dir / "glue")):
                expected = known(spec, path.name).sha256
                assert expected, (name, split)
                assert unpacked_sha256(path) == expected, (name, split)
                found += 1
    assert found > 100


@pytest.mark.real_data
def test_labels_beside_texts_are_verified_and_a_part_of_a_runs_data(
    data_dir: Path, kdbert: Any, tmp_path: Path
) -> None:
    folder = tmp_path / "tweeteval" / "hate"
    shutil.copytree(data_dir / "tweeteval" / "hate", folder)
    assert kdbert("data", "verify", "tweeteval-hate", "--data-dir", tmp_path).code == 0
    spec = get_task("tweeteval-hate")
    assert [path.name for path in spec.files("test", str(tmp_path))] == ["test_text.txt.gz", "test_labels.txt"]
    labels = (folder / "test_labels.txt").read_text(encoding="utf-8")
    (folder / "test_labels.txt").write_text(labels.translate(str.maketrans("01", "10")), encoding="utf-8")
    done = kdbert("data", "verify", "tweeteval-hate", "--data-dir", tmp_path)
    assert done.code == 2
    assert "ANOTHER CHECKSUM" in done.out


@pytest.mark.real_data
def test_other_copies_of_a_rebuilt_file_are_no_fault(data_dir: Path, kdbert: Any, tmp_path: Path) -> None:
    folder = tmp_path / "blurb" / "seqcls" / "chemprot_hf"
    shutil.copytree(data_dir / "blurb" / "seqcls" / "chemprot_hf", folder)
    content = gzip.decompress((folder / "train.json.gz").read_bytes()).replace(b"@CHEMICAL$ ", b"@CHEMICAL$  ", 1)
    (folder / "train.json.gz").write_bytes(gzip.compress(content))
    done = kdbert("data", "verify", "chemprot", "--data-dir", tmp_path)
    assert done.code == 0, done.err
    assert "no official checksum is known, not the rebuilt file" in done.out
    assert "everything is there" in kdbert("data", "fetch", "chemprot", "--data-dir", tmp_path).out


def test_without_network_it_says_how_to_get_this_task(
    kdbert: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kdbert.data.download.TRIES", 1)
    monkeypatch.setattr("urllib.request.urlopen", Mock(side_effect=URLError("no network")))
    done = kdbert("data", "fetch", "rte", "--data-dir", tmp_path)
    assert done.code == 2
    assert "kdbert data describe rte" in done.err


def test_what_is_got_by_hand_is_said_wherever_one_looks(kdbert: Any, tmp_path: Path) -> None:
    for words in (("fetch", "jnlpba", "--dry-run"), ("describe", "jnlpba")):
        done = kdbert("data", *words, "--data-dir", tmp_path)
        assert done.code == 0, done.err
        assert "LinkBERT/data.zip" in done.out


@pytest.mark.real_data
def test_the_tasks_own_folder_may_be_named(data_dir: Path, kdbert: Any) -> None:
    for task, folder in (("emotion", "emotion"), ("massive", "massive_en-US"), ("rte", "glue/RTE")):
        done = kdbert("data", "fetch", task, "--data-dir", data_dir / folder, "--dry-run")
        assert (done.code, "everything is there" in done.out) == (0, True), done.out


@pytest.mark.real_data
def test_mrpc_is_made_of_the_msr_files_as_glue_makes_it(data_dir: Path, tmp_path: Path) -> None:
    source = data_dir / "glue" / "MRPC"
    for name in ("msr_paraphrase_train.txt.gz", "dev_ids.tsv"):
        shutil.copy(source / name, tmp_path / name)
    # The MSR test file has a label where GLUE's has a number.
    rows = [line.split("\t")[1:] for _, line in read_lines(source / "test.tsv.gz")]
    msr = ["\t".join(["Quality" if number == 0 else "1", *cells]) for number, cells in enumerate(rows)]
    (tmp_path / "msr_paraphrase_test.txt").write_text("\n".join(msr) + "\n", encoding="utf-8-sig")
    sums = {name: known_files()[f"MRPC/{name}"].sha256 for name in ("train.tsv", "dev.tsv", "test.tsv")}
    written = make_mrpc(tmp_path, sums)  # they are checked by sha256
    assert sorted(path.name for path in written) == ["dev.tsv", "test.tsv", "train.tsv"]
    with pytest.raises(UserError, match=r"train\.tsv is not the file that was expected"):
        make_mrpc(tmp_path, {"train.tsv": "0" * 64})


class Hub(BaseHTTPRequestHandler):
    """Serves `files` by path."""

    files: dict[str, bytes]

    def log_message(self, *words: object) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        """Answer."""
        content = self.files.get(self.path)
        if content is None:
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, bytes]]:
    """A Hub on this machine; what it serves is put into the mapping."""
    Hub.files = {}
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_address[1]}")
        yield Hub.files
        server.shutdown()


def parquet(rows: list[tuple[str, int]]) -> bytes:
    """A parquet file in the form of the Hub's emotion data."""
    buffer = io.BytesIO()
    table = pyarrow.table({"text": [text for text, _ in rows], "label": pyarrow.array([n for _, n in rows], "int64")})
    pyarrow.parquet.write_table(table, buffer)
    return buffer.getvalue()


@pytest.mark.real_data
def test_emotion_comes_from_the_hub_and_is_the_published_file(
    hub: dict[str, bytes], data_dir: Path, kdbert: Any, tmp_path: Path
) -> None:
    labels = get_task("emotion").labels
    for name, split in (("train", "train"), ("val", "validation"), ("test", "test")):
        lines = gzip.decompress((data_dir / "emotion" / f"{name}.txt.gz").read_bytes()).decode().splitlines()
        rows = [(text, labels.index(label)) for text, _, label in (line.rpartition(";") for line in lines)]
        hub[f"/datasets/dair-ai/emotion/resolve/main/split/{split}-00000-of-00001.parquet"] = parquet(rows)
    done = kdbert("data", "fetch", "emotion", "--data-dir", tmp_path)
    assert done.code == 0, done.err
    assert sorted(path.name for path in (tmp_path / "emotion").iterdir()) == ["test.txt", "train.txt", "val.txt"]
    done = kdbert("data", "verify", "emotion", "--data-dir", tmp_path)
    assert (done.code, done.out.count("as published; same checksum")) == (0, 3)
    hub.clear()  # nothing is fetched again
    done = kdbert("data", "fetch", "emotion", "--data-dir", tmp_path)
    assert (done.code, "everything is there" in done.out) == (0, True)
    (tmp_path / "emotion" / "val.txt").write_text("mine;joy\n", encoding="utf-8")
    done = kdbert("data", "fetch", "emotion", "--data-dir", tmp_path)
    assert done.code == 2
    assert "differs from the published file" in done.err
    assert (tmp_path / "emotion" / "val.txt").read_text(encoding="utf-8") == "mine;joy\n"
    done = kdbert("data", "verify", "emotion", "--data-dir", tmp_path)
    assert done.code == 2
    assert "dev: 1 rows, published: 2000; ANOTHER CHECKSUM" in done.out


def test_other_emotion_data_are_refused(hub: dict[str, bytes], kdbert: Any, tmp_path: Path) -> None:
    for split in ("train", "validation", "test"):
        hub[f"/datasets/dair-ai/emotion/resolve/main/split/{split}-00000-of-00001.parquet"] = parquet([("a", 1)])
    done = kdbert("data", "fetch", "emotion", "--data-dir", tmp_path)
    assert done.code == 2
    assert "is not the file that was expected" in done.err
    assert list((tmp_path / "emotion").iterdir()) == []


def test_files_that_nobody_serves_are_told_with_the_cure(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"hateval2019_en_train.csv.* cannot be fetched: .*tweeteval-hate"):
        fetch(get_task("hateval"), str(tmp_path))
    with pytest.raises(UserError, match="no files to fetch"):
        fetch(get_task("quickstart"), str(tmp_path))


def test_a_persons_own_files_beside_are_left_alone(hub: dict[str, bytes], kdbert: Any, tmp_path: Path) -> None:
    (tmp_path / "emotion").mkdir()
    own = tmp_path / "emotion" / "train.parquet"
    own.write_text("mine", encoding="utf-8")
    assert kdbert("data", "fetch", "emotion", "--data-dir", tmp_path).code == 2  # the Hub has nothing
    assert own.read_text(encoding="utf-8") == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["emotion"]


@pytest.mark.parametrize("address", ["", "foo", "ftp://x"])
def test_an_odd_hub_address_is_told(address: str, kdbert: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_ENDPOINT", address)
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:1")
    done = kdbert("data", "fetch", "emotion", "--data-dir", tmp_path)
    assert done.code == 2
    assert "cannot fetch" in done.err


def test_what_is_got_by_hand_goes_where_it_is_looked_for(kdbert: Any, tmp_path: Path) -> None:
    done = kdbert("data", "fetch", "jnlpba", "--dry-run", "--data-dir", tmp_path)
    assert done.code == 0, done.err
    assert f"put its folders seqcls and tokcls into {tmp_path / 'blurb'};" in done.out
    (by_hand,) = [line for line in done.out.splitlines() if "by hand" in line]
    assert by_hand.startswith(str(tmp_path / "blurb" / "tokcls" / "JNLPBA_hf" / "train.json"))


@pytest.mark.real_data
def test_files_of_ones_own_are_described_and_verified_split_by_split(
    kdbert: Any, data_dir: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "RTE"
    folder.mkdir()
    for name, keep in (("train", 50), ("dev", 30), ("test", 20)):
        (source,) = (data_dir / "glue" / "RTE").glob(f"{name}.tsv*")
        text = gzip.decompress(source.read_bytes()) if source.suffix == ".gz" else source.read_bytes()
        (folder / f"{name}.tsv").write_bytes(b"\n".join(text.split(b"\n")[:keep]) + b"\n")
    done = kdbert("data", "describe", "rte", "--data-dir", tmp_path)
    assert done.code == 0, done.err
    assert "train: 49 rows" in done.out
    assert "tokens of all-MiniLM-L6-v2: median" in done.out
    lines = (folder / "dev.tsv").read_bytes().split(b"\n")
    (folder / "dev.tsv").write_bytes(b"\n".join([*lines[:5], b"5\ta\tb", *lines[6:]]))
    done = kdbert("data", "verify", "rte", "--data-dir", tmp_path)
    assert done.code == 2
    assert re.search(r"train: 49 rows, published: 2490; ANOTHER CHECKSUM", done.out)
    assert re.search(r"dev: FAULTY: .*dev.tsv, line 6", done.out)
    assert "test: 19 rows" in done.out
    assert "3 of 3 splits of 'rte' are missing, faulty or not those that were published" in done.err
    (folder / "test.tsv").unlink()
    done = kdbert("data", "verify", "rte", "--data-dir", tmp_path)
    assert f"test: missing: no file test.tsv (plain or .gz) in {folder} or {tmp_path}" in done.out


def test_an_unknown_locale_is_told_with_the_known_ones(kdbert: Any) -> None:
    done = kdbert("data", "describe", "massive-xx-YY")
    assert done.code == 2
    assert "MASSIVE has no locale 'xx-YY'; it has: af-ZA, am-ET" in done.err
    for word in ("describe", "verify", "fetch"):
        done = kdbert("data", word, "corpus")
        assert "plain text" in done.out + done.err
        assert (done.code, "Traceback" in done.err) == (0 if word == "describe" else 2, False)
