"""YAML from people: plain values only, and nothing that says more than it is long."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import yaml

from kdbert.errors import UserError

MOST_YAML = 1_000_000  # values and characters of a YAML text, each alias counted as what it stands for

# What a key of a mapping would be taken for in place of text.
READ_AS_WRITTEN = [f"tag:yaml.org,2002:{kind}" for kind in ("bool", "int", "float", "null", "timestamp", "value")]
# PyYAML's words, and a person's.
PLAIN = {
    "'<stream end>'": "the end",
    "end of stream": "end",
    "a flow sequence": "a list [...]",
    "a flow mapping": "a mapping {...}",
    "a quoted scalar": "a quoted text",
    "expected <block end>, but found": "check the indentation; did not expect",
    "mapping values are not allowed here": "a ':' is not expected here; check the indentation, or quote the text",
}


class _StrictLoader(yaml.SafeLoader):
    """YAML's plain values; a key that stands twice in a mapping is an error instead of the last one winning, and so is
    text that says far more than it is long, through aliases (`*a`) of aliases. Keys are text: `yes` is no truth value.
    """

    def get_single_node(self) -> yaml.Node | None:
        """The whole of the text, each alias counted as often as it is reached, before anything is made of it."""
        root = super().get_single_node()
        left, waiting = MOST_YAML, [] if root is None else [root]
        while waiting:
            node = waiting.pop()
            parts = node.value if isinstance(node, yaml.SequenceNode) else []
            if isinstance(node, yaml.MappingNode):
                for key, _ in node.value:
                    if key.tag in READ_AS_WRITTEN:
                        key.tag = "tag:yaml.org,2002:str"
                parts = [part for pair in node.value for part in pair]
            left -= len(parts) or len(node.value) + 1
            if left < 0:
                raise ValueError(
                    f"written out it has more than {MOST_YAML:,} values and characters (does an alias stand for a "
                    "value that holds itself, or for very many others?)"
                )
            waiting += parts
        return root

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        names = Counter(key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode) and key.value != "<<")
        for name, count in names.items():
            if count > 1:
                raise ValueError(f"line {node.start_mark.line + 1}: the key {name!r} stands twice")
        return super().construct_mapping(node, deep)


def load_yaml(text: str) -> Any:
    """YAML text as plain values; no tag constructs an object.

    Raises:
        ValueError: it is no YAML, a value holds itself (`&a [*a]`), or aliases make it longer than `MOST_YAML`.
    """
    try:
        value = yaml.load(text, Loader=_StrictLoader)
        json.dumps(value, default=str, skipkeys=True)  # what cannot be written down later is refused now
    except yaml.MarkedYAMLError as error:
        raise ValueError(_told(error)) from None
    # PyYAML raises more than its own errors: `2001-99-99` is a ValueError, `!!bool x` a KeyError, and so on.
    except (yaml.YAMLError, ValueError, LookupError, AttributeError, RecursionError) as error:
        raise ValueError(" ".join(str(error).split()).replace('in "<unicode string>", ', "at ")) from None
    return value


def _told(error: yaml.MarkedYAMLError) -> str:
    """What is wrong and where, in one line."""
    mark, begun = error.problem_mark or error.context_mark, error.context_mark
    line = f"line {mark.line + 1}: " if mark is not None else ""
    since = f" begun in line {begun.line + 1}" if begun is not None and error.context else ""
    told = f"{line}{error.problem or error.context}" + (f" ({error.context}{since})" if since else "")
    for jargon, plain in PLAIN.items():
        told = told.replace(jargon, plain)
    return " ".join(told.split())


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file of keys and values."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"no recipe {str(path)!r}: check the path") from None
    except UnicodeDecodeError:
        raise UserError(f"cannot read recipe {str(path)!r}: it is no text in UTF-8") from None
    except OSError as error:
        raise UserError(f"cannot read recipe {str(path)!r}: {error.strerror}") from None
    try:
        content = load_yaml(text)
    except ValueError as error:
        raise UserError(f"{path} is not valid YAML: {error}") from None
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise UserError(f"{path} is not a recipe: expected keys such as task, method, train")
    return content
