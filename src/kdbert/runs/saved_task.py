"""The task of a run of own data: what run.json says of it, and the task made from that."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from kdbert.data.data_file import open_data_file
from kdbert.data.examples import RawExample
from kdbert.data.hub_data import local_data
from kdbert.disk.files import content_digest
from kdbert.errors import UserError
from kdbert.tasks import TaskSpec
from kdbert.tasks.own import own_split, own_task, saved_split
from kdbert.tasks.spec import Own, Split


def task_record(spec: TaskSpec) -> dict[str, Any]:
    """What run.json says of a task of a person's own files, so that `saved_task` needs none of them; else nothing."""
    if spec.own is None:
        return {}
    files = {
        name: {"path": str(split.place.absolute()), "sha256": content_digest(split.place), "labelled": split.labelled}
        for name, split in spec.splits.items()
        if split.place is not None
    }
    own = spec.own
    return {
        "task": {
            "kind": spec.kind,
            "labels": list(spec.labels),
            "text_columns": list(own.text),
            "label_column": own.label[0] if len(own.label) == 1 else list(own.label),
            "label_form": own.form,
            "label_separator": own.separator,
            "dev_share": own.dev_share,
            "dev_seed": own.dev_seed,
            "split_names": dict(own.split_names),
            "files": files,
        }
    }


def saved_task(run: Path | str, facts: Mapping[str, Any], data_dir: str | None, test_file: str | None) -> TaskSpec:
    """The task of a finished run of own data, whether its files are there or not; each is read only if it is the same.

    Args:
        run: its folder, for messages.
        facts: its run.json.
        data_dir: where its files are looked for first; else in their old place.
        test_file: a file of the same columns, with labels or without, in place of the run's test file.
    """
    record: Any = facts.get("task")
    try:
        own, kind, labels, files = _own(record), record["kind"], tuple(map(str, record["labels"])), record["files"]
        splits = {name: _saved_split(own, name, file, kind, labels, data_dir) for name, file in files.items()}
        digests, source = {name: str(file["sha256"]) for name, file in files.items()}, Path(files["train"]["path"])
    except (LookupError, TypeError, ValueError, AttributeError):
        raise UserError(f"{run}: run.json does not say what was read; train it again with --overwrite") from None
    if test_file is not None:
        path = local_data(test_file)
        table = open_data_file(path, own.split_names.get("test", "test"), words=kind == "token")
        splits["test"] = own_split(table, own, "test", labels)
        digests["test"] = content_digest(path)
    return own_task(replace(own, digests=digests), kind, labels, splits, source)


def _own(record: Mapping[str, Any]) -> Own:
    """What a run has read of its files. Runs of older versions have one class or score for each row."""
    label = record["label_column"]
    return Own(
        tuple(map(str, record["text_columns"])),
        (label,) if isinstance(label, str) else tuple(map(str, label)),
        record.get("label_form", "one"),
        record.get("label_separator"),
        record.get("dev_share"),
        record.get("dev_seed", 1),
        record.get("split_names", {}),
    )


def _saved_split(
    own: Own, name: str, file: Mapping[str, Any], kind: str, labels: tuple[str, ...], data_dir: str | None
) -> Split:
    """A split whose file is looked for when it is read."""
    place = Path(file["path"])
    if data_dir is not None and (Path(data_dir) / place.name).exists():
        place = Path(data_dir) / place.name

    def read(path: Path) -> Iterator[RawExample]:
        cure = "bring it back or name its folder with --data-dir"
        try:
            if not path.exists():
                raise UserError(f"{path}, the run's {name} file, is not there any more; {cure}")
            digest = content_digest(path)
        except OSError as error:
            raise UserError(f"{path}, the run's {name} file, cannot be read ({error.strerror}); {cure}") from None
        if digest != file["sha256"]:
            raise UserError(f"{path} is not the run's {name} file any more, its content is another; {cure}")
        return saved_split(path, own, name, kind, labels).read(path)

    return Split((), read, labelled=bool(file["labelled"]), place=place)
