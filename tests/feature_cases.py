"""Random features of a small batch, and every term of the feature methods by plain loops over real tokens."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import permutations
from typing import Any

import torch
import torch.nn.functional as F
from torch.nn.utils.rnn import pad_sequence

from kdbert.data.batches import Batch
from kdbert.heads import Head, SingleLabel
from kdbert.methods import Context, LossTerms, Method, Models, Outputs, Shape, get_method
from kdbert.training.teacher import outputs_for

# Teacher and student differ in depth and width, so that whatever needs them equal would fail.
TEACHER, STUDENT = Shape(5, 6, 2, 3), Shape(3, 4, 2, 2)
MODELS = Models(student=STUDENT, teachers=(TEACHER,))
CLASSES, CLUSTERS, CENTROID_LENGTH = 5, 4, 40
METHODS: dict[str, dict[str, Any]] = {
    "ics": {"name": "ics"},
    "ics on two layers": {"name": "ics", "layer_map": "5:3,4:2"},
    "cka-i": {"name": "cka-i"},
    "cka-i layerwise": {"name": "cka-i", "layerwise": True},
    "cka-i internal=false": {"name": "cka-i", "internal": False},
    "cka-l": {"name": "cka-l"},
    "cka-l layerwise": {"name": "cka-l", "layerwise": True},
    "cka-g": {"name": "cka-g"},
    "cka-il": {"name": "cka-il"},
    "cka-ilg": {"name": "cka-ilg"},
    "cka-ilg layerwise": {"name": "cka-ilg", "layerwise": True},
    "pkd": {"name": "pkd"},
    "pkd normalise=false": {"name": "pkd", "normalise": False, "layer_map": "5:3,4:2"},
    "rkd": {"name": "rkd"},
    "rkd features=mean": {"name": "rkd", "features": "mean", "layer_map": "5:3,4:2"},
    "rkd features=flat": {"name": "rkd", "features": "flat"},
    "rkd features=logits": {"name": "rkd", "features": "logits"},
    "dist": {"name": "dist", "temperature": 2.0},
    "dkd": {"name": "dkd", "warmup": 0.0},
    "sinkd": {"name": "sinkd", "beta": 1.0},
    "minilm": {"name": "minilm"},
    "minilm of two layers": {"name": "minilm", "relations": "qk,vv", "relation_heads": 1, "layer_map": "4:2"},
    "tinybert": {"name": "tinybert"},
    "tinybert on two layers": {"name": "tinybert", "layer_map": "5:3,2:2", "embeddings": False},
    "distilbert": {"name": "distilbert", "layer_map": "5:3,0:0"},
    "mgskd": {"name": "mgskd", "centres": 4, "ends": 3},
    "mgskd of tokens": {"name": "mgskd", "token_layers": 4, "layer_map": "0:0,2:1,3:2,5:3"},
    "ckd": {"name": "ckd", "layer_map": "0:0,2:1,3:2,5:3", "window": 5},
    "ckd of whole texts": {
        "name": "ckd", "layer_map": "1:0,2:1,5:3", "window": None, "distance": "squared", "normalize": True,
        "distance_error": "smooth_l1", "angle_error": "l1",
    },
}  # fmt: skip


@dataclass
class Features:
    """Examples as two models see them, without padding.

    Attributes:
        teacher, student: example -> layers x [length, H]. labels: [N].
    """

    teacher: list[torch.Tensor]
    student: list[torch.Tensor]
    teacher_logits: torch.Tensor
    student_logits: torch.Tensor
    labels: torch.Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: list[int]) -> Features:
        """Some examples, in this order."""
        return Features(
            [self.teacher[row] for row in rows],
            [self.student[row] for row in rows],
            self.teacher_logits[rows],
            self.student_logits[rows],
            self.labels[rows],
        )

    def changed(self, **changes: Any) -> Features:
        """A copy with other values."""
        return replace(self, **changes)

    def to(self, dtype: torch.dtype) -> Features:
        """The same in another precision."""
        return Features(
            [side.to(dtype) for side in self.teacher],
            [side.to(dtype) for side in self.student],
            self.teacher_logits.to(dtype),
            self.student_logits.to(dtype),
            self.labels,
        )


def draw_features(lengths: list[int], labels: list[Any], models: Models = MODELS, seed: int = 0) -> Features:
    """Random features in float64; a student that has something of its teacher in it."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    teacher, student = models.teachers[0], models.student
    mixing = draw(teacher.width, student.width)
    teachers = [draw(teacher.layers + 1, length, teacher.width) + draw(teacher.width) for length in lengths]
    students = [
        side[torch.arange(student.layers + 1) % len(side)] @ mixing
        + 2 * draw(student.layers + 1, side.shape[1], student.width)
        for side in teachers
    ]
    return Features(
        teachers, students, 2 * draw(len(lengths), CLASSES), 2 * draw(len(lengths), CLASSES), torch.tensor(labels)
    )


def examples() -> Features:
    """Eight examples of four classes (of four, two, one and one members) and of lengths 2 to 7."""
    return draw_features([7, 3, 5, 2, 6, 4, 7, 3], [0, 1, 0, 2, 0, 1, 0, 0])


def draw_centroids(models: Models = MODELS, clusters: int = CLUSTERS, length: int = CENTROID_LENGTH) -> torch.Tensor:
    """Random centroids in float64, nearly zero towards their end, as those of true means are."""
    generator = torch.Generator().manual_seed(5)
    centroids = torch.randn(clusters, length, models.teachers[0].width, dtype=torch.float64, generator=generator)
    return centroids * torch.linspace(1, 0, length)[None, :, None]


def make_method(
    options: dict[str, Any],
    models: Models = MODELS,
    batch_size: int = 8,
    centroids: torch.Tensor | None = None,
    head: Head = SingleLabel(),
    epochs: int = 1,
) -> Method:
    """The method, prepared as a run does it, in float64."""
    chosen = get_method(options["name"])
    method = chosen(chosen.Options.model_validate(options))
    needs = method.needs(method.options, models)
    if centroids is None and needs.reads_centroids:
        centroids = draw_centroids(models)
    torch.manual_seed(3)
    method.prepare(Context(models=models, head=head, batch_size=batch_size, epochs=epochs, centroids=centroids))
    return method.double()


def batch_of(labels: torch.Tensor, length: int = 1, mask: torch.Tensor | None = None) -> Batch:
    """A batch of one process that is a whole step; its tokens are read by no method."""
    count = len(labels)
    ids = torch.zeros(count, length, dtype=torch.int64)
    mask = ids + 1 if mask is None else mask
    tokens = mask.sum(1).double()
    return Batch(
        ids, mask, None, labels, torch.arange(count), torch.ones(count), 1 / count,
        token_scale=float(1 / tokens.sum()), pair_scale=float(1 / tokens.square().sum()),
    )  # fmt: skip


def attention_of(hidden: torch.Tensor, shape: Shape) -> dict[int, dict[str, torch.Tensor]]:
    """Queries, keys and values that random matrices make of hidden states [layers + 1, ..., L, H], layer by layer."""
    heads = shape.heads or 1
    found = {}
    for layer in range(1, len(hidden)):
        generator = torch.Generator().manual_seed(layer)
        matrices = torch.randn(3, shape.width, shape.width, dtype=torch.float64, generator=generator).to(hidden)
        found[layer] = {
            kind: (hidden[layer - 1] @ one).unflatten(-1, (heads, -1)).transpose(-2, -3)
            for kind, one in zip("qkv", matrices, strict=True)
        }
    return found


@dataclass
class Seen:
    """Terms of a batch, and the gradient of their total.

    Attributes:
        hidden: example -> gradients at its real tokens, layers x [length, H].
        padding: the largest gradient at padding.
        own: gradients of the method's parameters.
    """

    terms: LossTerms
    logits: torch.Tensor
    hidden: list[torch.Tensor]
    padding: float
    own: dict[str, torch.Tensor]


def padded(sides: list[torch.Tensor], length: int, garbage: float) -> torch.Tensor:
    """[layers, B, length, H] of examples; random numbers of size `garbage` at padding."""
    whole = pad_sequence([side.transpose(0, 1) for side in sides], batch_first=True)  # [B, L, layers, H]
    whole = F.pad(whole, (0, 0, 0, 0, 0, length - whole.shape[1])).permute(2, 0, 1, 3).clone()
    for number, side in enumerate(sides):
        filler = torch.randn(whole[:, number, side.shape[1] :].shape, generator=torch.Generator().manual_seed(number))
        whole[:, number, side.shape[1] :] = garbage * filler
    return whole


def run(method: Method, features: Features, *, extra: int = 0, garbage: float = 100.0, models: Models = MODELS) -> Seen:
    """Forward and backward of one batch, the teacher's part made as training makes it.

    Args:
        extra: pad so many tokens further than the longest example.
    """
    lengths = torch.tensor([side.shape[1] for side in features.student])
    length = int(lengths.max()) + extra
    mask = (torch.arange(length)[None, :] < lengths[:, None]).long()
    needs = method.needs(method.options, models)
    student = padded(features.student, length, garbage).requires_grad_()
    logits = features.student_logits.clone().requires_grad_()
    teacher = padded(features.teacher, length, garbage)
    seen = Outputs(
        features.teacher_logits, mask=mask, hidden=dict(enumerate(teacher)),
        attention=attention_of(teacher, models.teachers[0]),
    )  # fmt: skip
    attention = attention_of(student, models.student)
    method.zero_grad(set_to_none=True)
    terms = method(
        Outputs(
            logits, mask=mask, hidden={layer: student[layer] for layer in needs.student_hidden},
            attention={layer: {kind: attention[layer][kind] for kind in kinds}
                       for layer, kinds in needs.student_attention.items()},
        ),
        [outputs_for(method, needs, seen)],
        batch_of(features.labels, length, mask),
    )  # fmt: skip
    terms.total.backward()
    if logits.grad is None:  # no term reads them
        logits.grad = torch.zeros_like(logits)
    gradient = torch.zeros_like(student) if student.grad is None else student.grad
    return Seen(
        LossTerms({name: value.detach() for name, value in terms.terms.items()}, terms.weights, terms.monitors),
        logits.grad,
        [gradient[:, row, :count] for row, count in enumerate(lengths.tolist())],
        float((gradient * (1 - mask)[None, ..., None]).abs().max()),
        {name: value.grad.clone() for name, value in method.named_parameters() if value.grad is not None},
    )


def assert_same(actual: Seen, expected: Seen, rows: list[int] | None = None, rtol: float = 1e-9) -> None:
    """Same terms, weights, total and gradients.

    Args:
        rows: which example of `expected` each one of `actual` is.
    """
    rows = list(range(len(expected.hidden))) if rows is None else rows
    settings: dict[str, Any] = {"rtol": rtol, "atol": 1e-12}
    assert actual.terms.weights == expected.terms.weights
    assert actual.terms.terms.keys() == expected.terms.terms.keys()
    for name, value in expected.terms.terms.items():
        torch.testing.assert_close(actual.terms.terms[name], value, **settings, msg=lambda m, n=name: f"{n}: {m}")
    torch.testing.assert_close(actual.terms.total, expected.terms.total, **settings)
    torch.testing.assert_close(actual.logits, expected.logits[rows], **settings)
    for number, row in enumerate(rows):
        torch.testing.assert_close(actual.hidden[number], expected.hidden[row], **settings)
    assert actual.own.keys() == expected.own.keys()
    for name, value in expected.own.items():
        torch.testing.assert_close(actual.own[name], value, **settings, msg=lambda m, n=name: f"{n}: {m}")


# --- the terms by plain loops ---


def plain_cka(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """|Y'X|_F^2 / (|X'X|_F |Y'Y|_F) of centred features."""
    x, y = first - first.mean(0), second - second.mean(0)
    return (y.T @ x).norm() ** 2 / ((x.T @ x).norm() * (y.T @ y).norm())


def minus_log(value: torch.Tensor) -> torch.Tensor:
    """The published loss of a CKA."""
    return -torch.log(value + 1e-8)


def rows_of(sides: list[torch.Tensor], layer: int, length: int) -> list[torch.Tensor]:
    """One flat row for each example, zero behind its tokens."""
    return [F.pad(side[layer], (0, 0, 0, length - side.shape[1])).flatten() for side in sides]


def plain_ics(method: Any, features: Features, neighbors: int) -> torch.Tensor:
    """Mean over examples of the sum over their nearest teacher representations of their class."""
    by_pair = []
    for number, (teacher_layer, student_layer) in enumerate(method.pairs):
        total = torch.zeros((), dtype=torch.float64)
        for i in range(len(features)):
            distances = []
            for j in range(len(features)):
                if features.labels[i] != features.labels[j]:
                    continue
                own, other = features.student[i][student_layer], features.teacher[j][teacher_layer]
                if method.projections:
                    own = method.projections[number](own)
                length = max(len(own), len(other))
                own, other = (F.pad(side, (0, 0, 0, length - len(side))) for side in (own, other))
                distances.append((own - other).square().mean())
            total = total + sum(sorted(distances)[: min(neighbors, len(distances))])
        by_pair.append(total / len(features))
    return torch.stack(by_pair).mean()


def plain_intra(features: Features, pairs: Any) -> torch.Tensor:
    """Mean over pairs of -log of the mean CKA of samples with two tokens or more."""
    return torch.stack([
        minus_log(torch.stack([
            plain_cka(t[a], s[b])
            for t, s in zip(features.teacher, features.student, strict=True)
            if s.shape[1] > 1
        ]).mean())
        for a, b in pairs
    ]).mean()  # fmt: skip


def plain_local(features: Features, pairs: Any) -> torch.Tensor:
    """Mean over pairs of -log of the CKA of the batch's samples."""
    length = max(side.shape[1] for side in features.student)
    return torch.stack([
        minus_log(plain_cka(
            torch.stack(rows_of(features.teacher, a, length)), torch.stack(rows_of(features.student, b, length))
        ))
        for a, b in pairs
    ]).mean()  # fmt: skip


def plain_global(method: Any, features: Features, pair: tuple[int, int]) -> dict[str, torch.Tensor]:
    """Distances as root mean squares, cosines, and the CKA of both sides' centroids."""
    both = method.centroids
    length = both.teacher.shape[1]
    found = []
    for sides, layer, centroids in (
        (features.teacher, pair[0], both.teacher),
        (features.student, pair[1], both.student),
    ):
        rows = rows_of(sides, layer, length)
        distances = torch.stack([
            torch.stack([(row - one.flatten()).square().mean().sqrt() for one in centroids]) for row in rows
        ])  # fmt: skip
        cosines = torch.stack([
            torch.stack([F.cosine_similarity(row, one.flatten(), dim=0) for one in centroids]) for row in rows
        ])  # fmt: skip
        found.append((distances, cosines))
    (teacher_distances, teacher_cosines), (distances, cosines) = found
    return {
        "distance": F.mse_loss(distances, teacher_distances),
        "cosine": F.mse_loss(cosines, teacher_cosines),
        "memory_cka": minus_log(plain_cka(both.teacher.flatten(1), both.student.flatten(1))),
    }


def plain_divergence(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """KL(teacher || student) of logarithms of probabilities."""
    return (teacher.exp() * (teacher - student)).sum()


def plain_patience(method: Any, features: Features, pairs: Any) -> torch.Tensor:
    """Mean over examples and pairs of the squared distance of first tokens, or of their directions."""
    found = []
    for number, (a, b) in enumerate(pairs):
        for teacher, student in zip(features.teacher, features.student, strict=True):
            first, second = teacher[a][0], method.projections[number](student[b][0])
            if method.options.normalise:
                first, second = first / first.norm(), second / second.norm()
            found.append(((first - second) ** 2).sum())
    return torch.stack(found).mean()


def plain_relations(kind: str, features: Features, pairs: Any) -> dict[str, torch.Tensor]:
    """Distances over their mean, and cosines at the first of three examples, by loops over distinct examples."""
    length = max(side.shape[1] for side in features.student)
    found: dict[str, list[torch.Tensor]] = {"distance": [], "angle": []}
    for a, b in pairs:
        sides = []
        for logits, hidden, layer in (
            (features.teacher_logits, features.teacher, a), (features.student_logits, features.student, b)
        ):  # fmt: skip
            rows = {
                "cls": lambda hidden=hidden, layer=layer: [side[layer][0] for side in hidden],
                "mean": lambda hidden=hidden, layer=layer: [side[layer].mean(0) for side in hidden],
                "flat": lambda hidden=hidden, layer=layer: rows_of(hidden, layer, length),
                "logits": lambda logits=logits: list(logits),
            }[kind]()
            sides.append(rows)
        numbers = range(len(features))
        two = list(permutations(numbers, 2))
        lengths = [{pair: (rows[pair[0]] - rows[pair[1]]).norm() for pair in two} for rows in sides]
        means = [torch.stack(list(one.values())).mean() for one in lengths]
        apart = [lengths[1][pair] / means[1] - lengths[0][pair] / means[0] for pair in two]
        found["distance"].append(torch.stack([smooth(value) for value in apart]).mean())
        angles = [
            [F.cosine_similarity(rows[j] - rows[i], rows[k] - rows[i], dim=0) for rows in sides]
            for i, j, k in permutations(numbers, 3)
        ]
        found["angle"].append(torch.stack([smooth(student - teacher) for teacher, student in angles]).mean())
    return {name: torch.stack(values).mean() for name, values in found.items()}


def smooth(value: torch.Tensor) -> torch.Tensor:
    """Huber's loss, as torch calls smooth L1."""
    return value**2 / 2 if value.abs() < 1 else value.abs() - 0.5


def plain_dist(features: Features, tau: float) -> dict[str, torch.Tensor]:
    """1 - Pearson's correlation, over classes and over examples."""
    teacher, student = ((logits / tau).softmax(-1) for logits in (features.teacher_logits, features.student_logits))

    def rho(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        return torch.corrcoef(torch.stack([first, second]))[0, 1]

    inter = torch.stack([rho(a, b) for a, b in zip(teacher, student, strict=True)])
    intra = torch.stack([rho(a, b) for a, b in zip(teacher.T, student.T, strict=True)])
    return {"inter": tau**2 * (1 - inter.mean()), "intra": tau**2 * (1 - intra.mean())}


def plain_dkd(features: Features, tau: float) -> dict[str, torch.Tensor]:
    """The divergence of target or not, and of the others."""
    binary, among = [], []
    for teacher, student, label in zip(
        features.teacher_logits / tau, features.student_logits / tau, features.labels.tolist(), strict=True
    ):
        rest = [number for number in range(len(teacher)) if number != label]
        p, q = teacher.softmax(0)[label], student.softmax(0)[label]
        binary.append(p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log())
        among.append(plain_divergence(student[rest].log_softmax(0), teacher[rest].log_softmax(0)))
    return {"tckd": tau**2 * torch.stack(binary).mean(), "nckd": tau**2 * torch.stack(among).mean()}


def plain_sinkhorn(features: Features) -> torch.Tensor:
    """Rows and columns divided by their sums in turn, twenty times."""
    student, teacher = ((logits / 2).softmax(-1) for logits in (features.student_logits, features.teacher_logits))
    cost = torch.stack([torch.stack([(one - other).abs().sum() for other in teacher]) for one in student])
    plan = (-cost / 0.1).exp()
    for _ in range(20):
        plan = plan / plan.sum(1, keepdim=True)
        plan = plan / plan.sum(0, keepdim=True)
    return (plan * cost).sum() / len(features)


def plain_minilm(method: Any, features: Features) -> dict[str, torch.Tensor]:
    """Each relation: mean over examples, heads and queries of the divergence from the teacher's."""
    pair, heads = method.options.pair(MODELS), method.relation_heads
    found = {}
    for name in method.options.relations:
        values = []
        for both in zip(features.teacher, features.student, strict=True):
            relations = []
            for side, shape, layer in zip(both, (TEACHER, STUDENT), pair, strict=True):
                states = attention_of(side, shape)[layer]
                first, second = (states[kind].transpose(0, 1).flatten(1).chunk(heads, -1) for kind in name)
                units = first[0].shape[-1]
                relations.append([(a @ b.T / units**0.5).softmax(-1) for a, b in zip(first, second, strict=True)])
            kl = [(t * (t.log() - s.log())).sum(-1).mean() for t, s in zip(*relations, strict=True)]
            values.append(torch.stack(kl).mean())
        found[f"relation.{name}"] = torch.stack(values).mean()
    return found


def plain_tinybert(method: Any, features: Features) -> dict[str, torch.Tensor]:
    """Sums over layers of mean squared differences: of scores over pairs of tokens, of hidden states over tokens."""
    sides = list(zip(features.teacher, features.student, strict=True))
    found = {}
    for name, pairs in method.pairs.items():
        total = torch.zeros((), dtype=torch.float64)
        for number, (teacher_layer, layer) in enumerate(pairs):
            errors = []
            for teacher, student in sides:
                if name == "hidden":
                    errors.append((method.projections[number](student[layer]) - teacher[teacher_layer]) ** 2)
                    continue
                scores = [
                    states["q"] @ states["k"].transpose(1, 2) / states["q"].shape[-1] ** 0.5
                    for states in (
                        attention_of(teacher, TEACHER)[teacher_layer], attention_of(student, STUDENT)[layer],
                    )
                ]  # fmt: skip
                errors.append((scores[0] - scores[1]) ** 2)
            total = total + torch.cat([error.flatten() for error in errors]).mean()
        found[name] = total
    return found


def plain_angle(i: torch.Tensor, j: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
    """The cosine at i between j and k."""
    return F.cosine_similarity(j - i, k - i, dim=0)


def plain_angles(own: torch.Tensor, other: torch.Tensor, i: int, ends: list[int], error: Any) -> list[torch.Tensor]:
    """Errors of the angles at point i between every two different ones of `ends`, student and teacher."""
    return [
        error(plain_angle(own[i], own[j], own[k]), plain_angle(other[i], other[j], other[k]))
        for j in ends
        for k in ends
        if len({i, j, k}) == 3
    ]


def mean_of(values: list[torch.Tensor]) -> torch.Tensor:
    """Their mean; of none 0."""
    return torch.stack(values).mean() if values else torch.zeros((), dtype=torch.float64)


def plain_distilbert(method: Any, features: Features) -> torch.Tensor:
    """1 - cosine, mean over all real tokens."""
    means = []
    for number, (a, b) in enumerate(method.pairs):
        project = method.projections[number] if method.projections else lambda own: own
        sides = zip(features.teacher, features.student, strict=True)
        means.append(torch.cat([1 - F.cosine_similarity(project(s[b]), t[a], dim=-1) for t, s in sides]).mean())
    return torch.stack(means).mean()


def plain_mgskd_tokens(method: Any, features: Features, pair: tuple[int, int]) -> torch.Tensor:
    """Inner products of tokens, and angles at those that the teacher attends to."""
    options, heads = method.options, method.parts
    by_token, by_text = [], []
    for t, s in zip(features.teacher, features.student, strict=True):
        own, other = s[pair[1]], t[pair[0]]
        products = []
        for side in (own, other):
            parts = side.unflatten(1, (heads, -1)).transpose(0, 1)
            products.append(parts @ parts.mT / (side.shape[1] / heads) ** 0.5)
        by_token += list((products[0] - products[1]).square().mean((0, 2)))
        attention = products[1].softmax(-1).sum(0)
        centres = attention.sum(0).argsort(descending=True)[: options.centres].tolist()
        errors = []
        for i in centres:
            order = [j for j in attention[i].argsort(descending=True).tolist() if j != i][: options.ends]
            errors += plain_angles(own, other, i, order, F.smooth_l1_loss)
        by_text.append(mean_of(errors))
    return mean_of(by_token) + mean_of(by_text)


def plain_mgskd_samples(method: Any, features: Features, pair: tuple[int, int]) -> torch.Tensor:
    """Angles of three texts, in each part of their mean vectors."""
    own, other = (
        torch.stack([side[layer].mean(0) for side in sides]).unflatten(1, (method.parts, -1)).transpose(0, 1)
        for sides, layer in ((features.student, pair[1]), (features.teacher, pair[0]))
    )
    everyone = list(range(len(features)))
    errors = [
        error
        for one, two in zip(own, other, strict=True)
        for i in everyone
        for error in plain_angles(one, two, i, everyone, F.smooth_l1_loss)
    ]
    return mean_of(errors)


ERRORS = {"l2": F.mse_loss, "l1": F.l1_loss, "smooth_l1": F.smooth_l1_loss}


def plain_distances(options: Any, own: torch.Tensor, other: torch.Tensor) -> list[torch.Tensor]:
    """Of each point, how its distances to the others differ, divided by the number of the others; student, teacher."""
    count, values = len(own), []
    for side in (own, other):
        if options.distance == "cosine":
            values.append(F.cosine_similarity(side[:, None], side[None, :], dim=-1))
        else:
            squares = (side[:, None] - side[None, :]).square().sum(-1)
            values.append(
                squares / (squares.sum() / (count * (count - 1))) if options.normalize and count > 1 else squares
            )
    found = []
    for i in range(count):
        others = [j for j in range(count) if j != i]
        if not others:
            found.append(torch.zeros((), dtype=torch.float64))
        elif options.distance_error == "kl":
            one, two = (side[i, others].log_softmax(0) for side in values)
            found.append(F.kl_div(one, two, reduction="sum", log_target=True) / len(others))
        else:
            found.append(ERRORS[options.distance_error](values[0][i, others], values[1][i, others]))
    return found


def plain_ckd(method: Any, features: Features) -> dict[str, torch.Tensor]:
    """The four relations of words and layers, means over all real tokens."""
    options, error, half = method.options, ERRORS[method.options.angle_error], (method.options.window or 0) // 2
    found: dict[str, list[torch.Tensor]] = {name: [] for name in options.weights}
    for t, s in zip(features.teacher, features.student, strict=True):
        length = s.shape[1]
        for a, b in method.pairs:
            found["word_distance"] += plain_distances(options, s[b], t[a])
            for i in range(length):
                ends = [j for j in range(length) if not half or abs(i - j) <= half]
                found["word_angle"].append(mean_of(plain_angles(s[b], t[a], i, ends, error)))
        layers = list(range(len(method.pairs)))
        for i in range(length):
            own, other = (torch.stack([side[pair[n], i] for pair in method.pairs]) for side, n in ((s, 1), (t, 0)))
            found["layer_distance"].append(mean_of(plain_distances(options, own, other)))
            found["layer_angle"].append(
                mean_of([one for layer in layers for one in plain_angles(own, other, layer, layers, error)])
            )
    return {name: mean_of(values) for name, values in found.items()}


def plain_terms(method: Any, features: Features) -> dict[str, torch.Tensor]:
    """Every term of a method by its definition."""
    options = method.options
    if options.name == "tinybert":
        return plain_tinybert(method, features)
    tau = options.temperature
    found = {"hard": F.cross_entropy(features.student_logits, features.labels)}
    if options.name == "dist":
        return found | plain_dist(features, tau)
    if options.name == "dkd":
        return found | plain_dkd(features, tau)
    soft = plain_divergence(
        F.log_softmax(features.student_logits / tau, -1), F.log_softmax(features.teacher_logits / tau, -1)
    )
    found["soft"] = tau**2 * soft / len(features)
    if options.name == "sinkd":
        return found | {"sinkhorn": plain_sinkhorn(features)}
    pairs = method.needs(options, MODELS).pairs
    if options.name == "rkd":
        return found | plain_relations(options.features, features, pairs.get("distance", [(0, 0)]))
    if "patience" in pairs:
        found["patience"] = plain_patience(method, features, pairs["patience"])
    if options.name == "minilm":
        found.update(plain_minilm(method, features))
    if "feature" in pairs:
        found["feature"] = plain_ics(method, features, options.neighbors)
    if "intra" in pairs:
        found["intra"] = plain_intra(features, pairs["intra"])
    if "local" in pairs:
        found["local"] = plain_local(features, pairs["local"])
    if "global" in pairs:
        found.update(plain_global(method, features, pairs["global"][0]))
    if "cos" in pairs:
        found["cos"] = plain_distilbert(method, features)
    if "token" in pairs:
        found["token"] = sum(plain_mgskd_tokens(method, features, pair) for pair in pairs["token"])
    if "sample" in pairs:
        found["sample"] = sum(plain_mgskd_samples(method, features, pair) for pair in pairs["sample"])
    if "relations" in pairs:
        found.update(plain_ckd(method, features))
    return found
