"""The score file: what one run found out about every sample, for any later run."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from os import PathLike
from pathlib import Path
from typing import Any, Literal, final

import numpy as np
import torch
from torch import Tensor

from lightning_prune.core.checks import check_choice, check_int, check_scores
from lightning_prune.core.export import atomic_write

FORMAT_VERSION = 1
Keep = Literal["high", "low", "middle"]


@final
@dataclass(frozen=True)
class ScoreFile:
    """The content of a score file; :func:`score_module` returns one, :meth:`save` writes it.

    Attributes:
        scores: ``(n,)``, float32, by sample id.
        meta: ``method``, ``keep``, ``parameters``, ``n``, ``date``, ``version``; ``num_ranked`` of a method that
            chooses sample after sample instead of scoring all; ``high``, what a high score says; and ``classes``, the
            classes' names.
        columns: What else is known of each sample ``(n,)``, for example ``targets``; ``weights``: the loss weights that
            belong to exactly the ``num_ranked`` samples chosen; ``label_issue``: above 0.5, its label is suspected.
    """

    scores: Tensor
    meta: dict[str, Any]
    columns: dict[str, Tensor] = field(default_factory=dict)

    @classmethod
    def make(
        cls,
        scores: Tensor,
        *,
        method: str,
        keep: Keep,
        parameters: dict[str, Any] | None = None,
        columns: dict[str, Tensor] | None = None,
        num_ranked: int | None = None,
        high: str = "",
        classes: Sequence[str] | None = None,
    ) -> ScoreFile:
        """Put scores and what is to be known about them together; for the arguments see :func:`save_scores`."""
        check_scores("scores", scores)
        check_choice("keep", keep, ("high", "low", "middle"))
        columns = columns or {}
        for name, values in columns.items():
            if name in {"indices", "scores", "meta"}:
                raise ValueError(
                    f"Expected columns under names of their own, but got {name!r}, which the file has already."
                )
            if values.shape != scores.shape:
                raise ValueError(
                    f"Expected column {name!r} to have a value for each score, shape {tuple(scores.shape)}, but got "
                    f"{tuple(values.shape)}."
                )
        meta: dict[str, Any] = {
            "method": method,
            "keep": keep,
            "parameters": parameters or {},
            "n": len(scores),
            "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "version": FORMAT_VERSION,
        }
        if num_ranked is not None:
            check_int("num_ranked", num_ranked, low=1, high=len(scores))
            meta["num_ranked"] = num_ranked
        if high:
            meta["high"] = high
        if classes:
            meta["classes"] = list(classes)
        columns = {name: values.detach().cpu() for name, values in columns.items()}
        return cls(scores.detach().float().cpu(), meta, columns)

    @property
    def keep(self) -> Keep:
        """Which end of the scores is kept, or the middle; ``"high"`` where nothing is said."""
        keep: Keep = self.meta.get("keep", "high")
        return keep

    @property
    def classes(self) -> list[str] | None:
        """Names of the classes, by class id; None: they have none."""
        return self.meta.get("classes")

    def order(self) -> Tensor:
        """Return the ids ``(n,)``, those that are kept first at the front; those never scored, or not chosen, last."""
        scores = self.scores.double()
        if self.keep == "middle":
            scores = -(scores - scores.nanmedian()).abs()
        scores = -scores if self.keep == "low" else scores
        return scores.masked_fill(scores.isnan(), -torch.inf).argsort(descending=True, stable=True)

    def class_name(self, label: int) -> str:
        """Return what to call a class: its name, or its id."""
        return str(label) if self.classes is None or label >= len(self.classes) else self.classes[label]

    @property
    def num_ranked(self) -> int | None:
        """How many samples the method chose, those with scores > 0; None: it scored all."""
        return self.meta.get("num_ranked")

    def save(self, path: str | PathLike[str]) -> Path:
        """Write the file, whole or not at all, and return its path.

        Args:
            path: Where to; ``.npz`` is appended if there is no suffix.

        Raises:
            ValueError: If the suffix is another one.
        """
        path = check_path(path)
        path = path if path.suffix else path.with_suffix(".npz")
        arrays = {name: values.numpy() for name, values in self.columns.items()}
        arrays |= {"indices": np.arange(len(self.scores)), "scores": self.scores.numpy()}
        meta = json.dumps(self.meta, default=repr)  # parameters of one's own trackers can be anything
        with atomic_write(path) as file:
            np.savez(file, meta=np.array(meta), **arrays)  # type: ignore[arg-type]
        return path


def has_weights(scores: object) -> bool:
    """Return whether these scores, or the file at this path, come with loss weights; False if there is no such file."""
    if isinstance(scores, ScoreFile):
        return "weights" in scores.columns
    if not isinstance(scores, (str, PathLike)) or not zipfile.is_zipfile(scores):
        return False
    with zipfile.ZipFile(scores) as archive:
        return "weights.npy" in archive.namelist()


def check_path(path: str | PathLike[str]) -> Path:
    """Return the path of a score file to be written, or of a folder for several; other suffixes are refused."""
    path = Path(path)
    if path.suffix not in {"", ".npz"}:
        raise ValueError(f"Expected the path of a score file to end in `.npz`, but got '{path}'.")
    return path


def save_scores(
    path: str | PathLike[str],
    scores: Tensor,
    *,
    method: str,
    keep: Keep,
    parameters: dict[str, Any] | None = None,
    columns: dict[str, Tensor] | None = None,
    num_ranked: int | None = None,
    high: str = "",
    classes: Sequence[str] | None = None,
) -> Path:
    """Write a score file: npz with ``indices``, ``scores``, a JSON text ``meta``, and the columns by name.

    It is written beside the target and renamed, so a reader never sees half a file.

    Args:
        path: Where to; ``.npz`` is appended if there is no suffix.
        scores: ``(n,)`` by sample id. NaN: never scored; such a file is written, but refused by :func:`load_scores`.
        method: Name of the method.
        keep: Which end is kept, or the ``"middle"``.
        parameters: Its parameters, plain values.
        columns: Further values ``(n,)`` by name.
        num_ranked: How many samples were chosen, by a method that gives the others no score (see :func:`rank_scores`).
        high: What a high score says of a sample, in words.
        classes: Names of the classes, by class id.

    Returns:
        The path written.

    Raises:
        TypeError: If ``scores`` is not a floating-point tensor.
        ValueError: If a shape, ``keep`` or the suffix is wrong.
    """
    check_path(path)
    file = ScoreFile.make(
        scores, method=method, keep=keep, parameters=parameters, columns=columns, num_ranked=num_ranked, high=high,
        classes=classes,
    )  # fmt: skip
    return file.save(path)


def load_scores(path: str | PathLike[str], num_samples: int | None = None, *, allow_missing: bool = False) -> ScoreFile:
    """Read a score file.

    Args:
        path: A file that :func:`save_scores` wrote.
        num_samples: Length of the dataset that the scores must be of. None: any.
        allow_missing: Accept NaN scores, of samples that were never scored.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not a score file, of a newer version, of another dataset length, or has NaN scores.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(
            f"Expected a score file, but there is none at '{path}'. `lightning-prune score --save_to FILE` writes one, "
            "or `ScoreRecorder`."
        )
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        meta = json.loads(str(arrays.pop("meta")))
        indices = torch.from_numpy(arrays.pop("indices"))
        scores = torch.from_numpy(arrays.pop("scores")).float()
    except (KeyError, ValueError, EOFError, AttributeError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"Expected a score file with `indices`, `scores` and `meta`, but '{path}' is not one. `lightning-prune "
            "score` and `ScoreRecorder` write them; `save_scores` makes one of scores of your own."
        ) from error
    if meta.get("version") != FORMAT_VERSION:
        raise ValueError(
            f"Expected a score file of version {FORMAT_VERSION}, but '{path}' has {meta.get('version')}. "
            "Write it again with the installed lightning-prune, or install the one that wrote it."
        )
    n = len(scores)
    if wrong := next((name for name, values in arrays.items() if values.shape != (n,)), None):
        raise ValueError(
            f"Expected {n} rows in each column of the score file '{path}', as there are scores, but {wrong!r} has "
            f"{arrays[wrong].shape}. Write the file again."
        )
    if indices.shape != scores.shape or not torch.equal(indices.sort().values, torch.arange(n)) or meta["n"] != n:
        raise ValueError(
            f"Expected each id in [0, {meta['n']}) once in the score file '{path}', but some are missing or there "
            "twice. Write the file again."
        )
    if num_samples is not None and n != num_samples:
        raise ValueError(
            f"Expected scores of the {num_samples} samples of the training dataset, but '{path}' has {n}. "
            "Score the dataset that is pruned."
        )
    if not allow_missing and (missing := int(scores.isnan().sum())):
        raise ValueError(
            f"Expected a score for every sample, but {missing} of {n} are NaN in '{path}': they were never scored. "
            "Score with `drop_last=False` and over more epochs."
        )
    order = indices.argsort()
    columns = {name: torch.from_numpy(values)[order] for name, values in arrays.items()}
    return ScoreFile(scores[order], meta, columns)
