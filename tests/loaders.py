"""The loader table: what real projects hand to a Trainer, on a dataset whose samples carry their index."""

from __future__ import annotations

import random

import numpy as np
import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    RandomSampler,
    Sampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
    default_collate,
)

from tests.helpers import make_dataset

N = 40
WEIGHTS = torch.tensor([0.0] * 10 + [1.0] * 30)
LENGTHS = torch.randint(1, 30, (N,), generator=torch.Generator().manual_seed(0)).tolist()
CLASSES = [i % 5 for i in range(N)]


class OwnOrder(Sampler):
    """Yields ids by Python's random numbers."""

    def __init__(self, ids):
        self.ids = list(ids)

    def __iter__(self):
        return iter(random.sample(self.ids, len(self.ids)))

    def __len__(self):
        return len(self.ids)


class Shuffles(RandomSampler):
    """A sampler of another library that shuffles, as torchdata's does."""

    def __iter__(self):
        yield from torch.randperm(len(self.data_source), generator=self.generator).tolist()


class WeightedShards(DistributedSampler):
    """Shards, and weights; the draw changes with the epoch that it is told."""

    def __iter__(self):
        generator = torch.Generator().manual_seed(self.epoch)
        ids = torch.multinomial(WEIGHTS, N, replacement=True, generator=generator)
        return iter(ids[self.rank :: self.num_replicas].tolist())


class Reversed(BatchSampler):
    """Reads its sampler, and turns each batch around."""

    def __iter__(self):
        yield from (batch[::-1] for batch in super().__iter__())


class Buckets(Sampler):
    """Has a sampler that it does not read; batches of neighbours in length, in random order."""

    def __init__(self, size):
        self.sampler, self.batch_size, self.drop_last = SequentialSampler(range(N)), size, False

    def make(self):
        ids = sorted(range(N), key=LENGTHS.__getitem__)
        return [ids[i : i + self.batch_size] for i in range(0, N, self.batch_size)]

    def __iter__(self):
        batches = self.make()
        np.random.shuffle(batches)
        yield from batches

    def __len__(self):
        return len(self.make())


class Tokens(Buckets):
    """Batches of at most 60 tokens: many short samples, or few long ones."""

    def make(self):
        batches, batch = [], []
        for i in sorted(range(N), key=LENGTHS.__getitem__):
            if batch and LENGTHS[i] * (len(batch) + 1) > 60:
                batches.append(batch)
                batch = []
            batch.append(i)
        return [*batches, batch]


class Listed(Sampler):
    """A list of batches without a sampler, in the order given; yields ranges."""

    def __iter__(self):
        yield from (range(start, min(start + 6, N)) for start in range(0, N, 6))

    def __len__(self):
        return 7


class Balanced(Sampler):
    """One sample of each class in a batch; its length was counted when it was made."""

    def __init__(self):
        self.length = N // 5

    def __iter__(self):
        pools = [[i for i in torch.randperm(N).tolist() if CLASSES[i] == c] for c in range(5)]
        yield from (list(batch) for batch in zip(*pools, strict=True))

    def __len__(self):
        return self.length


class ByBatch(Dataset):
    """Is asked for whole batches, as Hugging Face data sets are."""

    def __len__(self):
        return N

    def __getitem__(self, ids):
        data = make_dataset()
        return default_collate([data[i] for i in ids])


def loader(sampler=None, **kwargs):
    return DataLoader(make_dataset(), 4, sampler=sampler, **kwargs)


def batches(batch_sampler, **kwargs):
    return DataLoader(make_dataset(), batch_sampler=batch_sampler, **kwargs)


LOADERS = {
    "weighted": lambda: loader(WeightedRandomSampler(WEIGHTS, N)),
    "weighted, own generator": lambda: loader(
        WeightedRandomSampler(WEIGHTS, 50, generator=torch.Generator().manual_seed(7))
    ),
    "subset": lambda: loader(SubsetRandomSampler(range(5, 29))),
    "with replacement": lambda: loader(RandomSampler(range(N), replacement=True, num_samples=60)),
    "fewer": lambda: loader(RandomSampler(range(N), num_samples=24)),
    "another library's": lambda: loader(Shuffles(range(N))),
    "own order": lambda: loader(OwnOrder(range(N))),
    "range": lambda: loader(range(3, 33)),
    "workers": lambda: loader(WeightedRandomSampler(WEIGHTS, N), num_workers=2),
    "drop last": lambda: loader(WeightedRandomSampler(WEIGHTS, 38), drop_last=True),
    "reads its sampler": lambda: batches(Reversed(RandomSampler(range(N)), 6, False)),
    "reads a weighted sampler": lambda: batches(Reversed(WeightedRandomSampler(WEIGHTS, N), 6, False)),
    "does not read its sampler": lambda: batches(Buckets(8)),
    "buckets, workers": lambda: batches(Buckets(8), num_workers=2),
    "tokens": lambda: batches(Tokens(8)),
    "listed": lambda: batches(Listed()),
    "balanced": lambda: batches(Balanced()),
    "by batch": lambda: DataLoader(ByBatch(), batch_size=None, sampler=BatchSampler(RandomSampler(range(N)), 4, False)),
    "by batch, weighted": lambda: DataLoader(
        ByBatch(), batch_size=None, sampler=BatchSampler(WeightedRandomSampler(WEIGHTS, N), 4, True)
    ),
}
