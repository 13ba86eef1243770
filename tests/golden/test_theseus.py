"""BERT-of-Theseus: the chance of a replacement in each step, and the way through given draws."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from golden_cases import Case, Values, golden
from torch import nn

from kdbert.methods.theseus import TheseusOptions, replace_layers


class Layer(nn.Module):
    """h -> tanh(h W^T), as in the cases; counts its calls."""

    calls = 0

    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight.clone())

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """One layer."""
        Layer.calls += 1
        return torch.tanh(hidden @ self.weight.T)


def rates(case: Case) -> Values:
    """The chances of all steps."""
    hyper, steps = case.hyper, case.hyper["n_steps"]
    own = {"replacing_k": hyper["replacing_k"]} if "replacing_k" in hyper else {"full_at": hyper["steps_for_replacing"]}
    more = {"schedule": hyper["schedule"], "replacing_rate": hyper["replacing_rate"], "replacing_k": None}
    options = TheseusOptions.model_validate({"name": "theseus", "variant": "original", **more, **own})
    found = torch.tensor([options.rate(step, step / steps) for step in range(steps + 1)], dtype=torch.float64)
    return {"rate_in_force": found[:-1], "returned": found[1:]}


@golden("theseus")
def test_theseus(case: Case) -> Iterator[Values]:
    if "n_steps" in case.hyper:
        yield rates(case)
        return
    successors, predecessors = (
        nn.ModuleList(map(Layer, case.inputs[f"{name}_weight"])) for name in ("successor", "predecessor")
    )
    replace_layers(successors, predecessors, case.inputs["draws"].bool().tolist())
    successors.train(case.hyper["training"])
    hidden, Layer.calls = case.inputs["hidden"], 0
    for layer in successors:
        hidden = layer(hidden)
    hidden.sum().backward()
    weights = {"successor": successors, "predecessor": predecessors}
    grads = {
        f"grad_{name}_weight": torch.stack([
            torch.zeros_like(one.weight) if one.weight.grad is None else one.weight.grad for one in layers
        ])
        for name, layers in weights.items()
    }  # fmt: skip
    yield {"output": hidden, "n_layers_run": torch.tensor(Layer.calls, dtype=torch.float64), **grads}
