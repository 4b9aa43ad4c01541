"""Samplers that yield an epoch's plan. Calling ``__iter__`` changes nothing: torch does so more than once."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, final

import torch
from torch import Tensor
from torch.utils.data import DistributedSampler

from lightning_prune.core.checks import LoaderError
from lightning_prune.core.draw import Draw
from lightning_prune.core.part import Part
from lightning_prune.core.plan import EpochPlan, Selection
from lightning_prune.core.shared_plan import shared_plan

_POSITION = ("state_dict", "load_state_dict")
"""What a user's sampler may have to go on where it was; the plan knows that of itself."""

_BATCHES_PER_CHUNK = 64
"""Batches turned into Python ints at a time: a whole epoch as a list would cost 40 bytes a sample."""


@final
class PlanSampler(DistributedSampler[int]):
    """Yields the sample ids of one rank's shard of the plan.

    Until a plan is set it stands for the full dataset, so whatever asks for its length before training (schedules,
    progress bars, tuners) sees a full epoch. It derives from `DistributedSampler` because Lightning leaves those alone.
    Attributes that it does not have are those of the user's sampler.

    Args:
        num_samples: Length of the dataset.
        shuffle: Whether each epoch is a fresh permutation, or ascending.
        seed: Seed of the order.
        rank: This process's rank.
        world_size: Number of ranks.
        draw: What the user's sampler draws, where it neither shuffles nor goes in order.
        original: The user's sampler.

    Attributes:
        plan: What is yielded; None: the full dataset.
        was_read: Whether anything was drawn from it.
        shared: Whether each process keeps the state of a part of the samples only.
        part: Which part that is; None: not known yet, or all.
    """

    def __init__(
        self,
        num_samples: int,
        *,
        shuffle: bool,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        draw: Draw | None = None,
        original: Any = None,
    ) -> None:
        self.total = num_samples
        self.shuffle = shuffle
        self.seed = seed
        self.rank = rank
        self.num_replicas = world_size
        self.drop_last = False
        self.epoch = 0
        self.draw = draw
        self.original = original
        self.was_read = False
        self.plan: EpochPlan | None = None
        self.shared = False
        self.part: Part | None = None

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name in _POSITION or "original" not in self.__dict__:
            raise AttributeError(name)
        return getattr(self.original, name)

    def make_plan(self, selection: Selection, epoch: int) -> EpochPlan:
        """Order and shard a selection as this loader would.

        Raises:
            LoaderError: If the user's sampler draws nothing of it.
        """
        world_size = self.num_replicas
        if self.draw is None:
            return EpochPlan.make(selection, epoch=epoch, seed=self.seed, shuffle=self.shuffle, world_size=world_size)
        drawn = self.draw.ids(self.seed, epoch)
        plan = EpochPlan.of_draw(selection, drawn, num_samples=self.total, epoch=epoch, world_size=world_size)
        check_not_empty(plan, self.draw)
        return plan

    def make_shared_plan(self, selected: Tensor | None, weights: Tensor | None, epoch: int) -> EpochPlan:
        """Order and share a selection of which each process has its part; collective.

        Args:
            selected: Which of this process's part of the samples are selected, bool; None: all.
            weights: Their weights, float32, by rising id; None: they have none.
            epoch: Epoch number, from 0.
        """
        assert self.part is not None  # noqa: S101  (narrowing)
        return shared_plan(selected, weights, self.part, epoch=epoch, seed=self.seed, shuffle=self.shuffle)

    def current_plan(self) -> EpochPlan:
        """Return the plan in force: the one set, else the full dataset in the order of epoch 0.

        Where no process may hold all of that order, a stand-in: the dataset in its own order, which is never trained.
        """
        if self.plan is not None:
            return self.plan
        if not self.shared:
            return self.make_plan(Selection.all(self.total), 0)
        world_size = self.num_replicas
        order = torch.arange(self.rank, self.full_length * world_size, world_size) % self.total
        part = Part(self.rank, self.rank, self.total, self.rank, world_size)
        return EpochPlan(0, order, None, world_size, part=part, num_shared=self.total)

    @property
    def full_length(self) -> int:
        """Samples per rank of a full epoch."""
        total = self.total if self.draw is None else self.draw.count(self.seed)
        return -(-total // self.num_replicas)

    def __len__(self) -> int:
        return self.full_length if self.plan is None else -(-self.plan.length // self.num_replicas)

    def __iter__(self) -> Iterator[int]:
        self.was_read = True
        ids = self.shard()
        for start in range(0, len(ids), 4096):
            yield from ids[start : start + 4096].tolist()

    def shard(self) -> Tensor:
        """Return the ids ``(len(self),)`` that this rank visits, in order."""
        plan = self.current_plan()
        return plan.shard(plan.order, self.rank)

    def set_epoch(self, epoch: int) -> None:
        """Do nothing: the plan knows its epoch."""


def check_not_empty(plan: EpochPlan, draw: Draw) -> None:
    """Raise LoaderError if nothing that was drawn is selected: an epoch cannot be empty."""
    if len(plan.order) == 0:
        raise LoaderError(
            f"Expected `{draw.name}` to draw a selected sample, but none of the {plan.full_length} that it drew in "
            f"epoch {plan.epoch} is: the method selects what the sampler leaves out. Use another, or a lower "
            "`prune_ratio`."
        )


class Cuts(ABC):
    """Where the shard of a rank is cut into batches."""

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of batches."""

    @abstractmethod
    def start(self, batch: int) -> int:
        """Return the position of a batch's first sample; of the one after the last, the number of samples trained."""

    @property
    @abstractmethod
    def longest(self) -> int:
        """Length of the longest batch."""


@final
class EvenCuts(Cuts):
    """Batches of one size, the last one possibly shorter.

    A remainder of one sample would be a batch that BatchNorm cannot train on: it takes one from the batch before,
    unless that would leave one there, or a full epoch ends in a batch of one, too.

    Args:
        num: Samples of the shard.
        size: Samples in a batch.
        full: Samples of the shard of a full epoch.
        drop_last: Leave out a last batch that is shorter; but a small selection that is shorter as a whole is one
            batch, since an epoch without any would end the fit.
        begun: Whether there were batches before these.
    """

    def __init__(self, num: int, size: int, *, full: int, drop_last: bool, begun: bool = False) -> None:
        whole, rest = divmod(num, size)
        drops = drop_last and (whole > 0 or full < size or begun)
        self.size = size
        self.num = whole + bool(rest and not drops)
        self.end = min(self.num * size, num)
        self.moves = rest == 1 and not drops and size > 2 and whole > 0 and full % size != 1

    def __len__(self) -> int:
        return self.num

    def start(self, batch: int) -> int:
        """Return the position of a batch's first sample."""
        return min(batch * self.size, self.end) - (self.moves and batch == self.num - 1)

    @property
    def longest(self) -> int:
        """Length of the longest batch."""
        return min(self.size, self.end)

    @property
    def num_whole(self) -> int:
        """Number of batches at the start that have the full size."""
        return self.end // self.size - self.moves


@final
class ListedCuts(Cuts):
    """Batches of the lengths that a user's batch sampler has made.

    Args:
        lengths: Lengths ``(b,)``, int64.
    """

    def __init__(self, lengths: Tensor) -> None:
        self.lengths = lengths
        self.ends = lengths.cumsum(0).tolist()

    def __len__(self) -> int:
        return len(self.ends)

    def start(self, batch: int) -> int:
        """Return the position of a batch's first sample."""
        return int(self.ends[min(batch, len(self.ends)) - 1]) if batch > 0 and self.ends else 0

    @property
    def longest(self) -> int:
        """Length of the longest batch."""
        return int(self.lengths.max()) if self.ends else 0


@final
class LaterCuts(Cuts):
    """Batches of a shard that come after some that were trained already, and have no samples here.

    Args:
        cuts: The batches of the shard.
        first: Number of the first of them.
    """

    def __init__(self, cuts: Cuts, first: int) -> None:
        self.cuts = cuts
        self.first = first

    def __len__(self) -> int:
        return self.first + len(self.cuts)

    def start(self, batch: int) -> int:
        """Return the position of a batch's first sample."""
        return self.cuts.start(max(0, batch - self.first))

    @property
    def longest(self) -> int:
        """Length of the longest batch."""
        return self.cuts.longest


@final
class PlanBatchSampler(DistributedSampler[list[int]]):
    """Yields the batches of a plan, which are the only ones that are trained; takes the place of any batch sampler.

    Attributes that it does not have are those of the user's batch sampler. It derives from `DistributedSampler` because
    Lightning leaves those alone, also where a loader has it for a sampler (``batch_size=None``).

    Args:
        sampler: Where the plan is.
        batch_size: Samples in a batch; None: where ``draw`` is given and tells none.
        drop_last: Leave out a last batch that is shorter.
        draw: What the user's batch sampler draws. None: batches are cut evenly.
        original: The user's batch sampler.

    Attributes:
        skip: Batches at the start of the epoch that were trained before an interruption; the next iterator leaves them
            out, and no later one: an epoch may go through the batches again.
        handed_out: Batches of the plan that were handed out so far, to a chunk's accuracy.
        begins_again: Whether the batches come again in an epoch that goes on after the last one; else there are none
            for the steps that are left.
        is_alone: Whether an epoch ends with these batches, and not with those of another loader.
        loader_name: Class of the user's loader, for messages.
    """

    def __init__(
        self,
        sampler: PlanSampler,
        batch_size: int | None,
        drop_last: bool,
        *,
        draw: Draw | None = None,
        original: Any = None,
    ) -> None:
        self.sampler = sampler
        self.batch_size = batch_size
        self.drop_last = drop_last
        self.draw = draw
        self.original = original
        self.skip = 0
        self.handed_out = 0
        self.begins_again = self.is_alone = True
        self.loader_name = "DataLoader"
        self._full_batches: int | None = None
        self._cuts: tuple[EpochPlan, Cuts] | None = None
        self._handed: EpochPlan | None = None

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name in _POSITION or "original" not in self.__dict__:
            raise AttributeError(name)
        return getattr(self.original, name)

    def make_plan(self, selection: Selection, epoch: int) -> EpochPlan:
        """Plan the visit of a selection.

        Raises:
            LoaderError: If the user's sampler or batch sampler cannot be followed.
        """
        sampler, draw = self.sampler, self.draw
        if draw is None:
            return sampler.make_plan(selection, epoch)
        full_batches, inner = self.full_batches, getattr(draw.source, "sampler", None)
        if isinstance(inner, PlanSampler):  # what is drawn from it needs no leaving out
            inner.seed, inner.was_read = sampler.seed, False
            inner.plan = inner.make_plan(selection, epoch)
        ids, lengths = draw.batches(sampler.seed, epoch)
        plan = EpochPlan.of_draw(
            selection,
            ids,
            lengths,
            num_samples=sampler.total,
            epoch=epoch,
            world_size=sampler.num_replicas,
            drop_last=(self.batch_size or 0) if self.drop_last else 0,
        )
        check_not_empty(plan, draw)
        if isinstance(inner, PlanSampler) and inner.was_read:
            plan = replace(plan, full_length=inner.full_length, full_batches=full_batches)
        return plan

    @property
    def full_batches(self) -> int:
        """Batches of an epoch of all samples, over all ranks, where the user's batch sampler makes them."""
        assert self.draw is not None  # noqa: S101  (narrowing)
        if self._full_batches is None:
            self._full_batches = self.draw.count(self.sampler.seed)
        return self._full_batches

    @property
    def is_drawn(self) -> bool:
        """Whether ids or batches are drawn by code of the user's."""
        return self.draw is not None or self.sampler.draw is not None

    def set_plan(self, plan: EpochPlan) -> None:
        """Yield the batches of this plan from now on."""
        self.sampler.plan = plan
        self.skip = 0

    def let_go(self) -> None:
        """Forget the order of the last epoch, of which nothing is drawn any more: the next one takes its place."""
        plan = self.sampler.plan
        if plan is not None and plan.part is not None:
            self.sampler.plan = replace(plan, order=plan.order[:0].clone(), weights=None)
            self._cuts = self._handed = None

    def cuts_of(self, plan: EpochPlan) -> Cuts:
        """Return how this rank's shard of a plan is cut into batches."""
        if self._cuts is None or self._cuts[0] is not plan:
            first = plan.first_batch
            cuts: Cuts = (
                self._evenly(plan.shard_size, begun=first > 0)
                if plan.lengths is None
                else ListedCuts(plan.lengths_of(self.sampler.rank))
            )
            self._cuts = (plan, LaterCuts(cuts, first) if first else cuts)
        return self._cuts[1]

    def _evenly(self, num: int, *, begun: bool = False) -> EvenCuts:
        full = self.sampler.full_length
        return EvenCuts(num, self.batch_size or 1, full=full, drop_last=self.drop_last, begun=begun)

    @property
    def full_length(self) -> int:
        """Batches per rank of an epoch of all samples."""
        if self.draw is not None:
            return -(-self.full_batches // self.sampler.num_replicas)
        return len(self._evenly(self.sampler.full_length))

    @property
    def drawn(self) -> int:
        """Samples of an epoch of all, over all ranks; taken for all samples where the user's code makes the batches."""
        draw = self.sampler.draw if self.draw is None else None
        return self.sampler.total if draw is None else draw.count(self.sampler.seed)

    def set_epoch(self, epoch: int) -> None:
        """Pass the epoch on to the user's batch sampler, if it wants to know; the plan knows its own."""
        if callable(set_epoch := getattr(self.original, "set_epoch", None)):
            set_epoch(epoch)

    def __len__(self) -> int:
        return self.full_length if self.sampler.plan is None else len(self.cuts_of(self.sampler.plan))

    def __iter__(self) -> Iterator[list[int]]:
        plan = self.sampler.plan
        if plan is None:
            everything = self.draw is None
            plan = self.sampler.current_plan() if everything else self.make_plan(Selection.all(self.sampler.total), 0)
        ids, cuts = plan.shard(plan.order, self.sampler.rank), self.cuts_of(plan)
        first, self.skip = max(self.skip, plan.first_batch), 0  # here, since torch calls `__iter__` more than once
        if self._handed is not plan:
            self._handed, self.handed_out = plan, 0
        if isinstance(cuts, EvenCuts):
            size, whole = cuts.size, cuts.num_whole
            for batch in range(first, whole, _BATCHES_PER_CHUNK):
                stop = min(batch + _BATCHES_PER_CHUNK, whole)
                self.handed_out = max(self.handed_out, stop)
                yield from ids[batch * size : stop * size].view(-1, size).tolist()
            first = max(first, whole)
        for batch in range(first, len(cuts)):
            self.handed_out = max(self.handed_out, batch + 1)
            yield ids[cuts.start(batch) : cuts.start(batch + 1)].tolist()
