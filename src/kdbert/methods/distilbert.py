"""DistilBERT (Sanh et al. 2019): soft labels and the direction of hidden states, on tasks and on plain text."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import Field
from torch import nn

from kdbert.data.batches import Batch
from kdbert.heads import Head
from kdbert.losses.hinton import soft_label_loss
from kdbert.losses.masked_lm import direction_loss, logits_loss
from kdbert.methods.contract import (
    Context,
    LossTerms,
    MaskedLMOutputs,
    Method,
    Models,
    Needs,
    Outputs,
    Paper,
    Weight,
)
from kdbert.methods.kd import KD_FORMULA, kd_terms
from kdbert.methods.terms import (
    LayerOptions,
    MaskedLMOptions,
    Projections,
    hidden_tokens,
    in_parts,
    known_tokens,
    masked_lm_loss,
)
from kdbert.models.layers import Pair, layers_of

PAPER = Paper(
    "DistilBERT, a distilled version of BERT: smaller, faster, cheaper and lighter",
    "Sanh, V., Debut, L., Chaumond, J. & Wolf, T.",
    2019,
    "https://arxiv.org/abs/1910.01108",
)


class DistilBERTOptions(LayerOptions):
    """Options of `distilbert`."""

    temperature: float = Field(2.0, gt=0, description="tau, softens both distributions")
    cos_weight: Weight = Field(1.0, description="weight of the cosine distance of hidden states")


class DistilBERT(Method[DistilBERTOptions]):
    """KD + the cosine distance of hidden states, token by token: kdbert's own form of DistilBERT's loss for a task."""

    name = "distilbert"
    aliases = ("distilbert-kd",)
    summary = "soft labels, and the direction of each token's last hidden state"
    formula = (
        KD_FORMULA
        + " + cos_weight * mean over layer pairs and real tokens of 1 - cos(W student + c, teacher); W, c: learned "
        "where the widths differ, else left out"
    )
    papers = (PAPER,)
    differences = (
        "It is kdbert's own: the paper distils on plain text (distilbert-mlm), and what tables call DistilBERT is "
        "distilbert-base-uncased, fine-tuned (method finetune, or kd). There is no variant original. tau 2 and the "
        "weight 1 of the cosine are those of the paper's run."
    )
    published = False
    Options = DistilBERTOptions

    def __init__(self, options: DistilBERTOptions) -> None:
        super().__init__(options)
        self.pairs: tuple[Pair, ...] = ()
        self.projections = Projections()

    @classmethod
    def needs(cls, options: DistilBERTOptions, models: Models | None) -> Needs:
        """The last hidden states of both, token by token."""
        logits = options.alpha != 1
        if not (logits or options.cos_weight):
            return Needs()
        if models is None or not options.cos_weight:
            return Needs(teachers=(1, 1), teacher_logits=logits)
        pairs = options.pairs(models)
        teacher, student = layers_of(pairs)
        return Needs(
            teachers=(1, 1),
            teacher_logits=logits,
            teacher_hidden=teacher,
            student_hidden=student,
            pairs={"cos": pairs},
            compares_tokens=True,
        )

    @classmethod
    def takes_unlabelled(cls, options: DistilBERTOptions, head: Head) -> bool:
        """Yes: they have all terms but the hard one."""
        return True

    def prepare(self, context: Context) -> None:
        """A projection for each pair of layers, where the student has another width than the teacher."""
        super().prepare(context)
        self.pairs = self.needs(self.options, context.models).pairs.get("cos", ())
        self.projections.fit(context.models, self.pairs)

    def forward(self, student: Outputs, teachers: Sequence[Outputs], batch: Batch) -> LossTerms:
        """Terms `hard`, `soft`, `cos`."""
        found = kd_terms(self.head, self.options, student, teachers[0] if teachers else None, batch)
        means = []
        for number, (teacher_layer, layer) in enumerate(self.pairs):
            own = self.projections.of(number, student.hidden[layer])
            means.append(batch.token_mean(direction_loss(own, teachers[0].hidden[teacher_layer])))
        if means:
            found.add("cos", torch.stack(means).mean(), self.options.cos_weight)
        return found


class DistilBERTMLMOptions(MaskedLMOptions):
    """Options of `distilbert-mlm`: weights of its four terms."""

    alpha_ce: Weight = Field(5.0, description="weight of the teacher's soft labels")
    alpha_mlm: Weight = Field(2.0, description="weight of the masked-LM loss")
    alpha_cos: Weight = Field(1.0, description="weight of the cosine distance of the last hidden states")
    alpha_mse: Weight = Field(0.0, description="weight of the squared difference of logits")
    temperature: float = Field(2.0, gt=0, description="tau, softens both distributions")
    hidden_only: bool = Field(False, description="compare logits at hidden tokens only (--restrict_ce_to_mask)")


def known_and_hidden(batch: Batch) -> torch.Tensor:
    """Hidden tokens that the teacher knows, bool [B, L]."""
    return known_tokens(batch) & hidden_tokens(batch)


class DistilBERTMLM(Method[DistilBERTMLMOptions]):
    """Masked-LM distillation on plain text, of models of one vocabulary and width. docs/quirks.md, 14.1."""

    name = "distilbert-mlm"
    aliases = ()
    summary = "a general student on plain text as DistilBERT was made: soft labels, masked-LM loss, direction of states"
    formula = (
        "alpha_ce * tau^2 * KL(softmax(teacher/tau) || softmax(student/tau)) + alpha_mlm * MLM + alpha_cos * (1 - "
        "cosine of the last hidden states) + alpha_mse * sum over the vocabulary of squared differences of logits; "
        "means over real tokens, MLM over hidden ones"
    )
    papers = (PAPER,)
    differences = (
        "Both variants compute the published loss. Where no token of a batch is hidden the published run stops on "
        "NaN; here that term is 0. kdbert hides tokens in its own way (15 % of each text, all as [MASK]; published: "
        "15 % of a batch, rare pieces more often, 80 / 10 / 10 % as [MASK], themselves, and another piece), and a "
        "student starts from the layers that student.init names (published: 1, 3, 5, 8, 10, 12 of 12). Weights are "
        "those of the README for one GPU; for several it has .33 each."
    )
    heads = ("masked_lm",)
    Options = DistilBERTMLMOptions

    def __init__(self, options: DistilBERTMLMOptions) -> None:
        super().__init__(options)
        self.layers = (0, 0)
        self.projection: nn.Linear | None = None

    @classmethod
    def needs(cls, options: DistilBERTMLMOptions, models: Models | None) -> Needs:
        """The masked-LM heads of both, and the last hidden states where the cosine has a weight."""
        return options.needs(models)

    def prepare(self, context: Context) -> None:
        """A projection where the student has another width than the teacher."""
        super().prepare(context)
        models = context.models
        for pair in self.needs(self.options, models).pairs.get("cos", ()):
            self.layers = pair
            if models.teachers[0].width != models.student.width:
                self.projection = nn.Linear(models.student.width, models.teachers[0].width)

    def forward(self, student: MaskedLMOutputs, teachers: Sequence[MaskedLMOutputs], batch: Batch) -> LossTerms:
        """Terms `ce`, `mse`, `cos`, `mlm`."""
        options, found, weights = self.options, LossTerms(), self.options.of_teacher
        names = [name for name in ("ce", "mse") if name in weights]
        if names:
            choose = known_and_hidden if options.hidden_only else known_tokens
            parts = in_parts(lambda part: self._of_logits(student, teachers[0], part), batch.places(choose))
            sums = torch.stack(parts).sum(0) * (batch.label_scale if options.hidden_only else batch.known_scale)
            for name in names:
                found.add(name, sums[("ce", "mse").index(name)], weights[name])
        if "cos" in weights:
            own = student.hidden[self.layers[1]]
            if self.projection is not None:
                own = self.projection(own)
            distances = direction_loss(own, teachers[0].hidden[self.layers[0]])
            found.add("cos", distances.masked_fill(~known_tokens(batch), 0.0).sum() * batch.known_scale, weights["cos"])
        if options.alpha_mlm:
            found.add("mlm", masked_lm_loss(self.head, student, batch), options.alpha_mlm)
        return found

    def _of_logits(self, student: MaskedLMOutputs, teacher: MaskedLMOutputs, positions: torch.Tensor) -> torch.Tensor:
        """The losses `ce` and `mse` of some tokens' logits, [2], over the teacher's pieces; 0 without a weight."""
        options = self.options
        with torch.no_grad():
            targets = teacher.head(positions)
        logits = student.head(positions, targets.shape[-1])
        none = logits.new_zeros(())
        soft = soft_label_loss(logits, targets, options.temperature).sum() if options.alpha_ce else none
        return torch.stack([soft, logits_loss(logits, targets).sum() if options.alpha_mse else none])
