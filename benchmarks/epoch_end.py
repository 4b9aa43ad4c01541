"""End-of-epoch logic and drawing the next epoch's batches, against a plain RandomSampler and BatchSampler.

What is timed is what a run does between the last step of an epoch and the last batch drawn for the next: scatter the
recorded losses, count, update the method's state, select, check, shuffle, align the weights, and draw every batch as a
list of ids. "Logic" leaves out the drawing.
"""

from __future__ import annotations

import gc
import statistics
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch.utils.data import BatchSampler, RandomSampler

import lightning_prune
from benchmarks.measure import Row, cpu_seconds
from lightning_prune import PruningCallback, ScoreRegistry
from lightning_prune.core.sampler import PlanBatchSampler, PlanSampler
from lightning_prune.core.session import Session
from lightning_prune.core.table import SampleTable
from lightning_prune.methods._running_pearson import make_sums

BATCH_SIZE = 128
UNPRUNED = "no method"
METHODS: dict[str, tuple[str, dict[str, object]]] = {
    # row: the callback and its arguments; a class that the package does not export has no row
    "InfoBatch": ("InfoBatch", {}),
    "SeTa": ("SeTa", {}),
    "RePB": ("RePB", {}),
    "RePB, importance": ("RePB", {"rule": "importance"}),
    "OrderDP": ("OrderDP", {}),
    "RandomPruning": ("RandomPruning", {}),
    "RS2": ("RS2", {}),
    "EpsilonGreedy": ("EpsilonGreedy", {"every_n_epochs": 1}),
    "UCB": ("UCB", {"every_n_epochs": 1}),
    "ImportanceSampling": ("ImportanceSampling", {}),
    "AlignPrune on InfoBatch": ("AlignPrune", {"base": "InfoBatch", "window": 25}),
}


@dataclass
class Timings:
    """CPU seconds per sample, round by round: of plain sampling, and of a method after its first, full epoch and after
    a pruned one."""

    plain: list[float] = field(default_factory=list)
    logic: list[tuple[float, float]] = field(default_factory=list)
    total: list[tuple[float, float]] = field(default_factory=list)

    def over_plain(self, seconds: Iterable[float]) -> list[float]:
        """Return figures, one per round, over those of plain sampling."""
        return [value / plain for value, plain in zip(seconds, self.plain, strict=True)]


def dearer(figures: list[tuple[float, float]]) -> list[float]:
    """Return the figures, one per round, of that epoch's end which takes longer."""
    return list(max(zip(*figures, strict=True), key=statistics.median))


def available() -> list[str]:
    """Return the rows whose methods the package exports, and that of a run without a method."""
    return [UNPRUNED, *(row for row, (name, _) in METHODS.items() if hasattr(lightning_prune, name))]


def make_method(row: str) -> PruningCallback | None:
    """Return the callback of a row; its first epoch is full, so that every sample has a loss."""
    if row == UNPRUNED:
        return None
    name, arguments = METHODS[row]
    if "base" in arguments:
        arguments = arguments | {"base": getattr(lightning_prune, str(arguments["base"]))()}
    method: PruningCallback = getattr(lightning_prune, name)(warmup_epochs=1, **arguments)
    return method


def drain(batches: Iterable[list[int]]) -> None:
    """Draw every batch of an epoch and keep none."""
    deque(batches, maxlen=0)


def plain(n: int) -> None:
    """Draw an epoch as a shuffling DataLoader does."""
    drain(BatchSampler(RandomSampler(range(n)), BATCH_SIZE, False))


def exponential_losses(n: int) -> torch.Tensor:
    """Return losses of which 63 % lie below the mean."""
    return torch.empty(n).exponential_(generator=torch.Generator().manual_seed(0))


def start_run(
    method: PruningCallback | None, n: int, *, rank: int = 0, world_size: int = 1, device: str = "cpu"
) -> Session:
    """Return a run on ``n`` samples, before its first epoch."""
    session = Session(ScoreRegistry(), method)
    sampler = PlanSampler(n, shuffle=True, seed=0, rank=rank, world_size=world_size)
    session.draw_from(PlanBatchSampler(sampler, BATCH_SIZE, drop_last=False))
    session.table.max_epochs = 100
    session.start(n, device)
    if session.table.has_column("align_losses"):
        _fill_window(session.table)
    return session


def _fill_window(registry: SampleTable) -> None:
    """Let AlignPrune be in force: a window of losses that fall, each with its own noise."""
    ring, reference = registry.column("align_losses"), registry.state["align_reference"]
    for slot in range(len(ring)):
        torch.rand(ring.shape[1], out=ring[slot], generator=torch.Generator(ring.device).manual_seed(slot)).add_(
            1 / (1 + slot)
        )
        reference[slot] = 1 / (1 + slot)
    registry.column("align_sums").copy_(make_sums(ring, reference))
    registry.state["align_epochs"].fill_(len(ring))


def record_epoch(session: Session, losses: torch.Tensor) -> None:
    """Log the losses ``(n,)`` of the running epoch's samples, as its steps would."""
    running = session.open_epoch
    running.log[:, :-1] = losses[running.plan.shard(running.plan.order, running.rank).long()].to(running.device)
    running.batches_done = len(running.batch_sampler)


def plan_next(session: Session) -> None:
    """Close the running epoch and plan the next."""
    session.end_epoch()
    session.begin_epoch()


def draw(session: Session) -> None:
    """Draw the batches of the planned epoch."""
    drain(session.batches)


def measure_round(rows: Iterable[str], losses: torch.Tensor, into: dict[str, Timings]) -> None:
    """Measure each method once, beside plain sampling."""
    n = len(losses)
    for row in rows:
        timings = into.setdefault(row, Timings())
        timings.plain.append(cpu_seconds(lambda: plain(n)) / n)
        session = start_run(make_method(row), n)
        session.begin_epoch()
        logic, total = [], []
        for _ in ("after a full epoch", "after a pruned one"):
            record_epoch(session, losses)
            logic.append(cpu_seconds(lambda: plan_next(session)) / n)  # noqa: B023  (called at once)
            total.append(logic[-1] + cpu_seconds(lambda: draw(session)) / n)  # noqa: B023
        timings.logic.append((logic[0], logic[1]))
        timings.total.append((total[0], total[1]))


def run_rounds(rows: Iterable[str], n: int, rounds: int) -> dict[str, Timings]:
    """Return the timings of interleaved rounds, after one to warm up."""
    rows, losses = list(rows), exponential_losses(n)
    timings: dict[str, Timings] = {}
    frozen = gc.get_freeze_count()
    gc.collect()
    gc.freeze()  # `cpu_seconds` collects before it times; what the imports made need not be searched each time
    measure_round(rows, losses, {})
    for _ in range(rounds):
        measure_round(rows, losses, timings)
    if not frozen:  # else what the caller froze would be searched again, too
        gc.unfreeze()
    return timings


def measure(*, n: int = 1_000_000, rounds: int = 7, large_rounds: int = 5) -> list[Row]:
    """Return the rows at ``n`` and, for InfoBatch, at ``10 n``, and the growth between them."""
    small, large = run_rounds(available(), n, rounds), run_rounds(["InfoBatch"], 10 * n, large_rounds)["InfoBatch"]
    rows = []
    for row, timings in small.items():
        must, aim = {"InfoBatch": (0.35, 0.22), UNPRUNED: (0.5, 0.3)}.get(row, (0.45, None))
        what = f"{row}: end of epoch and the next one's batches / plain sampling"
        rows.append(Row(what, n, timings.over_plain(dearer(timings.total)), must, aim))
    rows.append(Row("InfoBatch: the same", 10 * n, large.over_plain(dearer(large.total)), 0.5, 0.3))
    base = statistics.median(dearer(small["InfoBatch"].total))
    growth = [seconds / base for seconds in dearer(large.total)]
    rows.append(Row(f"InfoBatch: time per sample / at {n:,}", 10 * n, growth, 3.0, 1.7))
    for row, timings in small.items():
        what = f"{row}: end of a pruned epoch, without drawing / plain sampling"
        rows.append(Row(what, n, timings.over_plain(pruned for _, pruned in timings.logic), 0.3, 0.2))
    return rows
