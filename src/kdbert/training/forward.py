"""Running a model on a batch: the encoder in the chosen precision, what comes out in float32."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import nn

from kdbert.data.batches import Batch, collate, evaluation_batches, micro_batches, moved
from kdbert.data.encode import Encoded
from kdbert.devices import by_device
from kdbert.errors import Diverged, KdbertError, UserError, few, out_of_memory
from kdbert.methods import HiddenStates, LossTerms, MaskedLMOutputs, Method, Outputs
from kdbert.models.architectures import INSTEAD
from kdbert.models.fast.capture import captured
from kdbert.models.fast.first_token import first_token_only
from kdbert.models.fast.layer import weights_cast_once
from kdbert.models.fast.packing import packed
from kdbert.training.loggers import progress_bar
from kdbert.training.precision import DTYPES, Precision


def encoder_autocast(device: torch.device, precision: Precision) -> contextlib.AbstractContextManager[Any]:
    """Autocast for the encoder; nothing where it runs in float32."""
    if precision == "fp32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=DTYPES[precision])


# What a quantity has one row of: an example, each of its tokens, or each pair of its tokens.
RowOf = Literal["example", "token", "token_pair"]


def rows_of(data: Encoded) -> dict[RowOf, int]:
    """How many of them a split has."""
    return {"example": len(data), "token": len(data.input_ids), "token_pair": int(data.pair_offsets[-1])}


NO_ATTENTION: Mapping[int, str] = {}


def run_model(
    model: Any,
    batch: Batch,
    precision: Precision,
    layers: Collection[int] = (),
    attention: Mapping[int, str] = NO_ATTENTION,
    first_token: bool = False,
) -> Outputs | MaskedLMOutputs | HiddenStates:
    """Forward one batch, in the way that `kdbert.models.open` decided for the model (`model.way`).

    Half-precision outputs are turned into float32 before any loss sees them. Where padding would change a model's
    outputs, texts of one length are run at a time, without any. An encoder without a head gives hidden states only.

    Args:
        layers: hidden states to hand out. attention: layer -> which of its queries, keys and values.
        first_token: of the hidden states only the first token is read.
    """
    precision = precision if model.way.half else "fp32"
    if batch.padded and not model.way.padding:
        assert not attention
        return _by_length(model, batch, precision, layers)
    given = {
        "input_ids": batch.input_ids,
        "attention_mask": _attention_mask(model, batch, precision),
        "token_type_ids": batch.token_type_ids,
    }
    inputs = {name: given[name] for name in model.way.inputs if name != "token_type_ids" or given[name] is not None}
    whole = model.config.num_hidden_layers in layers and not first_token
    with (
        encoder_autocast(batch.input_ids.device, precision),
        first_token_only(model, not whole),
        packed(model, batch.attention_mask) as packing,
        captured(model, attention) as states,
    ):
        out = model(**inputs, output_hidden_states=bool(layers))
    hidden = {layer: _at_least_float32(out.hidden_states[layer]) for layer in layers}
    if packing is not None:
        last = model.config.num_hidden_layers
        hidden = {layer: states if layer == last else packing.unpack(states) for layer, states in hidden.items()}
    seen: dict[str, Any] = {
        "mask": batch.attention_mask,
        "hidden": hidden,
        "attention": {
            layer: {kind: _at_least_float32(value) for kind, value in one.items()} for layer, one in states.items()
        },
    }
    if not hasattr(out, "logits"):
        return HiddenStates(**seen)
    pieces = getattr(model, "late_pieces", None)
    if pieces is None:
        return Outputs(_at_least_float32(out.logits), **seen)
    last = model.get_output_embeddings()
    bias = None if last.bias is None else last.bias[:pieces]
    head = LateHead(out.logits.flatten(0, 1), last.weight[:pieces], bias, precision)
    return MaskedLMOutputs(head, **seen)


def _by_length(model: Any, batch: Batch, precision: Precision, layers: Collection[int]) -> Outputs | HiddenStates:
    """`run_model`, texts of one length at a time; what is of tokens is 0 at padding. No masked-LM needs this."""
    assert batch.lengths is not None
    width = batch.input_ids.shape[1]
    groups = [np.flatnonzero(batch.lengths == length) for length in np.unique(batch.lengths)]
    parts: list[Any] = [run_model(model, batch.alike(rows), precision, layers) for rows in groups]
    order = moved(torch.from_numpy(np.argsort(np.concatenate(groups))), batch.input_ids.device)

    def joined(values: Sequence[torch.Tensor], of_tokens: bool) -> torch.Tensor:
        if of_tokens:
            values = [F.pad(value, (0, 0, 0, width - value.shape[1])) for value in values]
        return torch.cat(list(values))[order]

    hidden = {layer: joined([part.hidden[layer] for part in parts], True) for layer in layers}
    if not isinstance(parts[0], Outputs):
        return HiddenStates(mask=batch.attention_mask, hidden=hidden)
    logits = joined([part.logits for part in parts], parts[0].logits.dim() == 3)
    return Outputs(logits, mask=batch.attention_mask, hidden=hidden)


@torch.no_grad()
def check_runs(model: Any, data: Encoded, name: str) -> None:
    """Refuse a model that fails on the shortest or the longest text of a split, or whose logits (of an encoder: last
    hidden states) differ in a padded batch by more than 1e-4, times the largest where that is above 1.

    The tests have looked at some configurations of each type; this looks at the model itself. Models that run in
    kdbert's own way are not asked what padding changes: that is kdbert's own code.
    """
    rows = np.unique([int(data.lengths.argmin()), int(data.lengths.argmax())])
    training, device = model.training, next(model.parameters()).device
    model.eval()
    told = f"model {name!r} of type {model.way.model_type!r}"
    try:
        seen = _said(model, collate(data, rows).to(device))
        if seen is None or model.way.levers or not model.way.padding or len(rows) == 1:
            return
        apart: list[Any] = [_said(model, collate(data, rows[[place]]).to(device)) for place in (0, 1)]
    except Exception as error:  # whatever the library raises in a configuration that nobody has tried
        if isinstance(error, KdbertError) or out_of_memory(error):
            raise
        lengths = " and ".join(str(length) for length in np.unique(data.lengths[rows]))
        raise UserError(
            f"{told} fails on texts of {lengths} tokens ({type(error).__name__}: "
            f"{' '.join(str(error).split())[:200]}); {INSTEAD}"
        ) from None
    finally:
        model.train(training)
    alone = [one[0] for one in apart]
    parts = [one if own.dim() == 1 else one[: len(own)] for one, own in zip(seen, alone, strict=True)]
    moved = max(float((part - own).abs().max()) for part, own in zip(parts, alone, strict=True))
    if moved > 1e-4 * max(1.0, *(float(own.abs().max()) for own in alone)):
        raise UserError(
            f"{told} gives different outputs in a padded batch than alone (a number moves by {moved:.2g}), so kdbert "
            "cannot batch its texts; take another model, and please report this one"
        )


def _said(model: Any, batch: Batch) -> torch.Tensor | None:
    """What a model says of a batch in float32: its logits, or its last hidden states; None of a masked-LM."""
    last = model.config.num_hidden_layers
    seen = run_model(model, batch, "fp32", (last,) if model.base_model is model else ())
    if isinstance(seen, Outputs):
        return seen.logits
    return None if isinstance(seen, MaskedLMOutputs) else seen.hidden[last]


@contextlib.contextmanager
def with_gradients(model: Any, on: bool = True) -> Iterator[None]:
    """Within it, if `on`, the hidden states of a model that is never trained have a graph, down to its word vectors."""
    if not on:
        yield
        return
    # Not at loading: whether weights want gradients changes how torch computes some products, in their last bits.
    model.requires_grad_(False)
    words = model.get_input_embeddings().weight.requires_grad_()
    try:
        with torch.enable_grad():
            yield
    finally:
        words.requires_grad_(False)


@dataclass(frozen=True)
class LateHead:
    """A masked-LM's last matrix, and what it is applied to: a `kdbert.heads.masked_lm.VocabularyHead`."""

    features: torch.Tensor  # [B * L, H]
    weight: torch.Tensor  # [V, H]
    bias: torch.Tensor | None  # [V]
    precision: Precision

    @property
    def pieces(self) -> int:
        """Size of the vocabulary."""
        return len(self.weight)

    def __call__(self, positions: torch.Tensor, columns: int | None = None) -> torch.Tensor:
        """Logits [n, columns], in float32."""
        with encoder_autocast(self.features.device, self.precision):
            bias = None if self.bias is None else self.bias[:columns]
            return _at_least_float32(F.linear(self.features[positions], self.weight[:columns], bias))


def _attention_mask(model: Any, batch: Batch, precision: Precision) -> torch.Tensor | None:
    """The mask in the form that the model takes.

    Ready-made it is 4-D. The library turns a 2-D mask into this very one, but first asks the device whether the batch
    has padding at all, which on a GPU makes the host wait at every step.
    """
    if not model.way.own_mask:
        return batch.attention_mask
    if not batch.padded:
        return None
    real = batch.attention_mask.bool()[:, None, None, :]
    if model.way.attention == "sdpa":
        rows, length = batch.attention_mask.shape
        return real.expand(rows, 1, length, length)
    dtype = model.dtype if precision == "fp32" else DTYPES[precision]
    return torch.zeros(real.shape, dtype=dtype, device=real.device).masked_fill_(~real, torch.finfo(dtype).min)


def _at_least_float32(tensor: torch.Tensor) -> torch.Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()


class StudentWithMethod(nn.Module):
    """Student and method as one module: what is trained, wrapped for data parallel, and saved in checkpoints."""

    def __init__(
        self,
        student: nn.Module,
        method: Method,
        precision: Precision,
        layers: Sequence[int] = (),
        attention: Mapping[int, str] = NO_ATTENTION,
        first_token: bool = False,
    ) -> None:
        super().__init__()
        self.student = student
        self.method = method
        self.precision = precision
        self.layers = layers
        self.attention = attention
        self.first_token = first_token

    def weights(self) -> dict[str, torch.Tensor]:
        """All parameters and buffers, each once: one that two layers share has the first name that it has."""
        found: dict[str, torch.Tensor] = {}
        places = set()
        for name, value in self.state_dict().items():
            place = value.data_ptr(), value.shape
            if value.numel() == 0 or place not in places:
                found[name] = value
                places.add(place)
        return found

    def load_weights(self, weights: Mapping[str, torch.Tensor]) -> None:
        """Take over what `weights` gave."""
        if weights.keys() != self.weights().keys():
            raise RuntimeError(f"other weights: {', '.join(sorted(weights.keys() ^ self.weights().keys()))}")
        self.load_state_dict(weights, strict=False)

    def forward(self, batch: Batch, teachers: Sequence[HiddenStates]) -> LossTerms:
        """The loss terms of this process's micro-batch; losses run with autocast off."""
        self.method.before_forward(batch)
        student = run_model(self.student, batch, self.precision, self.layers, self.attention, self.first_token)
        with torch.autocast(batch.input_ids.device.type, enabled=False):
            return self.method(student, teachers, batch)


@torch.no_grad()
def pass_over(
    model: Any,
    data: Encoded,
    compute: Callable[[Any, Batch], Mapping[str, torch.Tensor]],
    kinds: Mapping[str, RowOf],
    *,
    layers: Sequence[int] = (),
    attention: Mapping[int, str] = NO_ATTENTION,
    graph: bool = False,
    batch_size: int,
    precision: Precision,
    accelerator: Accelerator,
    told: str | None = None,
    ids: Sequence[str] | None = None,
    allocate: Callable[[str, tuple[int, ...]], np.ndarray | None] = lambda name, shape: np.zeros(shape, np.float32),
    gathered: int | None = None,
) -> dict[str, np.ndarray | None]:
    """Quantities of every example of a split, in its order, without padding, the same on every process.

    Each process computes its slice of each batch; (example number, values) are gathered and rows that
    only filled up a slice are dropped.

    Args:
        compute: outputs of a batch -> values [B, ...], [B, L, ...] or [B, L, L], by name.
        kinds: what each of them has one row of.
        layers: hidden states that `compute` reads. attention: queries, keys and values, see `run_model`.
        graph: the model is frozen, and `compute` takes gradients by hidden states; see `with_gradients`.
        told: what a progress bar, and an error, says that this is (None: no bar, and no look at the values).
        ids: name of each example, for that error (None: its number).
        allocate: (name, shape) -> the array to fill: float32, or int16 for the bits of bf16; None: this process
            keeps nothing of it. Called once for each quantity, by all processes in the same order.
        gathered: values are gathered on the device until they take more than so many bytes, then copied to the host,
            which waits for the device (None: as `kdbert.devices` has it).

    Raises:
        Diverged: a value is not finite, where `told` says of what; with the ids of the examples.

    Returns:
        The arrays: [N, ...] of examples; [tokens, ...] in the order of `Encoded.input_ids`; [pairs] as
        `Encoded.pair_offsets` has them.
    """
    training = model.training
    model.eval()
    precision = precision if model.way.half else "fp32"
    found: dict[str, np.ndarray | None] = {}
    held = _Held(data, kinds, found, told, ids)
    most = by_device(accelerator.device).gathered if gathered is None else gathered
    # Weights are cast once for the whole of an autocast region, not once a batch.
    with contextlib.ExitStack() as stack:
        stack.callback(model.train, training)
        stack.enter_context(encoder_autocast(accelerator.device, precision))
        stack.enter_context(weights_cast_once())
        batches, main = evaluation_batches(data.lengths, batch_size), accelerator.is_main_process
        for rows in progress_bar(batches, told, "batch", main and told is not None, leave=False):
            (batch,) = micro_batches(data, rows, rank=accelerator.process_index, world=accelerator.num_processes)
            batch = batch.to(accelerator.device)
            with torch.autocast(batch.input_ids.device.type, enabled=False), with_gradients(model, graph):
                values = dict(compute(run_model(model, batch, precision, layers, attention), batch))
            if accelerator.num_processes > 1:
                values = {name: accelerator.gather(value.contiguous()) for name, value in values.items()}
            for name, value in values.items():
                if name not in found:
                    inner = value.shape[{"example": 1, "token": 2, "token_pair": 3}[kinds[name]] :]
                    found[name] = allocate(name, (rows_of(data)[kinds[name]], *inner))
            held.add(rows, {name: value[: len(rows)] for name, value in values.items()})  # the rest fills up a slice
            if held.size > most:
                held.put()
        held.put()
    return found


class _Held:
    """Values of batches that are still on the device, and what they are put into: see `pass_over`."""

    def __init__(
        self,
        data: Encoded,
        kinds: Mapping[str, RowOf],
        found: Mapping[str, np.ndarray | None],
        told: str | None,
        ids: Sequence[str] | None,
    ) -> None:
        self.data, self.kinds, self.found, self.told, self.ids = data, kinds, found, told, ids
        self.batches: list[tuple[np.ndarray, dict[str, torch.Tensor]]] = []
        self.size = 0

    def add(self, rows: np.ndarray, values: dict[str, torch.Tensor]) -> None:
        """Hold the values of some examples."""
        self.batches.append((rows, values))
        self.size += sum(value.numel() * value.element_size() for value in values.values())

    def put(self) -> None:
        """Copy all to the host, each quantity in one piece, and to the places of the examples."""
        if self.batches and self.told is not None:
            self._check()
        for name in self.batches[0][1] if self.batches else ():
            kept = self.found[name]
            if kept is None:
                continue
            parts = [(rows, values[name].float()) for rows, values in self.batches]
            if kept.dtype == np.int16:
                parts = [(rows, value.bfloat16().view(torch.int16)) for rows, value in parts]
            whole = torch.cat([value.reshape(-1) for _, value in parts]) if len(parts) > 1 else parts[0][1]
            flat, start = whole.cpu().numpy().reshape(-1), 0
            for rows, value in parts:
                there, start = flat[start : start + value.numel()].reshape(value.shape), start + value.numel()
                if self.kinds[name] == "example":
                    kept[rows] = there
                else:
                    place = self.data.tokens if self.kinds[name] == "token" else self.data.token_pairs
                    index, real = place(rows, there.shape[1])
                    kept[index[real]] = there[real]
        self.batches, self.size = [], 0

    def _check(self) -> None:
        """Raise if a value is not finite."""
        finite = torch.stack([value.isfinite().all() for _, values in self.batches for value in values.values()])
        if bool(finite.all()):
            return
        for rows, values in self.batches:
            for name, value in values.items():
                bad = ~value.reshape(len(rows), -1).isfinite().all(1).cpu().numpy()
                if bad.any():
                    examples = [self.ids[row] if self.ids is not None else str(row) for row in rows[bad].tolist()]
                    raise Diverged(
                        f"{self.told}: its {name} of examples {few(examples)} are not finite", {"examples": examples}
                    )
