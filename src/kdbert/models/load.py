"""Reading a model's configuration and tokenizer, with one sentence for every failure; `open` loads its weights."""

from __future__ import annotations

import contextlib
import copy
import json
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import torch

from kdbert.errors import KdbertError, UserError, near_miss, out_of_memory, without_credentials
from kdbert.heads import Head
from kdbert.hub import ask_only_if_it_answers
from kdbert.models.architectures import architecture
from kdbert.models.locate import QUICKSTART_MODEL, ModelPlace
from kdbert.tasks import TaskSpec

_VOCABULARIES = ("tokenizer.json", "vocab.txt", "vocab.json", "spiece.model", "sentencepiece.bpe.model")
# Said aloud, since transformers otherwise asks on the terminal whether to run the code that a model brings.
NO_CODE: dict[str, Any] = {"trust_remote_code": False}
_CONFIGS: dict[tuple[str, str, int], Any] = {}
_SKELETONS: dict[tuple[str, str], Any] = {}  # class and configuration -> the model without weights
PROBE = "Größe, the 42nd don't-care [MASK] re-tokenised naïve café 東京 unaffable!"


def load_config(place: ModelPlace) -> Any:
    """The model's configuration alone (no weights are opened); read once per process, as is a failure to fetch one."""
    from transformers import AutoConfig

    file = Path(place.source) / "config.json"
    changed = file.stat().st_mtime_ns if file.is_file() else 0
    key = place.given, str(file.absolute()) if place.local else place.source, changed
    if key not in _CONFIGS:
        try:
            with explained(place):
                config = AutoConfig.from_pretrained(place.source, **NO_CODE)
                architecture(config.model_type, place.given)
                _CONFIGS[key] = _checked(config)
        except UserError as error:
            if place.local:
                raise
            _CONFIGS[key] = error
    found = _CONFIGS[key]
    if isinstance(found, UserError):
        raise found
    return copy.deepcopy(found)


def _checked(config: Any) -> Any:
    """The configuration, if all that is read of it before the model is loaded is sound."""
    nameless = [number for number in range(config.num_labels) if number not in config.id2label]
    if nameless:
        raise ValueError(f"id2label in config.json has {config.num_labels} labels, but none of number {nameless[0]}")
    if not all(isinstance(name, str) for name in config.architectures or ()):
        raise ValueError("architectures in config.json is not a list of names")
    for name in ("num_hidden_layers", "hidden_size"):
        if not isinstance(getattr(config, name, None), int):
            raise ValueError(
                f"a model of type {config.model_type!r} has no {name} that is a number; take an encoder of texts, such "
                "as BERT"
            )
    return config


def check_weights(place: ModelPlace) -> None:
    """Refuse a local model whose weights are damaged, as far as their header says, or a pickle of more than tensors."""
    from safetensors import safe_open

    if place.local:
        with explained(place):
            for file in sorted(Path(place.source).glob("*.safetensors")):
                with safe_open(file, framework="pt"):
                    pass
            for file in sorted(Path(place.source).glob("pytorch_model*.bin")):
                torch.load(file, map_location="meta", weights_only=True)


def load_tokenizer(place: ModelPlace, *, words: bool = False) -> Any:
    """The model's fast tokenizer; with `words` for texts that are split into words already."""
    from transformers import AutoTokenizer

    if place.fresh:
        raise UserError(f"configuration {place.given!r} comes without a tokenizer; name one with --tokenizer")
    if place.local and not any((Path(place.source) / name).exists() for name in _VOCABULARIES):
        raise UserError(
            f"model folder {place.given!r} has no tokenizer (none of {', '.join(_VOCABULARIES[:3])}, …); "
            "save the tokenizer beside the model"
        )
    with explained(place):
        tokenizer = AutoTokenizer.from_pretrained(place.source, **NO_CODE)
        if words and not _reads_words(tokenizer):  # RoBERTa's: a word begins with a space
            tokenizer = AutoTokenizer.from_pretrained(place.source, add_prefix_space=True, **NO_CODE)
    if not tokenizer.is_fast:
        raise UserError(f"model {place.given!r} has no fast tokenizer (tokenizer.json); kdbert needs one")
    if words and not _reads_words(tokenizer):
        raise UserError(
            f"the tokenizer of model {place.given!r} reads single words differently than words in a text, so it cannot "
            "tag them; take a model with a WordPiece or RoBERTa tokenizer"
        )
    return tokenizer


def _reads_words(tokenizer: Any) -> bool:
    """Whether words inside a sentence give the same tokens one by one as in a text."""
    words = ["an", "unaffable", "disease", "gene"]
    try:
        apart = tokenizer(words, is_split_into_words=True)["input_ids"]
    except (AssertionError, ValueError):  # a tokenizer that knows it cannot
        return False
    whole = tokenizer(" ".join(words))["input_ids"]
    after_first = len(whole) - len(tokenizer(words[0])["input_ids"])  # the first word may have no space before it
    return bool(apart[-after_first:] == whole[-after_first:])


def same_tokenizer(first: Any, second: Any) -> bool:
    """Whether two tokenizers give the same ids: equal vocabularies, special ids and a hard probe sentence."""
    if first is second:
        return True
    return (
        first.get_vocab() == second.get_vocab()
        and first.all_special_ids == second.all_special_ids
        and first(PROBE, PROBE)["input_ids"] == second(PROBE, PROBE)["input_ids"]
    )


def auto_class(head: Head) -> Any:
    """The library's class that loads a model with this head."""
    import transformers

    return getattr(transformers, head.auto_class)


def skeleton(config: Any, head: Head, name: str) -> Any:
    """The model of a configuration on the meta device, where weights take no RAM; made once per configuration."""
    if head.hides_tokens and not architecture(config.model_type, name).masked_lm:
        raise UserError(
            f"model {name!r} is of type {config.model_type!r}, which kdbert trains and distils on tasks, not on plain "
            "text; for plain text take BERT, RoBERTa, CamemBERT, XLM-RoBERTa, ELECTRA or DistilBERT"
        )
    key = head.auto_class, json.dumps(config.to_dict(), sort_keys=True, default=str)
    if key not in _SKELETONS:
        try:
            with torch.device("meta"):
                plain = copy.deepcopy(config)
                plain._attn_implementation = None  # as saved by somebody else; kdbert chooses its own
                _SKELETONS[key] = auto_class(head).from_config(plain, **NO_CODE)
        except Exception as error:  # a configuration may be wrong in any way
            reason = " ".join(str(error).split())[:200]
            raise UserError(
                f"model {name!r}: the library cannot build an {head.auto_class} from its configuration "
                f"({type(error).__name__}: {reason})"
            ) from None
    return _SKELETONS[key]


def has_head(config: Any, head: Head) -> bool:
    """Whether a model was saved with such a head."""
    return any(end in name for end in head.saved_as for name in config.architectures or ())


def check_trained_head(config: Any, name: str, task: TaskSpec) -> None:
    """Refuse a model that was never fine-tuned with such a head: it would be random. (An encoder has none.)"""
    if task.kind == "encoder" or has_head(config, task.head):
        return
    if task.head.plain_text:
        raise no_masked_lm(config, name)
    raise UserError(
        f"model {name!r} has no trained head for task {task.name!r}, which {task.head.takes}{_saved_as(config)}; "
        f"fine-tune one with `kdbert finetune-teacher --task {task.name} --model {name}`"
    )


def no_masked_lm(config: Any, name: str) -> UserError:
    """What is said of a model whose masked-LM head would be random."""
    return UserError(
        f"model {name!r} has no masked-LM head{_saved_as(config)}; train one with `kdbert finetune-teacher --model "
        f"{name} --corpus FILE`, or take a pretrained model that was saved with it, such as bert-base-uncased"
    )


def _saved_as(config: Any) -> str:
    return f" (it was saved as {config.architectures[0]})" if config.architectures else ""


def kind_of_head(config: Any) -> Literal["single-label", "multi-label", "regression", "token"]:
    """What a classifier answers, in the words of `task.kind`."""
    if any("ForTokenClassification" in name for name in config.architectures or ()):
        return "token"
    if config.problem_type == "multi_label_classification":
        return "multi-label"
    return "regression" if config.num_labels == 1 else "single-label"


def label_names(config: Any) -> list[str]:
    """The labels of a classifier in the order of its logits."""
    return [str(config.id2label[i]) for i in range(config.num_labels)]


@contextlib.contextmanager
def explained(place: ModelPlace) -> Iterator[None]:
    """Turn the library's many exceptions into one sentence."""
    from huggingface_hub.utils import logging as hub_logging
    from safetensors import SafetensorError
    from transformers.utils import logging

    if place.run is not None and not place.local:
        raise UserError(f"run {place.given!r} has no model folder any more; train it again with --overwrite")
    if not place.local:
        ask_only_if_it_answers()
    hub_logging.set_verbosity_error()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    except SafetensorError as error:
        raise UserError(f"the weights of model {place.given!r} are damaged ({error})") from None
    except pickle.UnpicklingError:  # torch reads a .bin file with weights_only
        raise UserError(
            f"the weights of model {place.given!r} are a pickle that holds more than tensors, which is never run; save "
            "them as model.safetensors"
        ) from None
    except KdbertError:
        raise
    # A file that is not as the library expects it fails wherever it is first used, in any way: tokenizers raise a bare
    # Exception, a number in the place of a mapping is an AttributeError, and so on.
    except Exception as error:
        if out_of_memory(error):
            raise
        reason = without_credentials(" ".join(str(error).split())).split(". ")[0][:200]
        if not isinstance(error, (OSError, ValueError, RuntimeError, ImportError)):
            reason = f"its files are not as they should be ({type(error).__name__}: {reason})"
        if place.local:
            raise UserError(f"cannot load model {place.given!r}: {reason}") from None
        built_in = place.given.lower() in QUICKSTART_MODEL.lower()
        meant = f"; did you mean {QUICKSTART_MODEL}?" if built_in else near_miss(place.given, [QUICKSTART_MODEL])
        raise UserError(
            f"model {place.given!r} is no folder or run here, and could not be fetched from the Hugging Face Hub{meant}"
            f" ({reason}); check the name and the connection, or name a local folder"
        ) from None
