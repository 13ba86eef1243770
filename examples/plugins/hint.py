"""A method that compares layers, in one file: soft labels, and the hints of FitNets (Romero et al. 2015).

kdbert distill --plugin hint.py --method hint --task rte --set method.beta=10
kdbert distill --plugin hint.py --method hint --task rte --layer-map 3:2
"""

import torch
from pydantic import Field
from torch import nn

from kdbert.methods import Method, Needs, Paper, Weight
from kdbert.methods.kd import KD_FORMULA, kd_terms
from kdbert.methods.terms import LayerOptions
from kdbert.models.layers import layers_of


class HintOptions(LayerOptions):  # alpha, temperature and standardise_logits of kd, and layer_map
    beta: Weight = Field(1.0, description="weight of the hints")


class Hint(Method[HintOptions]):
    name = "hint"
    summary = "soft labels, and a layer's hidden states through a learned projection"
    formula = KD_FORMULA + " + beta * mean over real tokens and units of (W student + c - teacher)^2 / 2"
    papers = (Paper("FitNets: Hints for Thin Deep Nets", "Romero, A. et al.", 2015, "https://arxiv.org/abs/1412.6550"),)
    published = False  # that code is for images, so there is no variant `original`
    Options = HintOptions

    @classmethod
    def needs(cls, options, models):
        if models is None or not options.beta:
            return Needs(teachers=(1, 1), teacher_logits=True)
        pairs = options.pairs(models)  # of --layer-map, or the last layers
        teacher, student = layers_of(pairs)
        return Needs(
            teachers=(1, 1),
            teacher_logits=True,
            teacher_hidden=teacher,
            student_hidden=student,
            pairs={"hint": pairs},  # printed before training
            compares_tokens=True,  # so a teacher with another tokenizer is refused
        )

    @classmethod
    def takes_unlabelled(cls, options, head):
        return True  # such rows have all terms but the hard one

    def prepare(self, context):
        super().prepare(context)
        self.pairs = self.needs(self.options, context.models).pairs.get("hint", ())
        widths = context.models.student.width, context.models.teachers[0].width
        self.projections = nn.ModuleList(nn.Linear(*widths) for _ in self.pairs)

    def forward(self, student, teachers, batch):
        found = kd_terms(self.head, self.options, student, teachers[0], batch)
        errors = []
        for project, (teacher_layer, student_layer) in zip(self.projections, self.pairs, strict=True):
            difference = project(student.hidden[student_layer]) - teachers[0].hidden[teacher_layer]
            errors.append(batch.token_mean(difference.square().mean(2) / 2))
        if errors:
            found.add("hint", torch.stack(errors).mean(), self.options.beta)
        return found
