"""The process that one engine is timed in: `python -m kdbert.benchmark.worker`, told what to do by lines of JSON.

It imports what its engine needs and nothing else, so that its memory is the engine's, and waits for its turn without
computing.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

# An example as it is asked: a text, a pair of texts, or words.
Text = str | list[str]


class TorchEngine:
    """The library's model in float32, as `from_pretrained` gives it.

    Args:
        inputs: names of what the model takes. padding: whether texts of different lengths share a forward pass.
    """

    def __init__(
        self, folder: Path, kind: str, max_length: int, threads: int, inputs: Sequence[str], padding: bool
    ) -> None:
        import torch
        import transformers

        torch.set_num_threads(threads)
        self.torch = torch
        self.words = kind == "token"
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        self.tokenizer.model_input_names = [one for one in self.tokenizer.model_input_names if one in inputs]
        self.padding = padding and self.tokenizer.pad_token_id is not None
        head = transformers.AutoModelForTokenClassification if self.words else None
        self.model = (head or transformers.AutoModelForSequenceClassification).from_pretrained(
            folder, dtype=torch.float32, trust_remote_code=False
        )
        self.model.eval()
        self.max_length = max_length
        self.parameters = sum(parameter.numel() for parameter in self.model.parameters())

    def encode(self, texts: Sequence[Text], pair: bool) -> Any:
        """Inputs of a batch, as padded tensors for each forward pass that it takes."""
        first = [text[0] for text in texts] if pair else list(texts)
        second = [text[1] for text in texts] if pair else None
        coded = self.tokenizer(
            first, second, truncation="longest_first", max_length=self.max_length, is_split_into_words=self.words
        )
        parts = [list(range(len(first)))] if self.padding else alike([len(ids) for ids in coded["input_ids"]])
        return [
            self.tokenizer.pad(
                {name: [coded[name][row] for row in rows] for name in self.tokenizer.model_input_names},
                return_tensors="pt",
            )
            for rows in parts
        ]

    def answer(self, inputs: Any) -> Any:
        """Logits of a batch, for each forward pass."""
        with self.torch.inference_mode():
            return [self.model(**part).logits for part in inputs]


class PipelineEngine(TorchEngine):
    """A transformers pipeline, as people call it: texts in, labels out."""

    def __init__(
        self, folder: Path, kind: str, max_length: int, threads: int, inputs: Sequence[str], padding: bool
    ) -> None:
        super().__init__(folder, kind, max_length, threads, inputs, padding)
        import transformers

        task = "token-classification" if self.words else "text-classification"
        self.pipeline = transformers.pipeline(task, model=self.model, tokenizer=self.tokenizer, device="cpu")

    def whole(self, texts: Sequence[Text], pair: bool) -> Any:
        """Texts to answers."""
        asked: list[Any] = [
            {"text": text[0], "text_pair": text[1]} if pair else " ".join(text) if self.words else text
            for text in texts
        ]
        if self.words:
            return self.pipeline(asked, batch_size=len(asked))
        return self.pipeline(asked, batch_size=len(asked), truncation=True, max_length=self.max_length)


class OnnxEngine:
    """An export of kdbert's, by onnxruntime and tokenizers alone; `inputs` are those of its file."""

    def __init__(
        self, folder: Path, kind: str, max_length: int, threads: int, inputs: Sequence[str], padding: bool
    ) -> None:
        import numpy
        import onnxruntime
        from tokenizers import Tokenizer

        self.numpy = numpy
        self.words = kind == "token"
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.tokenizer.enable_truncation(max_length)
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        self.padding = padding
        if padding:
            self.tokenizer.enable_padding(pad_id=config.get("pad_token_id") or 0)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self.session = onnxruntime.InferenceSession(
            str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"]
        )
        self.inputs = [one.name for one in self.session.get_inputs()]
        self.parameters = None

    def encode(self, texts: Sequence[Text], pair: bool) -> Any:
        """Inputs of a batch, as padded arrays for each forward pass that it takes."""
        asked = [tuple(text) for text in texts] if pair else list(texts)
        found = self.tokenizer.encode_batch(asked, is_pretokenized=self.words)
        known = {
            "input_ids": lambda one: one.ids,
            "attention_mask": lambda one: one.attention_mask,
            "token_type_ids": lambda one: one.type_ids,
        }
        parts = [list(range(len(found)))] if self.padding else alike([len(one.ids) for one in found])
        return [
            {
                name: self.numpy.array([known[name](found[row]) for row in rows], dtype=self.numpy.int64)
                for name in self.inputs
            }
            for rows in parts
        ]

    def answer(self, inputs: Any) -> Any:
        """Logits of a batch, for each forward pass."""
        return [self.session.run(None, part)[0] for part in inputs]


def alike(lengths: Sequence[int]) -> list[list[int]]:
    """Numbers of the texts of each length."""
    return [[row for row, one in enumerate(lengths) if one == length] for length in sorted(set(lengths))]


ENGINES: dict[str, Callable[[Path, str, int, int, Sequence[str], bool], Any]] = {
    "torch": TorchEngine,
    "pipeline": PipelineEngine,
    "onnx": OnnxEngine,
    "onnx-int8": OnnxEngine,
}


def memory_mib(peak: bool = False) -> float:
    """Resident memory of this process, MiB, now or at its highest."""
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:" if peak else "VmRSS:"):
                return int(line.split()[1]) / 1024
    except OSError:
        pass
    import resource

    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return size / 2**20 if sys.platform == "darwin" else size / 1024


def time_calls(engine: Any, calls: Sequence[Sequence[Text]], pair: bool) -> dict[str, list[float]]:
    """Seconds of each call: in all, of them the tokenizer's, and the model's.

    A pipeline does not show where its tokenizer ends: there is the whole only.
    """
    seconds: dict[str, list[float]] = {"total": [], "tokenisation": [], "model": []}
    clock = time.perf_counter
    for texts in calls:
        start = clock()
        if hasattr(engine, "whole"):
            engine.whole(texts, pair)
            seconds["total"].append(clock() - start)
            continue
        inputs = engine.encode(texts, pair)
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
    pair = False
    for line in sys.stdin:
        order = json.loads(line)
        reply: dict[str, Any]
        try:
            if order["do"] == "load":
                started = time.perf_counter()
                pair = order["pair"]
                make = ENGINES[order["backend"]]
                engine = make(
                    Path(order["folder"]), order["kind"], order["max_length"], order["threads"], order["inputs"],
                    order["padding"],
                )  # fmt: skip
                reply = {"parameters": engine.parameters, "load_seconds": time.perf_counter() - started}
            else:
                reply = {**time_calls(engine, order["calls"], pair), "peak_mib": memory_mib(peak=True)}
        except Exception as error:
            reply = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(reply), file=replies, flush=True)


if __name__ == "__main__":
    main()
