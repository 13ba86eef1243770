"""The only door to a model that is trained or asked.

It loads the weights, checks them, and prepares the model to be run by its `Way` (`model.way`).
"""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from kdbert.data.masking import vocabulary_size
from kdbert.errors import UserError
from kdbert.heads import Head
from kdbert.models.fast.attention import register_attention
from kdbert.models.fast.first_token import use_first_token
from kdbert.models.fast.layer import use_packed_layers
from kdbert.models.fast.packing import use_packing
from kdbert.models.labels import is_generic, label_permutation
from kdbert.models.load import NO_CODE, auto_class, explained, has_head, label_names, load_config
from kdbert.models.locate import ModelPlace
from kdbert.models.student import cut_layers
from kdbert.models.way import Way
from kdbert.tasks import TaskSpec

# Keys of a configuration that change how a model is called, not what it computes; kdbert calls all models alike.
AS_CALLED = {
    "return_dict": True,
    "output_hidden_states": False,
    "output_attentions": False,
    "chunk_size_feed_forward": 0,
    "gradient_checkpointing": False,
}
log = logging.getLogger("kdbert")


def open_classifier(
    place: ModelPlace, spec: TaskSpec, way: Way, *, keep_head: bool, layers: Sequence[int] | None = None
) -> tuple[Any, bool]:
    """A classifier for the task, of whole examples or of tokens, in float32, ready to be run by `way`.

    A head whose labels are the task's is kept, its rows put into the task's order; any other is replaced by a fresh
    one.

    Args:
        keep_head: take the head as it is, whatever its labels are called (a teacher's, whose logits are permuted
            later).
        layers: keep these only, numbered from 1 (None: all).

    Returns:
        The model in eval mode, and whether it kept a trained head.
    """
    config = load_config(place)
    permutation = None
    if not keep_head:
        names = label_names(config)
        if has_head(config, spec.head) and len(names) == spec.head.outputs and not is_generic(names):
            with contextlib.suppress(ValueError):
                permutation = label_permutation(spec.labels, spec.aliases, names) if spec.labels else [0]
        spec.head.configure(config)
    auto = auto_class(spec.head)
    model, head_missing = _load(place, auto, config, way, whole=keep_head, ignore_mismatched_sizes=not keep_head)
    if head_missing:
        permutation = None
    if not keep_head and permutation is None:
        _fresh_head(model)
    elif permutation is not None and permutation != sorted(permutation):
        _permute_head(model, permutation)
    return _prepared(model, way, layers), keep_head or permutation is not None


def open_of_plain_text(
    place: ModelPlace, head: Head, tokenizer: Any, way: Way, *, layers: Sequence[int] | None = None
) -> tuple[Any, bool]:
    """A masked-LM, or an encoder without a head, in float32, ready to be run by `way`.

    The logits of a masked-LM are left to be made where they are read (`use_late_head`). The pooler of an encoder is not
    trained: no hidden state is made of it.

    Args:
        tokenizer: what it reads by; a model that is drawn at random has a vocabulary of this size.
        layers: keep these only, numbered from 1 (None: all).

    Returns:
        The model in eval mode, and whether it has a trained head.
    """
    config = load_config(place)
    if place.fresh:
        config.vocab_size = vocabulary_size(tokenizer)
        config.pad_token_id = tokenizer.pad_token_id
    model, head_missing = _load(place, auto_class(head), config, way, whole=False)
    trained = not place.fresh and not head_missing and has_head(config, head)
    model = _prepared(model, way, layers)
    if head.hides_tokens:
        return model, trained
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("pooler" not in name)
    return model, False


def _in_the_type_of_its_weights(module: Any, _: Any, output: torch.Tensor) -> torch.Tensor:
    """Of ELECTRA and ALBERT, which project embeddings: sums along the layers stay in float32 under autocast, as BERT's.

    So the embeddings that a method gets are those that the layers read, not a copy: `ad-kd` differentiates by them.
    """
    return output.to(module.weight.dtype)


def _prepared(model: Any, way: Way, layers: Sequence[int] | None) -> Any:
    """The model, cut to its layers, in eval mode, with its way and the levers that this asks for."""
    if layers is not None:
        model = cut_layers(model, layers)
    model.way = way
    for name, module in model.base_model.named_modules():
        if name.rpartition(".")[2] in ("embeddings_project", "embedding_hidden_mapping_in"):
            module.register_forward_hook(_in_the_type_of_its_weights)
    if way.packing:
        use_packing(model)
        use_packed_layers(model, way.fused_layers)
    if way.first_token:
        use_first_token(model)
    return model.eval()


def _load(place: ModelPlace, auto: Any, config: Any, way: Way, *, whole: bool, **options: Any) -> tuple[Any, bool]:
    """A model of one of the library's classes, with its weights; drawn at random for a configuration alone.

    With `whole` the head, too, must be in the file. Returns also whether the head, or the pooler below it, is not.
    """
    register_attention()
    for key, value in AS_CALLED.items():
        if hasattr(config, key):
            setattr(config, key, value)
    with explained(place):
        if place.fresh:
            model = auto.from_config(config, dtype=torch.float32, attn_implementation=way.attention, **NO_CODE)
            return model, True
        model, about = auto.from_pretrained(
            place.source, config=config, dtype=torch.float32, attn_implementation=way.attention,
            output_loading_info=True, **NO_CODE, **options,
        )  # fmt: skip
    return model, _check_loaded(model, about, place.given, whole)


def _check_loaded(model: Any, about: Mapping[str, Any], name: str, whole: bool) -> bool:
    """Refuse a model if some of its weights would be drawn at random, or are not numbers; log what is not used.

    True if the head, or the pooler below it, is not in its file.
    """
    prefix = "" if model.base_model is model else f"{model.base_model_prefix}."
    lost = sorted({*about["missing_keys"], *(key for key, *_ in about["mismatched_keys"])})
    inside = [key for key in lost if key.startswith(prefix) and "pooler" not in key.removeprefix(prefix)]
    if inside:
        raise UserError(
            f"model {name!r} lacks {len(inside)} of the weights that a {type(model).__name__} has (such as "
            f"{inside[0]}); is it another architecture, or one with code of its own?"
        )
    if whole and lost:
        raise UserError(
            f"model {name!r} has no trained classification head: its file lacks {lost[0]}; fine-tune one with `kdbert "
            f"finetune-teacher --model {name}`"
        )
    wrong = next((key for key, value in model.state_dict().items() if not _all_finite(value)), None)
    if wrong is not None:
        raise UserError(f"the weights of model {name!r} are damaged: {wrong} holds values that are not finite numbers")
    unused = sorted(key for key in about["unexpected_keys"] if re.search(r"(^|\.)layers?\.\d+\.", key))
    if unused:
        log.warning(
            "%s: %d weights of its file are not used, since its configuration has no place for them (such as %s)",
            name, len(unused), unused[0],
        )  # fmt: skip
    if getattr(model.config, "auto_map", None):
        log.warning(
            "%s names code of its own (auto_map), which is not run: it is loaded as the library's %s",
            name, type(model).__name__,
        )  # fmt: skip
    return bool(lost)


def _all_finite(value: torch.Tensor) -> bool:
    """Whether all are finite numbers; their sum, which is quick to make, is one only then, if it does not overflow."""
    return bool(value.sum().isfinite()) or bool(value.isfinite().all())


def _output_layer(model: Any) -> torch.nn.Linear:
    """The last linear layer of the head: the one with as many outputs as there are labels."""
    layers = [
        module
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear)
        and not name.startswith(model.base_model_prefix)
        and module.out_features == model.config.num_labels
    ]
    if not layers:
        raise UserError(f"cannot find the classification head of a {type(model).__name__}")
    return layers[-1]


def _fresh_head(model: Any) -> None:
    layer = _output_layer(model)
    torch.nn.init.normal_(layer.weight, std=getattr(model.config, "initializer_range", 0.02))
    if layer.bias is not None:
        torch.nn.init.zeros_(layer.bias)


def _permute_head(model: Any, permutation: list[int]) -> None:
    layer = _output_layer(model)
    with torch.no_grad():
        layer.weight.copy_(layer.weight[permutation].clone())
        if layer.bias is not None:
            layer.bias.copy_(layer.bias[permutation].clone())
