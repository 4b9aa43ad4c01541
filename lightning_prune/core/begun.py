"""What of an epoch is trained already, where the rest is shared anew: among other processes, in other batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, final

import torch
from torch import Tensor

from lightning_prune.core.part import Part
from lightning_prune.core.plan import EpochPlan
from lightning_prune.core.shared_plan import shared_rest
from lightning_prune.core.step import ABSENT


@final
@dataclass(frozen=True)
class Begun:
    """What an interrupted epoch has trained, by any number of processes and in batches of any size.

    A step of all ranks is one run of the epoch's order, whatever their number; so what is trained is its beginning.

    Args:
        steps: Positions ``(s,)``, int64, of the order that the ranks together trained in each step.
        log: What was recorded ``(1 + names, m)``, float32, by position of the order; none beyond ``m``. Of an
            order that processes share: at those positions that this one would have visited.
        dropped: Positions that picks have left out of their batches.
        full: Positions that the epoch would have had, as it was begun, if nothing was left out.
    """

    steps: Tensor
    log: Tensor
    dropped: int
    full: int

    @property
    def positions(self) -> int:
        """Positions of the order that are trained."""
        return int(self.steps.sum())

    def rest_of(self, plan: EpochPlan) -> EpochPlan:
        """Return what is left of the whole epoch; collective where processes share its order."""
        after = plan.after if plan.part is None else partial(shared_rest, plan)
        return after(self.positions, len(self.steps))

    def with_rest(self, values: Tensor, num_positions: int) -> Tensor:
        """Return what was recorded at each of ``num_positions`` positions ``(1 + names, num_positions)``.

        Args:
            values: What the rest of the epoch has recorded ``(1 + names, r)``, in the order of the plan.
            num_positions: Length of the order.
        """
        whole = values.new_full((len(values), num_positions), ABSENT)
        whole[:, : self.log.shape[1]] = self.log[: len(values)].to(values.device)
        rest = whole[:, num_positions - values.shape[1] :]
        rest.copy_(torch.where(values == ABSENT, rest, values))
        return whole


def joined(rest: EpochPlan, logs: Sequence[Tensor]) -> Tensor:
    """Return the ranks' logs as one ``(1 + names, k)``, on the CPU, by position of the plan that they are of.

    Args:
        rest: The plan.
        logs: Of each rank, in their order, ``(1 + names, m)`` up to where it has come; after an exception in a run of
            several processes there is one only.
    """
    shards = torch.full((rest.world_size, len(logs[0]), rest.shard_size), ABSENT, dtype=torch.float32)
    for shard, log in zip(shards, logs, strict=False):
        shard[:, : log.shape[1]] = log
    return rest.unshard(shards)


def pack_steps(steps: Tensor) -> list[Tensor]:
    """Return the lengths of steps ``(s,)`` as runs of equal ones: these lengths and how often each comes, int32."""
    lengths, counts = torch.unique_consecutive(steps, return_counts=True)
    return [lengths.int(), counts.int()]


def begun_part(state: dict[str, Any], plan: EpochPlan) -> Begun:
    """Return what the open epoch of a run's saved state has trained.

    Args:
        state: What :func:`lightning_prune.core.checkpoint.pack` returned.
        plan: The whole epoch, derived anew.
    """
    lengths, counts = state["steps"]
    steps = lengths.long().repeat_interleave(counts.long())
    before, then = state.get("begun"), replace(plan, world_size=state["world_size"])
    if plan.part is not None:
        return Begun(steps, _shared_log(state, plan.part, int(steps.sum())), state["dropped"], state["full"])
    rest = then if before is None else then.after(before["positions"], before["batches"])
    log = joined(rest, [part["log"] for part in state["ranks"]])
    if before is not None:
        first = Begun(steps[: before["batches"]], before["log"], state["dropped"], state["full"])
        log = first.with_rest(log, len(plan.order))
    done = int(steps.sum())
    beyond = (log[:, done:] != ABSENT).any(0).nonzero()  # a step may tell ids that are still to come
    log = log[:, : done + int(beyond[-1]) + 1 if len(beyond) else done].clone()
    return Begun(steps, log, state["dropped"], state["full"])


def _shared_log(state: dict[str, Any], part: Part, done: int) -> Tensor:
    """Return what was recorded of the ``done`` first positions, at those that this process would have visited.

    What each process has written is read in turn: one at a time is held.
    """
    before = state.get("begun")
    first, world_size = 0 if before is None else before["positions"], state["world_size"]
    own: Tensor | None = None
    for rank, local in enumerate(state["ranks"]):
        for start, stop, log in ((0, first, local.get("begun")), (first, done, local["log"])):
            if log is None:
                continue
            if own is None:
                own = log.new_full((len(log), part.visits(done)), ABSENT)
            positions = torch.arange(start + rank, max(start + rank, stop), world_size)
            here = positions % part.world_size == part.rank
            own[:, positions[here] // part.world_size] = log[:, : len(positions)][:, here]
    assert own is not None  # noqa: S101  (narrowing: each process of an open epoch has written its log)
    return own
