"""Streams of the tiny task: samples that come in an order of their own, and carry their index."""

from __future__ import annotations

import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from lightning_prune.data import PrunedStream
from tests.helpers import Model, make_dataset, make_loader


class Stream(IterableDataset):
    """Yields each sample once, shared among workers and ranks, in another order in each iteration."""

    def __init__(self, num=40, rank=0, world_size=1, shuffle=True, split=None):
        self.samples = make_dataset(num)
        self.rank, self.world_size, self.shuffle, self.split = rank, world_size, shuffle, split
        self.epoch = 0

    def ids(self):
        if self.split is not None:
            return list(self.split[self.rank])
        order = torch.randperm(len(self.samples), generator=torch.Generator().manual_seed(self.epoch))
        ids = order.tolist() if self.shuffle else list(range(len(self.samples)))
        return ids[self.rank :: self.world_size]

    def __iter__(self):
        worker = get_worker_info()
        number, workers = (0, 1) if worker is None else (worker.id, worker.num_workers)
        ids = self.ids()[number::workers]
        self.epoch += 1
        for i in ids:
            yield self.samples[i]


class IdModel(Model):
    """Tells the ids of its samples."""

    def training_step(self, batch, batch_idx):
        losses = self.losses(batch)
        return self.weighted_loss(losses, indices=batch[2], **self.outputs)


class ModelWithStream(IdModel):
    """For configurations: brings its loaders."""

    def train_dataloader(self):
        return make_stream(pruned=True)

    def val_dataloader(self):
        return make_loader(8)


def id_of(sample):
    return sample[2]


def make_stream(num=40, batch_size=4, pruned=False, **kwargs):
    stream_kwargs = {name: kwargs.pop(name) for name in ("rank", "world_size", "shuffle", "split") if name in kwargs}
    stream = Stream(num, **stream_kwargs)
    return DataLoader(PrunedStream(stream, key=id_of) if pruned else stream, batch_size, **kwargs)
