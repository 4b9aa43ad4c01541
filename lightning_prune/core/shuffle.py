"""A random order of many things that no one has to hold as a whole."""

from __future__ import annotations

from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from lightning_prune.core.arrays import ids_of
from lightning_prune.core.part import Part
from lightning_prune.core.rng import coins, make_generator, numpy_generator, permutation

BUCKET = 1 << 24
"""Things that are shuffled at once, at most on average."""


@final
class Shuffle:
    """A uniformly random order of ``num`` things: each throws for its bucket, and each bucket is shuffled.

    Any part of it can be made by itself, with no more in memory than a bucket. Up to `BUCKET` things are one bucket.

    Args:
        num: Number of things.
        seed: Seed of the order.
        epoch: Epoch that it is for, from 0.
    """

    def __init__(self, num: int, seed: int, epoch: int) -> None:
        self.num, self.seed, self.epoch = num, seed, epoch
        self.num_buckets = 1 << max(0, -(-num // BUCKET) - 1).bit_length()

    def buckets(self, part: Part) -> np.ndarray[Any, np.dtype[np.uint16]]:
        """Return the bucket ``(len(part),)``, uint16, of a part of the things."""
        if self.num_buckets == 1:
            return np.zeros(len(part), dtype=np.uint16)
        thrown = coins(numpy_generator(make_generator(self.seed, self.epoch, "buckets")), part)
        return thrown & np.uint16(self.num_buckets - 1)

    def within(self, bucket: int, size: int) -> Tensor:
        """Return the order ``(size,)`` within a bucket, as positions among the things that are in it."""
        purpose = "order" if self.num_buckets == 1 else f"order/{bucket}"
        return permutation(size, make_generator(self.seed, self.epoch, purpose))

    def order(self) -> Tensor:
        """Return the whole order: positions ``(num,)``, int32 where that suffices."""
        if self.num_buckets == 1:
            return self.within(0, self.num)
        buckets, start = self.buckets(Part.whole(self.num)), 0
        order = torch.empty(self.num, dtype=torch.int32 if self.num < 2**31 else torch.int64)
        for bucket in range(self.num_buckets):
            members = ids_of(torch.from_numpy(buckets == bucket))
            stop = start + len(members)
            order[start:stop] = members.index_select(0, self.within(bucket, len(members)))
            start = stop
        return order
