"""A stream that leaves out what is not selected, before it is decoded or collated."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Iterable, Iterator
from typing import Any, final

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from lightning_prune.core.checks import LoaderError

_ITERATION, _PASSED, _DROPPED = range(3)
"""Columns of the counters: which iteration counts, and what it let pass and left out."""


@final
class PrunedStream(IterableDataset[Any]):
    """Wraps a stream, and leaves out the samples that the running epoch has not selected.

    The loader's workers ask a mask in shared memory, which each epoch's start sets anew; so persistent workers follow,
    too. Put it where a sample has its id and is not yet decoded, and give what decodes as ``transform``: only what is
    trained is decoded, collated and sent. Without a pruning method, and after the run, everything passes.

    The run must know the number of samples, ``ScoreRegistry(num_samples=N)``, and the step their ids,
    ``self.weighted_loss(losses, indices=ids)``, to record losses.

    Args:
        dataset: The stream: an `IterableDataset`, or anything to iterate over. It has to share its samples among the
            workers and ranks as without pruning, so that each comes once in an epoch.
        key: Where a sample has its id, an int in [0, N): a key or position, ``sample[key]``, or a function of the
            sample. An id written in digits, ``"000012"``, will do.
        transform: Applied to the samples that pass. None: they are handed on as they are.

    Raises:
        TypeError: If ``dataset`` cannot be iterated over, or ``key`` is neither.

    Example:
        >>> stream = PrunedStream([{"id": 0, "x": "a"}, {"id": 1, "x": "b"}], key="id", transform=lambda s: s["x"])
        >>> list(stream)
        ['a', 'b']
    """

    def __init__(
        self,
        dataset: Iterable[Any],
        key: Hashable | Callable[[Any], Any],
        transform: Callable[[Any], Any] | None = None,
    ) -> None:
        if not hasattr(dataset, "__iter__"):
            raise TypeError(f"Expected `dataset` to be a stream to iterate over, but got {type(dataset).__name__}.")
        if key is None:
            raise TypeError('Expected `key` to say where a sample has its id, as in `key="id"`, but got None.')
        self.dataset = dataset
        self.key = key
        self.transform = transform
        self._selected: Tensor | None = None
        self._counters: Tensor | None = None

    def follow(self, num_samples: int, num_workers: int) -> None:
        """Take part in a run, from now on; workers must be started after it.

        Args:
            num_samples: Number of samples of the whole stream.
            num_workers: Of the loader.
        """
        self._selected = torch.ones(num_samples, dtype=torch.bool)
        self._counters = torch.zeros(max(1, num_workers), 3, dtype=torch.int64)
        for shared in (self._selected, self._counters):
            shared.share_memory_()  # type: ignore[no-untyped-call]

    def select(self, selected: Tensor | None) -> None:
        """Let only the samples of a mask ``(n,)`` pass from now on; None: all. Workers see it at once."""
        assert self._selected is not None  # noqa: S101  (narrowing: called in a run)
        if selected is None:
            self._selected.fill_(True)
        else:
            self._selected.copy_(selected)

    def release(self) -> None:
        """Let everything pass, after a run."""
        self._selected = self._counters = None

    @property
    def counts(self) -> tuple[int, int]:
        """How many samples the latest iteration of each worker let pass, and how many it left out."""
        if self._counters is None:
            return 0, 0
        _, passed, dropped = self._counters.sum(0).tolist()
        return passed, dropped

    def __iter__(self) -> Iterator[Any]:
        transform = self.transform
        for sample in self.dataset if self._selected is None else self._chosen():
            yield sample if transform is None else transform(sample)

    def _chosen(self) -> Iterator[Any]:
        assert self._selected is not None  # noqa: S101  (narrowing)
        assert self._counters is not None  # noqa: S101  (narrowing)
        worker = get_worker_info()
        selected = self._selected.numpy()  # views of what is shared
        counters = self._counters[0 if worker is None else worker.id].numpy()
        own = time.monotonic_ns()  # a later iteration in the same place goes on counting instead
        counters[:] = own, 0, 0
        for sample in self.dataset:
            passes = selected[self._id_of(sample, len(selected))]
            if counters[_ITERATION] == own:
                counters[_PASSED if passes else _DROPPED] += 1
            if passes:
                yield sample

    def _id_of(self, sample: Any, num_samples: int) -> int:
        key = self.key
        try:
            value = key(sample) if callable(key) else sample[key]
            number = int(value)
        except (TypeError, ValueError, LookupError, AttributeError) as error:
            raise LoaderError(
                f"Expected `PrunedStream(key={key!r})` to give the id of each sample, an int, but for a sample of type "
                f"{type(sample).__name__} it does not: {type(error).__name__}: {error}."
            ) from error
        if not 0 <= number < num_samples or (number != value and not isinstance(value, str | np.ndarray | Tensor)):
            raise LoaderError(
                f"Expected `PrunedStream(key={key!r})` to give ids in [0, {num_samples}), by "
                f"`ScoreRegistry(num_samples={num_samples})`, but got {value!r}."
            )
        return number

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or "dataset" not in self.__dict__:
            raise AttributeError(name)
        return getattr(self.dataset, name)


def pruned_streams(dataset: Any, *, depth: int = 5) -> list[PrunedStream]:
    """Return the `PrunedStream` that a dataset is, or reads from: in its attributes, and lists of them."""
    if isinstance(dataset, PrunedStream):
        return [dataset]
    parts: list[Any] = []
    if isinstance(dataset, list | tuple):
        parts = list(dataset)
    elif isinstance(dataset, Iterable) and not isinstance(dataset, str | bytes | Tensor):
        parts = list(getattr(dataset, "__dict__", {}).values())
    return [found for part in parts if depth > 0 for found in pruned_streams(part, depth=depth - 1)]
