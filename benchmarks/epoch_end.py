"""End-of-epoch logic and drawing the next epoch's batches, against a plain RandomSampler and BatchSampler."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import torch
from torch.utils.data import BatchSampler, RandomSampler

from benchmarks.measure import Row, cpu_seconds
from lightning_prune import ScoreRegistry
from lightning_prune.epoch import RunningEpoch
from lightning_prune.functional import infobatch
from lightning_prune.plan import Selection
from lightning_prune.rng import make_generator
from lightning_prune.sampler import PlanBatchSampler, PlanSampler

BATCH_SIZE = 128
CPU = torch.device("cpu")


def drain(batches: object) -> None:
    deque(batches, maxlen=0)  # type: ignore[call-overload]


def measure(n: int = 1_000_000, rounds: int = 7) -> list[Row]:
    """Return the rows for InfoBatch and for an unpruned epoch."""
    losses = torch.empty(n).exponential_(generator=torch.Generator().manual_seed(0))

    def select(registry: ScoreRegistry) -> Selection:
        return infobatch(registry.scores, 0.5, generator=make_generator(0, 1, "select"))

    def everything(registry: ScoreRegistry) -> Selection:
        return Selection.all(n)

    pruned, full = [], []
    for _ in range(rounds + 1):
        plain = cpu_seconds(lambda: drain(BatchSampler(RandomSampler(range(n)), BATCH_SIZE, False)))
        pruned.append(cpu_seconds(next_epoch(losses, select)) / plain)
        full.append(cpu_seconds(next_epoch(losses, everything)) / plain)
    return [
        Row("InfoBatch: scatter, select, shuffle, draw / plain sampling", n, pruned[1:], "<= 0.40"),
        Row("unpruned: scatter, shuffle, draw / plain sampling", n, full[1:], "<= 0.50"),
    ]


def next_epoch(losses: torch.Tensor, select: Callable[[ScoreRegistry], Selection]) -> Callable[[], None]:
    """Return what a run does between the last step of a full epoch and the last batch drawn for the next."""
    n = len(losses)
    registry = ScoreRegistry()
    registry._allocate(n, CPU)
    batches = PlanBatchSampler(PlanSampler(n, shuffle=True, seed=0), BATCH_SIZE, False)
    done = RunningEpoch(Selection.all(n), 0, batches, (), CPU)
    done.log[0, :-1] = losses[done.plan.order]
    done.batches_done = len(batches)
    registry._running, registry._full_batches = done, len(batches)

    def run() -> None:
        registry._close_epoch()
        RunningEpoch(select(registry), 1, batches, (), CPU)
        drain(batches)

    return run
