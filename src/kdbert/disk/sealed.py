"""JSON from files: any, and documents that carry the sha256 of their content, so that every change is noticed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

KEY = "sha256"
TWICE = "a key is there twice"


def parse_json(text: str | bytes, *, once: bool = False) -> Any:
    """The values of a JSON text; ValueError if it is none, is nested too deeply for Python, or (with `once`) an object
    has a key twice.
    """
    try:
        return json.loads(text, object_pairs_hook=_each_once if once else None)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{TWICE} ({next(name for name in names if names.count(name) > 1)})")
    return found


def sealed(content: Mapping[str, Any]) -> dict[str, Any]:
    """The document with its checksum as the last key."""
    plain = json.loads(json.dumps(content))  # as it will be read back
    plain.pop(KEY, None)
    return {**plain, KEY: _digest(plain)}


def unsealed(text: str) -> dict[str, Any]:
    """What `sealed` was given; ValueError if its checksum is missing or wrong, or it is no such document."""
    content = parse_json(text)
    if not isinstance(content, dict):
        raise ValueError("it is not a mapping")
    if content.pop(KEY, None) != _digest(content):
        raise ValueError("its checksum is wrong")
    return content


def _digest(content: Mapping[str, Any]) -> str:
    try:
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    except RecursionError:  # what can just be read cannot always be written
        raise ValueError("it is nested too deeply") from None


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mapping -> dotted keys: `train.epochs` is `tree["train"]["epochs"]`."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = value
    return flat
