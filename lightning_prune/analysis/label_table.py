"""Tables of suspicious labels: files, names of samples, and text for a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from pathlib import Path

import torch
from torch import Tensor

from lightning_prune.core.export import check_table_path, save_rows

SUFFIXES = (".csv", ".parquet", ".npz")


def save_issues(columns: dict[str, Tensor], path: str | PathLike[str], names: Sequence[str] | None = None) -> Path:
    """Write what :func:`~lightning_prune.analysis.label_issues` returned, whole or not at all.

    Args:
        columns: The columns.
        path: ``.csv`` or ``.parquet``: a row for each label, the most suspicious first, with a column ``name`` if there
            are names. ``.npz``: a score file by sample id, for `StaticPruning`, which keeps the low scores; of a
            multi-label task with each sample's highest score only.
        names: What to call each sample, by id.

    Returns:
        The path.

    Raises:
        ValueError: If the suffix is another one.
        ModuleNotFoundError: If Parquet is asked for and pyarrow is not installed.
    """
    path = check_table_path(path, SUFFIXES)
    if path.suffix == ".npz":
        return _save_scores(columns, path)
    rows: dict[str, Tensor | list[str]] = {"index": columns["index"]}
    if names is not None:
        rows["name"] = [names[i] for i in columns["index"].tolist()]
    return save_rows({**rows, **columns}, path)


def _save_scores(columns: dict[str, Tensor], path: Path) -> Path:
    from lightning_prune.scoring.score_file import save_scores  # only where it is used: it brings all scores with it

    index = columns["index"]
    num = int(index.max()) + 1
    scores = torch.zeros(num, dtype=torch.float32).scatter_reduce_(0, index, columns["score"], "amax")
    of_samples = len(index) == num
    rest = {name: torch.empty_like(v).index_copy_(0, index, v) for name, v in columns.items() if of_samples}
    number = int((scores > 0.5).sum())
    parameters = {"num_issues": number, "prune_ratio": number / num}
    rest = {name: values for name, values in rest.items() if name not in ("index", "score")}
    return save_scores(path, scores, method="LabelIssues", keep="low", parameters=parameters, columns=rest)


def summarize_issues(
    columns: dict[str, Tensor],
    *,
    names: Sequence[str] | None = None,
    classes: Sequence[str] | None = None,
    top: int = 20,
) -> str:
    """Describe suspicious labels: the most suspicious, a histogram of the scores, and how many are counted as wrong.

    Args:
        columns: What :func:`~lightning_prune.analysis.label_issues` returned.
        names: What to call each sample, by id.
        classes: Names of the classes, by class id.
        top: How many labels to list.

    Returns:
        Lines of text, without a newline at the end.

    Example:
        >>> from lightning_prune.analysis import label_issues
        >>> probs = torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.95, 0.05], [0.1, 0.9], [0.1, 0.9], [0.2, 0.8]])
        >>> found = label_issues(torch.tensor([0, 0, 1, 1, 1, 1]), probs)
        >>> print(summarize_issues(found, classes=["cat", "dog"], top=2).splitlines()[1])
            2    dog        cat  0.8971
    """
    from lightning_prune.scoring.summary import histogram

    shown = ["index", *(["class"] if "class" in columns else []), "given", "suggested", "score"]
    named = "class" if "class" in columns else "given suggested"
    rows = [[*shown, *([] if names is None else ["name"])]]
    for i in range(min(top, len(columns["index"]))):
        row = [_cell(columns[name][i].item(), classes if name in named else None) for name in shown]
        rows.append([*row, *([] if names is None else [names[int(columns["index"][i])]])])
    widths = [max(map(len, cells)) for cells in zip(*rows, strict=True)]
    lines = [
        "  ".join(map(str.rjust, row[: len(shown)], widths)) + "".join(f"  {name}" for name in row[len(shown) :])
        for row in rows
    ]
    number, total = int((columns["score"] > 0.5).sum()), len(columns["score"])
    lines += ["", "Scores, from right to wrong:", *histogram(columns["score"]), ""]
    lines.append(
        f"About {number:,} of {total:,} labels are wrong ({number / total:.1%}): those with a score above 0.5."
    )
    return "\n".join(lines)


def _cell(value: int | float, classes: Sequence[str] | None) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value) if classes is None or value >= len(classes) else classes[value]
