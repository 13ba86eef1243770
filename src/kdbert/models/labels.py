"""Labels are matched by name, never by number."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from kdbert.data.labels import plain
from kdbert.errors import UserError

SHOWN = 20  # labels of a task in a message


def is_generic(names: Sequence[str]) -> bool:
    """Whether these are the names that the library makes up when it is given none."""
    return len(names) > 1 and all(re.fullmatch(r"LABEL_\d+", name) for name in names)


def label_permutation(
    task_labels: Sequence[str], aliases: Mapping[str, Sequence[str]], model_labels: Sequence[str]
) -> list[int]:
    """For each task label (or an alias of it), the column of the model's logits that means it.

    Raises:
        ValueError: missing, extra or doubled labels; the message lists them.
    """
    columns: dict[str, int] = {}
    for column, name in enumerate(model_labels):
        if plain(name) in columns:
            raise ValueError(f"label {name!r} occurs twice")
        columns[plain(name)] = column
    permutation: list[int] = []
    missing: list[str] = []
    for label in task_labels:
        names = [plain(name) for name in (label, *aliases.get(label, ()))]
        found = next((columns.pop(name) for name in names if name in columns), None)
        if found is None:
            missing.append(label)
        else:
            permutation.append(found)
    extra = [name for name in model_labels if plain(name) in columns]
    lacks = f"it lacks {_some(missing)}" if missing else ""
    has = f"it has {_some(extra)}, which the task does not have" if extra else ""
    if lacks or has:
        raise ValueError(" and ".join(filter(None, (lacks, has))))
    return permutation


def teacher_permutation(
    name: str,
    task_name: str,
    task_labels: Sequence[str],
    aliases: Mapping[str, Sequence[str]],
    model_labels: Sequence[str],
    given: Sequence[str] | None,
    *,
    role: str = "teacher",
    flag: str = "--teacher-labels",
) -> list[int]:
    """`label_permutation` for a loaded model, with every disagreement as a `UserError`.

    `given` are the labels in the order of the logits, as the person named them with `flag`; `role` and `name` are what
    the model is called in messages.
    """
    outputs = len(task_labels) or 1
    if len(model_labels) != outputs:
        raise UserError(
            f"{role} {name!r} has {len(model_labels)} outputs, task {task_name!r} needs {outputs}; "
            f"fine-tune one with `kdbert finetune-teacher --task {task_name} --model {name}`"
        )
    if not task_labels:
        return [0]
    if given is not None and len(given) != outputs:
        raise UserError(f"{flag} names {len(given)} labels, {role} {name!r} has {outputs} outputs")
    if given is None and is_generic(model_labels):
        rest = ", …" * (outputs > 2)
        raise UserError(
            f"{role} {name!r} calls its labels {model_labels[0]}, {model_labels[1]}{rest}, which does not say what "
            f"they mean; {_which_order(task_labels, role, flag)}"
        )
    if given is not None and not is_generic(model_labels):
        own = [plain(name) for name in model_labels]
        if sorted(own) == sorted(map(plain, given)) and own != list(map(plain, given)):
            raise UserError(
                f"{flag} {','.join(given)} contradicts {role} {name!r}, whose configuration orders these labels as "
                f"{', '.join(model_labels)}; omit {flag}, or correct the model's id2label"
            )
    try:
        return label_permutation(task_labels, aliases, given or model_labels)
    except ValueError as error:
        raise UserError(
            f"{role} {name!r} has other labels than task {task_name!r}: {error}; "
            f"give its labels in order with {flag} if they mean the same"
        ) from None


def _which_order(task_labels: Sequence[str], role: str, flag: str) -> str:
    """What to ask for if the order of a model's outputs is unknown: only whole numbers have a natural order."""
    if all(re.fullmatch(r"-?\d{1,15}", label) for label in task_labels):
        ordered = sorted(task_labels, key=int)
        shown = ordered if len(ordered) <= SHOWN else [*ordered[:3], "…", ordered[-1]]
        return f"if its outputs are in the order of the numbers, add {flag} {','.join(shown)}"
    return (
        f"name them with {flag}, in the order of the {role}'s outputs (its card may say it); the task's labels, in no "
        f"order, are {_some(sorted(task_labels), SHOWN)}"
    )


def _some(names: Sequence[str], most: int = 5) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
