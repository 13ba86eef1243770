"""What the contestants of benchmarks/speed share: the job, the examples, the clock, the result.

Only torch, transformers and the standard library, so that it runs in TextBrewer's pinned environment too.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import transformers.models.bert.modeling_bert  # noqa: F401  (imported before the clock starts, by everybody)


def peak_gib(device: str) -> float:
    """The most memory of the GPU, or of this process (getrusage would count what its parent had when it forked)."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**30
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii")
        return int(status.partition("VmHWM:")[2].split()[0]) / 2**20
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**30


class Contest:
    """One contestant's run of one job: tokenised on the clock, timed by phase, written as JSON at the end.

    A job is a JSON file that benchmarks/speed writes: texts and labels of train and dev, folders of teacher and
    student, batch size, epochs, rate, alpha, temperature, method, seed, threads, device (cpu or cuda), `half` (whether
    the device multiplies bf16) and `steps` (stop after so many and extrapolate; null: the whole run).
    """

    def __init__(self, job: dict[str, Any] | None = None) -> None:
        """Take the job, or read the file that the command's first word names."""
        self.job: dict[str, Any] = job or json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
        torch.set_num_threads(self.job["threads"])
        torch.manual_seed(self.job["seed"])
        self.device = torch.device(self.job["device"])
        self.phases: dict[str, float] = {}
        self.started = self.last = time.perf_counter()
        rows = len(self.job["train"]["labels"])
        self.per_epoch = -(-rows // self.job["batch_size"])
        self.planned = self.job["epochs"] * self.per_epoch
        self.steps = min(self.planned, self.job["steps"] or self.planned)

    def lap(self, phase: str) -> None:
        """The time since the last lap belongs to this phase."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        now = time.perf_counter()
        self.phases[phase] = self.phases.get(phase, 0.0) + now - self.last
        self.last = now

    def encode(self, split: str, padded: bool) -> list[dict[str, Any]]:
        """Token ids and labels of a split, cut to the longest length allowed, padded to it if asked."""
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(str(Path(self.job["student"]) / "tokenizer.json"))
        length = self.job["max_length"]
        tokenizer.enable_truncation(length)
        if padded:
            tokenizer.enable_padding(length=length)
        else:
            tokenizer.no_padding()
        part = self.job[split]
        texts = [tuple(text) if len(text) == 2 else text[0] for text in part["texts"]]
        return [
            {
                "input_ids": one.ids,
                "attention_mask": one.attention_mask,
                "token_type_ids": one.type_ids,
                "labels": label,
            }
            for one, label in zip(tokenizer.encode_batch(texts), part["labels"], strict=True)
        ]

    def tensors(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Columns of padded rows as tensors on the device."""
        return {name: torch.tensor([row[name] for row in rows], device=self.device) for name in rows[0]}

    def model(self, whose: str) -> Any:
        """Teacher or student in float32."""
        from transformers import AutoModelForSequenceClassification

        return AutoModelForSequenceClassification.from_pretrained(self.job[whose]).float().to(self.device)

    def predict(self, model: Any, rows: dict[str, torch.Tensor]) -> torch.Tensor:
        """Logits of padded rows, 64 at a time."""
        model.eval()
        inputs = {name: values for name, values in rows.items() if name != "labels"}
        with torch.no_grad():
            parts = torch.arange(len(rows["labels"])).split(64)
            return torch.cat(
                [model(**{name: values[part] for name, values in inputs.items()}).logits for part in parts]
            )

    def kd_loss(self, student: torch.Tensor, teacher: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """alpha * hard + (1 - alpha) * soft, as kdbert's `kd` defines them."""
        alpha, tau = self.job["alpha"], self.job["temperature"]
        if self.job["num_labels"] == 1:
            student, teacher = student.squeeze(-1), teacher.squeeze(-1)
            return alpha * F.mse_loss(student, labels.float()) + (1 - alpha) * F.mse_loss(student, teacher)
        soft = F.kl_div((student / tau).log_softmax(-1), (teacher / tau).softmax(-1), reduction="batchmean") * tau**2
        return alpha * F.cross_entropy(student, labels) + (1 - alpha) * soft

    def finish(self, steps: int, logits: torch.Tensor) -> None:
        """Write the result; the training phase is scaled to the whole run where it was cut short."""
        answers = logits.squeeze(-1) if self.job["num_labels"] == 1 else logits.argmax(-1)
        whole = dict(self.phases)
        whole["train"] = self.phases["train"] * self.planned / steps
        Path(sys.argv[2]).write_text(json.dumps({
            "steps": steps, "planned": self.planned, "predictions": answers.tolist() if steps == self.planned else None,
            "seconds": sum(whole.values()), "phases": whole, "measured": self.phases,
            "peak_gib": peak_gib(self.device.type),
        }))  # fmt: skip
