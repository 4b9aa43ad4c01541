"""Scores as a table for people and spreadsheets: a row for each sample, those that are kept first at the top."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from pathlib import Path

from torch import Tensor

from lightning_prune.core.export import check_table_path, save_rows
from lightning_prune.scoring.score_file import ScoreFile

SUFFIXES = (".csv", ".parquet")


def save_score_table(file: ScoreFile, path: str | PathLike[str], names: Sequence[str] | None = None) -> Path:
    """Write scores with all that is known of each sample, whole or not at all.

    Args:
        file: The scores, see :func:`load_scores`.
        path: ``.csv`` or ``.parquet`` (extra ``export``).
        names: What to call each sample, by id.

    Returns:
        The path. Its columns: ``index``, ``name`` if there are names, ``score``, ``class`` if there are targets (its
        name, or its id), and the file's other columns.

    Raises:
        ValueError: If the suffix is another one.
        ModuleNotFoundError: If Parquet is asked for and pyarrow is not installed.
    """
    path = check_table_path(path, SUFFIXES)
    order = file.order()
    columns: dict[str, Tensor | list[str]] = {"index": order}
    if names is not None:
        columns["name"] = [names[i] for i in order.tolist()]
    columns["score"] = file.scores[order]
    rest = {name: values[order] for name, values in file.columns.items()}
    if (targets := rest.pop("targets", None)) is not None:
        columns["class"] = [file.class_name(label) for label in targets.tolist()]
    return save_rows({**columns, **rest}, path)
