"""A method of your own in one file: the squared difference of the logits in place of softened distributions.

kdbert distill --plugin logit_mse.py --method logit-mse --task rte --set method.alpha=0.3
kdbert methods show logit-mse --plugin logit_mse.py
"""

from pydantic import Field

from kdbert.methods import LossTerms, Method, MethodOptions, Needs, Paper, Share


class LogitMSEOptions(MethodOptions):
    alpha: Share = Field(0.5, description="weight of the hard loss; the other term has 1 - alpha")


class LogitMSE(Method[LogitMSEOptions]):
    name = "logit-mse"
    summary = "the student's logits are drawn to the teacher's"
    formula = "alpha * CE(student, label) + (1 - alpha) * mean_c (student_c - teacher_c)^2"
    papers = (
        Paper("Do Deep Nets Really Need to be Deep?", "Ba, J. & Caruana, R.", 2014, "https://arxiv.org/abs/1312.6184"),
    )
    heads = ("single_label", "multi_label", "regression")
    Options = LogitMSEOptions

    @classmethod
    def needs(cls, options, models):
        return Needs(teachers=(1, 1), teacher_logits=True)

    def forward(self, student, teachers, batch):
        hard = self.head.hard_loss(student.logits, batch.labels)
        difference = (student.logits - teachers[0].logits).square().mean(1)
        found = LossTerms()
        found.add("hard", batch.mean(hard), self.options.alpha)
        found.add("logits", batch.mean(difference), 1 - self.options.alpha)
        return found
