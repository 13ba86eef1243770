"""Teacher outputs: computed for each batch, or once for all and replayed by example number."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import InitVar, dataclass, replace
from typing import Any, TypeVar

import numpy as np
import torch

from kdbert.data.batches import Batch, collate, moved
from kdbert.data.encode import Encoded
from kdbert.errors import KdbertError
from kdbert.methods import HiddenStates, Method, Needs, Outputs
from kdbert.training.forward import RowOf, run_model, with_gradients
from kdbert.training.precision import Precision


def layers_read(needs: Needs) -> tuple[int, ...]:
    """A teacher's hidden states that are looked at, whole or to be reduced."""
    return tuple(sorted({*needs.teacher_hidden, *(quantity.layer for quantity in needs.reduced)}))


def kinds_of(needs: Needs, logits_of: RowOf) -> dict[str, RowOf]:
    """What is kept of a teacher, by name, and what each quantity has one row of (`logits_of`: the logits)."""
    kinds: dict[str, RowOf] = {"logits": logits_of} if needs.teacher_logits else {}
    kinds.update({f"hidden.{layer}": "token" for layer in needs.teacher_hidden})
    kinds.update(dict.fromkeys(attention_names(needs), "token"))
    kinds.update({quantity.name: quantity.of for quantity in needs.reduced})
    return kinds


def attention_names(needs: Needs) -> dict[str, tuple[int, str]]:
    """What a teacher's queries, keys and values are kept as -> layer and kind of each that is read."""
    read = needs.teacher_attention.items()
    return {f"attention.{layer}.{kind}": (layer, kind) for layer, kinds in read for kind in kinds}


def only(needs: Needs, names: Collection[str]) -> Needs:
    """Of what is read of a teacher, the quantities with these names."""
    return Needs(
        teacher_logits=needs.teacher_logits and "logits" in names,
        teacher_hidden=tuple(layer for layer in needs.teacher_hidden if f"hidden.{layer}" in names),
        teacher_attention={
            layer: found
            for layer, kinds in needs.teacher_attention.items()
            if (found := "".join(kind for kind in kinds if f"attention.{layer}.{kind}" in names))
        },
        reduced=tuple(quantity for quantity in needs.reduced if quantity.name in names),
    )


def by_gradient(needs: Needs) -> bool:
    """Whether something is read of a teacher that is made of gradients."""
    return any(quantity.by_gradient for quantity in needs.reduced)


def quantities(
    needs: Needs,
    method: Method | None,
    outputs: HiddenStates,
    batch: Batch | None = None,
    columns: Sequence[int] | None = None,
) -> dict[str, torch.Tensor]:
    """Everything that is kept of a teacher, from its outputs for a batch; `method` computes what is reduced.

    Args:
        batch: read where something is made of gradients.
        columns: for each label of the task, the column of the logits (None: they are in the task's order).
    """
    found = {}
    if needs.teacher_logits:
        assert isinstance(outputs, Outputs)
        found["logits"] = outputs.logits
    found.update({f"hidden.{layer}": outputs.hidden[layer] for layer in needs.teacher_hidden})
    for name, (layer, kind) in attention_names(needs).items():
        found[name] = outputs.attention[layer][kind].transpose(1, 2)  # one row for each token
    for quantity in needs.reduced:
        assert method is not None
        if quantity.by_gradient:
            assert isinstance(outputs, Outputs)
            assert batch is not None
            ordered = outputs if columns is None else replace(outputs, logits=outputs.logits[..., list(columns)])
            found[quantity.name] = method.attribute(quantity.name, ordered, batch)
        else:
            found[quantity.name] = method.reduce(quantity.name, outputs.hidden[quantity.layer], outputs.mask)
    return {name: value.detach() for name, value in found.items()}


Seen = TypeVar("Seen", bound=HiddenStates)


def outputs_for(method: Method | None, needs: Needs, seen: Seen, batch: Batch | None = None) -> Seen:
    """What a method reads, from a teacher's outputs for a batch."""
    values = quantities(needs, method, seen, batch)
    return replace(
        seen,
        hidden={layer: values[f"hidden.{layer}"] for layer in needs.teacher_hidden},
        reduced={quantity.name: values[quantity.name] for quantity in needs.reduced},
        attention=attention_of(needs, values),
    )


def attention_of(needs: Needs, values: Mapping[str, torch.Tensor]) -> dict[int, dict[str, torch.Tensor]]:
    """`Outputs.attention`, from the quantities by name."""
    return {
        layer: {kind: values[f"attention.{layer}.{kind}"].transpose(1, 2) for kind in kinds}
        for layer, kinds in needs.teacher_attention.items()
    }


LOGITS = Needs(teacher_logits=True)


@dataclass(eq=False)
class LiveTeacher:
    """A frozen model, run on every batch without gradients; in eval mode, unless `needs` says `teacher_dropout`.

    Attributes:
        permutation: for each task label, the column of the model's logits.
        needs: what is read of it. method: makes what `needs` asks to be reduced.
        own: the training split as the teacher's own tokenizer encodes it, if that is not the student's.
        length: pad that to so many tokens (None: to the batch's longest).
    """

    model: Any
    permutation: list[int]
    precision: Precision
    needs: Needs = LOGITS
    method: Method | None = None
    own: Encoded | None = None
    length: int | None = None

    def __post_init__(self) -> None:
        self.model.eval().requires_grad_(False)
        self.columns = torch.tensor(self.permutation, device=next(self.model.parameters()).device)

    def outputs(self, batch: Batch) -> HiddenStates:
        """What the teacher says about a batch, labels in the task's order."""
        device = batch.input_ids.device
        if self.own is not None:
            rows, everyone = _host_rows(batch)
            length = self.length or int(self.own.lengths[everyone].max())
            batch = collate(self.own, rows, length).to(device)
        if self.model.training != self.needs.teacher_dropout:
            self.model.train(self.needs.teacher_dropout)
        with torch.no_grad(), with_gradients(self.model, by_gradient(self.needs)):
            seen = run_model(self.model, batch, self.precision, layers_read(self.needs), self.needs.teacher_attention)
            if isinstance(seen, Outputs):
                seen.logits = seen.logits[..., self.columns]
            with torch.autocast(device.type, enabled=False):
                found = outputs_for(self.method, self.needs, seen, batch)
        if isinstance(found, Outputs):
            found.logits = found.logits.detach()
        return found


@dataclass
class WithoutLogits(HiddenStates):
    """What is kept of a teacher whose logits the method does not read, by its `Needs`."""

    @property
    def logits(self) -> torch.Tensor:
        """There are none."""
        raise KdbertError("the method reads its teacher's logits, but its Needs do not say so: set teacher_logits=True")


@dataclass(eq=False)
class StoredTeacher:
    """Quantities computed before training, looked up by example number (never by batch).

    Attributes:
        values: as `forward.pass_over` returns them.
        data: the training split as the teacher read it.
        permutation: for each task label, the column of the logits.
        own: whether `data` is another encoding than the student's.
        room: quantities of tokens are kept on the device if all of them together take no more bytes than this.
    """

    values: InitVar[Mapping[str, np.ndarray]]
    data: Encoded
    permutation: InitVar[list[int]]
    device: torch.device
    needs: Needs
    own: bool = False
    room: InitVar[float] = 0.0

    def __post_init__(self, values: Mapping[str, np.ndarray], permutation: list[int], room: float) -> None:
        self.kinds = kinds_of(self.needs, self.data.logits_of)
        # Rows of examples are few numbers and are kept on the device.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # a map cannot be written to, and nobody does
            self.kept = {
                name: torch.from_numpy(np.ascontiguousarray(value[:, permutation] if name == "logits" else value))
                for name, value in values.items()
            }
        of_tokens = [self.kept[name] for name, kind in self.kinds.items() if kind != "example"]
        self.tokens_there = sum(value.numel() * value.element_size() for value in of_tokens) <= room
        for name, kind in self.kinds.items():
            if kind == "example" or self.tokens_there:
                self.kept[name] = self.kept[name].to(self.device)

    def outputs(self, batch: Batch) -> Outputs | WithoutLogits:
        """What the teacher said about the batch's examples."""
        length, mask = batch.input_ids.shape[1], batch.attention_mask
        if self.own and any(kind != "example" for kind in self.kinds.values()):
            rows, everyone = _host_rows(batch)
            length = int(self.data.lengths[everyone].max())
            mask = moved(torch.from_numpy(self.data.tokens(rows, length)[1].astype(np.int64)), self.device)
        found = {name: self._look_up(name, batch, length) for name in self.kinds}
        hidden = {layer: found[f"hidden.{layer}"] for layer in self.needs.teacher_hidden}
        reduced = {quantity.name: found[quantity.name] for quantity in self.needs.reduced}
        attention = attention_of(self.needs, found)
        if "logits" not in found:
            return WithoutLogits(mask=mask, hidden=hidden, reduced=reduced, attention=attention)
        return Outputs(found["logits"], mask=mask, hidden=hidden, reduced=reduced, attention=attention)

    def _look_up(self, name: str, batch: Batch, length: int) -> torch.Tensor:
        kept, kind = self.kept[name], self.kinds[name]
        if kind == "example":
            return kept[batch.example]
        rows, _ = _host_rows(batch)
        index, real = (self.data.tokens if kind == "token" else self.data.token_pairs)(rows, length)
        place = torch.from_numpy(index.reshape(-1))
        if self.tokens_there:
            place = moved(place, self.device)
        found = kept[place].view(*index.shape, *kept.shape[1:])
        if found.dtype == torch.int16:  # bf16
            found = found.view(torch.bfloat16).float()
        if any(quantity.name == name for quantity in self.needs.reduced):
            there = torch.from_numpy(real).view(*real.shape, *[1] * (found.dim() - real.ndim))
            found.mul_(moved(there, self.device) if self.tokens_there else there)
        return found if self.tokens_there else moved(found, self.device)


def _host_rows(batch: Batch) -> tuple[np.ndarray, np.ndarray]:
    """This process's examples, and those of all processes, on the host."""
    rows = batch.example.numpy() if batch.rows is None else batch.rows
    return rows, rows if batch.everyone is None else batch.everyone


Teacher = LiveTeacher | StoredTeacher
