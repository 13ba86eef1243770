"""Hidden states of plain text: a general student, before any task."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from pydantic import Field, model_validator

from kdbert.data.batches import Batch
from kdbert.errors import UserError
from kdbert.losses.hidden import deviations, scaled_error
from kdbert.methods.contract import Context, HiddenStates, LossTerms, Method, MethodOptions, Models, Needs, Paper
from kdbert.methods.terms import Pairs, Projections
from kdbert.models.layers import Pair, all_pairs, check_pairs, layers_of

SURVEYED = 1024  # texts over which the deviation of the teacher's units is taken


class HiddenOptions(MethodOptions):
    """Which layers are compared."""

    layer_map: Pairs | None = Field(
        None, description="teacher:student layers to compare, such as 3:1,6:2 (flag --layer-map); their mean is taken"
    )
    embeddings: bool = Field(False, description="also compare the embeddings' output, 0:0")

    @model_validator(mode="after")
    def _no_original(self) -> HiddenOptions:
        if self.variant == "original":
            raise ValueError("method hidden is kdbert's own, so it has no variant original: use --variant corrected")
        return self

    def pairs(self, models: Models) -> tuple[Pair, ...]:
        """The layers to compare: those of `layer_map`, or every one of the student; the last is among them."""
        depths = models.teachers[0].layers, models.student.layers
        found = all_pairs(*depths) if self.layer_map is None else check_pairs(self.layer_map, *depths)
        if depths[1] not in {student for _, student in found}:
            raise UserError(
                f"--layer-map leaves out the student's last layer, {depths[1]}, so that nothing would teach it; add "
                f"{depths[0]}:{depths[1]}, or keep fewer layers with --student-layers"
            )
        return (*[(0, 0)] * (self.embeddings and (0, 0) not in found), *found)


class Hidden(Method[HiddenOptions]):
    """Squared difference of hidden states, each unit in units of how much the teacher's varies over the corpus.

    TinyBERT's general distillation compares hidden states (and attention) without the scale, so that the few units of a
    BERT that are large outweigh all others.
    """

    name = "hidden"
    aliases = ("hidden-states", "general")
    summary = "general distillation on plain text, without labels: each layer learns the hidden states of the teacher's"
    formula = (
        "mean over layer pairs, real tokens and units of ((W student + c - teacher) / deviation)^2; deviation: of the "
        f"teacher's unit over {SURVEYED:,} texts of the corpus; W, c: learned where the widths differ, else left out"
    )
    papers = (
        Paper(
            "TinyBERT: Distilling BERT for Natural Language Understanding",
            "Jiao, X., Yin, Y., Shang, L., Jiang, X., Chen, X., Li, L., Wang, F. & Liu, Q.",
            2020,
            "https://arxiv.org/abs/1909.10351",
        ),
    )
    differences = (
        "It is kdbert's own, in the manner of TinyBERT's general distillation: hidden states without attention, each "
        "unit scaled, padding left out, the teacher without dropout, a projection for each layer and only where widths "
        "differ. There is no variant original."
    )
    heads = ("encoder",)
    Options = HiddenOptions

    deviation: torch.Tensor  # [pairs, H] of the teacher

    def __init__(self, options: HiddenOptions) -> None:
        super().__init__(options)
        self.pairs: tuple[Pair, ...] = ()
        self.projections = Projections()

    @classmethod
    def needs(cls, options: HiddenOptions, models: Models | None) -> Needs:
        """Hidden states of both, token by token, and a look at the teacher's beforehand."""
        if models is None:
            return Needs(teachers=(1, 1), compares_tokens=True)
        pairs = options.pairs(models)
        teacher, student = layers_of(pairs)
        return Needs(
            teachers=(1, 1),
            teacher_hidden=teacher,
            student_hidden=student,
            pairs={"hidden": pairs},
            compares_tokens=True,
            survey=SURVEYED,
        )

    def prepare(self, context: Context) -> None:
        """Note the layers; a projection for each where the student has another width than the teacher."""
        super().prepare(context)
        self.pairs = self.options.pairs(context.models)
        self.register_buffer("deviation", torch.ones(len(self.pairs), context.models.teachers[0].width))
        self.projections.fit(context.models, self.pairs)

    def survey(self, teachers: Iterator[Sequence[HiddenStates]]) -> None:
        """Take the deviation of each unit of the compared layers."""
        parts = ((torch.stack([one.hidden[layer] for layer, _ in self.pairs]), one.mask) for (one,) in teachers)
        self.deviation.copy_(deviations(parts))

    def forward(self, student: HiddenStates, teachers: Sequence[HiddenStates], batch: Batch) -> LossTerms:
        """One term, `hidden`; monitors `hidden/T-S`: of each pair of layers."""
        found, means = LossTerms(), [batch.token_mean(error) for error in self._errors(student, teachers[0])]
        found.add("hidden", torch.stack(means).mean(), 1.0)
        for (teacher_layer, layer), mean in zip(self.pairs, means, strict=True):
            found.monitors[f"hidden/{teacher_layer}-{layer}"] = mean.detach()
        return found

    def loss_of_texts(self, student: HiddenStates, teachers: Sequence[HiddenStates], batch: Batch) -> torch.Tensor:
        """The error of each text, summed over its real tokens, and their number."""
        error = torch.stack(self._errors(student, teachers[0])).mean(0)
        real = batch.attention_mask > 0
        return torch.stack([error.masked_fill(~real, 0.0).sum(1), real.sum(1).to(error.dtype)], 1)

    def _errors(self, student: HiddenStates, teacher: HiddenStates) -> list[torch.Tensor]:
        """The error of each token at each pair of layers, [B, L]."""
        found = []
        for number, (teacher_layer, layer) in enumerate(self.pairs):
            own = self.projections.of(number, student.hidden[layer])
            found.append(scaled_error(own, teacher.hidden[teacher_layer], self.deviation[number]))
        return found
