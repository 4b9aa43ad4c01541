"""End-of-epoch logic and drawing the next epoch's batches, against a plain RandomSampler and BatchSampler.

What is timed is what a run does between the last step of a full epoch and the last batch drawn for the next: scatter
the recorded losses, count, update the method's state, select, check, shuffle, align the weights, and draw every batch
as a list of ids.
"""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Callable, Iterable

import torch
from torch.utils.data import BatchSampler, DataLoader, RandomSampler

from benchmarks.measure import Row, cpu_seconds
from lightning_prune import InfoBatch, OrderDP, PruningCallback, RePB, ScoreRegistry, SeTa
from lightning_prune._trainer import PlannedLoader
from lightning_prune.sampler import PlanSampler

BATCH_SIZE = 128
UNPRUNED = "unpruned epoch"
METHODS: dict[str, tuple[Callable[[], PruningCallback | None], float, float | None]] = {
    # callback, must, aim at a million samples
    "InfoBatch": (lambda: InfoBatch(), 0.35, 0.22),
    "OrderDP": (lambda: OrderDP(), 0.45, None),
    "RePB": (lambda: RePB(), 0.45, None),
    "SeTa": (lambda: SeTa(), 0.45, None),
    UNPRUNED: (lambda: None, 0.5, None),
}


def drain(batches: Iterable[list[int]]) -> None:
    """Draw every batch of an epoch and keep none."""
    deque(batches, maxlen=0)


def plain(n: int) -> None:
    """Draw an epoch as a shuffling DataLoader does."""
    drain(BatchSampler(RandomSampler(range(n)), BATCH_SIZE, False))


def exponential_losses(n: int) -> torch.Tensor:
    """Return losses of which 63 % lie below the mean."""
    return torch.empty(n).exponential_(generator=torch.Generator().manual_seed(0))


def start_run(method: PruningCallback | None, n: int) -> ScoreRegistry:
    """Return a registry as in a fit on ``n`` samples, before its first epoch."""
    registry = ScoreRegistry()
    registry._method = method
    sampler = PlanSampler(n, shuffle=True, seed=0)
    registry._loader = PlannedLoader(DataLoader(range(n), BATCH_SIZE, shuffle=True), sampler)  # type: ignore[arg-type]
    registry.max_epochs = 100
    registry._full_batches = len(registry._loader.batch_sampler)
    registry._reset(n, torch.device("cpu"))
    return registry


def run_epoch(registry: ScoreRegistry, losses: torch.Tensor) -> None:
    """Plan an epoch and record the losses of its samples, as its steps would."""
    running = registry._plan_epoch()
    for name in range(len(running.log)):
        running.log[name, :-1] = losses[running.plan.order]
    running.batches_done = len(running.batch_sampler)


def next_epoch(registry: ScoreRegistry) -> None:
    """Close the running epoch, plan the next, draw its batches."""
    registry._close_epoch()
    drain(registry._plan_epoch().batch_sampler)  # type: ignore[arg-type]


def recorded(method: PruningCallback | None, losses: torch.Tensor) -> ScoreRegistry:
    """Return a registry at the end of its first, full epoch."""
    registry = start_run(method, len(losses))
    run_epoch(registry, losses)
    return registry


def ratios(names: Iterable[str], n: int, rounds: int) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Return each method's CPU time over that of plain sampling, and in ns per sample, of interleaved rounds."""
    losses = exponential_losses(n)
    shares: dict[str, list[float]] = {name: [] for name in names}
    nanoseconds: dict[str, list[float]] = {name: [] for name in shares}
    for i in range(rounds + 1):
        base = cpu_seconds(lambda: plain(n))
        for name in shares:
            registry = recorded(METHODS[name][0](), losses)
            seconds = cpu_seconds(lambda: next_epoch(registry))  # noqa: B023  (called at once)
            if i > 0:  # the first round warms up
                shares[name].append(seconds / base)
                nanoseconds[name].append(seconds / n * 1e9)
    return shares, nanoseconds


def measure(*, rounds: int = 9, large_rounds: int = 5, n: int = 1_000_000) -> list[Row]:
    """Return the rows at ``n`` and, for InfoBatch, at ``10 n``, and the growth between them."""
    small, small_ns = ratios(METHODS, n, rounds)
    rows = [
        Row(f"{name}: end of epoch and next epoch's batches / plain sampling", n, small[name], must, aim)
        for name, (_, must, aim) in METHODS.items()
    ]
    large, large_ns = ratios(["InfoBatch"], 10 * n, large_rounds)
    rows.append(Row("InfoBatch: the same", 10 * n, large["InfoBatch"], 0.5, 0.3))
    base = statistics.median(small_ns["InfoBatch"])
    growth = [value / base for value in large_ns["InfoBatch"]]
    rows.append(Row(f"InfoBatch: ns per sample / those at {n:,}", 10 * n, growth, 3.0, 1.7))
    return rows
