"""A user's own sampler or batch sampler: its draw of an epoch, made once, by random generators of our own."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from lightning_prune.core.checks import LoaderError
from lightning_prune.core.rng import isolated_rng, make_generator

_ENDLESS = 16
"""A sampler that yields this many times as many ids as it should is taken for endless."""


@final
class Draw:
    """Asks a sampler for the ids of an epoch, or a batch sampler for its batches.

    The draw is a function of (seed, epoch): the global generators are seeded meanwhile and given back, and so is a
    `torch.Generator` that the sampler keeps as ``generator``. What it draws from elsewhere cannot be drawn again, so a
    resume in mid-epoch is then refused. Several processes take the draw of the first one.

    Args:
        source: The user's sampler or batch sampler, which is left alone: a shallow copy is asked.
        num_samples: Length of the dataset.
    """

    def __init__(self, source: Iterable[Any], num_samples: int) -> None:
        self.name = type(source).__name__
        self.num_samples = num_samples
        self.generators: list[torch.Generator] = []
        self.source = self._own(source)

    def _own(self, source: Any) -> Any:
        """Return a shallow copy with generators of its own, and so of what it draws from."""
        if isinstance(source, (list, tuple, range, Tensor, np.ndarray)):
            return source
        own = copy.copy(source)
        if isinstance(getattr(source, "generator", None), torch.Generator):
            own.generator = torch.Generator(source.generator.device)
            self.generators.append(own.generator)
        for name in ("sampler", "batch_sampler"):
            inner = vars(own).get(name) if hasattr(own, "__dict__") else None
            if inner is not None:
                setattr(own, name, self._own(inner))
        return own

    def _items(self, seed: int, epoch: int) -> list[Any]:
        """Return what the source yields in an epoch."""
        seed = make_generator(seed, epoch, "draw").initial_seed()
        for generator in self.generators:
            generator.manual_seed(seed)
        for part in (self.source, getattr(self.source, "sampler", None)):
            if callable(set_epoch := getattr(part, "set_epoch", None)):
                set_epoch(epoch)
        most = _ENDLESS * max(self.num_samples, _length(self.source) or 0) + _ENDLESS
        with isolated_rng(seed):
            items = list(itertools.islice(self.source, most))
        if len(items) == most:
            raise LoaderError(
                f"Expected `{self.name}` to come to an end in each epoch, but it yielded {most} times without one. "
                "Give it a number of samples to draw."
            )
        return items

    def ids(self, seed: int, epoch: int) -> Tensor:
        """Return the ids ``(m,)``, int64, that a sampler yields in an epoch, repeats included.

        Raises:
            LoaderError: If they are no ids of the dataset, or never end.
        """
        return self._checked(_shared(self._items(seed, epoch)))

    def batches(self, seed: int, epoch: int) -> tuple[Tensor, Tensor]:
        """Return the ids ``(m,)``, int64, that a batch sampler yields in an epoch, and the batches' lengths ``(b,)``.

        Raises:
            LoaderError: If they are no ids of the dataset, or never end.
        """
        batches = _shared([list(batch) for batch in self._items(seed, epoch)])
        return self._checked([i for batch in batches for i in batch]), torch.tensor([len(b) for b in batches])

    def _checked(self, items: Sequence[Any]) -> Tensor:
        try:
            values = np.asarray(items)
        except ValueError:  # of several shapes
            values = np.empty(0, dtype=object)
        if len(items) and (values.ndim != 1 or values.dtype.kind not in "iu"):
            raise LoaderError(
                f"Expected `{self.name}` to yield positions in the dataset, but it yielded {items[0]!r}: per-sample "
                "state cannot be kept for such keys. Let it yield ints, and look the keys up in the dataset."
            )
        ids = torch.from_numpy(values.astype(np.int64))
        if len(ids):
            low, high = (int(v) for v in torch.aminmax(ids))
            if low < 0 or high >= self.num_samples:
                raise LoaderError(
                    f"Expected `{self.name}` to yield ids in [0, {self.num_samples}), the dataset's, but got ids in "
                    f"[{low}, {high}]."
                )
        return ids

    def count(self, seed: int) -> int:
        """Return how many ids or batches an epoch has: as the source tells, else as it draws for epoch 0."""
        length = _length(self.source)
        return len(self._items(seed, 0)) if length is None else length


def _length(source: Any) -> int | None:
    try:
        return len(source)
    except TypeError:  # PyTorch lets samplers be without
        return None


def _shared(items: list[Any]) -> list[Any]:
    """Return what the first process has drawn; collective."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return items
    box = [items]
    torch.distributed.broadcast_object_list(box, src=0)
    return box[0]


def regroup(counts: Iterator[int] | Sequence[int], capacities: Sequence[int]) -> list[int]:
    """Return the lengths of the batches that are made of what is left of others, filled up in the order drawn.

    A new batch is never longer than the shortest of those that it takes from: what a batch of long sequences may hold
    stays a bound, and neighbours in length stay neighbours.

    Args:
        counts: Samples that are left of each batch.
        capacities: Length of each batch, as far as it may be filled.

    Example:
        >>> regroup([1, 2, 3, 4], [4, 4, 4, 4])
        [4, 4, 2]
        >>> regroup([5, 1, 2], [8, 2, 2])
        [5, 2, 1]
    """
    lengths: list[int] = []
    current = capacity = 0
    for count, limit in zip(counts, capacities, strict=True):
        if count == 0:
            continue
        capacity = min(capacity, limit) if current else limit
        if current >= capacity:
            lengths.append(current)
            current, capacity = 0, limit
        while count:
            taken = min(capacity - current, count)
            current, count = current + taken, count - taken
            if current == capacity:
                lengths.append(current)
                current, capacity = 0, limit
    return [*lengths, current] if current else lengths
