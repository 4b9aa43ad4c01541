"""Tables of suspicious labels: files, names of samples, and text for a terminal."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset

from lightning_prune.core.export import atomic_write, check_table_path, import_pyarrow

Names = Callable[[int], str] | Sequence[str]
SUFFIXES = (".csv", ".parquet", ".npz")
_NAMES = ("samples", "imgs", "filenames", "files")
"""Attributes of datasets with a file name for each sample, as torchvision's folders and many others have them."""


def sample_names(dataset: Dataset[Any], names: Names | None = None) -> list[str] | None:
    """Return what to call each sample of a dataset, or None where it has no names.

    Args:
        dataset: With an attribute ``samples``, ``imgs``, ``filenames`` or ``files``: a path for each sample, or tuples
            that begin with one. Looks through `torch.utils.data.Subset`.
        names: A function of the sample id, or a name for each sample, instead.

    Raises:
        ValueError: If there are not as many names as samples.

    Example:
        >>> dataset = torch.utils.data.TensorDataset(torch.zeros(2))
        >>> dataset.samples = [("cat/1.png", 0), ("dog/7.png", 1)]
        >>> sample_names(dataset)
        ['cat/1.png', 'dog/7.png']
        >>> sample_names(dataset, lambda i: f"page {i}")
        ['page 0', 'page 1']
    """
    if not hasattr(dataset, "__len__"):  # a stream
        return None
    num = len(dataset)
    if callable(names):
        return [str(names(i)) for i in range(num)]
    found: Any = names
    for name in _NAMES if names is None else ():
        found = getattr(dataset, name, None) if found is None else found
    if found is None and isinstance(dataset, Subset):
        inner = sample_names(dataset.dataset)
        return None if inner is None else [inner[i] for i in dataset.indices]
    if found is None or (names is None and (not hasattr(found, "__len__") or len(found) != num)):
        return None
    if len(found) != num:
        raise ValueError(f"Expected `names` to have one for each of {num} samples, but got {len(found)}.")
    return [str(one[0] if isinstance(one, (tuple, list)) else one) for one in found]


def class_names(dataset: Dataset[Any]) -> list[str] | None:
    """Return the names in a dataset's ``classes``, by class id, or None; looks through `torch.utils.data.Subset`."""
    found = getattr(dataset, "classes", None)
    if found is None and isinstance(dataset, Subset):
        return class_names(dataset.dataset)
    return [str(name) for name in found] if isinstance(found, (list, tuple)) else None


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
    table: dict[str, list[Any]] = {name: values.tolist() for name, values in columns.items()}
    if names is not None:
        table = {"index": table.pop("index"), "name": [names[i] for i in columns["index"].tolist()], **table}
    if path.suffix == ".parquet":
        pa = import_pyarrow()
        types = {torch.int64: pa.int64(), torch.int32: pa.int32(), torch.float32: pa.float32()}
        arrays = {
            name: pa.array(v, types[columns[name].dtype] if name in columns else None) for name, v in table.items()
        }
        with atomic_write(path) as file:
            pa.parquet.write_table(pa.table(arrays), file)
        return path
    with atomic_write(path) as file:
        text = io.TextIOWrapper(file, encoding="utf-8", newline="")
        writer = csv.writer(text)
        writer.writerow(table)
        floats = [name for name, values in columns.items() if values.is_floating_point()]
        table |= {name: [f"{value:.6g}" for value in table[name]] for name in floats}
        writer.writerows(zip(*table.values(), strict=True))
        text.flush()
        text.detach()
    return path


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
