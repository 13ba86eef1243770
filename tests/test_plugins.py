"""Methods from outside: a file named with --plugin, a package with an entry point, and what can be wrong with them."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from conftest import ROOT
from in_processes import manifest, processes, run_command, start
from kdbert import UserError
from kdbert import methods as registry
from kdbert.methods import get_method, load_plugin
from small_run import Setting, logged, predictions

EXAMPLE = ROOT / "examples" / "plugins" / "logit_mse.py"
HINT = ROOT / "examples" / "plugins" / "hint.py"


def words(setting: Setting, folder: Path, **changes: Any) -> list[str]:
    """A short run by the example's method; --plugin is still to be said."""
    return setting.words(folder, **{"method.name": "logit-mse", "max_steps": 4, "precision": "fp32", **changes})


def test_the_example_distils(setting: Setting, kdbert: Callable[..., Any], tmp_path: Path) -> None:
    done = kdbert(*words(setting, tmp_path / "run", **{"method.alpha": 0.3}), "--plugin", EXAMPLE)
    assert done.code == 0, done.err
    assert "student (logit-mse)" in done.out
    lines = logged(tmp_path / "run")
    assert len(lines) == 4
    for line in lines.values():
        assert line["loss"] == pytest.approx(0.3 * line["loss/hard"] + 0.7 * line["loss/logits"], rel=1e-5)
    facts = manifest(tmp_path / "run")
    assert facts["recipe"]["method"] == {"name": "logit-mse", "variant": "corrected", "alpha": 0.3}
    assert "Do Deep Nets Really Need to be Deep?" in (tmp_path / "run" / "model" / "README.md").read_text()


def test_the_guide_has_the_whole_example() -> None:
    """So what the other tests run is what docs/methods.md explains."""
    guide = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", guide, re.DOTALL)
    for example, block in zip((EXAMPLE, HINT), blocks, strict=True):
        docstring, code = example.read_text(encoding="utf-8").split('"""\n\n', 1)
        assert docstring.startswith('"""')
        assert block == code


def test_the_example_of_layers_distils(setting: Setting, kdbert: Callable[..., Any], tmp_path: Path) -> None:
    done = kdbert(*words(setting, tmp_path / "run", **{"method.name": "hint"}), "--plugin", HINT)
    assert done.code == 0, done.err
    assert "4:2" in done.err  # the pair of layers
    assert all(line["loss/hint"] > 0 for line in logged(tmp_path / "run").values())
    assert (tmp_path / "run" / "method.safetensors").exists()  # its projection


def test_what_a_family_shares_is_not_a_method(tmp_path: Path) -> None:
    shared = HEAD.replace("class LogitMSE(Method[LogitMSEOptions])", "class _Shared(Method[LogitMSEOptions])")
    (tmp_path / "family.py").write_text(
        shared + "".join(
            f"\n\nclass {name}(_Shared):\n    name = {name!r}\n    aliases = ()\n" for name in ("First", "Second")
        ),
        encoding="utf-8",
    )  # fmt: skip
    assert [method.name for method in load_plugin(tmp_path / "family.py")] == ["First", "Second"]


def test_the_example_is_listed_and_shown_only_where_it_is_named(kdbert: Callable[..., Any]) -> None:
    assert "logit-mse" not in kdbert("methods", "list").out
    listed = kdbert("methods", "list", "--plugin", EXAMPLE)
    assert re.search(r"^logit-mse +the student's logits are drawn to the teacher's", listed.out, re.MULTILINE)
    shown = kdbert("methods", "show", "logit-mse", "--plugin", EXAMPLE)
    assert shown.code == 0
    for text in ("mean_c (student_c - teacher_c)^2", "1312.6184", "alpha = 0.5", "teachers: 1", "weight of the hard"):
        assert text in shown.out


def test_a_dry_run_and_an_unknown_option(setting: Setting, kdbert: Callable[..., Any], tmp_path: Path) -> None:
    done = kdbert(*words(setting, tmp_path / "run"), "--plugin", EXAMPLE, "--dry-run")
    assert done.code == 0, done.err
    assert yaml.safe_load(done.out.split("\nrun folder:")[0])["method"]["name"] == "logit-mse"
    wrong = kdbert(*words(setting, tmp_path / "run"), "--plugin", EXAMPLE, "method.alfa=0.1")
    assert wrong.code == 2
    assert "did you mean 'method.alpha'" in wrong.err
    assert not (tmp_path / "run").exists()


def test_a_run_is_continued_and_repeated_from_its_recipe(
    setting: Setting, kdbert: Callable[..., Any], tmp_path: Path
) -> None:
    order = [*words(setting, tmp_path / "run", checkpoint_steps=2), "--plugin", EXAMPLE]
    assert kdbert(*order).code == 0
    recipe = tmp_path / "run" / "recipe.yaml"
    assert "already finished" in kdbert("distill", "--config", recipe, "--plugin", EXAMPLE).err
    again = kdbert("distill", "--config", recipe, "--plugin", EXAMPLE, "--output-dir", tmp_path / "again")
    assert again.code == 0, again.err
    assert predictions(tmp_path / "again") == predictions(tmp_path / "run")


def test_a_recipe_of_a_plugin_without_the_plugin_says_that_it_may_be_one(
    setting: Setting, kdbert: Callable[..., Any], tmp_path: Path
) -> None:
    assert kdbert(*words(setting, tmp_path / "run", max_steps=1), "--plugin", EXAMPLE).code == 0
    registry.plugins.clear()
    forgotten = kdbert("distill", "--config", tmp_path / "run" / "recipe.yaml")
    assert forgotten.code == 2
    assert "unknown method 'logit-mse'" in forgotten.err
    assert "--plugin" in forgotten.err


def test_evaluating_and_using_a_plugins_run_executes_nothing_of_it(
    setting: Setting, kdbert: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # predictions of another precision than the run's own go to the working folder
    plugin = Path(shutil.copy(EXAMPLE, tmp_path / "mine.py"))
    run = tmp_path / "runs" / "custom" / "logit-mse" / "run"
    order = words(setting, run, max_steps=3, **{"output.runs_dir": str(tmp_path / "runs")})
    assert kdbert(*order, "--plugin", plugin).code == 0
    plugin.write_text("raise SystemExit('executed')\n", encoding="utf-8")
    registry.plugins.clear()
    scored = kdbert("evaluate", run)
    assert scored.code == 0, scored.err
    assert f"{manifest(run)['metrics']['dev']['accuracy']:.4f}" in scored.out
    table = kdbert("table", tmp_path / "runs")
    assert table.code == 0, table.err
    assert "logit-mse" in table.out
    taught = Setting(setting.train, setting.dev, run, setting.student)
    done = kdbert(*taught.words(tmp_path / "kd", max_steps=1))
    assert done.code == 0, done.err
    plugin.unlink()
    assert kdbert("evaluate", run).code == 0


def sweep_words(setting: Setting, root: Path, *more: Any) -> list[Any]:
    """A sweep of small runs."""
    return [
        "sweep", "--plugin", os.path.relpath(EXAMPLE), "--teacher", setting.teacher, "--runs-dir", root,
        "task.name=custom", f"task.train_file={setting.train}", f"task.dev_file={setting.dev}", "task.max_length=32",
        "student.layers=1", "train.max_steps=2", *more,
    ]  # fmt: skip


def test_a_sweep_passes_the_plugin_on_to_who_needs_it(
    setting: Setting, kdbert: Callable[..., Any], tmp_path: Path
) -> None:
    planned = kdbert(*sweep_words(setting, tmp_path, "--grid", "method=kd,logit-mse", "--dry-run"))
    assert planned.code == 0, planned.err
    assert [f"--plugin {EXAMPLE}" in line for line in planned.out.splitlines()] == [False, True]


def test_a_sweeps_processes_have_the_plugin(setting: Setting, tmp_path: Path) -> None:
    process = start(
        [str(word) for word in sweep_words(setting, tmp_path, "--grid", "method=logit-mse")], tmp_path / "output"
    )
    process.join()
    assert process.exitcode == 0, (tmp_path / "output").read_text()
    (run,) = tmp_path.glob("custom/*/*/run.json")
    assert manifest(run.parent)["status"] == "finished"
    assert run.parts[-3] == "logit-mse"


def test_options_of_a_plugin_have_defaults_in_every_variant(kdbert: Callable[..., Any]) -> None:
    shown = kdbert("methods", "show", "logit-mse", "--plugin", EXAMPLE).out
    assert "variant = corrected" in shown
    assert "the published code:" not in shown  # there is none


# ---- what is wrong with a file

HEAD = EXAMPLE.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("def broken(:\n", "SyntaxError"),
        ("import no_such_package\n", "No module named 'no_such_package'"),
        ("1 / 0\n", "ZeroDivisionError"),
        ("x = 5\n", "defines no class that derives from kdbert.methods.Method"),
        ("", "defines no class"),
        ("from kdbert.methods.kd import KD\n", "defines no class"),
        ("raise SystemExit(0)\n", "SystemExit"),
        (HEAD.replace('name = "logit-mse"', 'name = "kd"'), "is called 'kd', as another method is"),
        (HEAD.replace('name = "logit-mse"', 'name = "mine"\n    aliases = ("hinton",)', 1), "is called 'hinton'"),
        (HEAD.replace('    summary = "the student\'s logits are drawn to the teacher\'s"\n', ""), "lacks summary"),
        (HEAD.replace('    name = "logit-mse"\n    s', "    s"), "lacks name"),
        (HEAD + "\n\nclass Other(LogitMSE):\n    pass\n", "'logit-mse'"),
        (HEAD.partition("    def forward")[0], "forward"),
        (re.sub(r', description="[^"]*"', "", HEAD), "options without a description: alpha"),
        (b"\xff\xfe\x00", ""),
    ],
    ids=[
        "syntax", "import", "error", "no method", "empty", "someone else's method", "exit", "taken name",
        "taken alias", "no summary", "no name", "one name twice", "no forward", "bare option", "no text",
    ],
)  # fmt: skip
def test_a_file_that_is_no_plugin_is_refused_in_one_sentence(
    content: str | bytes, told: str, kdbert: Callable[..., Any], tmp_path: Path
) -> None:
    file = tmp_path / "mine.py"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    done = kdbert("methods", "list", "--plugin", file)
    assert done.code == 2, done.out + done.err
    (sentence,) = done.err.splitlines()
    assert sentence.startswith(f"kdbert: --plugin {str(file)!r}: ")
    assert told in sentence
    assert "logit-mse" not in kdbert("methods", "list").out


@pytest.mark.parametrize("place", ["none.py", ".", "text.txt"])
def test_what_is_no_python_file_is_refused(
    place: str, kdbert: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text(HEAD, encoding="utf-8")
    done = kdbert("distill", "--plugin", place, "--method", "logit-mse")
    assert done.code == 2
    assert f"--plugin {place!r}: expected a Python file (.py)" in done.err


def test_a_name_with_capitals_can_be_used(tmp_path: Path) -> None:
    """Names are looked up in small letters."""
    file = tmp_path / "mine.py"
    file.write_text(HEAD.replace("logit-mse", "LogitMSE"), encoding="utf-8")
    try:
        load_plugin(file)
    except UserError:
        return  # refusing it is as good
    assert get_method("LogitMSE").name == "LogitMSE"
    assert get_method("logitmse").name == "LogitMSE"


def test_two_plugins_beside_each_other(kdbert: Callable[..., Any], tmp_path: Path) -> None:
    other = tmp_path / "logit_mse.py"  # of the same file name
    other.write_text(HEAD.replace("logit-mse", "other-mse"), encoding="utf-8")
    done = kdbert("methods", "list", "--plugin", EXAMPLE, "--plugin", other)
    assert done.code == 0, done.err
    assert {"logit-mse", "other-mse"} <= {line.split()[0] for line in done.out.splitlines() if line.strip()}
    both = kdbert("methods", "list", "--plugin", EXAMPLE, "--plugin", EXAMPLE)
    assert both.code == 0
    (tmp_path / "third.py").write_text(HEAD, encoding="utf-8")
    assert "is called 'logit-mse'" in kdbert("methods", "list", "--plugin", tmp_path / "third.py").err


# ---- installed packages


def install(site: Path, name: str, module: str, points: dict[str, str]) -> None:
    """A distribution on the disk as pip leaves it."""
    info = site / f"{name}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n", encoding="utf-8")
    lines = [f"{point} = {value}" for point, value in points.items()]
    (info / "entry_points.txt").write_text("\n".join(["[kdbert.methods]", *lines]) + "\n", encoding="utf-8")
    (site / f"{name.replace('-', '_')}.py").write_text(module, encoding="utf-8")


def with_site(site: Path, *order: Any) -> subprocess.CompletedProcess[str]:
    """The command in a process that has these distributions too."""
    path = os.pathsep.join([str(site), os.environ["PYTHONPATH"]])
    return subprocess.run(
        [sys.executable, "-m", "kdbert", *map(str, order)],
        capture_output=True, text=True, timeout=300, env={**os.environ, "PYTHONPATH": path},
    )  # fmt: skip


def on_path(site: Path, order: list[str], output: Path) -> None:
    """Body of a process that has these distributions too and runs the command."""
    sys.path.insert(0, str(site))
    run_command(order, output)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A package with two methods, by class and by module; one that fails; one whose name is taken."""
    folder = tmp_path_factory.mktemp("site")
    install(folder, "friendly-methods", HEAD, {"logit-mse": "friendly_methods:LogitMSE"})
    install(folder, "whole-module", HEAD.replace("logit-mse", "module-mse"), {"anything": "whole_module"})
    install(folder, "broken-methods", "import no_such_package\n", {"broken": "broken_methods:Nothing"})
    install(
        folder, "greedy-methods", HEAD.replace('name = "logit-mse"', 'name = "ics"'), {"ics": "greedy_methods:LogitMSE"}
    )
    install(folder, "foreign-things", "thing = 5\n", {"thing": "foreign_things:thing"})
    return folder


def test_installed_methods_are_there_and_broken_ones_are_named(site: Path) -> None:
    done = with_site(site, "methods", "list")
    assert done.returncode == 0, done.stderr
    names = [line.split()[0] for line in done.stdout.splitlines() if line.strip()]
    assert {"logit-mse", "module-mse", "kd", "ics"} <= set(names)
    assert names.count("ics") == 1
    assert "draws each example to the nearest" in done.stdout  # our ics, not theirs
    told = done.stderr.splitlines()
    assert len(told) == 3
    for package in ("broken-methods", "greedy-methods", "foreign-things"):
        (line,) = [line for line in told if package in line]
        assert "is left out" in line
    assert "Traceback" not in done.stderr


def test_an_installed_method_distils(site: Path, setting: Setting, tmp_path: Path) -> None:
    order = setting.words(tmp_path / "run", **{"method.name": "module-mse", "max_steps": 2})
    process = processes.Process(target=on_path, args=(site, order, tmp_path / "output"))
    process.start()
    process.join()
    assert process.exitcode == 0, (tmp_path / "output").read_text()
    assert json.loads((tmp_path / "run" / "run.json").read_text())["recipe"]["method"]["name"] == "module-mse"
    assert "loss/logits" in logged(tmp_path / "run")[1]


def test_a_plugin_cannot_take_an_installed_methods_name(site: Path) -> None:
    done = with_site(site, "methods", "list", "--plugin", EXAMPLE)
    assert done.returncode == 2
    assert "is called 'logit-mse', as another method is" in done.stderr
