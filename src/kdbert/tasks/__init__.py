"""The registry of tasks. A family is a file with `TASKS` and `ALIASES`; a task is a `TaskSpec`."""

from __future__ import annotations

from kdbert.errors import UserError, near_miss
from kdbert.tasks import glue, intent, quickstart
from kdbert.tasks.spec import Kind, Split, TaskSpec

__all__ = ["CUSTOM", "Kind", "Split", "TaskSpec", "get_task", "task_names"]

CUSTOM = "custom"
_FAMILIES = (quickstart, glue, intent)
_TASKS: dict[str, TaskSpec] = {spec.name: spec for family in _FAMILIES for spec in family.TASKS}
_ALIASES: dict[str, str] = {alias: name for family in _FAMILIES for alias, name in family.ALIASES.items()}


def task_names() -> list[str]:
    """Registered names, in the order in which they are listed."""
    return list(_TASKS)


def task_name(name: str) -> str:
    """The registered name that `name` (any case, or an alias such as `STS-B`) stands for.

    Raises:
        UserError: unknown task, with the nearest known one.
    """
    key = name.lower()
    key = _ALIASES.get(key, key)
    if key not in _TASKS and key != CUSTOM:
        known = [*_TASKS, CUSTOM]
        raise UserError(f"unknown task {name!r}{near_miss(key, known)} (known: {', '.join(known)})")
    return key


def get_task(name: str) -> TaskSpec:
    """The registered task of that name.

    Raises:
        UserError: unknown; or `custom`, which is made of a person's files by `kdbert.tasks.custom`.
    """
    key = task_name(name)
    if key == CUSTOM:
        raise UserError("task 'custom' is your own files; it exists only with --train-file and --dev-file")
    return _TASKS[key]
