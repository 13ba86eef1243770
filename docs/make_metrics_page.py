"""Writes docs/metrics.md from the table of metrics: `python docs/make_metrics_page.py`."""

from __future__ import annotations

from pathlib import Path

from kdbert.metrics.table import LEFT_OUT, TABLE, Metric

HEADS = {
    "single_label": "One class",
    "multi_label": "Any of several classes",
    "token": "A tag of each word",
    "regression": "A score",
    "masked_lm": "Plain text with hidden tokens",
    "encoder": "Plain text, general distillation",
}
HEAD = """# Metrics

Every task has metrics of its own (`kdbert data describe TASK`). Others are asked for by name; the first one selects: by
it `train.selection=best` and `train.patience` choose the epoch, and `kdbert table` and `kdbert report` compare runs.

```bash
kdbert distill --task rte --metrics matthews_correlation,roc_auc --set train.selection=best
kdbert sweep --task stsb --metrics rmse,kendall --grid method=finetune,kd --seeds 3
kdbert evaluate RUN --metrics log_loss,brier_score
```

- **Names are exact**, and printed so. scikit-learn's names (`f1_macro`, `neg_log_loss`, `matthews_corrcoef`) and the
  short ones in the tables are accepted. Lower is better where the table says so; no value has its sign turned.
- **Runs by other metrics are other runs.** A teacher made on the way is scored by the student's metrics, so a new
  choice makes it anew: name the one that you have with `--teacher`. `kdbert evaluate RUN --metrics …` scores a
  finished run without training.
- **Values are scikit-learn's** (and scipy's). What is undefined is 0: precision where no answer is of the class, a
  correlation with a constant, ROC AUC where all examples have one class. Means over classes take those that are in
  labels or answers; of `balanced_accuracy` and average precision those in the labels; of ROC AUC those that some
  examples have and others have not. Of several classes F1, precision, recall and Jaccard take all.
- **Probabilities** are the softmax of an example's logits, of several classes the sigmoid of each. The logits are those
  of the predictions file, with six decimals, so every score can be computed again from it.
- **The constant answer** is the best of: the classes or tags that can be best; for scores the mean, the median and the
  middle of the range; for several classes none, all, the most frequent set, and the most frequent classes, as many as
  are best for F1 or as more than half of the examples have. For metrics of probabilities it is the share of each class
  in the split.
- **Intervals** (`kdbert table --baseline`) are computed where the last column says so. The others would take too long;
  those of words would have to draw sentences.
- The class numbered 1 is the second of the labels that `kdbert data describe TASK` shows. Of `hoc`, `document_` metrics
  are of abstracts, all others of sentences.
"""


def row(metric: Metric, kind: str) -> str:
    """A metric of a kind of task, as a line of Markdown."""
    least, most = metric.classes
    limit = "" if kind in ("masked_lm", "encoder") or metric.classes == (2, None) else f" ({least} classes)"
    if most is None and least > 2:
        limit = f" ({least} classes or more)"
    names = ", ".join(f"`{name}`" for name in metric.also)
    interval = metric.resampled and (metric.reads == "groups" or kind in ("single_label", "regression"))
    better, drawn = "lower" if metric.lower else "higher", "yes" if interval else ""
    return f"| `{metric.name}` | {metric.meaning}{limit} | {metric.reads} | {better} | {names} | {drawn} |"


def page() -> str:
    """The whole page as Markdown."""
    lines = [HEAD]
    for kind, name in HEADS.items():
        lines += [f"## {name}", ""]
        if kind == "masked_lm":
            lines += [
                "`--metrics` does not apply: all are told. `new_`: of pieces added by `kdbert expand-vocab`.",
                "",
            ]
        if kind == "encoder":
            lines += ["`--metrics` does not apply. What the loss is: `kdbert methods show hidden`.", ""]
        lines += ["| metric | what it is | of | better | other names | interval |", "|---|---|---|---|---|---|"]
        lines += [row(metric, kind) for metric in TABLE.values() if kind in metric.heads]
        lines.append("")
    lines += ["## Not here", "", "What scikit-learn has besides, and why kdbert has not:", ""]
    for reason in dict.fromkeys(LEFT_OUT.values()):
        lines.append(f"- {', '.join(f'`{name}`' for name, why in LEFT_OUT.items() if why == reason)}: {reason}.")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    Path(__file__).with_name("metrics.md").write_text(page(), encoding="utf-8")
