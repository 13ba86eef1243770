"""The Hugging Face Hub: whether it can be reached, and uploading a trained model (`--push-to-hub`)."""

from __future__ import annotations

import logging
import os
import re
from functools import cache
from pathlib import Path

from kdbert.errors import KdbertError, UserError, without_credentials

log = logging.getLogger("kdbert")


@cache
def unreachable(timeout: float = 5.0) -> str | None:
    """Why the Hub's address does not answer within some seconds; None if it does, whatever the answer."""
    import ssl
    import urllib.error
    import urllib.request
    from http.client import HTTPException

    from huggingface_hub import constants

    try:
        urllib.request.urlopen(f"{without_credentials(constants.ENDPOINT)}/api/models?limit=1", timeout=timeout).close()
    except urllib.error.HTTPError:
        return None
    except (OSError, ValueError, HTTPException) as error:
        reason = getattr(error, "reason", error)
        if isinstance(reason, ssl.SSLError):  # huggingface_hub may know another certificate
            return None
        return without_credentials(str(reason))
    return None


@cache
def ask_only_if_it_answers() -> None:
    """If the Hub cannot be reached, use only what was fetched before: the library would try for minutes."""
    from huggingface_hub import constants

    reason = None if constants.HF_HUB_OFFLINE else unreachable()
    if reason is not None:
        shown = without_credentials(constants.ENDPOINT)
        log.warning("%s cannot be reached (%s): only what was fetched before is used", shown, reason)
        constants.HF_HUB_OFFLINE = True


class PushFailed(KdbertError):
    """The Hub did not take the model, which is still on the disk."""


def check_repository(name: str) -> None:
    """Refuse early what could not be uploaded later."""
    from huggingface_hub import get_token

    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise UserError(f"--push-to-hub {name!r}: expected OWNER/NAME, such as your-name/clinc150-small")
    if os.environ.get("HF_HUB_OFFLINE", "0").upper() in ("1", "ON", "YES", "TRUE"):
        raise UserError("--push-to-hub needs the network, and HF_HUB_OFFLINE is set; unset one of them")
    if get_token() is None:
        raise UserError("--push-to-hub needs a token of the Hub: run `hf auth login` once, or set HF_TOKEN")


def push(folder: Path, name: str) -> str:
    """Upload a model folder to a repository `owner/name`, which is created, private, if it does not exist.

    The token is read by huggingface_hub (`hf auth login`, or HF_TOKEN) and written nowhere. Returns the address.

    Raises:
        PushFailed: the Hub refused, or cannot be reached.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    links = [path for path in folder.rglob("*") if path.is_symlink()]
    if links:
        raise UserError(f"not pushed: {links[0]} is a link, and its target is not part of the model; remove it")
    if not (folder / "config.json").is_file():
        raise UserError(f"not pushed: {folder} has no model any more; pass --overwrite to train it again")
    check_repository(name)
    api = HfApi()
    try:
        address = api.create_repo(name, private=True, exist_ok=True)
        api.upload_folder(repo_id=name, folder_path=folder, commit_message="Upload with kdbert")
    except (HfHubHTTPError, OSError, ValueError) as error:
        reason = without_credentials(" ".join(str(error).split()))[:200]
        raise PushFailed(
            f"cannot push to {name}: {reason}; the model is in {folder}, and the same command tries again"
        ) from None
    shown = without_credentials(str(address))
    log.info("pushed to %s", shown)
    return shown
