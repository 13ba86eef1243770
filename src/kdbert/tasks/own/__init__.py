"""A person's own data as a task: columns and labels are inferred from names and content, and told before they are used.

What can be read in two ways is refused with a question. `columns` finds the columns, `forms` reads one label in any of
the forms that people write, `labels` finds out which form a training file has and which labels, `tags` knows the
schemes of tagged words, `dev_part` takes a dev split from the training file, and `task` makes the task of all that.
"""

from kdbert.tasks.own.columns import NoLabels
from kdbert.tasks.own.task import custom_task, no_dev, own_split, own_task, saved_split

__all__ = ["NoLabels", "custom_task", "no_dev", "own_split", "own_task", "saved_split"]
