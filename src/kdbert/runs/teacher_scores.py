"""How a run's teachers score on its own splits: a student is compared with them, and a weak one is warned about."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from kdbert.metrics import LOWER_IS_BETTER, better
from kdbert.models.locate import run_facts
from kdbert.models.student import count_parameters
from kdbert.runs.answers import Answers, answers, same_answers
from kdbert.runs.job import Job
from kdbert.tasks import TaskSpec
from kdbert.training.frozen_teacher import FrozenTeacher
from kdbert.training.soft_labels import SoftTeacher
from kdbert.training.teacher import LOGITS

log = logging.getLogger("kdbert")


def teacher_facts(job: Job, teacher: FrozenTeacher | SoftTeacher) -> dict[str, Any]:
    """What run.json says of a teacher: how it scores, how large it is, how it is run; of soft labels their file."""
    if isinstance(teacher, SoftTeacher):
        nothing = dict.fromkeys(("layers", "parameters", "size_mib", "way"))
        return {"model": teacher.known.given, "metrics": {}, "one_answer": {}, **nothing}
    known = _recorded(job, teacher)
    if job.spec.kind == "encoder":  # it is what its student is measured by
        known = {"metrics": {}, "one_answer": {}}
    if known is None:
        found = {name: _answers(job, teacher, name) for name in job.eval_examples}
        known = {"metrics": {name: one.scores for name, one in found.items()}, "one_answer": same_answers(found)}
    config, name = teacher.known.config, teacher.known.place.given
    parameters = count_parameters(config, job.spec.head, name)
    return {
        "model": name,
        **known,
        "layers": config.num_hidden_layers,
        "parameters": parameters,
        "size_mib": round(parameters * 4 / 2**20, 2),
        "way": teacher.way.record(),
    }


def _answers(job: Job, teacher: FrozenTeacher, split: str) -> Answers:
    """A teacher's answers to a split, in the task's order of classes."""
    spec, part, data = job.spec, job.eval_examples[split], teacher.encoded[split]
    if not spec.head.plain_text:
        logits = teacher.values(split, LOGITS)["logits"]
        return Answers(spec, part, spec.head.label_logits(logits, data, teacher.columns))
    return answers(
        teacher.network, spec, part, data, batch_size=job.recipe.train.eval_batch_size,
        precision=teacher.session.precision, accelerator=teacher.session.accelerator,
        whose=f"the outputs of teacher {teacher.known.place.given} on {split}",
    )  # fmt: skip


def _recorded(job: Job, teacher: FrozenTeacher) -> dict[str, Any] | None:
    """The scores that a teacher's own run has found on these very examples, read and computed the same way."""
    place, columns = teacher.known.place, teacher.columns
    if place.run is None or columns is None or columns != sorted(columns):
        return None
    facts = run_facts(place.run)
    metrics, fingerprints = facts.get("metrics", {}), facts.get("fingerprints", {})
    same = (
        facts.get("model_fingerprint") == place.fingerprint()
        and facts.get("recipe", {}).get("task", {}).get("name") == job.spec.name
        and facts.get("precision") == teacher.session.precision
        and all(
            fingerprints.get(name) == teacher.encoded[name].fingerprint()
            and set(metrics.get(name, ())) == set(job.spec.metrics)
            for name in job.eval_examples
        )
    )
    if not same:
        return None
    return {
        key: {name: facts[key][name] for name in job.eval_examples if name in facts[key]}
        for key in ("metrics", "one_answer")
    }


def warn_if_untrained(spec: TaskSpec, facts: Mapping[str, Any], constant: Mapping[str, Mapping[str, float]]) -> None:
    """Warn of a teacher that knows hardly more than the best constant answer."""
    split, metric = spec.split_names("dev")[0], spec.metrics[0]
    if split not in facts["metrics"]:
        return
    reached = facts["metrics"][split][metric]
    # Losses and errors have no common scale.
    margin = -0.02 * constant[split][metric] if metric in LOWER_IS_BETTER and split in constant else 0.02
    if split in facts["one_answer"]:
        log.warning(
            "teacher %s answers %s to every example of %s: little can be learned from it",
            facts["model"], facts["one_answer"][split], split,
        )  # fmt: skip
    elif split in constant and not better(metric, reached, constant[split][metric] + margin):
        log.warning(
            "teacher %s scores %.4f %s on %s; one answer to every example gives %.4f: little can be learned from it",
            facts["model"], reached, metric, split, constant[split][metric],
        )  # fmt: skip
