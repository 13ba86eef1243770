"""Feature losses written as loops and formulas, the way published scripts do; METHODS as in docs/methods.md."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def loop_ics(student: torch.Tensor, teacher: torch.Tensor, labels: torch.Tensor, k: int) -> torch.Tensor:
    """Sample by sample, neighbour by neighbour."""
    total = torch.zeros(())
    for i in range(len(student)):
        candidates = [j for j in range(len(teacher)) if labels[j] == labels[i]]
        distances = torch.stack([((student[i] - teacher[j]) ** 2).sum() for j in candidates])
        for position in distances.argsort()[: min(k, len(candidates))].tolist():
            total = total + F.mse_loss(student[i], teacher[candidates[position]])
    return total / len(student)


def loop_hsic(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Gram matrices and centring matrix written out."""
    n = len(first)
    centring = torch.eye(n, device=first.device) - 1 / n
    return torch.trace(centring @ (first @ first.T) @ centring @ (second @ second.T) @ centring)


def loop_cka(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Three HSICs from the features."""
    return loop_hsic(first, second).abs() / (loop_hsic(first, first).sqrt() * loop_hsic(second, second).sqrt())


def loop_intra(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Sample by sample."""
    values = [loop_cka(teacher[i], student[i]) for i in range(len(student))]
    return -(torch.stack(values).mean() + 1e-8).log()


def loop_inter(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """The samples of the batch."""
    return -(loop_cka(teacher.flatten(1), student.flatten(1)) + 1e-8).log()


def loop_global(
    student: torch.Tensor, teacher: torch.Tensor, own: torch.Tensor, memory: torch.Tensor, gamma: float
) -> torch.Tensor:
    """Sample by sample, both sides at every step."""
    distance, cosine = torch.zeros(()), torch.zeros(())
    for i in range(len(student)):
        s, t = student[i].flatten(), teacher[i].flatten()
        near = ((s[None] - own) ** 2).sum(1).sqrt() - ((t[None] - memory) ** 2).sum(1).sqrt()
        angle = F.cosine_similarity(s[None], own) - F.cosine_similarity(t[None], memory)
        distance = distance + (near**2).mean()
        cosine = cosine + (angle**2).mean()
    structure = -(loop_cka(memory, own) + 1e-8).log()
    return gamma * distance / len(student) + (1 - gamma) * cosine / len(student) + structure


def batch_global(
    student: torch.Tensor, teacher: torch.Tensor, own: torch.Tensor, memory: torch.Tensor, gamma: float
) -> torch.Tensor:
    """As the published scripts have it: the whole batch by `cdist`, both sides and both memories at every step."""
    s, t = student.flatten(1), teacher.flatten(1)
    near = F.mse_loss(torch.cdist(s, own), torch.cdist(t, memory))
    angle = F.mse_loss(F.normalize(s) @ F.normalize(own).T, F.normalize(t) @ F.normalize(memory).T)
    structure = -(loop_cka(memory, own) + 1e-8).log()
    return gamma * near + (1 - gamma) * angle + structure


# The methods of other papers. `student` and `teacher` are hidden states [B, L, H], or queries, keys and values
# [B, heads, L, units]; all tokens are real.


def loop_patience(student: list[torch.Tensor], teacher: list[torch.Tensor]) -> torch.Tensor:
    """PKD: layer by layer, sample by sample, the distance of the directions of first tokens."""
    values = [
        (F.normalize(s[i, 0], dim=0) - F.normalize(t[i, 0], dim=0)).square().sum()
        for s, t in zip(student, teacher, strict=True)
        for i in range(len(s))
    ]
    return torch.stack(values).mean()


def loop_cosine(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """DistilBERT: sample by sample."""
    return torch.stack([1 - F.cosine_similarity(s, t, dim=-1) for s, t in zip(student, teacher, strict=True)]).mean()


def loop_rkd(student: torch.Tensor, teacher: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """RKD of rows [B, D]: distances by `cdist`, angles example by example."""
    count = len(student)
    off = ~torch.eye(count, dtype=torch.bool)
    near, theirs = (torch.cdist(side, side)[off] for side in (student, teacher))
    apart = F.smooth_l1_loss(near / near.mean(), theirs / theirs.mean())
    values = []
    for i in range(count):
        others = [j for j in range(count) if j != i]
        directions = [F.normalize(side[others] - side[i], dim=1) for side in (student, teacher)]
        own, other = (one @ one.T for one in directions)
        errors = F.smooth_l1_loss(own, other, reduction="none")
        values.append(errors[~torch.eye(count - 1, dtype=torch.bool)].mean())
    return apart, torch.stack(values).mean()


def loop_relation(student: torch.Tensor, teacher: torch.Tensor, heads: int) -> torch.Tensor:
    """MiniLM: the relation of one kind of states with itself, sample by sample, head by head."""
    values = []
    for i in range(len(student)):
        parts = [side[i].transpose(0, 1).flatten(1).chunk(heads, 1) for side in (student, teacher)]
        for own, other in zip(*parts, strict=True):
            ours, theirs = ((one @ one.T / one.shape[1] ** 0.5).log_softmax(-1) for one in (own, other))
            values.append(F.kl_div(ours, theirs, reduction="batchmean", log_target=True))
    return torch.stack(values).mean()


def batch_relation(student: torch.Tensor, teacher: torch.Tensor, heads: int) -> torch.Tensor:
    """The same of a whole batch at once, [B, L, H] each, padding included."""
    ours, theirs = (side.unflatten(-1, (heads, -1)).transpose(1, 2) for side in (student, teacher))
    ours, theirs = ((one @ one.mT / one.shape[-1] ** 0.5).log_softmax(-1) for one in (ours, theirs))
    return F.kl_div(ours, theirs, reduction="sum", log_target=True) / ours[..., 0].numel()


def loop_scores(student: dict[str, torch.Tensor], teacher: dict[str, torch.Tensor]) -> torch.Tensor:
    """TinyBERT's attention term of a layer: sample by sample."""
    values = []
    for i in range(len(student["q"])):
        own, other = (s["q"][i] @ s["k"][i].mT / s["q"].shape[-1] ** 0.5 for s in (student, teacher))
        values.append(F.mse_loss(own, other))
    return torch.stack(values).mean()


def loop_hidden(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """TinyBERT's hidden term of a layer: sample by sample."""
    return torch.stack([F.mse_loss(s, t) for s, t in zip(student, teacher, strict=True)]).mean()


def angles(points: torch.Tensor, centre: torch.Tensor, error_with: torch.Tensor | None) -> torch.Tensor:
    """Cosines at each centre [n, H] between points [n, J, H], [n, J, J]; compared with others by smooth L1 if named."""
    directions = F.normalize(points - centre[:, None], dim=-1)
    cosines = directions @ directions.mT
    return cosines if error_with is None else F.smooth_l1_loss(cosines, error_with, reduction="none")


def loop_mgskd_tokens(
    student: torch.Tensor, teacher: torch.Tensor, heads: int, centres: int, ends: int
) -> torch.Tensor:
    """MGSKD's relations among the tokens of a layer: sample by sample, head by head."""
    products, triples = [], []
    for s, t in zip(student, teacher, strict=True):
        attention = torch.zeros(len(t), len(t))
        for own, other in zip(s.chunk(heads, 1), t.chunk(heads, 1), strict=True):
            own, other = (one @ one.T / one.shape[1] ** 0.5 for one in (own, other))
            products.append(F.mse_loss(own, other))
            attention = attention + other.softmax(-1)
        centre = attention.sum(0).topk(centres).indices
        near = attention.masked_fill(torch.eye(len(t), dtype=torch.bool), 0).topk(ends).indices[centre]
        errors = angles(s[near], s[centre], angles(t[near], t[centre], None))
        triples.append(errors[:, ~torch.eye(ends, dtype=torch.bool)].mean())
    return torch.stack(products).mean() + torch.stack(triples).mean()


def loop_mgskd_samples(student: torch.Tensor, teacher: torch.Tensor, heads: int) -> torch.Tensor:
    """MGSKD's relations among the texts: head by head, text by text."""
    values, count = [], len(student)
    means = [side.mean(1).chunk(heads, 1) for side in (student, teacher)]
    off = ~torch.eye(count - 1, dtype=torch.bool)
    for own, other in zip(*means, strict=True):
        for i in range(count):
            others = [j for j in range(count) if j != i]
            at = [(side[None, others], side[None, i]) for side in (own, other)]
            values.append(angles(*at[0], angles(*at[1], None))[0, off].mean())
    return torch.stack(values).mean()


def loop_ckd(student: list[torch.Tensor], teacher: list[torch.Tensor], window: int) -> torch.Tensor:
    """CKD's four relations, weight 1 each: sample by sample, angles of words token by token."""
    words, word_angles, layers, layer_angles = [], [], [], []
    for i in range(len(student[0])):
        own, other = (torch.stack([one[i] for one in side]) for side in (student, teacher))  # [P, L, H]
        length, half = own.shape[1], window // 2
        for s, t in zip(own, other, strict=True):
            words.append(loop_distances(s[None], t[None]))
            for at in range(length):
                ends = [j for j in range(max(0, at - half), min(length, at + half + 1)) if j != at]
                errors = [
                    F.normalize(side[ends] - side[at], dim=-1) @ F.normalize(side[ends] - side[at], dim=-1).T
                    for side in (s, t)
                ]
                off = ~torch.eye(len(ends), dtype=torch.bool)
                word_angles.append(F.mse_loss(errors[0][off], errors[1][off]))
        s, t = own.transpose(0, 1), other.transpose(0, 1)  # [L, P, H]
        layers.append(loop_distances(s, t))
        count = s.shape[1]
        for at in range(count):
            ends = [j for j in range(count) if j != at]
            cosines = [angles(side[:, ends], side[:, at], None) for side in (s, t)]
            off = ~torch.eye(count - 1, dtype=torch.bool)
            layer_angles.append(F.mse_loss(cosines[0][:, off], cosines[1][:, off]))
    means = [torch.stack(values).mean() for values in (words, word_angles, layers, layer_angles)]
    return torch.stack(means).sum()


def loop_distances(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """KL of the softmax over the other points of their cosines, [G, N, H]: the mean over points, / number of others."""
    count = student.shape[1]
    off = ~torch.eye(count, dtype=torch.bool)
    ours, theirs = (
        (F.normalize(side, dim=-1) @ F.normalize(side, dim=-1).mT)[:, off].unflatten(1, (count, count - 1))
        .log_softmax(-1)
        for side in (student, teacher)
    )  # fmt: skip
    return F.kl_div(ours, theirs, reduction="sum", log_target=True) / (len(student) * count * (count - 1))
