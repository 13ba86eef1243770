"""How far a run has come, as its method sees it."""

from __future__ import annotations

from pathlib import Path

import pytest

from kdbert.methods import load_plugin
from small_run import STEPS_PER_EPOCH, Setting, logged, run_recipe

# One term, and as a monitor what is under test: summed over the micro-batches of a step.
PLUGIN = '''
"""A method that says how far the run has come."""

from kdbert.methods import LossTerms, Method, MethodOptions, Needs


class Told(Method[MethodOptions]):
    name = "told"
    summary = formula = ""
    papers = ()
    Options = MethodOptions

    @classmethod
    def needs(cls, options, models):
        return Needs(teachers=(0, 1))

    def prepare(self, context):
        super().prepare(context)
        self.epochs = context.epochs

    def forward(self, student, teachers, batch):
        found = LossTerms()
        found.add("hard", batch.mean(self.head.hard_loss(student.logits, batch.labels)), 1.0)
        for name, value in (("progress", batch.progress), ("epochs", self.epochs)):
            found.monitors[name] = batch.mean(batch.valid * value)
        return found
'''


@pytest.mark.parametrize(
    ("changes", "steps"),
    [({"epochs": 2}, 2 * STEPS_PER_EPOCH), ({"epochs": 3, "max_steps": 5, "accumulation": 2}, 5)],
    ids=["two epochs", "five steps"],
)
def test_progress_is_the_share_of_steps_before_this_one(
    setting: Setting, tmp_path: Path, changes: dict[str, int], steps: int
) -> None:
    (tmp_path / "told.py").write_text(PLUGIN, encoding="utf-8")
    load_plugin(tmp_path / "told.py")
    recipe = setting.recipe(tmp_path / "run", **{"method.name": "told", **changes})
    lines = logged(run_recipe(recipe).path)
    assert [line["progress"] for line in lines.values()] == pytest.approx([step / steps for step in range(steps)])
    assert {round(line["epochs"], 4) for line in lines.values()} == {changes["epochs"]}
