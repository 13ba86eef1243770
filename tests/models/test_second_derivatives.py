"""Every type in `TWICE` gives a derivative by its embeddings' output that can be differentiated again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from conftest import often
from kdbert.models.architectures import ARCHITECTURES, TWICE
from kdbert.models.load import load_config
from kdbert.models.locate import locate
from kdbert.models.open import open_classifier
from kdbert.models.way import Asked, decide
from kdbert.tasks import get_task
from kdbert.training.forward import encoder_autocast
from small_architectures import config_of, variant_of

COMMON = {"bert", "roberta", "distilbert", "electra", "deberta-v2", "albert", "mpnet"}


@pytest.mark.parametrize("model_type", often(sorted(TWICE), COMMON.__contains__))
def test_the_second_derivative_is_that_of_differences(model_type: str) -> None:
    from transformers import AutoModelForSequenceClassification

    assert ARCHITECTURES[model_type].padding
    torch.manual_seed(0)
    config = config_of(variant_of(model_type))
    model: Any = AutoModelForSequenceClassification.from_config(config, attn_implementation="eager").double().eval()
    weight = model.requires_grad_(False).get_input_embeddings().weight.requires_grad_()
    ids = torch.randint(5, 40, (2, 9))
    mask = (torch.arange(9)[None, :] < torch.tensor([9, 6])[:, None]).long()

    def attributed(twice: bool) -> torch.Tensor:
        out = model(input_ids=ids, attention_mask=mask, output_hidden_states=True)
        embeddings = out.hidden_states[0]
        (gradient,) = torch.autograd.grad(out.logits[:, 0].sum(), embeddings, create_graph=twice)
        assert gradient[mask == 0].abs().max() == 0
        return (gradient * embeddings).square().sum()

    attributed(True).backward()
    assert weight.grad is not None
    way = torch.randn_like(weight)
    way[config.pad_token_id] = 0
    expected, ends = float((weight.grad * way).sum()), []
    for sign in (1, -1):
        with torch.no_grad():
            weight += sign * 1e-6 * way
        ends.append(attributed(False).item())
        with torch.no_grad():
            weight -= sign * 1e-6 * way
    assert abs(expected) > 1e-9
    assert (ends[0] - ends[1]) / 2e-6 == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("model_type", often(sorted(TWICE), COMMON.__contains__))
def test_in_bf16_a_method_gets_the_embeddings_that_the_layers_read(model_type: str, tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification

    config = config_of(variant_of(model_type))
    if hasattr(config, "embedding_size") and model_type != "squeezebert":  # which has no other
        config.embedding_size = config.hidden_size // 2
    AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path)
    place, spec = locate(str(tmp_path)), get_task("rte")
    way = decide(load_config(place), spec.head, "it", Asked("eager", False, False, False))
    model, _ = open_classifier(place, spec, way, keep_head=False)
    with encoder_autocast(torch.device("cpu"), "bf16" if way.half else "fp32"):
        out = model(input_ids=torch.randint(5, 40, (2, 9)), output_hidden_states=True)
    embeddings = out.hidden_states[0]
    assert embeddings.dtype == torch.float32  # else methods get a copy in float32
    assert torch.autograd.grad(out.logits.sum(), embeddings)[0].any()
