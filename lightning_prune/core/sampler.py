"""Samplers that yield an epoch's plan. ``__iter__`` has no side effect: torch calls it more than once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import final

from torch import Tensor
from torch.utils.data import BatchSampler, DistributedSampler, Sampler

from lightning_prune.core.plan import EpochPlan, Selection

_BATCHES_PER_CHUNK = 64
"""Batches turned into Python ints at a time: a whole epoch as a list would cost 40 bytes a sample."""


@final
class PlanSampler(DistributedSampler[int]):
    """Yields the sample ids of one rank's shard of the plan.

    Until a plan is set it stands for the full dataset, so whatever asks for its length before training (schedules,
    progress bars, tuners) sees a full epoch. It derives from `DistributedSampler` because Lightning leaves those alone.

    Args:
        num_samples: Length of the dataset.
        shuffle: Whether each epoch is a fresh permutation, or ascending.
        seed: Seed of the order.
        rank: This process's rank.
        world_size: Number of ranks.
    """

    def __init__(self, num_samples: int, *, shuffle: bool, seed: int, rank: int = 0, world_size: int = 1) -> None:
        self.total = num_samples
        self.shuffle = shuffle
        self.seed = seed
        self.rank = rank
        self.num_replicas = world_size
        self.drop_last = False
        self.epoch = 0
        self.plan: EpochPlan | None = None

    def make_plan(self, selection: Selection, epoch: int) -> EpochPlan:
        """Order and shard a selection as this loader would."""
        return EpochPlan.make(
            selection, epoch=epoch, seed=self.seed, shuffle=self.shuffle, world_size=self.num_replicas
        )

    def current_plan(self) -> EpochPlan:
        """Return the plan in force: the one set, else the full dataset in the order of epoch 0."""
        return self.plan if self.plan is not None else self.make_plan(Selection.all(self.total), 0)

    @property
    def full_length(self) -> int:
        """Samples per rank of a full epoch."""
        return -(-self.total // self.num_replicas)

    def __len__(self) -> int:
        num_samples = self.total if self.plan is None else len(self.plan.order)
        return -(-num_samples // self.num_replicas)

    def __iter__(self) -> Iterator[int]:
        ids = self.shard()
        for start in range(0, len(ids), 4096):
            yield from ids[start : start + 4096].tolist()

    def shard(self) -> Tensor:
        """Return the ids ``(len(self),)`` that this rank visits, in order."""
        plan = self.current_plan()
        return plan.shard(plan.order, self.rank)

    def set_epoch(self, epoch: int) -> None:
        """Do nothing: the plan knows its epoch."""


@final
class PlanBatchSampler(Sampler[list[int]]):
    """Yields the batches of a plan; takes the place of a plain `BatchSampler`.

    Args:
        sampler: Where the plan is.
        batch_size: Samples in a batch.
        drop_last: Leave out a last batch that is shorter; but a small selection that is shorter as a whole is one
            batch, since an epoch without any would end the fit.

    Attributes:
        skip: Batches at the start of the epoch that were trained before an interruption.
    """

    def __init__(self, sampler: PlanSampler, batch_size: int, drop_last: bool) -> None:
        self.sampler = sampler
        self.batch_size = batch_size
        self.drop_last = drop_last
        self.skip = 0

    def __len__(self) -> int:
        full, rest = divmod(len(self.sampler), self.batch_size)
        drop = self.drop_last and (full > 0 or self.sampler.full_length < self.batch_size)
        return full + bool(rest and not drop)

    def __iter__(self) -> Iterator[list[int]]:
        ids, size = self.sampler.shard(), self.batch_size
        end = min(len(self) * size, len(ids))
        whole = end - end % size
        for start in range(self.skip * size, whole, size * _BATCHES_PER_CHUNK):
            yield from ids[start : min(start + size * _BATCHES_PER_CHUNK, whole)].view(-1, size).tolist()
        if self.skip * size < end and whole < end:
            yield ids[whole:end].tolist()


@final
class RecordingBatchSampler(Sampler[list[int]]):
    """Wraps a user's own batch sampler over a `PlanSampler` and remembers the batches that it formed.

    Args:
        inner: The batch sampler, already over the `PlanSampler`.

    Attributes:
        batches: What the newest iterator has formed so far; the skipped batches are formed too, but not yielded.
        skip: Batches at the start of the epoch that were trained before an interruption.
    """

    def __init__(self, inner: BatchSampler) -> None:
        self.inner = inner
        self.batches: list[list[int]] = []
        self.skip = 0

    @property
    def sampler(self) -> PlanSampler:
        """The sampler that the wrapped one draws from."""
        sampler: PlanSampler = self.inner.sampler  # type: ignore[assignment]
        return sampler

    @property
    def batch_size(self) -> int | None:
        """Samples in a batch, where the wrapped one says so."""
        return getattr(self.inner, "batch_size", None)

    def __len__(self) -> int:
        return len(self.inner)

    def __iter__(self) -> Iterator[list[int]]:
        batches: list[list[int]] = []  # one list per iterator: an abandoned, prefetching one writes into its own
        self.batches = batches
        for batch in self.inner:
            batches.append(list(batch))
            if len(batches) > self.skip:
                yield batches[-1]
