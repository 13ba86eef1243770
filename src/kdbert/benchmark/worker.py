"""The process that one engine is timed in: `python -m kdbert.benchmark.worker`, which reads orders as lines of JSON.

It imports what its engine needs and nothing else, so that its memory is the engine's, and waits for its turn without
computing.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# An example as it is asked: a text, a pair of texts, or words.
Text = str | list[str]


@dataclass(frozen=True)
class EngineSettings:
    """What an engine opens, and how it is asked."""

    backend: str  # a key of `ENGINES`
    folder: str
    auto_class: str  # the library's class that loads the model
    pipeline: str  # the library's name of a pipeline for it
    words: bool  # each example is a list of words
    max_length: int
    threads: int
    pair: bool  # each example is two texts
    inputs: Sequence[str]  # names of what the model takes
    padding: bool  # texts of different lengths share a forward pass


class TorchEngine:
    """The library's model in float32, as `from_pretrained` gives it."""

    def __init__(self, settings: EngineSettings) -> None:
        import torch
        import transformers

        torch.set_num_threads(settings.threads)
        self.torch = torch
        self.settings = settings
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(settings.folder, trust_remote_code=False)
        names = self.tokenizer.model_input_names
        self.tokenizer.model_input_names = [name for name in names if name in settings.inputs]
        self.padding = settings.padding and self.tokenizer.pad_token_id is not None
        self.model = getattr(transformers, settings.auto_class).from_pretrained(
            settings.folder, dtype=torch.float32, trust_remote_code=False
        )
        self.model.eval()
        self.parameters = sum(parameter.numel() for parameter in self.model.parameters())

    def encode(self, texts: Sequence[Text]) -> Any:
        """Inputs of a batch, as padded tensors for each forward pass that it takes."""
        pair, words = self.settings.pair, self.settings.words
        first = [text[0] for text in texts] if pair else list(texts)
        second = [text[1] for text in texts] if pair else None
        coded = self.tokenizer(
            first, second, truncation="longest_first", max_length=self.settings.max_length, is_split_into_words=words
        )
        names = self.tokenizer.model_input_names
        return [
            self.tokenizer.pad({name: [coded[name][row] for row in rows] for name in names}, return_tensors="pt")
            for rows in parts([len(ids) for ids in coded["input_ids"]], self.padding)
        ]

    def answer(self, inputs: Any) -> Any:
        """Logits of a batch, for each forward pass."""
        with self.torch.inference_mode():
            return [self.model(**part).logits for part in inputs]


class PipelineEngine(TorchEngine):
    """A transformers pipeline, as people call it: texts in, labels out."""

    def __init__(self, settings: EngineSettings) -> None:
        super().__init__(settings)
        import transformers

        self.pipeline = transformers.pipeline(
            settings.pipeline, model=self.model, tokenizer=self.tokenizer, device="cpu"
        )

    def whole(self, texts: Sequence[Text]) -> Any:
        """Texts to answers."""
        if self.settings.words:
            return self.pipeline([" ".join(text) for text in texts], batch_size=len(texts))
        asked = [{"text": text[0], "text_pair": text[1]} if self.settings.pair else text for text in texts]
        return self.pipeline(asked, batch_size=len(asked), truncation=True, max_length=self.settings.max_length)


class OnnxEngine:
    """An export of kdbert, by onnxruntime and tokenizers alone; what it takes is in its file."""

    def __init__(self, settings: EngineSettings) -> None:
        import numpy
        import onnxruntime
        from tokenizers import Tokenizer

        folder = Path(settings.folder)
        self.numpy = numpy
        self.settings = settings
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.tokenizer.enable_truncation(settings.max_length)
        if settings.padding:
            config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
            self.tokenizer.enable_padding(pad_id=config.get("pad_token_id") or 0)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = settings.threads
        self.session = onnxruntime.InferenceSession(
            str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"]
        )
        self.inputs = [one.name for one in self.session.get_inputs()]
        self.parameters = None

    def encode(self, texts: Sequence[Text]) -> Any:
        """Inputs of a batch, as padded arrays for each forward pass that it takes."""
        asked = [tuple(text) for text in texts] if self.settings.pair else list(texts)
        found = self.tokenizer.encode_batch(asked, is_pretokenized=self.settings.words)
        names = {"input_ids": "ids", "attention_mask": "attention_mask", "token_type_ids": "type_ids"}
        return [
            {
                name: self.numpy.array([getattr(found[row], names[name]) for row in rows], dtype=self.numpy.int64)
                for name in self.inputs
            }
            for rows in parts([len(one.ids) for one in found], self.settings.padding)
        ]

    def answer(self, inputs: Any) -> Any:
        """Logits of a batch, for each forward pass."""
        return [self.session.run(None, part)[0] for part in inputs]


def parts(lengths: Sequence[int], padding: bool) -> list[list[int]]:
    """Numbers of the texts of each forward pass: with padding all in one, else those of each length."""
    if padding:
        return [list(range(len(lengths)))]
    return [[row for row, one in enumerate(lengths) if one == length] for length in sorted(set(lengths))]


ENGINES: dict[str, Callable[[EngineSettings], Any]] = {
    "torch": TorchEngine,
    "pipeline": PipelineEngine,
    "onnx": OnnxEngine,
    "onnx-int8": OnnxEngine,
}


def peak_mib() -> float:
    """The highest resident memory of this process, MiB."""
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    except OSError:
        pass
    import resource

    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return size / 2**20 if sys.platform == "darwin" else size / 1024


def time_calls(engine: Any, calls: Sequence[Sequence[Text]]) -> dict[str, list[float]]:
    """Seconds of each call: in total, the tokenizer's and the model's.

    A pipeline does not show where its tokenizer ends, so it has only the total.
    """
    seconds: dict[str, list[float]] = {"total": [], "tokenisation": [], "model": []}
    clock = time.perf_counter
    for texts in calls:
        start = clock()
        if hasattr(engine, "whole"):
            engine.whole(texts)
            seconds["total"].append(clock() - start)
            continue
        inputs = engine.encode(texts)
        between = clock()
        engine.answer(inputs)
        end = clock()
        seconds["total"].append(end - start)
        seconds["tokenisation"].append(between - start)
        seconds["model"].append(end - between)
    return seconds


def main() -> None:
    """Read orders from standard input, one JSON object a line, and answer each by one."""
    replies = sys.stdout
    sys.stdout = sys.stderr  # what libraries print is no reply
    engine: Any = None
    for line in sys.stdin:
        order = json.loads(line)
        reply: dict[str, Any]
        try:
            if "load" in order:
                started = time.perf_counter()
                settings = EngineSettings(**order["load"])
                engine = ENGINES[settings.backend](settings)
                reply = {"parameters": engine.parameters, "load_seconds": time.perf_counter() - started}
            else:
                reply = {**time_calls(engine, order["calls"]), "peak_mib": peak_mib()}
        except Exception as error:
            reply = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(reply), file=replies, flush=True)


if __name__ == "__main__":
    main()
