"""What a run leaves for reports: one file with what is known of its epochs and of each sample."""

from __future__ import annotations

import io
import json
import zipfile
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any, final

import numpy as np

from lightning_prune.core.export import atomic_write
from lightning_prune.report.images import Looks

FILE_NAME = "prune_report.npz"
"""Name of the record in a run's log folder."""

_VERSION = 1
_Array = np.ndarray[Any, np.dtype[Any]]


@final
@dataclass
class RunRecord:
    """A run, as a report needs it.

    Attributes:
        meta: What is known of the run as a whole, as plain values: ``name``, ``method`` (the class, or None),
            ``description``, ``arguments``, ``num_samples``, ``dataset``, ``trained_steps``, ``full_steps``,
            ``epochs`` (a dict each), ``metric``, ``metric_curve``, ``metrics``, ``class_names``, ``has_classes``,
            ``span`` (epochs in a slot of ``course``), ``date``.
        columns: Arrays ``(n,)`` of `SampleHistory.columns`; and where known ``given``, ``suggested`` and ``suspicion``.
        course: Losses ``(slots, k)``, float16, of the followed samples.
        followed: Their ids ``(k,)``, ascending; None: all samples.
        class_kept: Samples of each class ``(epochs, classes)`` that were trained in each epoch; None: classes are not
            known, or too many.
        looks: Thumbnails and texts of some samples.
    """

    meta: dict[str, Any]
    columns: dict[str, _Array]
    course: _Array
    followed: _Array | None = None
    class_kept: _Array | None = None
    looks: Looks = field(default_factory=Looks)

    @property
    def num_samples(self) -> int:
        """Length of the training dataset."""
        return int(self.meta["num_samples"])

    def save(self, path: Path) -> None:
        """Write the record, whole or not at all."""
        arrays = {f"column/{name}": values for name, values in self.columns.items()} | {"course": self.course}
        if self.followed is not None:
            arrays["followed"] = self.followed
        if self.class_kept is not None:
            arrays["class_kept"] = self.class_kept
        pictures = self.looks.pictures
        arrays["picture_ids"] = np.array(list(pictures), dtype=np.int64)
        arrays["picture_ends"] = np.cumsum([len(data) for data in pictures.values()], dtype=np.int64)
        arrays["picture_data"] = np.frombuffer(b"".join(pictures.values()), dtype=np.uint8)
        meta = {**self.meta, "format": _VERSION, "texts": self.looks.texts}
        with atomic_write(path) as file:
            np.savez(file, meta=np.array(json.dumps(meta)), **arrays)  # type: ignore[arg-type]

    @classmethod
    def load(cls, path: str | PathLike[str]) -> RunRecord:
        """Read a record, from its file or from the log folder that it lies in.

        Raises:
            FileNotFoundError: If there is none; the message says how a run leaves one.
            ValueError: If it is another file, or of a newer version.
        """
        path = find_record(Path(path))
        try:
            with np.load(path, allow_pickle=False) as file:
                arrays = {name: file[name] for name in file.files}
            meta = json.loads(str(arrays.pop("meta")))
            known = int(meta.pop("format"))
        except (KeyError, ValueError, zipfile.BadZipFile, io.UnsupportedOperation) as error:
            raise ValueError(
                f"Expected '{path}' to be what `PruningReport` wrote, but it is not: {error}. Name the log folder of a "
                "run that had `PruningReport()` among its callbacks."
            ) from error
        if known > _VERSION:
            raise ValueError(
                f"Expected a record of version <= {_VERSION}, but '{path}' has {known}. It was written by a newer "
                "lightning-prune: upgrade to read it."
            )
        looks = Looks()
        looks.texts = {int(sample): text for sample, text in meta.pop("texts").items()}
        ids, ends = arrays.pop("picture_ids").tolist(), arrays.pop("picture_ends").tolist()
        data, starts = arrays.pop("picture_data").tobytes(), [0, *ends][:-1]
        looks.pictures = {i: data[start:end] for i, start, end in zip(ids, starts, ends, strict=True)}
        columns = {name.removeprefix("column/"): v for name, v in arrays.items() if name.startswith("column/")}
        meta["folder"] = str(path.parent)
        return cls(meta, columns, arrays["course"], arrays.get("followed"), arrays.get("class_kept"), looks)


def find_record(path: Path) -> Path:
    """Return the file of a record: ``path`` itself, or the one in that folder.

    Raises:
        FileNotFoundError: If there is none; the message says how a run leaves one.
    """
    found = path / FILE_NAME if path.is_dir() else path
    if found.is_file():
        return found
    what = f"the folder '{path}' has no `{FILE_NAME}`" if path.is_dir() else f"there is no '{path}'"
    inside = sorted(inner.parent for inner in path.glob(f"*/{FILE_NAME}")) if path.is_dir() else []
    hint = f" Did you mean '{inside[-1]}'?" if inside else ""
    raise FileNotFoundError(
        f"Expected the log folder of a run with a per-sample history, but {what}.{hint} A run leaves one if it has "
        "`PruningReport()` among its callbacks, in yaml `- class_path: PruningReport`: add it and train again."
    )
