"""How a model is run: decided from its architecture and configuration, before any weights are there."""

from __future__ import annotations

import inspect
from dataclasses import asdict, dataclass
from typing import Any

import torch

from kdbert.data.masking import vocabulary_size
from kdbert.devices import by_device
from kdbert.errors import UserError
from kdbert.heads import Head
from kdbert.models.architectures import Architecture, architecture, check_configuration
from kdbert.models.fast import ATTENTION
from kdbert.models.load import skeleton

INPUTS = ("input_ids", "attention_mask", "token_type_ids")


@dataclass(frozen=True)
class Way:
    """How a model is run. run.json has it for the student (`way`) and for each teacher.

    Attributes:
        model_type: of its configuration.
        attention: the attention function: `kdbert`, or one of the library's (`sdpa`, `eager`).
        own_mask: whether kdbert prepares the attention mask (4-D) or leaves that to the library (2-D).
        padding: whether texts of different lengths may share a forward pass.
        half: whether it may run in bf16 or fp16; else it runs in float32, whatever the run's precision.
        levers: whether kdbert's own dropout, and training only the used word vectors, may be put in (if asked for).
        packing: whether padding is left out between embeddings and head (on a CPU).
        fused_layers: whether a packed layer is computed as one autograd function.
        first_token: whether the last layer computes only the first token where nothing else of it is read.
        segments: how many segment ids it knows; 0: it gets none.
        limit: most tokens per example; None: no limit.
        pieces: rows of the word embedding.
        inputs: names of the arguments that it is called with.
    """

    model_type: str
    attention: str
    own_mask: bool
    padding: bool
    half: bool
    levers: bool
    packing: bool
    fused_layers: bool
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
    """What a person may choose of the way: recipe keys of the section `train` by the same names."""

    attention: str = "auto"
    packing: bool = True
    first_token: bool = True
    fused_layers: bool = True


def device_type() -> str:
    """Type of the device that models run on here."""
    found = torch.accelerator.current_accelerator(check_available=True)
    return "cpu" if found is None else found.type


def decide(config: Any, head: Head, name: str, asked: Asked = Asked(), device: str = "cpu") -> Way:
    """How a model with this configuration is run; no weights are opened.

    The fast way (kdbert's attention, its own mask, packing, the first token only) is for the types that
    `kdbert.models.architectures` lists for it; every other type is run as the library runs it.
    `name` is what the person called the model, for errors; `device` the type of the device.
    """
    known = architecture(config.model_type, name)
    check_configuration(config, name)
    whole = skeleton(config, head, name)
    every_token = not getattr(config, "is_decoder", False)  # sees all others
    fast, own_layers = known.own_attention and every_token, known.own_layers and every_token
    attention = asked.attention
    if (attention == ATTENTION and not fast) or (attention == "sdpa" and not whole._supports_sdpa):
        raise UserError(
            f"train.attention={attention} is not available for {name!r}, a model of type {config.model_type!r}; use "
            "train.attention=auto"
        )
    if attention == "auto":
        own = ATTENTION if by_device(device).own_attention else "sdpa"
        attention = own if fast else whole.config._attn_implementation
    segments = _segments(whole, known)
    takes = inspect.signature(type(whole).forward).parameters
    left_out = {"token_type_ids"} if segments in (0, 1) else set()
    packing = own_layers and asked.packing and attention == ATTENTION
    return Way(
        model_type=config.model_type,
        attention=attention,
        own_mask=fast and (attention in ("sdpa", ATTENTION) or by_device(device).own_mask),
        # XLM's and FlauBERT's heads may also read the last token, or the mean of all tokens including padding.
        padding=known.padding and (fast or getattr(config, "summary_type", "first") == "first"),
        half=known.half,
        levers=fast,
        packing=packing,
        fused_layers=packing and asked.fused_layers and config.hidden_act == "gelu",
        first_token=own_layers and asked.first_token and head.reads_first_token,
        segments=segments,
        limit=_limit(whole, config, known),
        pieces=int(whole.get_input_embeddings().weight.shape[0]),
        inputs=tuple(one for one in INPUTS if one in takes and one not in left_out),
    )


def _named(model: Any, name: str) -> Any:
    return next((module for path, module in model.named_modules() if path.rpartition(".")[2] == name), None)


def _segments(whole: Any, known: Architecture) -> int | None:
    """How many segment ids a model knows: rows of its table; None: any number."""
    if "token_type_ids" not in inspect.signature(type(whole).forward).parameters:
        return 0
    if known.any_segment:
        return None
    table = _named(whole, "token_type_embeddings")
    return 0 if table is None else int(table.weight.shape[0])


def _limit(whole: Any, config: Any, known: Architecture) -> int | None:
    """The longest text in tokens.

    A table of positions limits it; if the table has a padding row (RoBERTa and its kin), positions start behind that.
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
    """Refuse a sequence length that the model cannot read."""
    if length < 4:
        raise UserError(f"--max-length {length} is too short: a pair needs 4 tokens or more")
    if limit is not None and length > limit:
        raise UserError(
            f"--max-length {length} is beyond the {limit} tokens that model {model!r} can read; use {limit} or less"
        )


def fit_tokenizer(tokenizer: Any, way: Way, name: str, *, grows: bool = False) -> Any:
    """The tokenizer, set to give what the model takes and nothing else (no segment ids for a DistilBERT, say).
    A model that `grows` will get rows for pieces that it has none for (a student).
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
