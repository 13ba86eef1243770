"""`kdbert report`: its numbers are those of the table, the card and run.json; nothing from data becomes markup;
broken things are named and skipped; what a file holds is what the page shows.
"""

from __future__ import annotations

import csv
import io
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from run_files import edit, write_cka, write_log, write_predictions, write_run
from sklearn.metrics import f1_score, recall_score

from conftest import absent
from kdbert.disk.sealed import sealed
from kdbert.heads import head_of
from kdbert.reporting import figures
from kdbert.reporting.curves import MOST, mean_curve, seeds_told
from kdbert.reporting.figures import LATENCY, Curve, Point, quality_over
from kdbert.reporting.predicted import Predictions
from kdbert.reporting.report import make_report
from kdbert.reporting.versus_teacher import class_scores
from kdbert.tasks import get_task

Kdbert = Callable[..., Any]
SCRIPT = '<script>document.title="taken"</script>'
PICTURE = "<img src=x onerror=document.title='taken'>"
VOID = {"meta", "br", "wbr", "img", "input", "link", "hr", "path", "use", "line", "rect", "circle"}
THEN = datetime(2026, 1, 2, 3, 4, tzinfo=timezone.utc)


class Page(HTMLParser):
    """A page as a browser would take it apart: elements, tables, text."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.source = text
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.tables: list[list[list[str]]] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
        elif tag == "br":
            self.handle_data(" ")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" in self.open:
            return
        self.texts.append(data)
        if "td" in self.open or "th" in self.open:
            self.tables[-1][-1][-1] += data

    @property
    def text(self) -> str:
        return " ".join("".join(self.texts).split())

    def section(self, name: str) -> Page:
        """One section of the page."""
        start = self.source.index(f'<section id="{name}">')
        return Page(self.source[start : self.source.index("</section>", start) + len("</section>")])

    def row(self, name: str) -> list[str]:
        """The first line of a table that begins with `name`."""
        return next(row for table in self.tables for row in table if row[0] == name)


def check(text: str) -> Page:
    """A page that loads and runs nothing, whose elements are closed and whose ids are there once."""
    page = Page(text)
    assert page.open == []
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    harmless = {
        "html", "head", "meta", "title", "style", "body", "header", "nav", "a", "section", "h1", "h2", "h3", "h4", "p",
        "ul", "ol", "li", "b", "br", "wbr", "i", "small", "mark", "code", "pre", "div", "figure", "figcaption", "table",
        "thead", "tbody", "tr", "th", "td", "details", "summary", "svg", "g", "defs", "path", "use", "text", "tspan",
    }  # fmt: skip
    for tag, attributes in page.elements:
        assert tag in harmless, tag
        for name, value in attributes.items():
            assert not name.startswith("on"), (tag, name)
            assert name not in ("src", "srcset", "action", "formaction"), (tag, name)
            if name == "href":
                assert value is not None
                assert value[0] == "#"
                assert value[1:] in ids
            if name != "aria-label":
                assert "url(" not in (value or "")
    assert "url(" not in text[text.index("<style>") : text.index("</style>")]
    assert "@import" not in text
    return page


def report(kdbert: Kdbert, *words: object) -> Page:
    """The page of a command that must work."""
    done = kdbert("report", *words)
    assert done.code == 0, done.err
    return check(Path(done.out.strip()).read_text(encoding="utf-8"))


def compact(page: str) -> str:
    """A page without the time that it tells."""
    return re.sub(r"Made \S+ \S+ UTC", "", page)


# ---- one real distillation, whose data is hostile (a label ends lines, for Unicode)


@pytest.fixture(scope="module")
def real_runs(tmp_path_factory: pytest.TempPathFactory, tiny_bert: Path) -> Path:
    """A teacher, a student and the student without it, of texts, labels and a file name that are HTML."""
    from kdbert import Recipe, distill

    folder = tmp_path_factory.mktemp("real")
    rng = np.random.default_rng(0)
    for name, rows in ((f"train {PICTURE}.csv", 120), ("dev.csv", 40)):
        with open(folder / name, "w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["text", "label"])
            for number in range(rows):
                good = int(rng.integers(2))
                words = " ".join([["sad", "happy"][good]] * 20)  # the teacher learns it in a few steps
                writer.writerow([f"{words} film {number} & {SCRIPT} {PICTURE}", [SCRIPT, "b\u2028& c"][good]])
    flags = {
        "method.name": "kd",
        "task": {
            "name": "custom", "train_file": str(folder / f"train {PICTURE}.csv"), "dev_file": str(folder / "dev.csv"),
            "max_length": 32,
        },
        "teacher_training": {"model": str(tiny_bert), "epochs": 6, "batch_size": 8, "learning_rate": 1e-3},
        "student.layers": 2,
        "train.epochs": 1,
        "train.learning_rate": 1e-6,  # it learns nothing, so that the two disagree
        "train.logging_steps": 1,
        "output": {"runs_dir": str(folder / "runs"), "diagnose": True},
    }  # fmt: skip
    distill(Recipe.build(flags=flags), baseline=True)
    return folder / "runs"


@pytest.fixture(scope="module")
def real_page(kdbert: Kdbert, real_runs: Path) -> Page:
    return report(kdbert, real_runs, "-o", real_runs.parent / "page.html", "--title", f"{SCRIPT}{PICTURE}")


def test_table_report_card_and_run_json_have_the_same_numbers(kdbert: Kdbert, real_runs: Path, real_page: Page) -> None:
    lines = list(csv.DictReader(io.StringIO(kdbert("table", real_runs, "--format", "csv").out)))
    summary = {row[0]: row[1] for row in real_page.section("summary").tables[0][1:]}
    every = [row for table in real_page.section("runs").tables for row in table]
    checked = unlearned = 0
    for path in real_runs.glob("custom/*/*/run.json"):
        facts = json.loads(path.read_text(encoding="utf-8"))
        scores, name = facts["metrics"]["dev"], facts["recipe"]["method"]["name"]
        card = (path.parent / "model" / "README.md").read_text(encoding="utf-8")
        for metric, value in scores.items():
            assert f"| dev | {metric} | {value:.4f} |" in card
        (listed,) = (row for row in every if row[-1] == str(path.parent))
        assert listed[2 : 2 + len(scores)] == [f"{value:.4f}" for value in scores.values()]
        label = f"finetune (teacher, {facts['layers']} layers)" if facts["layers"] == 4 else name
        (line,) = (line for line in lines if line["method"] == label)
        assert float(line["mean"]) == scores["accuracy"]
        same = facts["one_answer"].get("dev")  # the students, which have learned nothing
        assert summary[label] == f"{scores['accuracy']:.4f}{'†' * (same is not None)} (1)"
        assert ("gives the same answer to every example" in card) == (same is not None)
        assert (f"one answer to every example of dev: {same}" in " ".join(listed)) == (same is not None)
        unlearned += same is not None
        checked += 1
    assert (checked, unlearned) == (3, 2)


def test_texts_labels_and_titles_are_no_markup_in_the_page(real_page: Page) -> None:
    assert f"{SCRIPT}{PICTURE}" in real_page.text  # the title
    for part, wanted in (("classes", SCRIPT), ("examples", SCRIPT), ("examples", f"& {SCRIPT} {PICTURE}"),
                         ("runs", PICTURE)):  # fmt: skip
        assert wanted in real_page.section(part).text, part
    assert "<script" not in real_page.source
    assert "<img" not in real_page.source


def test_names_from_data_are_no_markup_in_the_card(real_runs: Path) -> None:
    for path in real_runs.glob("custom/*/*/model/README.md"):
        _, _, body = path.read_text(encoding="utf-8").split("---\n", 2)
        outside, _, rest = body.partition("```yaml\n")  # a code block shows what it holds
        outside += rest.partition("\n```\n")[2]
        assert "&lt;img src=x" in outside
        assert "<img" not in re.sub(r"`[^`]*`", "", outside)


def test_a_real_run_fills_every_section(real_page: Page) -> None:
    assert "--data-dir" not in real_page.section("examples").text
    assert "film" in real_page.section("examples").text
    drawn = [attributes["aria-label"] for tag, attributes in real_page.elements if attributes.get("role") == "img"]
    for part in ("dev accuracy over epochs", "training loss over epochs", "hard (loss term)", "soft (loss term)"):
        assert any(part in str(label) for label in drawn), part
    heat = real_page.section("layers").tables[0]
    assert (len(heat), len(heat[0])) == (1 + 5, 1 + 3)  # layers 0 to 4 of the teacher, 0 to 2 of the student
    assert "torch: 2." in real_page.section("runs").text
    assert "Difference to finetune" in real_page.section("summary").text


CHROMIUM = next((found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))),
                None)  # fmt: skip


@pytest.mark.parametrize("policy", [True, False], ids=["as it is", "without its security policy"])
def test_nothing_of_the_data_runs_in_a_browser(real_page: Page, tmp_path: Path, policy: bool) -> None:
    if CHROMIUM is None:
        absent("no Chromium")
    page = real_page.source if policy else re.sub(r"<meta http-equiv=[^>]*>", "", real_page.source)
    (tmp_path / "page.html").write_text(page, encoding="utf-8")
    words = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom"]
    try:
        done = subprocess.run(
            [str(CHROMIUM), *words, (tmp_path / "page.html").as_uri()], capture_output=True, timeout=120
        )
    except subprocess.TimeoutExpired:
        absent("Chromium does not answer here")
    if done.returncode != 0:
        absent(f"Chromium does not start here: {done.stderr[-200:]!r}")
    seen = check(done.stdout.decode("utf-8"))
    assert seen.texts[seen.texts.index(f"{SCRIPT}{PICTURE}")]  # the title is still the person's
    assert "taken" not in [text.strip() for text in seen.texts]


def test_the_same_runs_give_the_same_bytes_but_for_the_time(real_runs: Path, tmp_path: Path) -> None:
    """In this process and in another with other hashes."""
    here = make_report([real_runs], now=THEN)
    assert "Made 2026-01-02 03:04 UTC" in here
    done = subprocess.run(
        [sys.executable, "-m", "kdbert", "report", str(real_runs), "-o", str(tmp_path / "report.html")],
        env={**os.environ, "PYTHONHASHSEED": "7"}, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{tmp_path / 'report.html'}\n"
    assert compact((tmp_path / "report.html").read_text(encoding="utf-8")) == compact(here)


# ---- markup everywhere


def test_names_of_anything_are_no_markup(kdbert: Kdbert, tmp_path: Path) -> None:
    method = f"{SCRIPT}'\"&$x^2$"
    runs = tmp_path / "runs"
    for seed in (1, 2):
        run = write_run(runs, method="kd", seed=seed, name=f"{PICTURE}-{seed}")
        content = json.loads((run / "run.json").read_text())
        content["recipe"]["method"]["name"] = method
        environment = {"processor": SCRIPT, "command": ["kdbert", SCRIPT]}
        edit(run, **{**content, "environment": environment, "parameters": 10**6, "size_mib": 4.0})
        write_log(run, terms=[SCRIPT, "hard"])
    edit(write_run(runs, seed=3, status="failed"), message=SCRIPT)
    broken = write_run(runs, seed=4, name=f"broken {PICTURE}")
    (broken / "run.json").write_text("{")
    write_benchmark(runs, name=SCRIPT, backend=PICTURE, processor=SCRIPT)
    page = report(kdbert, runs, "-o", tmp_path / "report.html")
    assert method in page.section("summary").text
    assert method in page.section("runs").text
    assert f"broken {PICTURE}" in page.text
    assert SCRIPT in page.section("speed").text
    assert page.source.lower().count("<script") == 0


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(max_size=40), where=st.sampled_from(["title", "method", "engine"]))
def test_any_text_leaves_the_page_whole(tmp_path: Path, text: str, where: str) -> None:
    shutil.rmtree(tmp_path / "runs", ignore_errors=True)
    run = write_run(tmp_path / "runs")
    plain = len(check(make_report([tmp_path / "runs"])).elements)
    if where == "method":
        content = json.loads((run / "run.json").read_text())
        content["recipe"]["method"]["name"] = text
        edit(run, **content, parameters=10**6)
    elif where == "engine":
        write_benchmark(tmp_path / "runs", name=text)
    page = make_report([tmp_path / "runs"], title=text if where == "title" else None)
    page.encode("utf-8")
    found = check(page)
    if where == "title":
        assert len(found.elements) == plain
        assert " ".join(re.sub(r"[\x00-\x08\x0b-\x1f\x7f\ufffe\uffff]", "\ufffd", text).split()) in found.text


# ---- what is shown


def test_curves_are_means_over_seeds_from_the_lowest_to_the_highest() -> None:
    logs = [[{"step": i, "epoch": i / 10, "loss": i * scale} for i in range(1, 11)] for scale in (1.0, 2.0, 6.0)]
    logs[2].pop()  # stopped earlier
    line = mean_curve(logs, "loss", 3, band=True)
    assert line is not None
    assert list(line.x) == pytest.approx([i / 10 for i in range(1, 11)])
    assert list(line.mean)[:9] == pytest.approx([3 * i for i in range(1, 10)])
    assert list(line.mean)[9] == pytest.approx(15)
    assert list(line.low) == pytest.approx(list(range(1, 11)))
    assert list(line.high)[:9] == pytest.approx([6 * i for i in range(1, 10)])
    assert mean_curve(logs, "dev/accuracy", 0) is None
    long = mean_curve([[{"step": i, "loss": float(i)} for i in range(1000)]], "loss", 0)
    assert long is not None
    assert len(long.x) == MOST
    assert np.mean(long.mean) == pytest.approx(499.5, rel=0.02)


def test_where_seeds_stopped_early_the_number_of_seeds_is_told_and_the_line_is_thin(
    kdbert: Kdbert, tmp_path: Path
) -> None:
    logs = [[{"step": i, "epoch": float(i), "loss": i * 1.0} for i in range(1, last + 1)] for last in (6, 6, 4, 2)]
    curve = mean_curve(logs, "loss", 0, band=True)
    assert curve is not None
    assert list(curve.n) == [4, 4, 3, 3, 2, 2]
    assert seeds_told(logs) == "4 seeds; 3 after epoch 2; 2 after epoch 4"
    assert seeds_told(logs[:2]) == "2 seeds"
    drawn = figures.lines([curve], x_label="epoch", y_label="loss").axes[0].lines
    assert [(list(line.get_xdata()), line.get_linewidth()) for line in drawn] == [
        ([1, 2], 1.8), ([2, 3, 4, 5, 6], 0.8),
    ]  # fmt: skip
    for seed, steps in ((1, 30), (2, 30), (3, 20)):
        run = write_run(tmp_path / "runs", seed=seed)
        write_log(run)
        lines = (run / "metrics.jsonl").read_text().splitlines()
        kept = [line for line in lines if json.loads(line)["step"] <= steps]
        (run / "metrics.jsonl").write_text("\n".join(kept) + "\n")
    page = report(kdbert, tmp_path / "runs", "-o", tmp_path / "report.html").section("curves")
    assert "kd (3 seeds; 2 after epoch 2)" in page.text


def test_a_line_of_the_log_that_is_no_record_is_left_out(kdbert: Kdbert, tmp_path: Path) -> None:
    run = write_run(tmp_path / "runs")
    write_log(run)
    with open(run / "metrics.jsonl", "a", encoding="utf-8") as file:
        file.write('[1]\n{"step": "x", "loss": 1}\n{"step": 31, "loss": NaN, "loss/hard": "a"}\n{"step": 32, "lo')
    page = report(kdbert, tmp_path / "runs", "-o", tmp_path / "report.html")
    assert "kd (1 seed)" in page.section("curves").text
    (run / "metrics.jsonl").unlink()
    page = report(kdbert, tmp_path / "runs", "-o", tmp_path / "report.html")
    assert f"no curve of {run}" in page.section("curves").text


def test_heat_maps_are_means_over_seeds_and_damaged_ones_are_named(kdbert: Kdbert, tmp_path: Path) -> None:
    runs = [write_run(tmp_path / "runs", seed=seed) for seed in (1, 2, 3)]
    write_cka(runs[0], np.array([[1.0, 0.5], [0.25, 0.1], [0.3, 0.7]]))
    write_cka(runs[1], np.array([[1.0, 0.7], [0.35, 0.3], [0.3, 0.9]]))
    write_cka(runs[2], np.array([[1.0]]))
    (runs[2] / "diagnostics" / "cka.csv").write_text("teacher_layer,student_0\n0,high\n")
    page = report(kdbert, tmp_path / "runs", "-o", tmp_path / "report.html").section("layers")
    assert page.tables[0] == [
        ["", "0", "1"], ["2", "0.30", "0.80"], ["1", "0.30", "0.20"], ["0", "1.00", "0.60"]
    ]  # fmt: skip
    assert "kd (2 seeds)" in page.text
    assert "is damaged" in page.text


def test_f1_and_recall_of_classes_are_scikit_learns() -> None:
    rng = np.random.default_rng(0)
    names = ("a", "b", "O", "c")
    gold, found = rng.integers(0, 4, 200), rng.integers(0, 3, 200)
    ids = [str(i) for i in range(200)]
    one = class_scores(Predictions(head_of("single_label", names), ids, found, gold))
    assert one.names == names
    np.testing.assert_allclose(one.f1, f1_score(gold, found, average=None, zero_division=0))
    np.testing.assert_allclose(one.recall, recall_score(gold, found, average=None, zero_division=0))
    tags = class_scores(Predictions(head_of("token", names), ids, found, gold, np.arange(200)))
    assert tags.names == ("a", "b", "c")
    np.testing.assert_allclose(tags.f1, np.delete(one.f1, 2))
    many, answers = rng.random((200, 4)) < 0.4, rng.random((200, 4)) < 0.4
    several = class_scores(Predictions(head_of("multi_label", names), ids, answers, many))
    np.testing.assert_allclose(several.f1, f1_score(many, answers, average=None))
    np.testing.assert_array_equal(several.count, many.sum(0))


@pytest.fixture
def taught(tmp_path: Path) -> Path:
    """A teacher (8 of 10 right) and a student (6 right) on RTE's dev, of which the texts are at hand."""
    data = tmp_path / "data" / "RTE"
    data.mkdir(parents=True)
    rows = [f"{i}\tfirst {i} <b>\tsecond {i}\tentailment" for i in range(10)]
    (data / "dev.tsv").write_text("\n".join(["index\tsentence1\tsentence2\tlabel", *rows]) + "\n", encoding="utf-8")
    gold = np.array([0, 0, 0, 0, 0, 1, 1, 1, 1, 1])
    teacher = np.array([0, 0, 0, 0, 1, 1, 1, 1, 1, 0])  # wrong: 4, 9
    student = np.array([0, 0, 1, 1, 1, 1, 1, 1, 0, 1])  # wrong: 2, 3, 4, 8
    runs = tmp_path / "runs"
    place = write_run(runs, method="finetune", seed=0, layers=None, score=0.8, fingerprint="content of t", name="t")
    pupil = write_run(runs, method="kd", seed=1, score=0.6, teacher="t")
    for run, answers in ((place, teacher), (pupil, student)):
        scores = np.where(np.eye(2, dtype=bool)[answers], 1.0, 0.0)
        if run == pupil:
            scores[3] *= 5  # the surest mistake
        write_predictions(run, answers, gold, scores=scores)
    return tmp_path


def test_examples_on_which_they_disagree_stand_by_who_is_right(kdbert: Kdbert, taught: Path) -> None:
    words = [taught / "runs", "-o", taught / "report.html"]
    page = report(kdbert, *words, "--data-dir", taught / "data").section("examples")
    counts = "teacher right, student wrong 3; student right, teacher wrong 1; both wrong, and different 0"
    assert f"kd, seed 1, dev (10 examples): {counts}" in page.text
    wrong, _, right = page.text.partition("Student right, teacher wrong: 1 of 1")
    assert [int(found) for found in re.findall(r"second (\d)", wrong)] == [3, 2, 8]  # the widest gap first, then ids
    assert [int(found) for found in re.findall(r"second (\d)", right)] == [9]
    assert "first 3 <b>" in wrong
    assert "label entailment · teacher entailment · student not_entailment · gap 0.72 · 3" in wrong
    without = report(kdbert, *words).section("examples")
    assert "--data-dir" in without.text
    assert "· gap 0.72 · 3" in without.text
    assert "second" not in without.text


def test_texts_of_other_files_are_not_shown(kdbert: Kdbert, taught: Path) -> None:
    for run in taught.glob("runs/rte/kd/*"):
        edit(run, data={"dev": "0123456789abcdef"})
    words = [taught / "runs", "-o", taught / "report.html", "--data-dir", taught / "data"]
    page = report(kdbert, *words).section("examples")
    assert "is not the one of the runs" in page.text
    assert "second" not in page.text


def test_classes_are_students_less_their_teacher_even_when_the_runs_were_moved(kdbert: Kdbert, taught: Path) -> None:
    shutil.move(taught / "runs", taught / "elsewhere")
    page = report(kdbert, taught / "elsewhere", "-o", taught / "report.html").section("classes")
    heading, *rows = page.tables[0]
    assert heading[:2] == ["class", "kd (1 seed)"]
    # F1 of entailment: teacher 2*4/(5+5), student 2*3/(4+5); recall 4/5 and 2/5... of 5 there
    student = {"entailment": (2 * 2 / (3 + 5), 2 / 5), "not_entailment": (2 * 4 / (7 + 5), 4 / 5)}
    for row in rows:
        f1, recall = student[row[0]]
        assert row[1].split() == [f"{f1 - 0.8:+.3f}", f"{recall - 0.8:+.3f}"]
        assert row[2].split() == ["0.800", "0.800"]
        assert row[3] == "5"


def test_a_teacher_that_is_not_here_is_told(kdbert: Kdbert, taught: Path) -> None:
    shutil.rmtree(taught / "runs" / "rte" / "finetune")
    page = report(kdbert, taught / "runs", "-o", taught / "report.html")
    assert "its teacher runs/rte/finetune/t" in page.section("classes").text


def test_predictions_that_do_not_give_the_score_are_not_used(kdbert: Kdbert, taught: Path) -> None:
    (run,) = taught.glob("runs/rte/kd/*")
    edit(run, metrics={"dev": {"accuracy": 0.7}})
    page = report(kdbert, taught / "runs", "-o", taught / "report.html")
    assert "run.json says 0.700000" in page.section("classes").text
    assert "run.json says 0.700000" in page.section("examples").text


def test_rows_that_differ_in_more_than_the_seed_have_names_of_their_own(kdbert: Kdbert, tmp_path: Path) -> None:
    for rate in (1e-4, 2e-4):
        for seed in (1, 2):
            write_log(write_run(tmp_path / "runs", rate=rate, seed=seed))
    write_log(write_run(tmp_path / "runs", method="ics", rate=1e-4))
    page = report(kdbert, tmp_path / "runs", "-o", tmp_path / "report.html").section("curves")
    for name in ("ics (1 seed)", "kd, lr 1e-4 (2 seeds)", "kd, lr 2e-4 (2 seeds)"):
        assert name in page.text


def test_environments_that_are_the_same_are_printed_once(kdbert: Kdbert, tmp_path: Path) -> None:
    for seed, machine in ((1, "here"), (2, "here"), (3, "there")):
        edit(write_run(tmp_path / "runs", seed=seed), environment={"platform": machine, "command": [f"seed {seed}"]})
    page = report(kdbert, tmp_path / "runs", "-o", tmp_path / "report.html").section("runs")
    assert page.text.count("platform: here") == 1
    assert "Environment 1: 2 runs" in page.text
    assert "Environment 2: 1 run" in page.text
    assert "seed 3" in page.text


# ---- quality over latency


def write_benchmark(
    folder: Path, *, name: str = "kd seed 1", backend: str = "torch", processor: str = "EPYC", **changes: Any
) -> Path:
    """A benchmark.json of one model."""
    times = {"mean": 3.0, "sd": 0.1, "p50": 2.5, "p95": 4.75}
    batch = {"batch_size": 1, "calls": 100, "total_ms": times, "examples_per_second": 333.25}
    content = {
        "kdbert": "0.1.0", "task": "rte", "split": "dev", "metric": "accuracy",
        "environment": {"processor": processor}, "settings": {"threads": 2},
        "engines": [{
            "name": name, "model": "m", "backend": backend, "parameters": 11_000_000, "size_mib": 41.25,
            "memory_mib": None, "quality": {"accuracy": 0.91234}, "agreement": None, "teacher": None,
            "batches": [batch, {**batch, "batch_size": 32, "examples_per_second": 700.5}],
        }],
    }  # fmt: skip
    path = folder / "benchmark.json"
    path.write_text(json.dumps({**content, **changes}), encoding="utf-8")
    return path


def test_latencies_are_those_of_benchmark_json(kdbert: Kdbert, tmp_path: Path) -> None:
    edit(write_run(tmp_path / "runs"), parameters=10**6)
    words = [tmp_path / "runs", "-o", tmp_path / "report.html"]
    page = report(kdbert, *words).section("speed")
    assert "kdbert benchmark" in page.text
    assert "parameters, millions" in page.text
    write_benchmark(tmp_path / "runs")
    page = report(kdbert, *words).section("speed")
    assert page.row("kd seed 1") == [
        "kd seed 1", "torch", "0.9123", "2.50", "4.75", "700.5", "41.2", "-", "11.00 M", "-"
    ]  # fmt: skip
    assert "latency of one call" in page.text


@pytest.mark.parametrize(
    "changes", [{"engines": []}, {"engines": 3}, {"metric": "f1"}, {"settings": 1}, {"task": None, "engines": [{}]}]
)
def test_a_damaged_benchmark_is_named(kdbert: Kdbert, tmp_path: Path, changes: dict[str, Any]) -> None:
    edit(write_run(tmp_path / "runs"), parameters=10**6)
    path = write_benchmark(tmp_path / "runs", **changes)
    page = report(kdbert, tmp_path / "runs", "-o", tmp_path / "report.html").section("speed")
    assert f"{path} left out: benchmark.json is damaged" in page.text
    assert "parameters, millions" in page.text


def test_names_beside_points_do_not_lie_on_each_other() -> None:
    rng = np.random.default_rng(3)
    points = [
        Point(f"{method} seed {seed}", time * rng.uniform(0.95, 1.05), quality + rng.normal() * 0.002, 60.0, "torch")
        for method, time, quality in (("teacher", 40, 0.9), ("kd", 20, 0.88), ("ics", 20, 0.885))
        for seed in (1, 2, 3)
    ]
    figure = quality_over(points, LATENCY, metric="accuracy", split="test", task="clinc150")
    figure.canvas.draw()
    boxes = [text.get_window_extent() for text in figure.axes[0].texts]
    assert len(boxes) == len(points)
    assert not any(boxes[i].overlaps(boxes[j]) for i in range(len(boxes)) for j in range(i))
    with pytest.raises(ValueError):
        quality_over([], LATENCY, metric="accuracy", split="test", task="rte")


def luminance(color: str) -> float:
    """Relative luminance (WCAG 2)."""
    parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [x / 12.92 if x <= 0.03928 else ((x + 0.055) / 1.055) ** 2.4 for x in parts]
    return float(np.dot([0.2126, 0.7152, 0.0722], linear))


def test_lines_stand_out_from_both_backgrounds() -> None:
    for light, dark in figures.DARK.items():
        if light != figures.RULE:
            wanted = 3 if light in figures.SERIES else 4.5  # lines; letters
            assert 1.05 / (luminance(light) + 0.05) >= wanted
            assert (luminance(dark) + 0.05) / (luminance("#14171a") + 0.05) >= wanted


def test_every_colour_of_a_figure_follows_the_page() -> None:
    lines = [Curve([0, 1], [0, 1], series, [2, 2], [0, 0], [1, 1]) for series in range(8)]
    drawn = figures.svg(figures.lines(lines, x_label="epoch", y_label="a", reference=1), label="a", prefix="f1")
    assert not re.search(r"#[0-9a-f]{6}", drawn)
    for number in range(6):
        assert f"var(--s{number})" in drawn


# ---- broken, unfinished, none


def test_broken_runs_are_named_and_unfinished_ones_counted(kdbert: Kdbert, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    write_run(runs, seed=1)
    for seed, status in ((2, "diverged"), (3, "running"), (4, "failed")):
        write_run(runs, seed=seed, status=status)
    broken = write_run(runs, seed=5)
    (broken / "run.json").write_text('{"status": "fin')
    done = kdbert("report", runs, "-o", tmp_path / "report.html")
    page = check((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert f"skipped {broken}" in done.err
    assert "1 finished, 1 diverged, 2 unfinished" in page.text
    assert f"{broken / 'run.json'} is damaged" in page.text
    assert "0.7000 (1; 1 diverged; 2 unfinished)" in page.section("summary").text
    assert "seeds 1, 2 (diverged), 3 (running), 4 (failed)" in page.section("runs").text


def test_runs_of_which_none_is_finished_make_a_page(kdbert: Kdbert, tmp_path: Path) -> None:
    for method in ("finetune", "kd"):
        write_log(write_run(tmp_path / "runs", method=method, status="running"))
    page = report(kdbert, tmp_path / "runs", "-o", tmp_path / "report.html")
    assert "- (0; 1 unfinished)" in page.section("summary").text


JUNK = st.sampled_from([None, [], {}, "x", 3, -1.5, [1, {"a": None}], {"a": [1]}, True, "\ud800"])


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_damage_to_a_run_json_is_fatal(kdbert: Kdbert, taught: Path, data: st.DataObject) -> None:
    (run,) = taught.glob("runs/rte/kd/*")
    kept = (run / "run.json").read_text()
    content = json.loads(kept)
    content |= {
        "environment": {"python": "3.11", "command": ["kdbert"]}, "timings": {"train_seconds": 1.0}, "message": "",
        "fingerprints": {}, "data": {"dev": "x"}, "parameters": 5, "size_mib": 1.0, "steps": 3,
    }  # fmt: skip
    node: Any = content
    while True:
        key = data.draw(st.sampled_from(sorted(node)))
        if not isinstance(node[key], dict) or not node[key] or data.draw(st.booleans()):
            break
        node = node[key]
    node[key] = data.draw(JUNK)
    (run / "run.json").write_text(json.dumps(sealed(content)))
    try:
        report(kdbert, taught / "runs", "-o", taught / "report.html", "--data-dir", taught / "data")
    finally:
        (run / "run.json").write_text(kept)


def test_no_run_is_refused(kdbert: Kdbert, tmp_path: Path) -> None:
    done = kdbert("report", tmp_path, "-o", tmp_path / "report.html")
    assert done.code == 2
    assert "no run found" in done.err
    assert not (tmp_path / "report.html").exists()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--where", "learning_rate"], "expected KEY=VALUE"),
        (["--where", "train.learning_rate=7"], "no run has train.learning_rate=7"),
        (["--baseline", "finetun"], "--baseline 'finetun'"),
    ],
)
def test_mistakes_end_in_one_sentence(kdbert: Kdbert, tmp_path: Path, words: list[str], told: str) -> None:
    write_run(tmp_path / "runs")
    done = kdbert("report", tmp_path / "runs", "-o", tmp_path / "report.html", *words)
    assert done.code == 2
    assert told in done.err
    assert "Traceback" not in done.err


def test_only_an_older_report_is_replaced(kdbert: Kdbert, tmp_path: Path) -> None:
    write_run(tmp_path / "runs")
    page = tmp_path / "new folder" / "report.html"
    assert kdbert("report", tmp_path / "runs", "-o", page).code == 0
    assert kdbert("report", tmp_path / "runs", "-o", page, "--title", "again").code == 0
    assert "<title>again</title>" in page.read_text(encoding="utf-8")
    mine = tmp_path / "mine.html"
    mine.write_bytes(b"<html>\xffmy own page</html>")
    done = kdbert("report", tmp_path / "runs", "-o", mine)
    assert done.code == 2
    assert str(mine) in done.err
    assert mine.read_bytes() == b"<html>\xffmy own page</html>"
    assert "is a folder" in kdbert("report", tmp_path / "runs", "-o", tmp_path).err


def test_where_leaves_out_runs(kdbert: Kdbert, tmp_path: Path) -> None:
    for task in ("rte", "cola"):
        write_run(tmp_path / "runs", task=task)
    page = report(kdbert, tmp_path / "runs", "-o", tmp_path / "report.html", "--where", "task=rte")
    assert "cola" not in page.text


# ---- size


def many_runs(root: Path) -> Iterator[Path]:
    """4 tasks, 4 methods, 3 seeds and teachers; 60 classes, long texts, seven terms of the loss."""
    rng = np.random.default_rng(0)
    text = " ".join(["sentence"] * 120)
    words = get_task("massive").labels
    gold = rng.integers(0, len(words), 200)
    for locale in ("de-DE", "es-ES", "fr-FR", "it-IT"):
        task, folder = f"massive-{locale.lower()}", root / "data" / f"massive_{locale}"
        folder.mkdir(parents=True)
        rows = [{"id": str(i), "partition": "dev", "utt": text, "intent": words[label]} for i, label in enumerate(gold)]
        (folder / "validation.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n", encoding="utf-8")
        runs = [(write_run, {"method": "finetune", "seed": 0, "layers": None, "fingerprint": f"content of t-{task}"})]
        for method in ("finetune", "kd", "ics", "cka-ilg"):
            teacher = None if method == "finetune" else f"t-{task}"
            runs += [(write_run, {"method": method, "seed": seed, "teacher": teacher}) for seed in (1, 2, 3)]
        for write, options in runs:
            answers = np.where(rng.random(200) < 0.6, gold, rng.integers(0, len(words), 200))
            run = write(root / "runs", task=task, score=float(np.mean(answers == gold)), **options)
            write_predictions(run, answers, gold, scores=rng.normal(size=(200, len(words))))
            write_log(run, terms=("hard", "soft", "intra", "local", "distance", "cosine", "memory"), steps=600)
            if options["method"] != "finetune":
                write_cka(run, rng.random((13, 7)))
            environment = {"python": "3.11.7", "versions": {"torch": "2.13.0"}, "command": ["kdbert", *["--set"] * 99]}
            edit(run, environment=environment, parameters=10**7, size_mib=40.0)
            yield run


@pytest.mark.long
def test_a_page_of_48_runs_is_small(kdbert: Kdbert, tmp_path: Path) -> None:
    assert len(list(many_runs(tmp_path))) == 4 * (1 + 12)
    page = report(kdbert, tmp_path / "runs", "-o", tmp_path / "report.html", "--data-dir", tmp_path / "data")
    for part in ("curves", "layers", "classes", "examples"):
        assert len(page.section(part).source) > 20_000, part  # nothing was left out
    assert "Ids only" not in page.section("examples").text
    assert (tmp_path / "report.html").stat().st_size < 700_000
