"""A tiny random model of every model type that can classify texts or tag words, and the library's own answers."""

from __future__ import annotations

import inspect
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from conftest import VOCABULARY, WORDS

PAIR = ("negative", "positive")
LAYERS = 4
# Under the names that configurations have for them; a model type takes those that it knows.
SIZES: dict[str, Any] = {
    "vocab_size": len(VOCABULARY), "hidden_size": 32, "num_hidden_layers": LAYERS, "num_attention_heads": 4,
    "intermediate_size": 48, "max_position_embeddings": 80, "d_model": 32, "n_layer": LAYERS, "n_head": 4,
    "d_inner": 48,
    "emb_dim": 32, "n_layers": LAYERS, "n_heads": 4, "dim": 32, "hidden_dim": 48, "embedding_size": 32,
    "pad_token_id": 0, "initializer_range": 0.2, "init_std": 0.2, "embed_init_std": 0.2, "num_key_value_heads": 4,
    "head_dim": 8,
}  # fmt: skip


@dataclass(frozen=True)
class Variant:
    """A model type with a configuration of its own.

    Attributes:
        changes: configuration keys besides `SIZES`.
        left_out: keys of `SIZES` that it does not take.
        special: the first pieces of the vocabulary; the place of [PAD] is its id.
        types: whether the tokenizer gives segment ids.
    """

    model_type: str
    changes: dict[str, Any] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()
    special: tuple[str, ...] = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
    types: bool = True


PAD_1 = ("[CLS]", "[PAD]", "[SEP]", "[UNK]", "[MASK]")
PAD_3 = ("[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]")
_BOX = {"max_2d_position_embeddings": 32}

# What a type needs besides: every other one is made of SIZES alone.
NEEDS: dict[str, Variant] = {
    "big_bird": Variant("big_bird", {"block_size": 4, "num_random_blocks": 1, "attention_type": "original_full"}),
    "funnel": Variant("funnel", {"block_sizes": [2, 2], "d_head": 8}, ("num_hidden_layers",)),
    "layoutlm": Variant("layoutlm", _BOX),
    "longformer": Variant("longformer", {"attention_window": [4, 8, 8, 4]}, types=False),
    "luke": Variant("luke", {"entity_vocab_size": 10, "entity_emb_size": 16}),
    "markuplm": Variant("markuplm", {"max_depth": 4, "xpath_unit_hidden_size": 4}),
    "mobilebert": Variant("mobilebert", {"intra_bottleneck_size": 16, "initializer_range": 0.1}),
    "modernbert": Variant("modernbert", {"local_attention": 6, "cls_token_id": 2, "sep_token_id": 3}, types=False),
    "mpnet": Variant("mpnet", {"pad_token_id": 1}, special=PAD_1, types=False),
    "openai_privacy_filter": Variant("openai_privacy_filter", {"num_local_experts": 4}),
    "ultrabert": Variant("ultrabert", {"sliding_window": 3}, types=False),
    "xlnet": Variant("xlnet", {}, ("max_position_embeddings",)),
    "xmod": Variant("xmod", {"languages": ["en_XX", "de_DE"], "default_language": "en_XX"}),
}
# Other configurations of the same types that people have.
MORE: dict[str, Variant] = {
    "albert, two groups": Variant("albert", {"num_hidden_groups": 2}),
    "big_bird, block_sparse": Variant(
        "big_bird", {"block_size": 4, "num_random_blocks": 1, "attention_type": "block_sparse"}
    ),
    "deberta, relative": Variant(
        "deberta",
        {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_biased_input": False,
         "type_vocab_size": 0, "max_relative_positions": 80},
        types=False,
    ),
    "deberta-v2, relative": Variant(
        "deberta-v2",
        {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_biased_input": False,
         "position_buckets": 16, "share_att_key": True, "norm_rel_ebd": "layer_norm", "type_vocab_size": 0,
         "max_relative_positions": 80},
        types=False,
    ),
    "deberta-v2, convolution": Variant(
        "deberta-v2",
        {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_biased_input": False,
         "conv_kernel_size": 3, "conv_act": "gelu", "type_vocab_size": 0, "max_relative_positions": 80},
        types=False,
    ),
    "esm, rotary": Variant("esm", {"position_embedding_type": "rotary"}),
    "flaubert, mean of all": Variant("flaubert", {"summary_type": "mean"}),
    "longformer, wide": Variant("longformer", {"attention_window": 16}),
    "modernbert, mean": Variant(
        "modernbert",
        {"local_attention": 6, "cls_token_id": 2, "sep_token_id": 3, "classifier_pooling": "mean",
         "global_attn_every_n_layers": 2},
        types=False,
    ),
    "roberta, own tokenizer": Variant("roberta", {"pad_token_id": 1, "type_vocab_size": 1}, special=PAD_1, types=False),
    "roberta, BERT's tokenizer": Variant("roberta", {"type_vocab_size": 1}),
    "roberta, padding id 3": Variant("roberta", {"pad_token_id": 3, "type_vocab_size": 1}, special=PAD_3, types=False),
    "ultrabert, mean": Variant("ultrabert", {"sliding_window": 3, "classifier_pooling": "mean"}, types=False),
    "xlm, last token": Variant("xlm", {"summary_type": "last"}),
}  # fmt: skip


def mapped(head: str) -> dict[str, str]:
    """Model type -> class, of all that the library can load with this head (`sequence` or `token`)."""
    from transformers.models.auto import modeling_auto as auto

    names = {
        "sequence": auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
        "token": auto.MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES,
    }
    return dict(names[head])


# What the library's lists do not say by themselves.
NO_ENCODER = {
    "mistral4": "reads from left to right, though the library does not list it as a causal language model",
    "qwen3_asr": "reads sound",
}
STILL_AN_ENCODER = {"xlnet"}  # listed as a causal language model, which it is in pretraining only


def has_decoder(model_type: str) -> bool:
    """Whether models of the type read from left to right only, or have an encoder and a decoder.

    A type that the library lists as a causal language model and not as a masked one reads from left to right.
    """
    from transformers import AutoConfig
    from transformers.models.auto import modeling_auto as auto

    if AutoConfig.for_model(model_type).is_encoder_decoder or model_type in NO_ENCODER:
        return True
    causal = {*auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES} - {*auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES}
    return model_type in causal and model_type not in STILL_AN_ENCODER


@cache
def encoder_types() -> tuple[str, ...]:
    """Every model type of the two mappings that is neither causal nor has a decoder."""
    return tuple(sorted(name for name in {**mapped("sequence"), **mapped("token")} if not has_decoder(name)))


def variant_of(name: str) -> Variant:
    """The variant of this name: one of `MORE`, or a model type."""
    return MORE.get(name) or NEEDS.get(name) or Variant(name)


def config_of(variant: Variant, labels: Sequence[str] = PAIR) -> Any:
    """Its configuration."""
    from transformers import AutoConfig

    plain = AutoConfig.for_model(variant.model_type)
    taken = {
        key: value
        for key, value in SIZES.items()
        if key not in variant.left_out and (key in plain.to_dict() or key in plain.attribute_map)
    }
    names = {"id2label": dict(enumerate(labels)), "label2id": {label: i for i, label in enumerate(labels)}}
    return AutoConfig.for_model(variant.model_type, **{**taken, **variant.changes, **names})


def make_model(folder: Path, variant: Variant, head: str, labels: Sequence[str] = PAIR) -> Path:
    """A random model with this head and a WordPiece tokenizer, saved as people save them."""
    import transformers

    config = config_of(variant, labels)
    kind = {"sequence": "AutoModelForSequenceClassification", "token": "AutoModelForTokenClassification"}[head]
    torch.manual_seed(3)
    model = getattr(transformers, kind).from_config(config)
    with torch.no_grad():  # what is 0 or 1 at the start shows no difference
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    tokenizer_of(variant).save_pretrained(folder)
    return folder


def tokenizer_of(variant: Variant) -> Any:
    """A WordPiece tokenizer with `VOCABULARY`, its special pieces in the variant's order."""
    from transformers import BertTokenizerFast

    pieces = [*variant.special, *VOCABULARY[5:]]
    names = ["input_ids", "token_type_ids", "attention_mask"] if variant.types else ["input_ids", "attention_mask"]
    return BertTokenizerFast(
        vocab={piece: number for number, piece in enumerate(pieces)}, model_max_length=512, model_input_names=names
    )


def texts(count: int = 24, longest: int = 56, seed: int = 0) -> list[str]:
    """Sentences of very different lengths, from one word on."""
    draw = random.Random(seed)
    lengths = [1, longest, 2, longest, *(draw.randint(1, longest) for _ in range(count - 4))]
    return [" ".join(draw.choices(WORDS, k=length)) for length in lengths]


def variants(head: str) -> list[str]:
    """Every variant that kdbert runs and the library can load with this head."""
    from kdbert.models.architectures import ARCHITECTURES

    names = [*ARCHITECTURES, *MORE]
    return [name for name in names if variant_of(name).model_type in mapped(head)]


def taken(model: Any) -> set[str]:
    """Names of what a model is called with; no segment ids where it has one segment, on which the library itself fails
    with a pair and a tokenizer that numbers two.
    """
    names = set(inspect.signature(type(model).forward).parameters)
    return names - {"token_type_ids"} if getattr(model.config, "type_vocab_size", 2) < 2 else names


@torch.no_grad()
def library_logits(
    model: Any, tokenizer: Any, first: Sequence[Any], second: Sequence[str] | None, max_length: int
) -> list[np.ndarray]:
    """What the library answers, one text at a time and without padding: [C] each, or [tokens, C]."""
    names = taken(model)
    found = []
    for place, text in enumerate(first):
        coded = tokenizer(
            text, None if second is None else second[place], truncation="longest_first", max_length=max_length,
            return_tensors="pt", is_split_into_words=not isinstance(text, str),
        )  # fmt: skip
        found.append(model(**{name: value for name, value in coded.items() if name in names}).logits[0].numpy())
    return found


@torch.no_grad()
def padding_matters(model: Any, tokenizer: Any, first: Sequence[Any], alone: Sequence[np.ndarray]) -> float:
    """How far a logit of the library's own model moves when its texts are padded to the longest, as anybody would."""
    coded = tokenizer(
        list(first), padding=True, padding_side="right", truncation="longest_first", max_length=64, return_tensors="pt",
        return_attention_mask=True, is_split_into_words=not isinstance(first[0], str),
    )  # fmt: skip
    found = model(**{name: value for name, value in coded.items() if name in taken(model)}).logits.numpy()
    rows = [row[: len(one)] if one.ndim == 2 else row for row, one in zip(found, alone, strict=True)]
    return max(float(np.abs(row - one).max()) for row, one in zip(rows, alone, strict=True))


def worst(found: np.ndarray, expected: Sequence[np.ndarray], offsets: np.ndarray) -> float:
    """The largest difference of a logit: of examples [N, C], or of tokens [tokens, C] by the offsets of examples."""
    of_tokens = expected[0].ndim == 2
    parts = [found[offsets[i] : offsets[i + 1]] if of_tokens else found[i] for i in range(len(expected))]
    return max(float(np.abs(part - one).max()) for part, one in zip(parts, expected, strict=True))
