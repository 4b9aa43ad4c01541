"""What a dataset calls its samples and its classes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch.utils.data import Dataset, Subset

Names = Callable[[int], str] | Sequence[str]
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
        >>> import torch
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


def class_names(dataset: Dataset[Any] | None) -> list[str] | None:
    """Return the names in a dataset's ``classes``, by class id, or None; looks through `torch.utils.data.Subset`."""
    found = getattr(dataset, "classes", None)
    if found is None and isinstance(dataset, Subset):
        return class_names(dataset.dataset)
    is_list = isinstance(found, list | tuple) and all(isinstance(name, str | int) for name in found)
    return [str(name) for name in found] if is_list and found else None
