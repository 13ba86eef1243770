"""A method with two stages, as a plug-in: first the teacher's last first-token state, then its logits."""

from typing import Literal

from pydantic import Field

from kdbert.methods import LossTerms, Method, Needs, Paper
from kdbert.methods.kd import HardAndSoftOptions, kd_terms


class TwoStagesOptions(HardAndSoftOptions):
    stage: Literal["states", "answers"] | None = Field(None, description="which stage alone")

    @property
    def trains_head(self):
        return self.stage == "answers"


class TwoStages(Method[TwoStagesOptions]):
    name = "two-stages"
    summary = "the teacher's states, then its answers"
    formula = "mean (student - teacher)^2 of the first token; then kd"
    papers = (Paper("A title", "Somebody", 2020, "https://example.org"),)
    stages = ("states", "answers")
    Options = TwoStagesOptions

    @classmethod
    def needs(cls, options, models):
        if models is None or options.stage != "states":
            return Needs(teachers=(1, 1), teacher_logits=True)
        last = models.teachers[0].layers, models.student.layers
        return Needs(teachers=(1, 1), teacher_hidden=last[:1], student_hidden=last[1:])

    def forward(self, student, teachers, batch):
        if self.options.stage != "states":
            return kd_terms(self.head, self.options, student, teachers[0], batch)
        (own,), (wanted,) = student.hidden.values(), teachers[0].hidden.values()
        found = LossTerms()
        found.add("states", batch.mean((own[:, 0] - wanted[:, 0]).square().mean(1)), 1.0)
        return found
