"""The only door to a model: what is decided of it from its architecture and configuration, and how it is loaded.

`decide` says how a model is run, before any weights are there; `open_classifier` and `open_masked_lm` load it and
attach that as `model.way`, which is what `kdbert.training.forward.run_model` runs it by.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
import json
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from kdbert.data.masking import vocabulary_size
from kdbert.errors import UserError
from kdbert.models.architectures import CONFIGURATIONS, INSTEAD, Architecture, architecture
from kdbert.models.kernels import ATTENTION, built_as_bert, register_attention, use_first_token, use_packing
from kdbert.models.labels import is_generic, label_permutation
from kdbert.models.load import (
    NO_CODE,
    PROBLEMS,
    auto_class,
    auto_class_name,
    explained,
    has_head,
    label_names,
    load_config,
)
from kdbert.models.locate import ModelPlace
from kdbert.tasks import Kind, TaskSpec

_SKELETONS: dict[tuple[Kind, str], Any] = {}  # head and configuration -> the model without weights
INPUTS = ("input_ids", "attention_mask", "token_type_ids")
# Keys of a configuration that change how a model is called, not what it computes; kdbert calls all models alike.
AS_CALLED = {
    "return_dict": True,
    "output_hidden_states": False,
    "output_attentions": False,
    "chunk_size_feed_forward": 0,
}
log = logging.getLogger("kdbert")


@dataclass(frozen=True)
class Way:
    """How a model is run. run.json has it for the student (`way`) and for each teacher.

    Attributes:
        model_type: of its configuration.
        attention: the attention function: `kdbert`, or one of the library's (`sdpa`, `eager`).
        own_mask: whether the mask is handed over ready-made (4-D), or as the library takes it (2-D).
        padding: whether texts of different lengths may share a forward pass.
        half: whether it may run in bf16 or fp16; else it runs in float32, whatever the run's precision.
        levers: whether kdbert's own dropout and the training of used word vectors only may be put in (where asked for).
        packing: whether a batch's padding is left out between embeddings and head (on a CPU).
        first_token: whether the last layer computes the first token only where nothing else of it is read.
        segments: how many segment ids it understands; 0: none are handed over.
        limit: tokens per example at most; None: no limit.
        pieces: rows of the word embedding.
        inputs: names of what it is called with.
    """

    model_type: str
    attention: str
    own_mask: bool
    padding: bool
    half: bool
    levers: bool
    packing: bool
    first_token: bool
    segments: int | None
    limit: int | None
    pieces: int
    inputs: tuple[str, ...]

    def words(self) -> str:
        """What was decided, for people."""
        said = ["kdbert's attention" if self.attention == ATTENTION else f"the library's {self.attention} attention"]
        if not self.padding:
            said.append("texts of one length at a time (padding would change its outputs)")
        said.append("any length" if self.limit is None else f"up to {self.limit} tokens")
        if "token_type_ids" not in self.inputs:
            said.append("no segment ids")
        if not self.half:
            said.append("float32 only")
        return f"model type {self.model_type}: {', '.join(said)}"

    def record(self) -> dict[str, Any]:
        """As run.json has it."""
        return {**asdict(self), "inputs": list(self.inputs)}


@dataclass(frozen=True)
class Asked:
    """What a person may choose of the way: the recipe keys `train.attention`, `train.packing`, `train.first_token`."""

    attention: str = "auto"
    packing: bool = True
    first_token: bool = True


def device_type() -> str:
    """Type of the device that models run on here."""
    found = torch.accelerator.current_accelerator(check_available=True)
    return "cpu" if found is None else found.type


def decide(config: Any, kind: Kind, name: str, asked: Asked = Asked(), device: str = "cpu") -> Way:
    """How a model with this configuration is run; no weights are opened.

    The fast way (kdbert's attention function, a ready-made mask, packing, the first token only) is for the types that
    `kdbert.models.architectures` lists for it; every other gets the library's own.

    Args:
        kind: what kind of head it has.
        name: what the person called it, for errors.
        device: type of the device that it runs on.

    Raises:
        UserError: kdbert does not run models of this type, or not with this head or attention function.
    """
    known = architecture(config.model_type, name)
    check_configuration(config, name)
    whole = skeleton(config, kind, name)
    fast = known.own_attention and not getattr(config, "is_decoder", False)
    attention = asked.attention
    if attention == ATTENTION and not fast:
        raise UserError(
            f"train.attention={ATTENTION} is not made for {name!r}, a model of type {config.model_type!r}; leave "
            "train.attention=auto"
        )
    if attention == "auto":
        attention = (ATTENTION if device == "cpu" else "sdpa") if fast else whole.config._attn_implementation
    elif attention == "sdpa" and not whole._supports_sdpa:
        raise UserError(
            f"the library has no sdpa attention for {name!r}, a model of type {config.model_type!r}; leave "
            "train.attention=auto"
        )
    own_layers = built_as_bert(config)
    segments = _segments(whole, known)
    takes = inspect.signature(type(whole).forward).parameters
    left_out = {"token_type_ids"} if segments in (0, 1) else set()
    return Way(
        model_type=config.model_type,
        attention=attention,
        own_mask=fast and attention in ("sdpa", ATTENTION),
        # XLM's and FlauBERT's heads may also read the last token, or the mean of all, padding among them.
        padding=known.padding and (fast or getattr(config, "summary_type", "first") == "first"),
        half=known.half,
        levers=fast,
        packing=own_layers and asked.packing and attention == ATTENTION,
        first_token=own_layers and asked.first_token and kind not in ("token", "masked_lm"),
        segments=segments,
        limit=_limit(whole, config, known),
        pieces=int(whole.get_input_embeddings().weight.shape[0]),
        inputs=tuple(one for one in INPUTS if one in takes and one not in left_out),
    )


def check_configuration(config: Any, name: str) -> None:
    """Refuse a configuration that cannot be run, though others of its type are.

    Raises:
        UserError: with the key.
    """
    for model_type, key, value, reason in CONFIGURATIONS:
        if config.model_type == model_type and getattr(config, key, None) == value:
            raise UserError(f"model {name!r} has {key}={value!r} in its configuration: {reason}; {INSTEAD}")
    if config.model_type == "nystromformer" and config.num_landmarks != config.segment_means_seq_len:
        raise UserError(
            f"model {name!r} has num_landmarks={config.num_landmarks} and segment_means_seq_len="
            f"{config.segment_means_seq_len}: the library then reads texts of one length only; {INSTEAD}"
        )


def skeleton(config: Any, kind: Kind, name: str) -> Any:
    """The whole model of a configuration on the meta device: every module and shape, and no memory for weights.

    Raises:
        UserError: the library has no such head for the type, or no model of this configuration.
    """
    known = architecture(config.model_type, name)
    if kind == "masked_lm" and not known.masked_lm:
        raise UserError(
            f"model {name!r} is of type {config.model_type!r}, which kdbert trains and distils on tasks, not on plain "
            "text; for plain text take BERT, RoBERTa, CamemBERT, XLM-RoBERTa, ELECTRA or DistilBERT"
        )
    key = kind, json.dumps(config.to_dict(), sort_keys=True, default=str)
    if key not in _SKELETONS:
        try:
            with torch.device("meta"):
                plain = copy.deepcopy(config)
                plain._attn_implementation = None  # of whoever saved it; kdbert chooses
                _SKELETONS[key] = auto_class(kind).from_config(plain, **NO_CODE)
        except Exception as error:  # a configuration may be wrong in any way
            reason = " ".join(str(error).split())[:200]
            raise UserError(
                f"model {name!r}: the library makes no {auto_class_name(kind)} of its configuration "
                f"({type(error).__name__}: {reason})"
            ) from None
    return _SKELETONS[key]


def _named(model: Any, name: str) -> Any:
    """The first module whose own name is this, or None."""
    return next((module for path, module in model.named_modules() if path.rpartition(".")[2] == name), None)


def _segments(whole: Any, known: Architecture) -> int | None:
    """How many segment ids a model understands: rows of its table; None: any number."""
    if "token_type_ids" not in inspect.signature(type(whole).forward).parameters:
        return 0
    if known.any_segment:
        return None
    table = _named(whole, "token_type_embeddings")
    return 0 if table is None else int(table.weight.shape[0])


def _limit(whole: Any, config: Any, known: Architecture) -> int | None:
    """The longest text in tokens.

    A table of positions ends it; where the table has a padding row (RoBERTa and its kin), positions start behind that.
    BigBird with block_sparse attention computes full attention up to a length and draws random blocks beyond it.
    """
    declared = getattr(config, "max_position_embeddings", None) if not known.relative else None
    limits = [declared] if isinstance(declared, int) and declared > 0 else []
    table = _named(whole, "position_embeddings")
    if table is not None and getattr(table, "weight", None) is not None:
        padding = getattr(table, "padding_idx", None)
        limits.append(int(table.weight.shape[0]) - (0 if padding is None else padding + 1))
    if getattr(config, "attention_type", None) == "block_sparse":
        limits.append((5 + 2 * config.num_random_blocks) * config.block_size)
    return min(limits, default=None)


def check_length(length: int, limit: int | None, model: str) -> None:
    """Refuse a sequence length beyond what the model can read.

    Raises:
        UserError: with the largest length.
    """
    if length < 4:
        raise UserError(f"--max-length {length} is too short: a pair needs 4 tokens or more")
    if limit is not None and length > limit:
        raise UserError(
            f"--max-length {length} is beyond the {limit} tokens that model {model!r} can read; use {limit} or less"
        )


def fit_tokenizer(tokenizer: Any, way: Way, name: str, *, grows: bool = False) -> Any:
    """The tokenizer, told to give what the model takes and nothing else (no segments to a DistilBERT, say).

    Args:
        name: of the model. grows: whether the model gets a row for each piece that it has none for (a student).

    Raises:
        UserError: it gives what the model has no row for: more pieces than rows of the word embedding, more segments;
            or more than token ids, mask and segments.
    """
    more = [one for one in tokenizer.model_input_names if one not in INPUTS]
    if more:
        raise UserError(f"the tokenizer of model {name!r} also gives {', '.join(more)}, and kdbert reads texts only")
    tokenizer.model_input_names = [one for one in tokenizer.model_input_names if one in way.inputs]
    pieces = vocabulary_size(tokenizer)
    if pieces > way.pieces and not grows:
        raise UserError(
            f"the tokenizer of model {name!r} has {pieces} pieces, its embedding has {way.pieces} rows; save the model "
            f"again after `model.resize_token_embeddings({pieces})`, or the tokenizer without its added tokens"
        )
    if "token_type_ids" in tokenizer.model_input_names and way.segments is not None:
        found = 1 + max(tokenizer("a", "b")["token_type_ids"])
        if found > way.segments > 0:
            raise UserError(
                f"the tokenizer of model {name!r} numbers {found} segments, the model has {way.segments}; save the "
                "model with a tokenizer of its own type"
            )
    return tokenizer


def count_parameters(
    config: Any, spec: TaskSpec, name: str, layers: Sequence[int] | None = None, pieces: int = 0
) -> int:
    """Parameters of a model for the task with this configuration, of some of its layers, and with a vocabulary of so
    many pieces if that is larger; no memory is taken for them.
    """
    config = copy.deepcopy(config) if layers is None else cut_config(config, layers)
    if spec.kind != "masked_lm":
        config.num_labels = spec.num_outputs
    config.vocab_size = max(config.vocab_size, pieces)
    return sum(parameter.numel() for parameter in skeleton(config, spec.kind, name).parameters())


# Cutting layers ------------------------------------------------------------------------------------------------


def _is_whole(config: Any, picks: Sequence[int]) -> bool:
    """Whether these are all layers in their order, so that nothing is cut."""
    return list(picks) == list(range(1, config.num_hidden_layers + 1))


def cut_config(config: Any, picks: Sequence[int]) -> Any:
    """The configuration of a model with these layers only (numbered from 1); lists of one value a layer follow."""
    small = copy.deepcopy(config)
    depth = config.num_hidden_layers
    if _is_whole(config, picks):
        return small
    for key, value in config.to_dict().items():
        a_list = isinstance(value, (list, tuple)) and len(value) == depth
        # Words of each layer have keys such as layer_types; as many other words, say languages, are not of layers.
        if a_list and ("layer" in key or not any(isinstance(one, str) for one in value)):
            setattr(small, key, type(value)(value[number - 1] for number in picks))
    small.num_hidden_layers = len(picks)
    return small


def check_cut(config: Any, kind: Kind, picks: Sequence[int], name: str) -> None:
    """Refuse to cut layers out of a model that would not be the same model with fewer layers.

    Raises:
        UserError: its layers share weights, are in no list, or one of them cannot take the place of another.
    """
    if _is_whole(config, picks):
        return
    whole = skeleton(config, kind, name)
    cure = "name a student of its own with --student, and keep all of its layers"
    try:
        small = skeleton(cut_config(config, picks), kind, name)
    except (UserError, NotImplementedError, AttributeError, ValueError):
        raise UserError(
            f"layers cannot be cut out of {name!r}, a model of type {config.model_type!r}; {cure}"
        ) from None
    kept = _kept_names(whole, small, picks)
    if kept is None:
        raise UserError(
            f"layers cannot be cut out of {name!r}, a model of type {config.model_type!r}: it has no layers with "
            f"weights of their own; {cure}"
        )
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
    """The model with some of its layers (numbered from 1): one of the library's own making, with these weights."""
    if _is_whole(model.config, picks):
        return model
    config = cut_config(model.config, picks)
    with torch.random.fork_rng(devices=[]):  # what it draws is replaced, and must change no other draw
        small = type(model)._from_config(
            config, dtype=model.dtype, attn_implementation=model.config._attn_implementation
        )
    kept = _kept_names(model, small, picks)
    assert kept is not None  # `check_cut`
    weights = model.state_dict()
    small.load_state_dict({new: weights[old] for new, old in kept.items()})
    return small.train(model.training)


def _kept_names(whole: Any, small: Any, picks: Sequence[int]) -> dict[str, str] | None:
    """Weight of a cut model -> weight of the whole one; None where no list of modules became shorter with it."""
    lengths = {name: len(module) for name, module in small.named_modules() if isinstance(module, nn.ModuleList)}
    lists = [
        name
        for name, module in whole.named_modules()
        if isinstance(module, nn.ModuleList) and lengths.get(name) == len(picks) != len(module)
    ]
    if not lists:
        return None
    new_number = {str(number - 1): str(place) for place, number in enumerate(picks)}
    kept: dict[str, str] = {}
    for old in whole.state_dict():
        new = old
        for name in lists:
            if old.startswith(f"{name}."):
                number, _, rest = old.removeprefix(f"{name}.").partition(".")
                new = f"{name}.{new_number[number]}.{rest}" if number in new_number else ""
        if new:
            kept[new] = old
    return kept


# Loading -------------------------------------------------------------------------------------------------------


def open_classifier(
    place: ModelPlace, spec: TaskSpec, way: Way, *, keep_head: bool, layers: Sequence[int] | None = None
) -> tuple[Any, bool]:
    """A classifier for the task, of whole examples or of tokens, in float32, ready to be run by `way`.

    A head is kept if its labels are the task's (its rows are put into the task's order); any other is
    replaced by a fresh one.

    Args:
        keep_head: take the head as it is, whatever its labels are called (a teacher's, whose logits
            are permuted later).
        layers: keep these only, numbered from 1 (None: all).

    Returns:
        The model in eval mode, and whether it kept a trained head.

    Raises:
        UserError: it cannot be loaded, its file lacks weights, or no layers can be cut out of it.
    """
    config = load_config(place)
    permutation = None
    if not keep_head:
        names = label_names(config)
        if has_head(config, spec.kind) and len(names) == spec.num_outputs and not is_generic(names):
            with contextlib.suppress(ValueError):
                permutation = label_permutation(spec.labels, spec.aliases, names) if spec.labels else [0]
        config.num_labels = spec.num_outputs
        if spec.labels:
            config.id2label = dict(enumerate(spec.labels))
            config.label2id = {label: i for i, label in enumerate(spec.labels)}
        config.problem_type = PROBLEMS.get(spec.kind)
    options = {} if place.fresh else {"ignore_mismatched_sizes": not keep_head}
    model, head_missing = _load(place, auto_class(spec.kind), config, way, whole=keep_head, **options)
    if head_missing:
        permutation = None
    if not keep_head and permutation is None:
        _fresh_head(model)
    elif permutation is not None and permutation != sorted(permutation):
        _permute_head(model, permutation)
    if layers is not None:
        model = cut_layers(model, layers)
    return _prepared(model.eval(), way), keep_head or permutation is not None


def open_masked_lm(
    place: ModelPlace, tokenizer: Any, way: Way, *, layers: Sequence[int] | None = None
) -> tuple[Any, bool]:
    """A masked-LM in float32, ready to be run by `way`.

    Args:
        tokenizer: what it reads by; a model that is drawn at random has a vocabulary of this size.

    Returns:
        The model in eval mode, and whether its head was trained.
    """
    import transformers

    config = load_config(place)
    if place.fresh:
        config.vocab_size = vocabulary_size(tokenizer)
        config.pad_token_id = tokenizer.pad_token_id
    model, head_missing = _load(place, transformers.AutoModelForMaskedLM, config, way, whole=False)
    if layers is not None:
        model = cut_layers(model, layers)
    trained = not place.fresh and not head_missing and has_head(config, "masked_lm")
    return _prepared(model.eval(), way), trained


def _prepared(model: Any, way: Way) -> Any:
    """The model with the way that it is run, and with what that asks for put in."""
    model.way = way
    if way.first_token:
        use_first_token(model)
    if way.packing:
        use_packing(model)
    return model


def _load(place: ModelPlace, kind: Any, config: Any, way: Way, *, whole: bool, **options: Any) -> tuple[Any, bool]:
    """A model of a class of the library's: its weights, or for a configuration alone, some drawn at random.

    Args:
        whole: the head, too, must be there; else a fresh one may be wanted.

    Returns:
        The model, and whether its head, or the pooler below it, is not in its file.
    """
    register_attention()
    for key, value in AS_CALLED.items():
        if hasattr(config, key):
            setattr(config, key, value)
    with explained(place):
        if place.fresh:
            model = kind.from_config(config, dtype=torch.float32, attn_implementation=way.attention, **NO_CODE)
            return model, True
        model, about = kind.from_pretrained(
            place.source, config=config, dtype=torch.float32, attn_implementation=way.attention,
            output_loading_info=True, **NO_CODE, **options,
        )  # fmt: skip
    return model, _check_loaded(model, about, place.given, whole)


def _check_loaded(model: Any, about: Mapping[str, Any], name: str, whole: bool) -> bool:
    """Refuse a model of which some weights would be drawn at random, or are not numbers; say what is not used.

    Returns:
        Whether the head, or the pooler below it, is not in its file.

    Raises:
        UserError: weights of the encoder are missing or not finite, or where `whole` those of the head.
    """
    prefix = f"{model.base_model_prefix}."
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
    wrong = next((key for key, value in model.state_dict().items() if not bool(value.isfinite().all())), None)
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
            "%s names code of its own (auto_map), which is not run: it is taken as the library's %s",
            name, type(model).__name__,
        )  # fmt: skip
    return bool(lost)


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
