"""A dataset in which one part of some samples is another."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

from torch.utils.data import Dataset


class View(Dataset[Any], ABC):
    """A view of a dataset that changes one part of its samples; the dataset itself is left as it is.

    The dataset's other attributes, such as ``classes``, are found here, too.

    Args:
        dataset: A map-style dataset whose samples are tuples, lists or mappings.
        position: Where the part is in a sample: a position, or the key of a mapping.
    """

    def __init__(self, dataset: Dataset[Any], position: int | str) -> None:
        self.dataset = dataset
        self.position = position

    @abstractmethod
    def replace(self, index: int, part: Any) -> Any:
        """Return what takes the place of a sample's part, or the part itself."""

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> Any:
        if not -len(self) <= index < len(self):
            raise IndexError(f"Expected an id in [0, {len(self)}), but got {index}.")
        sample = self.dataset[index]
        new = self.replace(index % len(self), sample[self.position])
        if isinstance(sample, Mapping):
            return {**sample, self.position: new}
        parts = list(sample)
        parts[self.position] = new  # type: ignore[index]
        if hasattr(sample, "_fields"):
            return type(sample)(*parts)
        return type(sample)(parts) if type(sample) in (tuple, list) else tuple(parts)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or "dataset" not in self.__dict__:  # while it is unpickled
            raise AttributeError(name)
        return getattr(self.dataset, name)
