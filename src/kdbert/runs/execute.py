"""One run from a plan to its folder: load, train, evaluate, write down."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import shutil
import time
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import nn

from kdbert.data.examples import Examples
from kdbert.data.masking import vocabulary_size
from kdbert.disk.files import atomic_write, replace_folder, write_text
from kdbert.errors import Diverged, Interrupted, KdbertError, UserError, few
from kdbert.methods import Context, get_method
from kdbert.metrics import constant_answer, masked_lm_scores, score
from kdbert.models.fast.dropout import use_fast_dropout
from kdbert.models.fast.late_head import use_late_head
from kdbert.models.layers import told
from kdbert.models.load import check_weights, load_config, load_tokenizer
from kdbert.models.locate import ModelPlace
from kdbert.models.open import open_classifier, open_masked_lm
from kdbert.models.student import set_dropout
from kdbert.models.vocabulary import check_expansion, grow_embeddings
from kdbert.recipe import Recipe
from kdbert.recipe.defaults import baseline_recipe
from kdbert.runs.environment import environment
from kdbert.runs.folder import RunFolder, RunResult, identity_of
from kdbert.runs.model_card import model_card
from kdbert.runs.plan import Plan
from kdbert.runs.predictions import predicted, same_answer, write_hidden, write_predictions
from kdbert.runs.saved import check_saved
from kdbert.runs.saved_task import task_record
from kdbert.runs.teachers import Teachers, encode_splits
from kdbert.training.diagnostics import Diagnostics
from kdbert.training.forward import StudentWithMethod, check_runs, predict
from kdbert.training.loop import epoch_order, train, trained_rows
from kdbert.training.masked_lm import masked_lm_sums
from kdbert.training.precision import Precision, choose_precision, make_accelerator
from kdbert.training.teacher import LOGITS, StoredTeacher, Teacher

log = logging.getLogger("kdbert")
LOWER_RATE = "; try a lower train.learning_rate"


def run_recipe(recipe: Recipe, *, overwrite: bool = False) -> RunResult:
    """Run a resolved recipe in its folder, or return what is there.

    Raises:
        UserError: a fault in the recipe, its files or models; the folder holds another recipe.
        Diverged, Interrupted: the run's state says so and is kept.
    """
    plan = Plan(recipe)
    folder = plan.folder
    main = int(os.environ.get("RANK", "0")) == 0
    if not overwrite:
        folder.check_recipe(recipe, plan.fingerprints)
        if folder.manifest().get("status") == "finished":
            plan.check_data(folder.manifest())
            folder.check_files()
            log.info("already finished: %s", folder.path)
            if main:
                folder.tidy()
            if not (folder.path / "model").is_dir():
                log.warning("its model folder was deleted; pass --overwrite to train it again")
            if recipe.output.diagnose and not (folder.path / "diagnostics").is_dir():
                log.warning("it was made without --diagnose; pass --overwrite to train it again with it")
            return folder.result()
    plan.check()
    job = Job(plan)
    if not main:
        return job.run()
    if overwrite and folder.path.exists():
        if not folder.manifest_path.exists():
            raise UserError(
                f"{folder.path} is not a run folder, so --overwrite leaves it alone; choose another --output-dir"
            )
        with folder.locked():  # refuses to move a run that is being written
            moved = folder.move_aside()
        log.info("moved the old run to %s", moved)
    with folder.locked():
        alone = job.accelerator.num_processes == 1
        if alone and folder.manifest().get("status") == "finished":
            log.info("finished meanwhile by another process: %s", folder.path)
            return folder.result()
        try:
            return job.run()
        except BaseException as error:
            status = {Interrupted: "interrupted", KeyboardInterrupt: "interrupted", Diverged: "diverged"}
            with contextlib.suppress(OSError, UserError):  # a full disk must not hide the error itself
                if folder.manifest():
                    where = {"divergence": error.where} if isinstance(error, Diverged) else {}
                    message = str(error) or type(error).__name__
                    folder.update(status=status.get(type(error), "failed"), message=message, **where)
            if _cannot_write(error):
                raise UserError(
                    f"cannot write to {folder.path}: {error}; earlier checkpoints are intact: make room and run the "
                    "same command again"
                ) from None
            raise


def _cannot_write(error: BaseException) -> bool:
    """Whether the disk is full or read-only, a limit was reached, or a quota used up."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)


def baseline_scores(recipe: Recipe) -> dict[str, Any] | None:
    """Run folder and metrics of the same student without a teacher, if that run is finished."""
    if not recipe.teachers:
        return None
    try:
        folder = Plan(baseline_recipe(recipe)).folder
        manifest = folder.manifest()
        if manifest.get("status") == "finished":
            return {"run": str(folder.path), "metrics": manifest["metrics"]}
    except UserError as error:
        log.warning("the run without a teacher is left out: %s", error)
    return None


def load_student(plan: Plan) -> tuple[Any, bool]:
    """The student as it starts: its layers of the model, with an embedding for each piece of its tokenizer.

    Returns:
        The model, and whether it kept a trained head.
    """
    place, named = plan.student_place, plan.recipe.student.tokenizer
    layers = plan.kept_layers if plan.recipe.student.layers is not None else None
    if plan.spec.kind == "masked_lm":
        student, kept_head = open_masked_lm(place, plan.tokenizer, plan.way, layers=layers)
    else:
        student, kept_head = open_classifier(place, plan.spec, plan.way, keep_head=False, layers=layers)
    pieces = vocabulary_size(plan.tokenizer)
    if named is not None and not place.fresh:
        own = load_tokenizer(place)
        check_expansion(own, plan.tokenizer, place.given, named)
        grow_embeddings(student, own, plan.tokenizer, from_pieces=plan.recipe.method.variant == "corrected")
    elif pieces > student.config.vocab_size:
        log.info(
            "%s: its tokenizer has %d pieces without a row in the embedding; rows are drawn at random",
            place.given, pieces - student.config.vocab_size,
        )  # fmt: skip
        student.resize_token_embeddings(pieces, mean_resizing=False)
    if plan.spec.kind == "masked_lm":
        use_late_head(student)
    return student, kept_head


class Job:
    """The models of a plan, loaded, and the run itself."""

    def __init__(self, plan: Plan) -> None:
        recipe = plan.recipe
        self.plan = plan
        self.accelerator = make_accelerator(log_with=recipe.output.tracker or None, project_dir=str(plan.folder.path))
        device = self.accelerator.device
        asked = recipe.train.precision if plan.way.half else "fp32"
        self.precision: Precision = choose_precision(asked, device)
        torch.manual_seed(recipe.seed)  # a fresh head is drawn here
        student, kept_head = load_student(plan)
        if recipe.train.dropout is not None:
            set_dropout(student, recipe.train.dropout)
        if recipe.train.fast_dropout and plan.way.levers:
            use_fast_dropout(student)
        self.student = student.to(device)
        self.kept_head = kept_head
        for place in plan.teacher_places:
            check_weights(place)  # they are loaded when something is read of them, which is after the folder is opened
        self.encoded = encode_splits(plan, plan.tokenizer)
        self.teachers = Teachers(
            plan, self.encoded, accelerator=self.accelerator, precision=self.precision, environment=self.environment,
        )  # fmt: skip

    @cached_property
    def module(self) -> StudentWithMethod:
        """Student and method; makes the memory that the method reads, if it is not there."""
        plan, recipe = self.plan, self.plan.recipe
        method = get_method(recipe.method.name)(recipe.method)
        context = Context(
            models=plan.models,
            head=plan.spec.head,
            batch_size=plan.micro_batch,
            centroids=None if self.teachers.memory is None else self.teachers.memory.centroids,
        )
        # Not the draw that made the student's head, so that a method of its own draws changes no other.
        torch.manual_seed(int(np.random.SeedSequence([recipe.seed, 1]).generate_state(1, np.uint64)[0] >> 1))
        method.prepare(context)
        module = StudentWithMethod(self.student, method, self.precision, plan.needs.student_hidden)
        return module.to(self.accelerator.device)

    @cached_property
    def environment(self) -> dict[str, Any]:
        """Machine and code, as they stand in run.json."""
        return environment()

    def run(self) -> RunResult:
        """Train, evaluate, save, and write down what was found.

        Raises:
            KdbertError: of several processes another one has ended.
        """
        try:
            return self._run()
        except RuntimeError as error:
            if self.accelerator.num_processes > 1 and (
                isinstance(error, torch.distributed.DistError) or "gloo" in str(error)  # its errors have no class
            ):
                raise KdbertError(
                    "another process of this run has ended, and says why; the same command continues from the last save"
                ) from None
            raise

    def _run(self) -> RunResult:
        plan, recipe, folder = self.plan, self.plan.recipe, self.plan.folder
        accelerator, main = self.accelerator, self.accelerator.is_main_process
        started = time.time()
        for part in self.encoded.values():
            check_runs(self.student, part, plan.student_place.given)
        teacher_facts, scoring_seconds = self._teacher_facts()  # before a memory is made of one that can teach little
        module = self.module
        self._announce()
        fingerprints = {name: part.fingerprint() for name, part in self.encoded.items()}
        fingerprints["student"] = plan.student_place.fingerprint()
        fingerprints.update({f"teacher{i}": p.fingerprint() for i, p in enumerate(plan.teacher_places)})
        if self.teachers.memory is not None:
            fingerprints["memory"] = self.teachers.memory.fingerprint
        if main:
            self._open_folder(fingerprints)
        accelerator.wait_for_everyone()
        if recipe.output.tracker:
            accelerator.init_trackers("kdbert", config={"recipe": recipe.yaml()})

        diagnostics = self._diagnostics() if recipe.output.diagnose else None
        teachers, teacher_seconds = self._ready_teachers()
        newest: dict[str, np.ndarray] = {}  # logits of the last evaluation

        def evaluate(model: nn.Module) -> dict[str, float]:
            metrics, logits = self._evaluate(model, plan.spec.split_names("dev"))
            newest.update(logits)
            return _flat(metrics)

        with trained_rows(recipe.train, self.encoded["train"], module):
            result = train(
                recipe.train,
                seed=recipe.seed,
                data=self.encoded["train"],
                module=module,
                teachers=teachers,
                evaluate=evaluate,
                selection=f"{plan.spec.split_names('dev')[0]}/{plan.spec.metrics[0]}",
                folder=folder.path,
                accelerator=accelerator,
                trackers=recipe.output.tracker,
                length=recipe.task.max_length if plan.needs.reads_padding else None,
                at_log=lambda step: diagnostics.numbers() if diagnostics is not None and main else {},
                ids=plan.ids("train"),
            )
        if result.best and result.best["step"] != plan.steps:
            newest.clear()  # they are not of the weights that were chosen
        metrics, logits = self._evaluate(self.student, tuple(plan.eval_examples), newest)
        if diagnostics is not None:
            values = diagnostics.layer_cka()
            if main:
                variant = "" if recipe.method.variant == "corrected" else f" ({recipe.method.variant})"
                title = f"{plan.spec.name}: {recipe.method.name}{variant}, seed {recipe.seed}"
                diagnostics.write(folder.path / "diagnostics", values, title)
                log.info("heat map: %s", folder.path / "diagnostics" / "cka.png")
        if recipe.output.tracker:
            accelerator.end_training()
        if main:
            facts = {
                "metrics": metrics,
                "selection": plan.spec.metrics[0],
                "constant_answer": self.constant_answers,
                "one_answer": self._same_answers(logits),
                **({"known_pieces": plan.known_pieces} if plan.spec.kind == "masked_lm" else {}),
                "layers": self.student.config.num_hidden_layers,
                "parameters": sum(p.numel() for p in self.student.parameters()),
                "teachers": teacher_facts,
                "baseline": baseline_scores(recipe),
                "best": result.best,
                "steps_done": result.steps,
                **result.scaling,
                "timings": {
                    "teacher_seconds": round(scoring_seconds + teacher_seconds, 3),
                    "train_seconds": round(result.train_seconds, 3),
                    "eval_seconds": round(result.eval_seconds, 3),
                    "total_seconds": round(time.time() - started, 3),
                    "examples_per_second": round(result.examples / max(result.train_seconds, 1e-9), 1),
                    "resumed_from_step": result.resumed_from,
                },
            }
            self._write_results(facts, logits)
        accelerator.wait_for_everyone()
        return folder.result()

    def _diagnostics(self) -> Diagnostics:
        split = self.plan.spec.split_names("dev")[0]
        own = self.teachers.encoded[0][split]
        found = Diagnostics(
            self.student,
            self.teachers.models[0],
            self.encoded[split],
            own if own is not self.encoded[split] else None,
            self.plan.models,
            precision=self.precision,
            batch_size=self.plan.recipe.train.eval_batch_size,
            accelerator=self.accelerator,
        )
        if self.accelerator.is_main_process:
            log.info("diagnose: %s", found.words())
        return found

    def _announce(self) -> None:
        plan, recipe = self.plan, self.plan.recipe
        if not self.accelerator.is_main_process:
            return
        data = self.encoded["train"]
        lengths = data.lengths
        log.info(
            "%s on %s: %d training examples (%.1f tokens on average, %d cut to %d), %d steps",
            recipe.method.name, plan.spec.name, len(data), lengths.mean(), data.truncated,
            recipe.task.max_length, plan.steps,
        )  # fmt: skip
        kept = f"layers {', '.join(map(str, plan.kept_layers))} of " if recipe.student.layers is not None else ""
        log.info(
            "%s: %s%s, %.2f M parameters, %s head; %s on %s, %d process%s, %d threads",
            "student" if recipe.teachers else "model", kept, plan.student_place.given,
            sum(p.numel() for p in self.student.parameters()) / 1e6,
            "trained" if self.kept_head else "fresh", self.precision, self.accelerator.device,
            self.accelerator.num_processes, "es" if self.accelerator.num_processes > 1 else "", torch.get_num_threads(),
        )  # fmt: skip
        for way in dict.fromkeys([plan.way, *plan.teacher_ways]):
            log.info("%s", way.words())
        for term, pairs in plan.needs.pairs.items():
            log.info("%s compares layers (teacher:student) %s", term, told(pairs))
        if plan.needs.compares_examples and plan.micro_batch != recipe.train.batch_size:
            log.info("%s compares %d examples, not %d", recipe.method.name, plan.micro_batch, recipe.train.batch_size)
        for sentence in recipe.method.nonsense():
            log.warning("variant original, as published: %s", sentence)
        if data.labels is not None and data.logits_of == "example":
            first = epoch_order(recipe.train, data, recipe.seed, 0)
            parts = [part for rows in first for part in np.array_split(rows, recipe.train.accumulation) if len(part)]
            remark = self.module.method.remark([data.labels[part] for part in parts])
            if remark:
                log.warning("%s", remark)

    def _open_folder(self, fingerprints: dict[str, str]) -> None:
        """Create the run's files, or check that an interrupted run had the same inputs."""
        recipe, folder = self.plan.recipe, self.plan.folder
        before = folder.manifest()
        if before.get("fingerprints", fingerprints) != fingerprints:
            changed = [k for k in fingerprints if before["fingerprints"].get(k) != fingerprints[k]]
            raise UserError(
                f"{folder.path} was begun with other inputs ({', '.join(changed)} changed since); "
                "pass --overwrite to move that run aside and start afresh"
            )
        folder.clean()
        needed = 5 * 4 * sum(p.numel() for p in self.module.parameters())
        free = shutil.disk_usage(folder.path).free
        if free < needed:
            raise UserError(
                f"{folder.path}: {free / 2**20:.0f} MiB free on the disk, checkpoints and model need about "
                f"{needed / 2**20:.0f} MiB; make room or choose another --runs-dir"
            )
        machine = {
            "precision": self.precision,
            "processes": self.accelerator.num_processes,
            "device": self.accelerator.device.type,
            "threads": torch.get_num_threads(),
        }
        now = {**machine, "processor": self.environment["processor"], **self.environment["versions"]}
        then = {**before.get("environment", {}), **before.get("environment", {}).get("versions", {}), **before}
        changed = [f"{k} {then[k]} then, {now[k]} now" for k in now if then.get(k, now[k]) != now[k]]
        if changed:
            log.warning(
                "continuing on another machine, or by other versions: weights will not be bit for bit the same (%s)",
                "; ".join(changed),
            )
        folder.update(
            status="running",
            message="",
            **({"divergence": {}} if before.get("divergence") else {}),
            started=before.get("started", time.strftime("%Y-%m-%dT%H:%M:%S%z")),
            recipe=recipe.model_dump(mode="json"),
            identity=identity_of(recipe, self.plan.fingerprints),
            fingerprints=fingerprints,
            data=self.plan.data_files,
            **task_record(self.plan.spec),
            **machine,
            way=self.plan.way.record(),
            steps=self.plan.steps,
            environment=self.environment,
        )
        write_text(folder.path / "recipe.yaml", recipe.yaml())

    def _teacher_facts(self) -> tuple[list[dict[str, Any]], float]:
        """How each teacher scores and how large it is, and the seconds that this took."""
        plan, started, facts = self.plan, time.perf_counter(), []
        for number, given in enumerate(plan.recipe.teachers):
            known = self._recorded_facts(number)
            if known is None:
                logits = {name: self._teacher_logits(number, name) for name in plan.eval_examples}
                metrics = {name: self._score(name, values) for name, values in logits.items()}
                known = {"metrics": metrics, "one_answer": self._same_answers(logits)}
            parameters = plan.parameters()[1][number]
            facts.append({
                "model": given.model,
                **known,
                "layers": load_config(plan.teacher_places[number]).num_hidden_layers,
                "parameters": parameters,
                "size_mib": round(parameters * 4 / 2**20, 2),
                "way": plan.teacher_ways[number].record(),
            })  # fmt: skip
            self._warn_if_untrained(given.model, known)
        return facts, time.perf_counter() - started

    def _recorded_facts(self, number: int) -> dict[str, Any] | None:
        """The scores that a teacher's own run has found on these very examples, read and computed the same way, and
        where it gave one answer to all of them.
        """
        plan, place = self.plan, self.plan.teacher_places[number]
        if plan.spec.kind == "masked_lm":  # other tokens may be hidden there
            return None
        columns = plan.teacher_permutations[number]
        if place.run is None or columns != sorted(columns):
            return None
        facts = RunFolder(place.run).manifest()
        recipe, found = facts.get("recipe", {}), facts.get("metrics", {})
        same = (
            facts.get("model_fingerprint") == place.fingerprint()
            and recipe.get("task", {}).get("name") == plan.spec.name
            and facts.get("precision") == self.precision
            and "one_answer" in facts
            and all(
                facts.get("fingerprints", {}).get(name) == self.teachers.encoded[number][name].fingerprint()
                and set(found.get(name, ())) == set(plan.spec.metrics)
                for name in plan.eval_examples
            )
        )
        if not same:
            return None
        return {key: {name: facts[key][name] for name in plan.eval_examples if name in facts[key]}
                for key in ("metrics", "one_answer")}  # fmt: skip

    def _ready_teachers(self) -> tuple[list[Teacher], float]:
        """Teachers ready for training, and the seconds that their pass took."""
        started = time.perf_counter()
        numbers = range(len(self.plan.recipe.teachers))
        teachers = [self.teachers.for_training(number, self.module.method) for number in numbers]
        if all(isinstance(teacher, StoredTeacher) for teacher in teachers):
            self.teachers.release()  # their memory is wanted for training
        return teachers, time.perf_counter() - started

    def _warn_if_untrained(self, name: str, known: Mapping[str, Any]) -> None:
        split = self.plan.spec.split_names("dev")[0]
        metric = self.plan.spec.metrics[0]
        constant, reached = self.constant_answers.get(split), known["metrics"][split][metric]
        if split in known["one_answer"]:
            log.warning(
                "teacher %s gives one answer to every example of %s, %s: it can teach little",
                name, split, known["one_answer"][split],
            )  # fmt: skip
        elif constant and reached <= constant[metric] + 0.02:
            log.warning(
                "teacher %s scores %.4f %s on %s; the best constant answer gives %.4f: it can teach little",
                name, reached, metric, split, constant[metric],
            )  # fmt: skip

    @cached_property
    def constant_answers(self) -> dict[str, dict[str, float]]:
        """Split -> metric -> what the constant answer reaches; of plain text there is none."""
        spec = self.plan.spec
        return {
            name: constant_answer(spec.metrics, part.labels, spec.label_groups(part), spec.labels)
            for name, part in self.plan.eval_examples.items()
            if isinstance(part, Examples) and part.labels is not None
        }

    def _same_answers(self, logits: Mapping[str, np.ndarray]) -> dict[str, str]:
        """Split -> the answer that is given to all of its examples, where it is one."""
        if self.plan.spec.kind == "masked_lm":
            return {}
        found = {name: same_answer(self.plan.spec, values) for name, values in logits.items()}
        return {name: answer for name, answer in found.items() if answer is not None}

    def _evaluate(
        self, model: nn.Module, splits: tuple[str, ...], known: Mapping[str, np.ndarray] = MappingProxyType({})
    ) -> tuple[dict[str, dict[str, float]], dict[str, np.ndarray]]:
        """Metrics and logits of each split; `known` are logits that need not be computed again."""
        outputs = {name: known[name] if name in known else self._predict(model, name) for name in splits}
        return {name: self._score(name, logits) for name, logits in outputs.items()}, outputs

    def _predict(self, model: nn.Module, split: str) -> np.ndarray:
        if self.plan.spec.kind == "masked_lm":
            return self._hidden_sums(model, split)
        logits = predict(
            model,
            self.encoded[split],
            batch_size=self.plan.recipe.train.eval_batch_size,
            precision=self.precision,
            accelerator=self.accelerator,
        )
        self._check_finite(logits, "the model's outputs", split, LOWER_RATE)
        return self.encoded[split].label_logits(logits, self.plan.spec.labels)

    def _hidden_sums(self, model: nn.Module, split: str, teacher: str | None = None) -> np.ndarray:
        """In place of logits: how a masked-LM answers the hidden pieces of a split, text by text."""
        sums = masked_lm_sums(
            model,
            self.encoded[split],
            batch_size=self.plan.recipe.train.eval_batch_size,
            precision=self.precision,
            accelerator=self.accelerator,
        )
        if teacher is None:
            self._check_finite(sums, "the model's losses", split, LOWER_RATE)
        else:
            self._check_finite(sums, f"the losses of teacher {teacher}", split)
        return sums

    def _check_finite(self, values: np.ndarray, what: str, split: str, cure: str = "") -> None:
        """Refuse what a model that has diverged answers.

        Raises:
            Diverged: some values are not finite, with the ids of their examples.
        """
        bad = np.flatnonzero(~np.isfinite(values.reshape(len(values), -1)).all(1))
        if not len(bad):
            return
        data, ids = self.encoded[split], self.plan.ids(split)
        if len(values) != len(data):  # they are of tokens
            bad = np.unique(np.searchsorted(data.offsets, bad, side="right") - 1)
        examples = [ids[row] if ids is not None else str(row) for row in bad.tolist()]
        shown = few(examples, ", see run.json")
        raise Diverged(
            f"{what} on {split} are not finite for examples {shown}{cure}", {"split": split, "examples": examples}
        )

    def _teacher_logits(self, number: int, split: str) -> np.ndarray:
        """A teacher's logits of all that has a label, in the task's order of classes."""
        if self.plan.spec.kind == "masked_lm":
            return self._hidden_sums(self.teachers.models[number], split, self.plan.recipe.teachers[number].model)
        logits = self.teachers.values(number, split, LOGITS)["logits"][:, self.plan.teacher_permutations[number]]
        return self.teachers.encoded[number][split].label_logits(logits, self.plan.spec.labels)

    def _score(self, split: str, logits: np.ndarray) -> dict[str, float]:
        spec, examples = self.plan.spec, self.plan.eval_examples[split]
        if not isinstance(examples, Examples):
            return masked_lm_scores(spec.metrics, logits)
        assert examples.labels is not None
        return score(spec.metrics, predicted(spec, logits), examples.labels, spec.label_groups(examples), spec.labels)

    def _write_results(self, facts: dict[str, Any], logits: Mapping[str, np.ndarray]) -> None:
        plan, recipe, folder = self.plan, self.plan.recipe, self.plan.folder

        def fill(target: Path) -> None:
            self.student.save_pretrained(target)
            plan.tokenizer.model_max_length = recipe.task.max_length
            plan.tokenizer.save_pretrained(target)
            facts["size_mib"] = round((target / "model.safetensors").stat().st_size / 2**20, 2)
            known = {**facts, "environment": self.environment}
            card = model_card(recipe, plan.spec, facts["metrics"], known)
            (target / "README.md").write_text(card, encoding="utf-8")
            dev = plan.spec.split_names("dev")[0]
            part = plan.eval_examples[dev]
            texts = part if isinstance(part, Examples) else None
            assert recipe.task.max_length is not None
            check_saved(
                target, self.student, plan.spec, self.encoded[dev], texts, logits[dev], self.precision,
                recipe.task.max_length,
            )  # fmt: skip

        replace_folder(folder.path / "model", fill)
        for name, values in logits.items():
            path, examples = folder.path / "predictions" / f"{name}.jsonl", plan.eval_examples[name]
            if isinstance(examples, Examples):
                write_predictions(path, plan.spec, examples, values)
            else:
                write_hidden(path, values)
        own = self.module.method.state_dict()
        if own:
            from safetensors.torch import save_file

            atomic_write(folder.path / "method.safetensors", lambda temporary: save_file(own, temporary))
        facts["model_fingerprint"] = ModelPlace("", str(folder.path / "model")).fingerprint()
        facts["files"] = folder.written()
        folder.update(status="finished", finished=time.strftime("%Y-%m-%dT%H:%M:%S%z"), **facts)
        if not recipe.output.keep_checkpoints:
            shutil.rmtree(folder.path / "checkpoints", ignore_errors=True)


def _flat(metrics: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    return {f"{split}/{name}": value for split, values in metrics.items() for name, value in values.items()}
