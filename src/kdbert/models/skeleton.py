"""Models without weights: every module and shape of a configuration, and what can be refused or counted from those."""

from __future__ import annotations

import copy
import json
from typing import Any

import torch

from kdbert.errors import UserError
from kdbert.heads import Head
from kdbert.models.architectures import CONFIGURATIONS, INSTEAD, architecture
from kdbert.models.load import NO_CODE, auto_class

_SKELETONS: dict[tuple[str, str], Any] = {}  # class and configuration -> the model without weights


def skeleton(config: Any, head: Head, name: str) -> Any:
    """The model of a configuration on the meta device, where weights take no RAM; made once per configuration.

    Args:
        name: what the person called the model, for errors.
    """
    if head.plain_text and not architecture(config.model_type, name).masked_lm:
        raise UserError(
            f"model {name!r} is of type {config.model_type!r}, which kdbert trains and distils on tasks, not on plain "
            "text; for plain text take BERT, RoBERTa, CamemBERT, XLM-RoBERTa, ELECTRA or DistilBERT"
        )
    key = head.auto_class, json.dumps(config.to_dict(), sort_keys=True, default=str)
    if key not in _SKELETONS:
        try:
            with torch.device("meta"):
                plain = copy.deepcopy(config)
                plain._attn_implementation = None  # as saved by somebody else; kdbert chooses its own
                _SKELETONS[key] = auto_class(head).from_config(plain, **NO_CODE)
        except Exception as error:  # a configuration may be wrong in any way
            reason = " ".join(str(error).split())[:200]
            raise UserError(
                f"model {name!r}: the library cannot build a {head.auto_class} from its configuration "
                f"({type(error).__name__}: {reason})"
            ) from None
    return _SKELETONS[key]


def check_configuration(config: Any, name: str) -> None:
    """Refuse a configuration that cannot be run, though others of its type can."""
    for model_type, key, value, reason in CONFIGURATIONS:
        if config.model_type == model_type and getattr(config, key, None) == value:
            raise UserError(f"model {name!r} has {key}={value!r} in its configuration: {reason}; {INSTEAD}")
    if config.model_type == "nystromformer" and config.num_landmarks != config.segment_means_seq_len:
        raise UserError(
            f"model {name!r} has num_landmarks={config.num_landmarks} and segment_means_seq_len="
            f"{config.segment_means_seq_len}: the library then reads texts of one length only; {INSTEAD}"
        )
