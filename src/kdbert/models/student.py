"""A student is a model with some of the encoder layers of another one."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import nn

from kdbert.errors import UserError
from kdbert.heads import Head
from kdbert.models.layers import matched_layer
from kdbert.models.load import skeleton


def kept_layers(depth: int, count: int | None, init: Literal["first", "last", "even"] | Sequence[int]) -> list[int]:
    """Which layers (numbered from 1) a student keeps of a model with `depth` layers.

    `even` takes floor(l * depth / count + 1/2) for l = 1..count, so it always ends with the last layer.
    """
    size = depth if count is None else count
    if init == "first":
        picks = list(range(1, size + 1))
    elif init == "last":
        picks = list(range(depth - size + 1, depth + 1))
    elif init == "even":
        picks = [matched_layer(layer, depth, size) for layer in range(1, size + 1)]
    else:
        picks = list(init)
    if not picks or max(picks) > depth or min(picks) < 1 or len(set(picks)) != len(picks):
        wanted = f"{count} of them" if isinstance(init, str) else f"layers {', '.join(map(str, picks))}"
        raise UserError(f"the model has {depth} layers, so a student cannot keep {wanted}")
    return picks


def set_dropout(model: nn.Module, rate: float) -> None:
    """Set every dropout rate of a model; its saved configuration keeps the published rates."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = rate


def encoder_layers(model: Any) -> nn.ModuleList:
    """The layers of a model built like BERT (`encoder.layer`) or DistilBERT (`transformer.layer`)."""
    found: nn.ModuleList = (getattr(model.base_model, "encoder", None) or model.base_model.transformer).layer
    return found


def freeze_embeddings(model: Any) -> None:
    """Leave what comes before the first layer as it is: all of the embeddings where the model has such a part."""
    (getattr(model.base_model, "embeddings", None) or model.get_input_embeddings()).requires_grad_(False)


def _is_whole(config: Any, picks: Sequence[int]) -> bool:
    """Whether these are all layers in their order, so that nothing is cut."""
    return list(picks) == list(range(1, config.num_hidden_layers + 1))


def cut_config(config: Any, picks: Sequence[int]) -> Any:
    """The configuration of a model with these layers only (numbered from 1); lists of one value per layer follow."""
    small = copy.deepcopy(config)
    depth = config.num_hidden_layers
    if _is_whole(config, picks):
        return small
    for key, value in config.to_dict().items():
        a_list = isinstance(value, (list, tuple)) and len(value) == depth
        # A list of `depth` words belongs to the layers only if its key says so (layer_types): it may be of languages.
        if a_list and ("layer" in key or not any(isinstance(one, str) for one in value)):
            setattr(small, key, type(value)(value[number - 1] for number in picks))
    small.num_hidden_layers = len(picks)
    return small


def check_cut(config: Any, head: Head, picks: Sequence[int], name: str) -> None:
    """Refuse to cut layers out of a model if the result would not be the same kind of model with fewer layers."""
    if _is_whole(config, picks):
        return
    whole = skeleton(config, head, name)
    cannot = f"layers cannot be cut out of {name!r}, a model of type {config.model_type!r}"
    cure = "name a student of its own with --student, and keep all of its layers"
    try:
        small = skeleton(cut_config(config, picks), head, name)
    except (UserError, NotImplementedError, AttributeError, ValueError):
        raise UserError(f"{cannot}; {cure}") from None
    kept = _kept_names(whole, small, picks)
    if not kept:
        raise UserError(f"{cannot}: it has no layers with weights of their own; {cure}")
    wanted = {key: value.shape for key, value in small.state_dict().items()}
    given = {new: whole.state_dict()[old].shape for new, old in kept.items()}
    if wanted != given:
        numbers = ", ".join(map(str, picks))
        raise UserError(
            f"layers {numbers} of {name!r}, a model of type {config.model_type!r}, cannot be a model of their own: one "
            "has other weights than the library expects in its new place; keep the first layers (--student-init "
            f"first), or {cure}"
        )


def cut_layers(model: Any, picks: Sequence[int]) -> Any:
    """The model with some of its layers (numbered from 1), built by the library, with these layers' weights."""
    if _is_whole(model.config, picks):
        return model
    from transformers.initialization import no_init_weights

    config = cut_config(model.config, picks)
    # Nothing is drawn but what the library draws in passing, which is replaced and must change no other draw.
    with torch.random.fork_rng(devices=[]), no_init_weights():
        small = type(model)._from_config(
            config, dtype=model.dtype, attn_implementation=model.config._attn_implementation
        )
    small.tie_weights()
    weights = model.state_dict()
    small.load_state_dict({new: weights[old] for new, old in _kept_names(model, small, picks).items()})
    return small.train(model.training)


def _kept_names(whole: Any, small: Any, picks: Sequence[int]) -> dict[str, str]:
    """Weight of a cut model -> weight of the whole one; empty if no list of modules became shorter by the cut."""
    lengths = {name: len(module) for name, module in small.named_modules() if isinstance(module, nn.ModuleList)}
    lists = [
        name
        for name, module in whole.named_modules()
        if isinstance(module, nn.ModuleList) and lengths.get(name) == len(picks) != len(module)
    ]
    new_number = {str(number - 1): str(place) for place, number in enumerate(picks)}
    kept: dict[str, str] = {}
    for old in whole.state_dict() if lists else ():
        new = old
        for name in lists:
            if old.startswith(f"{name}."):
                number, _, rest = old.removeprefix(f"{name}.").partition(".")
                new = f"{name}.{new_number[number]}.{rest}" if number in new_number else ""
        if new:
            kept[new] = old
    return kept


def count_parameters(config: Any, head: Head, name: str, layers: Sequence[int] | None = None, pieces: int = 0) -> int:
    """Parameters of a model with this head and these layers (None: all), from its configuration alone.

    `pieces` is the size of the vocabulary, if larger than the configuration's.
    """
    config = copy.deepcopy(config) if layers is None else cut_config(config, layers)
    head.configure(config)
    config.vocab_size = max(config.vocab_size, pieces)
    return sum(parameter.numel() for parameter in skeleton(config, head, name).parameters())
