"""Datasets of the Hugging Face Hub, by their id, as saved datasets on this machine."""

from __future__ import annotations

import hashlib
import logging
import re
from functools import cache
from pathlib import Path
from typing import Any

from kdbert.data.data_file import FAULTS, first_line, form_of
from kdbert.disk.files import replace_folder
from kdbert.errors import UserError
from kdbert.hub import ask_only_if_it_answers

log = logging.getLogger("kdbert")
_ID = re.compile(r"(?P<name>[\w.-]+/[\w.-]+)(?::(?P<config>[\w.-]+))?")


def local_data(given: str) -> Path:
    """The file or folder that a person names; of a dataset id of the Hub, a saved copy of that dataset.

    Args:
        given: a path, or `OWNER/NAME` or `OWNER/NAME:CONFIGURATION` where nothing of that name is on the disk.

    Raises:
        UserError: the Hub has no such dataset, or cannot be reached.
    """
    path, match = Path(given), _ID.fullmatch(given)
    if path.exists() or match is None or form_of(path) is not None:
        return path
    return _fetched(match["name"], match["config"])


def _several(name: str) -> bool:
    """Whether the Hub is not asked and several configurations were fetched, so that one must be named."""
    import datasets

    there = Path(datasets.config.HF_DATASETS_CACHE) / name.replace("/", "___")
    return bool(datasets.config.HF_HUB_OFFLINE) and there.is_dir() and sum(one.is_dir() for one in there.iterdir()) > 1


@cache  # a command names a dataset several times
def _fetched(name: str, config: str | None) -> Path:
    """The saved copy of a dataset, in the cache of `datasets`; its name tells revision and configuration."""
    import datasets

    ask_only_if_it_answers()
    from huggingface_hub import constants

    datasets.config.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE
    told = f"{name}:{config}" if config else name
    try:
        data: Any = datasets.load_dataset(name, config or ("default" if _several(name) else None))
    except datasets.exceptions.DatasetNotFoundError:
        raise UserError(
            f"no file or folder {told!r}, and the Hub has no such dataset (or it asks for a login: `hf auth login`)"
        ) from None
    except (ConnectionError, *FAULTS, RuntimeError) as error:
        raise UserError(f"dataset {told!r} cannot be fetched from the Hub: {first_line(error)}") from None
    # `datasets` keeps what it has made of a revision in .../configuration/version/revision/.
    made = sorted({Path(one["filename"]).parent for part in data.values() for one in part.cache_files})
    revision = made[0].name
    known = hashlib.sha256("\n".join("/".join(one.parts[-4:]) for one in made).encode()).hexdigest()[:12]
    folder = Path(datasets.config.HF_DATASETS_CACHE) / "kdbert" / f"{name.replace('/', '--')}-{known}"
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        replace_folder(folder, lambda target: data.save_to_disk(str(target)))
    rows = ", ".join(f"{split} {len(part)}" for split, part in data.items())
    log.info("dataset %s of the Hub, revision %s: %s", told, revision, rows)
    return folder
