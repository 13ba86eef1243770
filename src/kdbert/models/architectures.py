"""The model types that kdbert runs, and what is known of each; tests/models/test_architectures.py checks every line.

A type that is not listed is refused. docs/models.md shows this table.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kdbert.errors import UserError


@dataclass(frozen=True)
class Architecture:
    """What is true of every model of a type.

    Attributes:
        padding: whether a text's outputs are the same in a padded batch as alone. If not, only texts of the same length
            share a forward pass.
        own_attention: whether kdbert's attention function and its ready-made mask may replace the library's.
        own_layers: whether the embeddings and the last layer are built like BERT's, so that packing and the shortcut
            for the first token apply.
        hidden: whether `hidden_states` are one [B, L, H] for the embeddings and each layer.
        relative: whether positions are relative only, so that a text may be of any length.
        any_segment: whether it takes any segment id, though it has no table of segments.
        half: whether its encoder runs in bf16 and fp16 (under autocast); else it runs in float32.
        masked_lm: whether a masked-LM of this type can be trained and distilled on plain text.
        attention: whether its queries, keys and values can be read (`kdbert.models.fast.capture`).
    """

    padding: bool = True
    own_attention: bool = False
    own_layers: bool = False
    hidden: bool = True
    relative: bool = False
    any_segment: bool = False
    half: bool = True
    masked_lm: bool = False
    attention: bool = False


ARCHITECTURES: Mapping[str, Architecture] = {
    **dict.fromkeys(
        "big_bird ibert longformer luke megatron-bert mpnet mra rembert roformer squeezebert".split(), Architecture()
    ),
    **dict.fromkeys(
        "albert data2vec-text ernie esm esmc eurobert gte jina_embeddings_v3 layoutlm markuplm modernbert nomic_bert "
        "roberta-prelayernorm ultrabert xlm-roberta-xl".split(),
        Architecture(attention=True),
    ),
    **dict.fromkeys(
        "bert camembert electra roberta xlm-roberta".split(),
        Architecture(own_attention=True, own_layers=True, masked_lm=True, attention=True),
    ),
    **dict.fromkeys("convbert fnet mobilebert nystromformer yoso".split(), Architecture(padding=False)),
    "deberta": Architecture(relative=True, half=False),
    "deberta-v2": Architecture(relative=True),
    "distilbert": Architecture(own_attention=True, masked_lm=True, attention=True),
    "flaubert": Architecture(any_segment=True),
    "funnel": Architecture(padding=False, hidden=False, relative=True, any_segment=True),
    "openai_privacy_filter": Architecture(half=False),
    "xlm": Architecture(any_segment=True),
    "xlnet": Architecture(padding=False, relative=True, any_segment=True),
    "xmod": Architecture(half=False, attention=True),
}

# Those whose logits can be differentiated by the embeddings' output (hidden state 0) and, in the library's eager
# attention, once more. Of others the output is no part of the graph, or the second derivative is wrong or unproven.
TWICE = frozenset(
    "albert bert camembert data2vec-text deberta-v2 distilbert electra ernie esm gte luke megatron-bert mpnet "
    "nomic_bert rembert roberta roberta-prelayernorm roformer squeezebert xlm-roberta xlm-roberta-xl xmod".split()
)

# Encoders that are not run, and why. What is left reads from left to right, or has a decoder.
REFUSED: Mapping[str, str] = {
    **dict.fromkeys(
        ("bros", "layoutlmv3", "lilt"), "it reads where each word lies on a page, and kdbert reads texts only"
    ),
    **dict.fromkeys(("modernvbert", "ultravbert"), "it reads pictures beside texts, and kdbert reads texts only"),
    "canine": "it reads characters by hash, without a fast tokenizer",
    "layoutlmv2": "it reads the picture of a page, and kdbert reads texts only",
    "perceiver": "it reads bytes, without a fast tokenizer",
    "reformer": "its attention draws random hashes, so that no two answers are the same",
    "roc_bert": "its tokenizer also gives the shapes and sounds of characters, and kdbert reads token ids only",
    "tapas": "it reads tables, and kdbert reads texts only",
}
# Configurations (type, key, value) that do not run, and why.
CONFIGURATIONS = (
    ("flaubert", "pre_norm", True, "the library fails on it"),
    ("fnet", "use_tpu_fourier_optimizations", True, "it is made for TPUs"),
    ("xlnet", "attn_type", "uni", "it reads from left to right"),
    ("xlnet", "bi_data", True, "it reads two texts at once"),
    ("xmod", "default_language", None, "say a language with `model.set_default_language` and save it again"),
    ("yoso", "use_expectation", False, "it draws random hashes, so that no two answers are the same"),
)
INSTEAD = "take an encoder such as BERT, RoBERTa, DeBERTa or ModernBERT (docs/models.md has all of them)"


def architecture(model_type: str, name: str) -> Architecture:
    """What is known of a model type; `name` is what the person called the model, for the error."""
    if model_type in ARCHITECTURES:
        return ARCHITECTURES[model_type]
    reason = REFUSED.get(model_type) or "kdbert runs encoders of texts, and only of types that it was tested with"
    raise UserError(f"model {name!r} is of type {model_type!r}: {reason}; {INSTEAD}")


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
