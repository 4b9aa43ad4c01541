"""A dataset with some labels corrected."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, final

import torch
from torch import Tensor
from torch.utils.data import Dataset

from lightning_prune.data.view import View

_TARGETS = ("targets", "labels")


@final
class Relabelled(View):
    """A view of a dataset in which some samples have another label; the dataset itself is left as it is.

    Args:
        dataset: A map-style dataset whose samples are tuples, lists or mappings.
        labels: The new label by sample id, as `LabelIssues.suggestions` returns them.
        position: Where the label is in a sample: a position, or the key of a mapping.

    Attributes:
        dataset: The dataset underneath; its other attributes, such as ``classes``, are found here too, and ``targets``
            and ``labels`` with the new labels.

    Raises:
        TypeError: If ``labels`` is no mapping.
        IndexError: If an id is none of the dataset's.

    Example:
        >>> data = torch.utils.data.TensorDataset(torch.zeros(3), torch.tensor([0, 1, 1]))
        >>> fixed = Relabelled(data, {2: 0})
        >>> [int(label) for _, label in fixed]
        [0, 1, 0]
    """

    def __init__(self, dataset: Dataset[Any], labels: Mapping[int, int | float], position: int | str = 1) -> None:
        if not hasattr(labels, "items"):
            got = type(labels).__name__
            raise TypeError(f"Expected `labels` to be a mapping from sample id to label, but got {got}.")
        num = len(dataset)  # type: ignore[arg-type]
        if wrong := [i for i in labels if not 0 <= i < num]:
            raise IndexError(f"Expected `labels` of sample ids in [0, {num}), but got {wrong[:5]}.")
        super().__init__(dataset, position)
        self.new_labels = dict(labels)

    def replace(self, index: int, part: Any) -> Any:
        """Return a sample's label."""
        new = self.new_labels.get(index)
        return part if new is None else _like(part, new)

    def __getattr__(self, name: str) -> Any:
        found = super().__getattr__(name)
        return self._corrected(found) if name in _TARGETS else found

    def _corrected(self, labels: Any) -> Any:
        """Return a copy of the labels ``(n,)`` with the new ones in place."""
        copied = labels.clone() if isinstance(labels, Tensor) else labels.copy()
        for index, new in self.new_labels.items():
            copied[index] = _like(copied[index], new)
        return copied


def _like(old: Any, new: int | float) -> Any:
    """Return a label of the type of the old one."""
    return torch.as_tensor(new, dtype=old.dtype).expand_as(old).clone() if isinstance(old, Tensor) else new
