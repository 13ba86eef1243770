"""A run: the models of one job, trained, evaluated and saved."""

from __future__ import annotations

import contextlib
import logging
import platform
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import DistributedDataParallelKwargs
from torch import nn

from kdbert.centroids.builder import find_or_build
from kdbert.centroids.file import Centroids
from kdbert.data.batches import Batch, collate, evaluation_batches
from kdbert.data.examples import Examples
from kdbert.data.masking import vocabulary_size
from kdbert.disk.files import atomic_write, replace_folder, write_text
from kdbert.errors import KdbertError, UserError
from kdbert.methods import HiddenStates, Needs, get_method
from kdbert.models.fast.dropout import use_fast_dropout
from kdbert.models.fast.late_head import use_late_head
from kdbert.models.load import check_weights, load_tokenizer
from kdbert.models.locate import ModelPlace, run_facts
from kdbert.models.open import open_classifier, open_of_plain_text
from kdbert.models.student import freeze_embeddings, set_dropout
from kdbert.models.vocabulary import check_expansion, grow_embeddings
from kdbert.recipe import Recipe, digest_of
from kdbert.recipe.defaults import baseline_recipe, stage_before
from kdbert.recipe.sections import StageSection
from kdbert.runs.answers import Answers, answers, constant_answers, same_answers
from kdbert.runs.centroids import CentroidsJob
from kdbert.runs.environment import environment
from kdbert.runs.folder import RunResult, identity_of
from kdbert.runs.job import Job
from kdbert.runs.model_card import model_card
from kdbert.runs.saved import check_saved
from kdbert.runs.saved_task import task_record
from kdbert.runs.teacher_scores import teacher_facts, warn_if_untrained
from kdbert.training.diagnostics import Diagnostics
from kdbert.training.features import live_features, stored_features
from kdbert.training.forward import StudentWithMethod, check_runs
from kdbert.training.frozen_teacher import FrozenTeacher, KnownTeacher, Session
from kdbert.training.loop import TrainResult, epoch_order, train, trained_rows
from kdbert.training.precision import choose_precision, make_accelerator
from kdbert.training.soft_labels import SoftLabels, SoftTeacher
from kdbert.training.store import NoRoom
from kdbert.training.teacher import StoredTeacher, Teacher, kinds_of

log = logging.getLogger("kdbert")
SEEN_WITHIN = 60  # s: a network's file system may show other machines late what one has made
SURVEY_BATCH = 64  # texts; no setting of a person's, so that all see the same numbers


def find_centroids(job: CentroidsJob, teacher: FrozenTeacher, session: Session) -> Centroids:
    """Centroids from the file that is named, one made before, or one made now from a teacher's features."""
    data, size, section = job.train, job.recipe.train.eval_batch_size, job.section
    longest = int(data.lengths.max())
    if section.file is not None:
        found = Centroids.load(job.path)
    else:

        def features() -> Any:
            if not job.legacy:
                with contextlib.suppress(NoRoom):
                    wanted = Needs(teacher_hidden=(job.layer,))
                    hidden = teacher.values("train", wanted, exact=True)[f"hidden.{job.layer}"]
                    return stored_features(hidden, data, size)
            return live_features(
                lambda: teacher.network, job.layer, data, length=job.origin.max_length if job.legacy else None,
                batch_size=size, precision=session.precision, device=session.accelerator.device,
            )  # fmt: skip

        # Trained positions end where the longest example does; the published procedure has them all.
        length = job.origin.max_length if job.legacy else longest
        found = find_or_build(
            job.path, job.description, features, examples=len(data), length=length, accelerator=session.accelerator
        )
    found.check(job.path, job.origin, job.recipe.method.variant, longest)
    if found.about.get("data") != data.fingerprint():
        log.warning("memory %s was made of other training examples of the task than this run's", job.path)
    return found


def open_session(recipe: Recipe, half: bool, **options: Any) -> Session:
    """The machine, its processes and the arithmetic of a job; `half`: whether its model may run in half precision."""
    accelerator = make_accelerator(**options)
    precision = choose_precision(recipe.train.precision if half else "fp32", accelerator.device)
    return Session(accelerator, precision, environment())


def load_student(job: Job) -> tuple[Any, bool]:
    """The student as it starts: its layers of the model, with an embedding for each piece of its tokenizer; and
    whether it kept a trained head.
    """
    place, named = job.place, job.recipe.student.tokenizer
    layers = job.kept_layers if job.recipe.student.layers is not None else None
    if job.spec.head.plain_text:
        student, kept_head = open_of_plain_text(place, job.spec.head, job.tokenizer, job.way, layers=layers)
    else:
        student, kept_head = open_classifier(place, job.spec, job.way, keep_head=False, layers=layers)
    pieces = vocabulary_size(job.tokenizer)
    if named is not None and not place.fresh:
        own = load_tokenizer(place)
        check_expansion(own, job.tokenizer, place.given, named)
        grow_embeddings(student, own, job.tokenizer, from_pieces=job.recipe.method.variant == "corrected")
    elif pieces > student.config.vocab_size:
        log.info(
            "%s: its tokenizer has %d pieces without a row in the embedding; rows are drawn at random",
            place.given, pieces - student.config.vocab_size,
        )  # fmt: skip
        student.resize_token_embeddings(pieces, mean_resizing=False)
    if job.spec.head.hides_tokens:
        use_late_head(student)
    if job.recipe.student.freeze_embeddings:
        freeze_embeddings(student)
    return student, kept_head


class Run:
    """A job's models, and the run itself. Building one opens the student, and of a teacher the header of its file."""

    def __init__(self, job: Job) -> None:
        recipe = job.recipe
        self.job = job
        tracker = recipe.output.tracker or None
        self.session = open_session(recipe, job.way.half, log_with=tracker, project_dir=str(job.folder.path))
        torch.manual_seed(recipe.seed)  # a fresh head is drawn here
        student, self.kept_head = load_student(job)
        if get_method(recipe.method.name).starts_from_teacher and not self.kept_head:
            raise UserError(
                f"method {recipe.method.name!r} goes on with its teacher's head, and the labels in its config.json "
                "(id2label) are not this task's: name them there"
            )
        if recipe.train.dropout is not None:
            set_dropout(student, recipe.train.dropout)
        if recipe.train.fast_dropout and job.way.levers:
            use_fast_dropout(student)
        self.student = student.to(self.session.accelerator.device)
        for teacher in job.teachers:
            check_weights(teacher.place)  # opened when something is read of it, which is after the folder is locked

    @cached_property
    def teachers(self) -> list[FrozenTeacher | SoftTeacher]:
        """The run's teachers."""
        job = self.job
        found: list[FrozenTeacher | SoftTeacher] = []
        ids = {name: part.ids for name, part in job.examples.items()}
        ways = dict(zip(map(id, job.teachers), job.teacher_ways, strict=True))
        for number, known in enumerate(job.taught_by, 1):
            whose = f"teacher {number}" if len(job.taught_by) > 1 else "teacher"
            if isinstance(known, SoftLabels):
                part = job.train_examples
                assert isinstance(part, Examples)
                found.append(SoftTeacher(known, job.spec, part, job.encoded["train"], job.recipe, self.session, whose))
                continue
            assert isinstance(known, KnownTeacher)
            tokenizer, columns = job.tokenizer_of(known), job.columns(known)
            own = tokenizer is not job.tokenizer
            encoded = job.encoded_by(tokenizer) if own else job.encoded
            way = ways[id(known)]
            teacher = FrozenTeacher(known, way, columns, job.spec, job.recipe, encoded, own, ids, self.session, whose)
            found.append(teacher)
        return found

    @property
    def _models_that_teach(self) -> list[FrozenTeacher]:
        """The teachers but for soft labels, which are refused where hidden states are read."""
        return [teacher for teacher in self.teachers if isinstance(teacher, FrozenTeacher)]

    @cached_property
    def centroids(self) -> Centroids | None:
        """The centroids that the method reads."""
        wanted = self.job.centroids
        return None if wanted is None else find_centroids(wanted, self._models_that_teach[0], self.session)

    @cached_property
    def module(self) -> StudentWithMethod:
        """Student and method."""
        job, recipe = self.job, self.job.recipe
        method = get_method(recipe.method.name)(recipe.method)
        centroids = self.centroids.values if self.centroids is not None else None
        context = replace(job.context, centroids=centroids)
        # Not the draw that made the student's head, so that a method's own draws change no other.
        torch.manual_seed(int(np.random.SeedSequence([recipe.seed, 1]).generate_state(1, np.uint64)[0] >> 1))
        method.head = job.head  # also for a method whose `prepare` does not call the one of `Method`
        method.prepare(context)
        if job.needs.holds_teachers:
            method.take_models(self.student, [teacher.network for teacher in self._models_that_teach])
        if job.needs.survey:
            method.survey(self._surveyed(job.needs))
        needs = job.needs
        if needs.unreached:  # else several processes wait for each other's gradients for ever
            self.session.accelerator.ddp_handler = DistributedDataParallelKwargs(find_unused_parameters=True)
        module = StudentWithMethod(
            self.student, method, self.session.precision, needs.student_hidden, needs.student_attention,
            needs.first_token,
        )  # fmt: skip
        return module.to(self.session.accelerator.device)

    def _surveyed(self, needs: Needs) -> Iterator[list[HiddenStates]]:
        """What the teachers say of the texts that the method looks at beforehand, the same in every process."""
        data, device = self.job.encoded["train"], self.session.accelerator.device
        rows = np.unique(np.linspace(0, len(data) - 1, needs.survey).astype(np.int64))
        teachers = [teacher.live(needs) for teacher in self._models_that_teach]
        for part in evaluation_batches(data.lengths[rows], SURVEY_BATCH):
            batch = collate(data, rows[part]).to(device)
            yield [teacher.outputs(batch) for teacher in teachers]

    def result(self) -> RunResult:
        """Train, evaluate, save, and write down what was found."""
        try:
            return self._run()
        except RuntimeError as error:
            lost = isinstance(error, torch.distributed.DistError) or "gloo" in str(error)  # its errors have no class
            if self.session.accelerator.num_processes == 1 or not lost:
                raise
            raise KdbertError(
                "another process of this run has ended, and says why; the same command continues from the last save"
            ) from None

    def _run(self) -> RunResult:
        job, recipe, folder, accelerator = self.job, self.job.recipe, self.job.folder, self.session.accelerator
        main, started = accelerator.is_main_process, time.time()
        self._find_folder()
        for part in job.encoded.values():
            check_runs(self.student, part, job.place.given)
        scored = time.perf_counter()
        constant = constant_answers(job.spec, job.eval_examples)
        taught_by = [teacher_facts(job, teacher) for teacher in self.teachers]
        for facts in taught_by:
            if facts["metrics"]:  # soft labels have no answers to dev
                warn_if_untrained(job.spec, facts, constant)
        teacher_seconds = time.perf_counter() - scored
        module = self.module
        if main:
            self._announce()
            self._open_folder()
        accelerator.wait_for_everyone()
        if recipe.output.tracker:
            accelerator.init_trackers("kdbert", config={"recipe": recipe.yaml()})
        diagnostics = self._diagnostics() if recipe.output.diagnose else None
        scored = time.perf_counter()
        teachers = self.ready_teachers()
        teacher_seconds += time.perf_counter() - scored
        newest: dict[str, Answers] = {}  # of the last evaluation

        def evaluate(model: nn.Module) -> dict[str, float]:
            newest.update({name: self._answers(model, name) for name in job.spec.split_names("dev")})
            return {f"{split}/{name}": value for split, one in newest.items() for name, value in one.scores.items()}

        rows = trained_rows(recipe.train, job.encoded["train"], module)
        with contextlib.nullcontext() if job.needs.holds_teachers else rows:
            trained = train(
                recipe.train, seed=recipe.seed, data=job.encoded["train"], module=module, teachers=teachers,
                evaluate=evaluate, selection=f"{job.spec.split_names('dev')[0]}/{job.spec.metrics[0]}",
                folder=folder.path, accelerator=accelerator, trackers=recipe.output.tracker,
                length=recipe.task.max_length if job.needs.reads_padding else None,
                at_log=lambda step: diagnostics.numbers() if diagnostics is not None and main else {},
                ids=job.train_examples.ids,
            )  # fmt: skip
        if trained.best and trained.best["step"] != job.steps:
            newest.clear()  # they are not of the weights that were chosen
        found = {name: newest.get(name) or self._answers(self.student, name) for name in job.eval_examples}
        if diagnostics is not None:
            self._draw(diagnostics)
        if recipe.output.tracker:
            accelerator.end_training()
        if main:
            timings = {
                "teacher_seconds": round(teacher_seconds, 3),
                "train_seconds": round(trained.train_seconds, 3),
                "eval_seconds": round(trained.eval_seconds, 3),
                "total_seconds": round(time.time() - started, 3),
                "examples_per_second": round(trained.examples / max(trained.train_seconds, 1e-9), 1),
                "resumed_from_step": trained.resumed_from,
            }
            self._finish(found, trained, constant_answer=constant, teachers=taught_by, timings=timings)
        accelerator.wait_for_everyone()
        return folder.result()

    def _find_folder(self) -> None:
        """Refuse a process that does not see the folder which the first one has locked, and so made."""
        path, accelerator, began = self.job.folder.path, self.session.accelerator, time.monotonic()
        accelerator.wait_for_everyone()
        while not path.is_dir():
            if time.monotonic() > began + SEEN_WITHIN:
                raise UserError(
                    f"process {accelerator.process_index} on {platform.node()} does not find {path}, where the first "
                    "process writes: start the same command on every machine, with paths on a disk that they share"
                )
            time.sleep(1)

    def ready_teachers(self) -> list[Teacher]:
        """The teachers as training reads them; their networks are freed where all of it is stored."""
        method, centroids = self.module.method, self.centroids
        made_with = centroids.fingerprint if centroids is not None else ""
        reads_nothing = self.job.needs.holds_teachers and not kinds_of(self.job.needs, "example")
        teachers = [] if reads_nothing else self.teachers
        ready = [teacher.for_training(self.job.needs, method, made_with) for teacher in teachers]
        if all(isinstance(teacher, StoredTeacher) for teacher in ready):
            for teacher in self.teachers:
                teacher.release()
        return ready

    def _answers(self, model: nn.Module, split: str) -> Answers:
        job, method = self.job, self.module.method
        encoder = job.spec.kind == "encoder"
        needs = replace(job.needs, teacher_dropout=False)
        teachers = [one.live(needs, method) for one in self._models_that_teach] if encoder else []

        def loss_of_texts(outputs: HiddenStates, batch: Batch) -> torch.Tensor:
            return method.loss_of_texts(outputs, [teacher.outputs(batch) for teacher in teachers], batch)

        return answers(
            model, job.spec, job.eval_examples[split], job.encoded[split],
            batch_size=job.recipe.train.eval_batch_size, precision=self.session.precision,
            accelerator=self.session.accelerator, whose=f"the model's outputs on {split}",
            cure="; try a lower train.learning_rate",
            outcome_of=loss_of_texts if encoder else None, layers=job.needs.student_hidden if encoder else (),
            attention=job.needs.student_attention if encoder else {},
        )  # fmt: skip

    def _diagnostics(self) -> Diagnostics:
        split, teacher = self.job.spec.split_names("dev")[0], self._models_that_teach[0]
        found = Diagnostics(
            self.student, teacher.network, self.job.encoded[split], teacher.encoded[split] if teacher.own else None,
            self.job.models, self.job.spec.head, precision=self.session.precision,
            batch_size=self.job.recipe.train.eval_batch_size, accelerator=self.session.accelerator,
        )  # fmt: skip
        if self.session.accelerator.is_main_process:
            log.info("diagnose: %s", found.words())
        return found

    def _draw(self, diagnostics: Diagnostics) -> None:
        """Write the heat map of `--diagnose`."""
        recipe, target = self.job.recipe, self.job.folder.path / "diagnostics"
        values = diagnostics.layer_cka()
        if self.session.accelerator.is_main_process:
            variant = "" if recipe.method.variant == "corrected" else f" ({recipe.method.variant})"
            title = f"{self.job.spec.name}: {recipe.method.name}{variant}, seed {recipe.seed}"
            diagnostics.write(target, values, title)
            log.info("heat map: %s", target / "cka.png")

    def _announce(self) -> None:
        """Say what is about to be trained."""
        job, recipe, data, accelerator = self.job, self.job.recipe, self.job.encoded["train"], self.session.accelerator
        log.info(
            "%s on %s: %d training examples (%.1f tokens on average, %d cut to %d), %d steps",
            recipe.method.name, job.spec.name, len(data), data.lengths.mean(), data.truncated,
            recipe.task.max_length, job.steps,
        )  # fmt: skip
        kept = f"layers {', '.join(map(str, job.kept_layers))} of " if recipe.student.layers is not None else ""
        head = "its own" if self.kept_head else "no" if job.spec.kind == "encoder" else "a fresh"
        log.info(
            "%s: %s%s, %.2f M parameters, with %s head; %s on %s, %d process%s, %d thread%s",
            "student" if recipe.teachers else "model", kept, job.place.given,
            sum(p.numel() for p in self.student.parameters()) / 1e6,
            head, self.session.precision, accelerator.device,
            accelerator.num_processes, "es" if accelerator.num_processes > 1 else "", torch.get_num_threads(),
            "s" if torch.get_num_threads() > 1 else "",
        )  # fmt: skip
        for sentence in job.words():
            log.info("%s", sentence)
        tokens = recipe.train.batch_tokens
        if job.needs.compares_examples and tokens is None and job.micro_batch != recipe.train.batch_size:
            log.info("%s compares %d examples, not %d", recipe.method.name, job.micro_batch, recipe.train.batch_size)
        for sentence in job.warnings():
            log.warning("%s", sentence)
        if data.labels is not None and not job.spec.head.of_words:
            first = epoch_order(recipe.train, data, job.spec.head, recipe.seed, 0)
            parts = [part for rows in first for part in np.array_split(rows, recipe.train.accumulation) if len(part)]
            if data.labelled is not None:
                parts = [some for part in parts if len(some := part[data.labelled[part]])]
            remark = self.module.method.remark([data.labels[part] for part in parts]) if parts else None
            if remark:
                log.warning("%s", remark)

    def _open_folder(self) -> None:
        """Create the run's files, or check that an interrupted run had the same inputs."""
        job, recipe, folder, accelerator = self.job, self.job.recipe, self.job.folder, self.session.accelerator
        fingerprints = {name: part.fingerprint() for name, part in job.encoded.items()}
        fingerprints["student"] = job.place.fingerprint()
        fingerprints.update({f"teacher{i}": one.fingerprint() for i, one in enumerate(job.taught_by)})
        if self.centroids is not None:
            fingerprints["centroids"] = self.centroids.fingerprint
        machine = {
            "precision": self.session.precision, "processes": accelerator.num_processes,
            "device": accelerator.device.type, "threads": torch.get_num_threads(),
        }  # fmt: skip
        folder.begin(
            fingerprints, machine, self.session.environment,
            needed=5 * 4 * sum(p.numel() for p in self.module.parameters()), role=job.role,
            recipe=recipe.model_dump(mode="json"), identity=identity_of(recipe, job.fingerprints), data=job.data_files,
            **task_record(job.spec), way=job.way.record(), steps=job.steps, **self._stage_before(),
        )  # fmt: skip
        write_text(folder.path / "recipe.yaml", recipe.yaml())

    def _stage_before(self) -> dict[str, Any]:
        """What run.json says of the first stage, whose student this one goes on with.

        Its start and the digest of its recipe make seeds one experiment, though each has another first student.
        """
        run = stage_before(self.job.recipe)
        if run is None:
            return {}
        facts = run_facts(run)
        identity = {key: value for key, value in facts["identity"].items() if key != "seed"}
        trained = {key: facts["recipe"]["train"][key] for key in StageSection.model_fields}
        told = {"student": facts["recipe"]["student"], "start": identity["student"]}
        told["stages"] = {facts["recipe"]["method"]["stage"]: trained}
        return {"stage_before": {"run": str(run), "digest": digest_of(identity), **told}}

    def _rows(self) -> dict[str, Any]:
        """What run.json says of training rows without a label; nothing where there are none."""
        labelled, others = self.job.label_counts
        return (
            {"rows": {"labelled": labelled, "left_out" if self.job.labels_alone else "unlabelled": others}}
            if others
            else {}
        )

    def _finish(self, found: Mapping[str, Answers], trained: TrainResult, **facts: Any) -> None:
        """Save the model, its predictions and the facts; the last thing written says that the run is finished."""
        job, recipe, folder, baseline = self.job, self.job.recipe, self.job.folder, baseline_of(self.job)
        facts |= {
            "metrics": {name: one.scores for name, one in found.items()},
            "selection": job.spec.metrics[0],
            "one_answer": same_answers(found),
            **({} if job.spec.head.plain_text or recipe.method.trains_head else {"head_trained": False}),
            **({"class_weights": job.head.weights_by_class} if job.head.class_weights else {}),
            **self._rows(),
            **({"known_pieces": job.known_pieces} if job.spec.head.hides_tokens else {}),
            "layers": self.student.config.num_hidden_layers,
            "parameters": sum(p.numel() for p in self.student.parameters()),
            "baseline": {"run": str(baseline.path), "metrics": baseline.metrics} if baseline is not None else None,
            "best": trained.best,
            "steps_done": trained.steps,
            **trained.scaling,
        }

        def fill(target: Path) -> None:
            self.student.save_pretrained(target)
            job.tokenizer.model_max_length = recipe.task.max_length
            if not job.spec.head.plain_text:  # its file says where texts were cut, whichever job tokenised them
                job.tokenizer("", truncation="longest_first", max_length=recipe.task.max_length)
            job.tokenizer.save_pretrained(target)
            facts["size_mib"] = round((target / "model.safetensors").stat().st_size / 2**20, 2)
            known = {
                **facts, **self._stage_before(), "environment": self.session.environment,
                "hard_loss": job.hard_loss_words(),
            }  # fmt: skip
            card = model_card(recipe, job.spec, facts["metrics"], known)
            (target / "README.md").write_text(card, encoding="utf-8")
            dev = job.spec.split_names("dev")[0]
            assert recipe.task.max_length is not None
            precision = self.session.precision
            check_saved(target, self.student, found[dev], job.encoded[dev], precision, recipe.task.max_length)

        replace_folder(folder.path / "model", fill)
        for name, one in found.items():
            one.write(folder.path / "predictions" / f"{name}.jsonl")
        own = self.module.method.state_dict()
        if own:
            from safetensors.torch import save_file

            atomic_write(folder.path / "method.safetensors", lambda temporary: save_file(own, temporary))
        facts["model_fingerprint"] = ModelPlace("", str(folder.path / "model")).fingerprint()
        facts["files"] = folder.written()
        now = datetime.now().astimezone().isoformat(timespec="milliseconds")  # `@last` is told by it
        folder.update(status="finished", finished=now, **facts)
        if not recipe.output.keep_checkpoints:
            shutil.rmtree(folder.path / "checkpoints", ignore_errors=True)


def baseline_of(job: Job) -> RunResult | None:
    """The same student without a teacher, if that run is finished."""
    if not job.recipe.teachers or job.spec.kind == "encoder":  # which has nothing to learn without a teacher
        return None
    try:
        baseline = Job("baseline", baseline_recipe(job.recipe), job.inputs)
        return baseline.folder.result() if baseline.finished else None
    except UserError as error:
        log.warning("the run without a teacher is left out: %s", error)
        return None
