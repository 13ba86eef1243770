"""Every model type that the library can classify texts or tag words with: run as the library runs it, or refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from conftest import Finished, often
from kdbert.data.batches import collate, micro_batches
from kdbert.data.corpus import tokenised
from kdbert.data.encode import Encoded, encode
from kdbert.data.examples import Examples
from kdbert.data.masking import vocabulary_size
from kdbert.errors import UserError
from kdbert.heads import Encoder, MaskedLM, SingleLabel
from kdbert.models.architectures import ARCHITECTURES, CONFIGURATIONS, REFUSED
from kdbert.models.load import auto_class, load_config, load_tokenizer
from kdbert.models.locate import ModelPlace, locate
from kdbert.models.open import open_classifier, open_of_plain_text
from kdbert.models.student import check_cut, count_parameters, cut_layers, kept_layers
from kdbert.models.way import Asked, Way, decide, fit_tokenizer
from kdbert.tasks.spec import TaskSpec
from kdbert.training.forward import check_runs, pass_over, run_model
from kdbert.training.precision import make_accelerator
from small_architectures import (
    LAYERS,
    MORE,
    PAIR,
    Variant,
    config_of,
    encoder_types,
    library_logits,
    make_model,
    mapped,
    padding_matters,
    texts,
    tokenizer_of,
    variant_of,
    variants,
    worst,
)
from small_run import predict

# The types that people use most, and one of each way that differs from theirs; `scripts/test-long` tries all others.
COMMON = {
    "bert", "roberta, own tokenizer", "distilbert", "electra", "deberta-v2", "deberta-v2, relative", "modernbert",
    "albert", "xlnet", "mpnet", "longformer", "funnel", "convbert", "esm, rotary",
}  # fmt: skip
CLOSE = 1e-5
LONGEST = 64
WEIGHTS = "model.safetensors"
SEQUENCE = TaskSpec("texts", "", "single_label", {}, ("accuracy",), PAIR)
TOKEN = TaskSpec("words", "", "token", {}, ("accuracy",), PAIR)


class Opened:
    """A tiny model as kdbert opens it, and as the library does.

    Attributes:
        first, second: its texts, words or pairs; `data` is what it reads of them.
        expected: the library's logits, one text at a time, eager attention.
    """

    def __init__(self, folder: Path, name: str, head: str, *, pairs: bool = False, count: int = 12) -> None:
        from transformers import AutoTokenizer

        self.spec = SEQUENCE if head == "sequence" else TOKEN
        self.place = locate(str(make_model(folder, variant_of(name), head)))
        self.config = load_config(self.place)
        self.way = decide(self.config, self.spec.head, name)
        self.library = self.load(folder)
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.length = min(LONGEST, self.way.limit or LONGEST)
        lines = texts(count)
        self.second = texts(count, seed=1) if pairs else None
        words = [tuple(line.split()) for line in lines] if head == "token" else None
        self.first: list[Any] = lines if words is None else [list(one) for one in words]
        own = fit_tokenizer(load_tokenizer(self.place, words=head == "token"), self.way, name)
        ids = [str(number) for number in range(count)]
        self.data = encode(Examples("dev", ids, lines, self.second, None, words), own, self.length)
        self.expected = self.answers(self.library)

    def load(self, folder: Path) -> Any:
        return auto_class(self.spec.head).from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")

    def answers(self, library: Any) -> list[np.ndarray]:
        return library_logits(library, self.tokenizer, self.first, self.second, self.length)

    def difference(self, model: Any, expected: list[np.ndarray], size: int) -> float:
        found = predict(model, self.data, size)
        return worst(found, expected, self.data.offsets)


def test_every_type_is_listed_once() -> None:
    """A type that a new version of the library brings makes this fail, and is then examined."""
    assert sorted([*ARCHITECTURES, *REFUSED]) == list(encoder_types())
    assert set(ARCHITECTURES) >= {"bert", "roberta", "distilbert", "electra", "deberta", "deberta-v2", "modernbert"}


@pytest.mark.parametrize("name", often(variants("sequence"), COMMON.__contains__))
def test_answers_cuts_and_hidden_states_are_the_librarys(tmp_path: Path, name: str) -> None:
    opened = Opened(tmp_path / "model", name, "sequence", pairs=variant_of(name).types)
    known, depth = ARCHITECTURES[opened.config.model_type], opened.config.num_hidden_layers
    model, kept = open_classifier(opened.place, opened.spec, opened.way, keep_head=False)
    assert kept
    assert count_parameters(opened.config, opened.spec.head, name, list(range(1, depth + 1))) == sum(
        parameter.numel() for parameter in model.parameters()
    )
    largest = max(float(np.abs(one).max()) for one in opened.expected)
    assert largest > 0.05  # else nothing would be compared
    for size in (1, 5, 64):
        assert opened.difference(model, opened.expected, size) <= CLOSE * max(1.0, largest)
    if known.hidden:
        found = pass_over(
            model, opened.data, lambda seen, batch: {"last": seen.hidden[depth], "first": seen.hidden[0]},
            {"last": "token", "first": "token"}, layers=(0, depth), batch_size=5, precision="fp32",
            accelerator=make_accelerator(),
        )  # fmt: skip
        seen = opened.library(**_inputs(opened, 1), output_hidden_states=True).hidden_states
        row = slice(opened.data.offsets[1], opened.data.offsets[2])
        assert len(seen) == depth + 1
        for part, layer in (("first", 0), ("last", depth)):
            np.testing.assert_allclose(found[part][row], seen[layer][0].detach(), atol=1e-4, rtol=1e-4)
    # A step in the precision that a machine with bf16 units takes by itself.
    model.train()
    trained = run_model(model, collate(opened.data, np.arange(4)), "bf16").logits
    assert trained.dtype == torch.float32
    trained.square().sum().backward()
    assert all(bool(p.grad.isfinite().all()) for p in model.parameters() if p.grad is not None)
    for init in ("first", "even", "last"):
        picks = kept_layers(depth, depth // 2, init)
        try:
            check_cut(opened.config, opened.spec.head, picks, name)
        except UserError:
            continue
        small, _ = open_classifier(opened.place, opened.spec, opened.way, keep_head=False, layers=picks)
        small.save_pretrained(tmp_path / init)
        assert opened.difference(small, opened.answers(opened.load(tmp_path / init)), 5) <= CLOSE * max(1.0, largest)


def _inputs(opened: Opened, row: int) -> dict[str, Any]:
    """One text as the library reads it."""
    second = None if opened.second is None else opened.second[row]
    coded = opened.tokenizer(
        opened.first[row], second, return_tensors="pt", truncation="longest_first", max_length=opened.length
    )
    return {key: value for key, value in coded.items() if key in opened.way.inputs}


@pytest.mark.parametrize("name", often(variants("token"), COMMON.__contains__))
def test_tags_are_the_librarys(tmp_path: Path, name: str) -> None:
    opened = Opened(tmp_path / "model", name, "token", count=6)
    model, _ = open_classifier(opened.place, opened.spec, opened.way, keep_head=True)
    for size in (1, 4):
        largest = max(float(np.abs(one).max()) for one in opened.expected)
        assert opened.difference(model, opened.expected, size) <= CLOSE * max(1.0, largest)


@pytest.mark.parametrize("name", often(sorted(ARCHITECTURES), COMMON.__contains__))
def test_padding_matters_where_the_table_says_so(tmp_path: Path, name: str) -> None:
    """Measured on the library's own model, so that a type is not batched wrongly because nobody looked."""
    head = "sequence" if name in mapped("sequence") else "token"
    opened = Opened(tmp_path / "model", name, head, count=6)
    moved = padding_matters(opened.library, opened.tokenizer, opened.first, opened.expected)
    assert (moved <= CLOSE * 3) == ARCHITECTURES[name].padding, f"a logit moves by {moved:.2g}"


CANNOT_BE_CUT = {"albert", "albert, two groups", "esm", "esm, rotary", "funnel"}
FIRST_LAYERS_ONLY = {"modernbert", "modernbert, mean"}


@pytest.mark.parametrize("name", variants("sequence"))
def test_what_cannot_be_cut_is_refused(name: str) -> None:
    config = config_of(variant_of(name))
    depth = config.num_hidden_layers
    for init in ("first", "even", "last"):
        picks = kept_layers(depth, depth // 2, init)
        if name in CANNOT_BE_CUT or (name in FIRST_LAYERS_ONLY and init != "first"):
            with pytest.raises(UserError, match="layers"):
                check_cut(config, SingleLabel(), picks, name)
        else:
            check_cut(config, SingleLabel(), picks, name)
    check_cut(config, SingleLabel(), list(range(1, depth + 1)), name)  # all of them is no cut


def test_lists_of_layers_are_cut_with_them() -> None:
    import transformers

    config = config_of(variant_of("longformer"))
    small = cut_layers(transformers.AutoModelForSequenceClassification.from_config(config), [2, 4])
    assert small.config.attention_window == [8, 4]
    config = config_of(variant_of("modernbert, mean"))
    model = transformers.AutoModelForSequenceClassification.from_config(config)
    assert cut_layers(model, [1, 2, 3]).config.layer_types == config.layer_types[:3]
    # As many languages as layers are not of layers.
    config = config_of(Variant("xmod", {"languages": ["a", "b", "c", "d"], "default_language": "a"}))
    assert config.num_hidden_layers == LAYERS
    check_cut(config, SingleLabel(), [1, 2], "xmod")


LIMITS = {
    "bert": 80, "roberta": 79, "roberta, own tokenizer": 78, "roberta, padding id 3": 76, "mpnet": 78, "xlnet": None,
    "deberta-v2": 80, "deberta-v2, relative": None, "funnel": None, "modernbert": 80, "nystromformer": 80,
    "big_bird": 80, "big_bird, block_sparse": 28, "longformer": 79, "distilbert": 80, "esm": 79, "roformer": 80,
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(LIMITS))
def test_the_longest_text_is_what_the_model_can_read(name: str) -> None:
    way = decide(config_of(variant_of(name)), SingleLabel(), name)
    assert way.limit == LIMITS[name]
    assert "-1" not in way.words()


@pytest.mark.parametrize("name", ["roberta, padding id 3", "mpnet", "nystromformer", "longformer", "bert", "esm"])
def test_a_text_as_long_as_that_is_read_and_a_longer_one_is_not(tmp_path: Path, name: str) -> None:
    opened = Opened(tmp_path / "model", name, "sequence", count=4)
    assert opened.way.limit is not None
    ids = torch.full((1, opened.way.limit), 9)
    opened.library(input_ids=ids)
    if name != "nystromformer":  # it has two rows more than its configuration says
        with pytest.raises((IndexError, RuntimeError)):
            opened.library(input_ids=torch.full((1, opened.way.limit + 1), 9))


# What is refused --------------------------------------------------------------------------------------------------


OTHERS = ("gpt2", "llama", "t5", "bart", "mistral4")


@pytest.mark.parametrize("model_type", [*sorted(REFUSED), *OTHERS])
def test_other_types_are_refused_before_their_weights_are_opened(tmp_path: Path, model_type: str) -> None:
    from safetensors.torch import save_file
    from transformers import AutoConfig

    AutoConfig.for_model(model_type).save_pretrained(tmp_path)
    save_file({"x": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(UserError) as error:
        load_config(locate(str(tmp_path)))
    assert model_type in str(error.value)
    assert "docs/models.md" in str(error.value)


def test_the_command_refuses_before_anything_is_trained(
    tmp_path: Path, kdbert: Callable[..., Finished], custom_files: tuple[Path, Path], tiny_bert: Path
) -> None:
    """A type that is not run, with and without --dry-run; a student that cannot be cut, before its teacher is made."""
    from transformers import AutoConfig, AutoModelForSequenceClassification

    train, dev = custom_files
    own = ["--task", "custom", "--train-file", train, "--dev-file", dev, "--max-length", 32]
    gpt = tmp_path / "gpt"
    small = AutoConfig.for_model("gpt2", n_embd=8, n_layer=1, n_head=1, vocab_size=20)
    AutoModelForSequenceClassification.from_config(small).save_pretrained(gpt)
    tokenizer_of(variant_of("bert")).save_pretrained(gpt)
    albert = make_model(tmp_path / "albert", variant_of("albert"), "sequence")
    runs = tmp_path / "runs"
    for words, named in (
        (["finetune-teacher", "--model", gpt], "gpt2"),
        (["distill", "--teacher-model", gpt], "gpt2"),
        (["distill", "--teacher-model", albert], "albert"),
    ):
        for dry in ([], ["--dry-run"]):
            done = kdbert(words[0], *own, *words[1:], "--runs-dir", runs, *dry)
            assert (done.code, "Traceback" in done.err) == (2, False), done.err
            assert named in done.err
            assert not runs.exists()


def test_plain_text_is_for_types_whose_head_was_tested() -> None:
    with pytest.raises(UserError, match="plain text"):
        decide(config_of(variant_of("deberta-v2")), MaskedLM(), "m")


@pytest.mark.parametrize("name", [name for name, known in ARCHITECTURES.items() if known.masked_lm])
def test_a_masked_lm_answers_as_the_librarys(tmp_path: Path, name: str) -> None:
    import transformers

    from kdbert.models.fast.late_head import use_late_head

    variant = variant_of(name)
    torch.manual_seed(3)
    library = transformers.AutoModelForMaskedLM.from_config(config_of(variant), attn_implementation="eager").eval()
    library.save_pretrained(tmp_path)
    tokenizer_of(variant).save_pretrained(tmp_path)
    place = locate(str(tmp_path))
    way = decide(load_config(place), MaskedLM(), name)
    tokenizer = fit_tokenizer(load_tokenizer(place), way, name)
    model, _ = open_of_plain_text(place, MaskedLM(), tokenizer, way)
    use_late_head(model)
    lines = texts(6)
    data = encode(Examples("dev", [str(i) for i in range(6)], lines, None, None), tokenizer, LONGEST)
    with torch.no_grad():
        batch = collate(data, np.arange(6))
        seen = run_model(model, batch, "fp32")
        for row in range(6):
            length = int(data.lengths[row])
            ids = batch.input_ids[row : row + 1, :length]
            at = row * batch.input_ids.shape[1] + torch.arange(length)
            torch.testing.assert_close(seen.head(at), library(input_ids=ids).logits[0], atol=1e-5, rtol=1e-5)


def _opened(folder: Path, change: Callable[[Any, Any], None], variant: Variant) -> tuple[ModelPlace, Way, Any]:
    """A model folder whose tokenizer or model was changed, and what is decided of it."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    make_model(folder, variant, "sequence")
    model, tokenizer = AutoModelForSequenceClassification.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    change(model, tokenizer)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    place = locate(str(folder))
    return place, decide(load_config(place), SingleLabel(), str(folder)), load_tokenizer(place)


def test_a_tokenizer_with_more_pieces_than_rows_is_refused(tmp_path: Path) -> None:
    place, way, tokenizer = _opened(
        tmp_path / "m", lambda model, tokenizer: tokenizer.add_tokens(["<url>", "<user>"]), variant_of("bert")
    )
    with pytest.raises(UserError) as error:
        fit_tokenizer(tokenizer, way, place.given)
    assert str(way.pieces) in str(error.value)
    assert str(vocabulary_size(tokenizer)) in str(error.value)
    fit_tokenizer(tokenizer, way, place.given, grows=True)  # a student gets new rows


def test_more_segments_than_the_model_has_are_refused(tmp_path: Path) -> None:
    import dataclasses

    place, way, tokenizer = _opened(tmp_path / "m", lambda model, tokenizer: None, variant_of("bert"))
    assert way.segments == 2
    with pytest.raises(UserError, match="segments"):  # as XLNet's tokenizer beside a model of two: it numbers three
        fit_tokenizer(_Three(tokenizer), way, place.given)
    one = dataclasses.replace(way, segments=1, inputs=("input_ids", "attention_mask"))
    assert "token_type_ids" not in fit_tokenizer(tokenizer, one, place.given).model_input_names


class _Three:
    """A tokenizer that numbers three segments."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.model_input_names = list(tokenizer.model_input_names)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.tokenizer, name)

    def __call__(self, first: str, second: str) -> dict[str, list[int]]:
        found = self.tokenizer(first, second)
        return {"token_type_ids": [*found["token_type_ids"][:-1], 2]}


def test_weights_that_are_not_there_are_not_drawn(tmp_path: Path) -> None:
    """A folder of another architecture under this one's name: the library would draw what it does not find."""
    from safetensors.torch import load_file, save_file

    make_model(tmp_path / "m", variant_of("bert"), "sequence")
    file = tmp_path / "m" / "model.safetensors"
    weights = load_file(file)
    dropped = [key for key in weights if ".layer.1.attention.self.query" in key]
    assert dropped
    save_file({key: value for key, value in weights.items() if key not in dropped}, file, metadata={"format": "pt"})
    place = locate(str(tmp_path / "m"))
    way = decide(load_config(place), SingleLabel(), "m")
    for keep_head in (True, False):
        with pytest.raises(UserError, match="lacks"):
            open_classifier(place, SEQUENCE, way, keep_head=keep_head)


def _changed(folder: Path, variant: Variant, change: Callable[[dict[str, Any], dict[str, torch.Tensor]], None]) -> Path:
    """A model folder of which config.json and weights were changed by hand."""
    from safetensors.torch import load_file, save_file

    make_model(folder, variant, "sequence")
    config, weights = json.loads((folder / "config.json").read_text(encoding="utf-8")), load_file(folder / WEIGHTS)
    change(config, weights)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})
    return folder


def _open(folder: Path, *, keep_head: bool = True, **asked: Any) -> tuple[Any, bool]:
    place = locate(str(folder))
    way = decide(load_config(place), SingleLabel(), "m", Asked(**asked))
    return open_classifier(place, SEQUENCE, way, keep_head=keep_head)


@pytest.mark.parametrize(
    ("key", "value"),
    [("return_dict", False), ("output_hidden_states", True), ("output_attentions", True),
     ("chunk_size_feed_forward", 8), ("attn_implementation", "flash_attention_2"), ("gradient_checkpointing", True)],
)  # fmt: skip
def test_how_a_model_was_called_by_whoever_saved_it_does_not_matter(tmp_path: Path, key: str, value: Any) -> None:
    folder = _changed(tmp_path / "m", variant_of("bert"), lambda config, weights: config.update({key: value}))
    model, _ = _open(folder)
    plain, _ = _open(make_model(tmp_path / "plain", variant_of("bert"), "sequence"))
    data = encode(
        Examples("dev", ["0", "1"], ["the good film", "a"], None, None), load_tokenizer(locate(str(folder))), 9
    )
    for one in (model, plain):
        check_runs(one, data, "m")
    batch = collate(data, np.arange(2))
    with torch.no_grad():
        assert torch.equal(run_model(model, batch, "fp32").logits, run_model(plain, batch, "fp32").logits)
    parted, _ = _open(folder, fused_layers=False)
    run_model(parted.train(), batch, "fp32").logits.sum().backward()  # nothing is computed a second time, unpacked


@pytest.mark.parametrize(("model_type", "key", "value", "reason"), CONFIGURATIONS)
def test_configurations_that_do_not_run_are_refused(model_type: str, key: str, value: Any, reason: str) -> None:
    config = config_of(variant_of(model_type))
    setattr(config, key, value)
    with pytest.raises(UserError, match=key):
        decide(config, SingleLabel(), "m")


def test_a_model_that_fails_is_refused_in_a_sentence(tmp_path: Path) -> None:
    """Funnel's third block cannot halve a text of four tokens; the library says so in a traceback."""
    three = Variant("funnel", {"block_sizes": [2, 2, 2], "d_head": 8}, ("num_hidden_layers",))
    folder = make_model(tmp_path / "m", three, "sequence")
    model, _ = _open(folder)
    tokenizer = load_tokenizer(locate(str(folder)))
    long = " ".join(["the"] * 20)
    for first, fails in (("the", True), (long, False)):
        data = encode(Examples("dev", ["0", "1"], [first, long + " of"], None, None), tokenizer, LONGEST)
        if not fails:
            check_runs(model, data, "m")
            continue
        with pytest.raises(UserError, match="tokens"):
            check_runs(model, data, "m")


def test_a_head_that_is_not_in_the_file_is_fresh(tmp_path: Path) -> None:
    """Its labels stand in config.json, but its weights, or those of the pooler below it, would be drawn at random."""
    for number, part in enumerate(("classifier", "pooler")):

        def drop(config: dict[str, Any], weights: dict[str, torch.Tensor], part: str = part) -> None:
            for key in [key for key in weights if part in key]:
                del weights[key]

        folder = _changed(tmp_path / str(number), variant_of("bert"), drop)
        assert _open(folder, keep_head=False)[1] is False
        with pytest.raises(UserError, match="no trained classification head"):
            _open(folder)


def test_weights_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    def spoil(config: dict[str, Any], weights: dict[str, torch.Tensor]) -> None:
        weights["bert.encoder.layer.0.output.dense.bias"][3] = float("nan")

    with pytest.raises(UserError, match=r"encoder\.layer\.0\.output\.dense\.bias"):
        _open(_changed(tmp_path / "m", variant_of("bert"), spoil))


def test_what_is_left_out_of_a_file_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def fewer(config: dict[str, Any], weights: dict[str, torch.Tensor]) -> None:
        config.update(num_hidden_layers=LAYERS - 1, auto_map={"AutoModel": "modeling.Mine"})

    with caplog.at_level("WARNING", "kdbert"):
        _open(_changed(tmp_path / "m", variant_of("bert"), fewer))
    assert "layer.3" in caplog.text
    assert "auto_map" in caplog.text


def test_a_label_without_a_name_is_refused(tmp_path: Path) -> None:
    def hole(config: dict[str, Any], weights: dict[str, torch.Tensor]) -> None:
        config["id2label"] = {"0": "negative", "2": "positive"}

    with pytest.raises(UserError, match="id2label"):
        load_config(locate(str(_changed(tmp_path / "m", variant_of("bert"), hole))))


def test_every_variant_is_of_a_type_that_is_run() -> None:
    assert {variant.model_type for variant in MORE.values()} <= set(ARCHITECTURES)


def test_a_model_that_is_not_as_its_type_is_refused(tmp_path: Path) -> None:
    """Padding changes its outputs, and the table does not know: it is seen before anything is computed with it."""
    import dataclasses

    opened = Opened(tmp_path / "model", "convbert", "sequence", count=6)
    model, _ = open_classifier(opened.place, opened.spec, opened.way, keep_head=True)
    check_runs(model, opened.data, "m")
    model.way = dataclasses.replace(model.way, padding=True)
    with pytest.raises(UserError, match="padded"):
        check_runs(model, opened.data, "m")


def test_texts_of_one_length_share_a_pass_where_padding_matters(tmp_path: Path) -> None:
    """What is of tokens comes back padded with 0, and a gradient reaches every text."""
    opened = Opened(tmp_path / "model", "convbert", "sequence", count=6)
    model, _ = open_classifier(opened.place, opened.spec, opened.way, keep_head=True)
    data: Encoded = opened.data
    batch = collate(data, np.array([1, 0, 2, 3]))
    seen = run_model(model, batch, "fp32", (2,))
    assert seen.hidden[2].shape[:2] == batch.input_ids.shape
    assert not seen.hidden[2][batch.attention_mask == 0].any()
    seen.logits.sum().backward()
    assert all(parameter.grad is not None for parameter in model.classifier.parameters())
    np.testing.assert_allclose(seen.logits.detach(), np.stack([opened.expected[i] for i in (1, 0, 2, 3)]), atol=1e-5)


@pytest.mark.parametrize(
    "name", often([name for name, one in ARCHITECTURES.items() if one.hidden], COMMON.__contains__)
)
def test_hidden_states_of_an_encoder_are_the_librarys(tmp_path: Path, name: str) -> None:
    """Of a model that was saved with a head: general distillation reads every type that has hidden states of one size.

    Texts are read as from a corpus, in a padded batch; the library reads each alone.
    """
    from transformers import AutoModel

    model = make_model(tmp_path / "model", variant_of(name), "sequence" if name in mapped("sequence") else "token")
    place, head = locate(str(model)), Encoder()
    way = decide(load_config(place), head, name)
    tokenizer = fit_tokenizer(load_tokenizer(place), way, name)
    ours, _ = open_of_plain_text(place, head, tokenizer, way)
    (tmp_path / "a.txt").write_text("\n".join(texts(6)), encoding="utf-8")
    length = min(LONGEST, way.limit or LONGEST)
    data = tokenised(str(tmp_path / "a.txt"), tokenizer, length, folder=tmp_path / "kept", packed=False).encoded
    check_runs(ours, data, name)
    library = AutoModel.from_pretrained(model, dtype=torch.float32, attn_implementation="eager").eval()
    layers = range(library.config.num_hidden_layers + 1)
    (batch,) = micro_batches(data, np.arange(len(data)))
    with torch.no_grad():
        seen = run_model(ours, batch, "fp32", layers)
        for row in range(len(data)):
            ids = batch.input_ids[row : row + 1, : data.lengths[row]]
            given = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
            theirs = library(**{key: given[key] for key in way.inputs if key in given}, output_hidden_states=True)
            for layer in layers:
                expected = theirs.hidden_states[layer][0]
                found = seen.hidden[layer][row, : len(expected)]
                torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * max(1, float(expected.abs().max())))
    assert {name for name, one in ours.named_parameters() if not one.requires_grad} == {
        name for name, _ in ours.named_parameters() if "pooler" in name
    }
