"""Which layer of one model corresponds to which layer of another. Layers are `hidden_states` indices: 0 embeddings."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from kdbert.errors import UserError

Pair = tuple[int, int]  # teacher layer, student layer


def matched_layer(layer: int, depth: int, student_depth: int) -> int:
    """The layer of a model with `depth` layers that is at the same height as `layer` in one with `student_depth`.

    floor(layer * depth / student_depth + 1/2): for 12 and 6 layers, twice the number.
    """
    return (2 * layer * depth + student_depth) // (2 * student_depth)


def layers_of(pairs: Iterable[Pair]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The teacher's layers among pairs, and the student's: each once, ascending."""
    found = list(pairs)
    teacher, student = (tuple(sorted({pair[side] for pair in found})) for side in (0, 1))
    return teacher, student


def last_pair(teacher: int, student: int) -> tuple[Pair, ...]:
    """(T, S) of depths T and S."""
    return ((teacher, student),)


def penultimate_pair(teacher: int, student: int) -> tuple[Pair, ...]:
    """(T - 1, S - 1)."""
    if min(teacher, student) < 2:
        raise _one_layer(teacher, student)
    return ((teacher - 1, student - 1),)


def _one_layer(teacher: int, student: int) -> UserError:
    role = "student" if student < 2 else "teacher"
    return UserError(
        f"the {role} has one layer, so there is no layer before the last to compare; name layers with "
        f"--layer-map, such as --layer-map {teacher}:{student}"
    )


def layerwise_pairs(teacher: int, student: int) -> tuple[Pair, ...]:
    """Every student layer but the last, with the teacher's at the same height; 12 and 6: (2,1), (4,2), ... (10,5)."""
    if student < 2:
        raise _one_layer(teacher, student)
    return tuple((matched_layer(layer, teacher, student), layer) for layer in range(1, student))


def all_pairs(teacher: int, student: int) -> tuple[Pair, ...]:
    """Every student layer with the teacher's at the same height; 12 and 6: (2,1), (4,2), ... (12,6)."""
    return tuple((matched_layer(layer, teacher, student), layer) for layer in range(1, student + 1))


def check_pairs(pairs: Sequence[Pair], teacher: int, student: int) -> tuple[Pair, ...]:
    """Pairs that a person gave."""
    for pair in pairs:
        for role, layer, depth in zip(("teacher", "student"), pair, (teacher, student), strict=True):
            if not 0 <= layer <= depth:
                raise UserError(
                    f"--layer-map {pair[0]}:{pair[1]}: the {role} has layers 0 (embeddings) to {depth}, not {layer}"
                )
    return tuple(pairs)


def parse_pairs(text: str) -> list[Pair]:
    """`2:1,4:2` -> teacher and student layers.

    Raises:
        ValueError: anything else.
    """
    pairs = []
    for part in text.split(","):
        teacher, sign, student = part.strip().partition(":")
        if not sign or not (teacher.strip().isdecimal() and student.strip().isdecimal()):
            raise ValueError(f"expected teacher:student layers such as 2:1,4:2 (got {text!r})")
        pairs.append((int(teacher), int(student)))
    return pairs


def told(pairs: Sequence[Pair]) -> str:
    """Pairs for people: `2:1, 4:2`."""
    return ", ".join(f"{teacher}:{student}" for teacher, student in pairs)
