"""The labels of a training dataset, where it holds them: to count classes, and to show what a sample is labelled."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, final

from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor
from torch.utils.data import Dataset

from lightning_prune.analysis.monitor import dataset_column
from lightning_prune.core.names import class_names

_USUAL: tuple[str | int, ...] = ("targets", "labels", 1)
"""Attributes, and the position in a `TensorDataset`."""


@final
@dataclass(frozen=True)
class Labels:
    """One label for each sample.

    Attributes:
        values: Class ids ``(n,)``, int64, or numbers ``(n,)``, float32.
        num_classes: Number of classes; None: the labels are no class ids.
        names: Names of the classes; None: they have none.
    """

    values: Tensor
    num_classes: int | None
    names: list[str] | None


def find_labels(dataset: Dataset[Any], targets: str | int | None) -> Labels | None:
    """Return the labels of a dataset, or None where none is named and none is found.

    Args:
        dataset: The training dataset.
        targets: Name of its attribute, or the position of a `TensorDataset`'s tensor. None: look at the usual places.

    Raises:
        MisconfigurationException: If ``targets`` is given and does not name one label for each sample.
    """
    if not hasattr(dataset, "__len__"):
        if targets is None:
            return None
        raise MisconfigurationException(
            f"Expected a dataset of known length to look up `targets={targets!r}` in, but got the stream "
            f"`{type(dataset).__name__}`. Leave `targets` out: the report then has no part on classes."
        )
    if targets is not None:
        values = dataset_column(dataset, targets)
        if values.is_complex():
            raise MisconfigurationException(
                f"Expected {targets!r} to hold class ids or numbers, but got {values.dtype}."
            )
        return _labels(values, class_names(dataset))
    for name in _USUAL:
        try:
            values = dataset_column(dataset, name)
        except (MisconfigurationException, TypeError, ValueError, RuntimeError):
            continue
        return _labels(values, class_names(dataset))
    return None


def _labels(values: Tensor, names: list[str] | None) -> Labels:
    values = values.detach().cpu()
    if values.is_floating_point() or len(values) == 0 or int(values.min()) < 0:
        return Labels(values.float(), None, None)
    num_classes = int(values.max()) + 1
    if num_classes > max(2, len(values) // 2):  # rather counts, or ids of something else
        return Labels(values.long(), None, None)
    named = None if names is None or len(names) < num_classes else names
    return Labels(values.long(), num_classes if named is None else len(named), named)
