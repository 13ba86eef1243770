"""SinKD: the answers to a batch, student's and teacher's, as two sets of points (Cui et al. 2024)."""

from __future__ import annotations

from collections.abc import Sequence
from types import MappingProxyType

from pydantic import Field

from kdbert.data.batches import Batch
from kdbert.heads import Head
from kdbert.losses.schedules import annealed
from kdbert.losses.sinkhorn import sinkhorn_loss
from kdbert.methods.contract import Context, LossTerms, Method, Models, Needs, Outputs, Paper, Share, Weight
from kdbert.methods.kd import KD_FORMULA, HardAndSoftOptions
from kdbert.methods.terms import plain_kd_terms

SCALE = 1e-3  # of the published term, before its weight


class SinKDOptions(HardAndSoftOptions):
    """Options of `sinkd`."""

    original_defaults = MappingProxyType({"beta": 0.8})

    alpha: Share = Field(0.1, description="weight of the hard loss; the soft loss has 1 - alpha")
    temperature: float = Field(3.0, gt=0, description="tau, softens both distributions in the soft loss")
    beta: Weight = Field(0.0128, description="weight of the Sinkhorn term")
    sinkhorn_temperature: float = Field(2.0, gt=0, description="softens both distributions in the Sinkhorn term")
    anneal: bool = Field(False, description="let tau go linearly to 1 over the run")


class SinKD(Method[SinKDOptions]):
    """alpha * hard + (1 - alpha) * soft + beta * sinkhorn (docs/quirks.md, 9.6)."""

    name = "sinkd"
    aliases = ("sinkhorn",)
    summary = "soft labels, and a batch's answers near the teacher's as a whole, by Sinkhorn's distance"
    formula = (
        KD_FORMULA + " + beta * 1/B * sum_ij K_ij W_ij; W_ij = |softmax(student_i/2) - softmax(teacher_j/2)|_1; K: "
        "exp(-W/0.1), 20 times its rows divided by their sums, then its columns"
    )
    papers = (
        Paper("Sinkhorn Distance Minimization for Knowledge Distillation", "Cui, X., Qin, Y., Gao, Y. et al.", 2024,
              "https://arxiv.org/abs/2402.17110"),
    )  # fmt: skip
    differences = (
        "`original` has 0.001 of the SUM over the batch, with beta 0.8 (`corrected` takes the mean, and beta 0.0128 "
        "= 0.8 x 0.001 x 16 corresponds at 16 examples), no tau^2 before the soft loss, and tau that falls from "
        "epoch to epoch (`corrected`: from step to step). Its code weighs the SOFT loss by its alpha. Its scripts "
        "(soft weight, tau, batch, epochs, learning rate; anneal on MNLI, MRPC, QQP; beta 0.8): CoLA 0.9, 1, 16, 20, "
        "5e-5; MNLI 0.8, 3, 16, 10, 4e-5; MRPC 1, 4, 16, 3, 3e-5; QNLI 0.8, 3, 16, 6, 3e-5; QQP 1, 4, 32, 8, 4e-5; "
        "RTE 0.9, 3.5, 16, 5, 2e-5; SST-2 0.9, 2, 32, 2, 4e-5 (configs/sinkd). None of them runs at the published "
        "commit: the term is added only where another one, saliency, is asked for too; dev is scored every 5 steps "
        "and the best value reported. Scores (STS-B) have no distributions."
    )
    heads = ("single_label", "multi_label")  # scores have no distributions; of tags there are thousands in a batch
    Options = SinKDOptions

    epochs: int | None = None

    @classmethod
    def needs(cls, options: SinKDOptions, models: Models | None) -> Needs:
        """The logits."""
        if options.alpha == 1 and not options.beta:
            return Needs()
        return Needs(teachers=(1, 1), teacher_logits=True, compares_examples=bool(options.beta))

    @classmethod
    def takes_unlabelled(cls, options: SinKDOptions, head: Head) -> bool:
        """Yes: they have both losses against the teacher."""
        return True

    def prepare(self, context: Context) -> None:
        """Note how many epochs there are, by which the published temperature falls."""
        super().prepare(context)
        self.epochs = context.epochs if self.options.variant == "original" else None

    def forward(self, student: Outputs, teachers: Sequence[Outputs], batch: Batch) -> LossTerms:
        """Terms `hard`, `soft` and `sinkhorn`."""
        options, original = self.options, self.options.variant == "original"
        tau = annealed(options.temperature, batch.progress, self.epochs) if options.anneal else options.temperature
        found = plain_kd_terms(self.head, options, student, teachers[0] if teachers else None, batch, tau)
        if teachers and options.beta:
            own, other = (
                batch.gather(self.head.softened(logits, options.sinkhorn_temperature))
                for logits in (student.logits, teachers[0].logits)
            )
            value = sinkhorn_loss(own, other)
            found.add("sinkhorn", (SCALE * value if original else value / len(own)) * batch.share, options.beta)
        return found
