"""The layout of a run's saved state: plain tensors and numbers, at most 8 bytes a sample beside the method's own."""

from __future__ import annotations

import math
from typing import Any

import torch

from lightning_prune.core.arrays import ids_of
from lightning_prune.core.begun import Begun, begun_part
from lightning_prune.core.checks import StateMismatchError
from lightning_prune.core.epoch import RunningEpoch
from lightning_prune.core.part import Part
from lightning_prune.core.plan import Selection
from lightning_prune.core.rng import collect_rng_state
from lightning_prune.core.stream import Running
from lightning_prune.core.table import SampleTable, table_columns

STATE_VERSION = 2
"""Version of the saved state. 1 had neither the dataset's name, nor what an open epoch is checked by."""


def local_part(running: Running | None, *, save_rng: bool) -> dict[str, Any]:
    """Return what only this rank knows: the states of its global generators, and its part of the open epoch's log."""
    rng = collect_rng_state() if save_rng else None
    return {"rng": rng, "log": None} | ({} if running is None else running.local_state())


def gather(local: dict[str, Any], world_size: int) -> list[dict[str, Any]]:
    """Return the :func:`local_part` of every rank; collective."""
    everyone: list[dict[str, Any]] = [{} for _ in range(world_size)]
    torch.distributed.all_gather_object(everyone, local)
    return everyone


def pack(table: SampleTable, running: Running | None, ranks: list[dict[str, Any]], **run: Any) -> dict[str, Any]:
    """Return the state of a run.

    Args:
        table: The per-sample state.
        running: The open epoch, or None between epochs.
        ranks: The :func:`local_part` of every rank; of this one only, where the others are gone.
        run: What else identifies the run: ``method``, ``seed``, ``dataset``, and ``full_batches`` of the open epoch.
    """
    full_batches = run.pop("full_batches")
    state = {
        "version": STATE_VERSION,
        **run,
        "epoch": table.epoch,
        "trained_steps": table.trained_steps,
        "full_steps": table.full_steps,
        "global_step": table.global_step,
        **table.state_columns(),
        "open": running is not None,
        "ranks": ranks,
    }
    if running is None:
        return state
    state |= {
        "batches_done": running.batches_done,
        "num_dropped": running.num_dropped,
        "step_size": running.step_size,
        "world_size": running.plan.world_size,
        "plan": running.digest,
        "full_batches": full_batches,
        **running.shared_state(full_batches),
    }
    if table.selects_all and running.plan.weights is None and not table.sharded:
        # the selection need not be derived again from the losses that the epoch's log replaces
        known, _ = running.recorded(ranks)
        state["losses"], state["all_selected"] = state["losses"][~Selection(known).mask(table.num_samples)], True
    return state


def selects_all(state: dict[str, Any]) -> bool:
    """Return whether the open epoch of a state trains everything, and the losses in its log are left out elsewhere."""
    return bool(state["open"] and state.get("all_selected", False))


def unpack(
    state: dict[str, Any], table: SampleTable, num_samples: int, device: torch.device, part: Part | None = None
) -> None:
    """Fill a table from a state, or a part of it; of an epoch with :func:`selects_all`, all but the losses.

    Raises:
        StateMismatchError: If the state is of a newer version, or of a dataset of another length.
    """
    if state.get("version", 1) > STATE_VERSION:
        raise StateMismatchError(
            f"Expected registry state of version <= {STATE_VERSION}, but the checkpoint has {state['version']}. "
            "It was written by a newer lightning-prune: upgrade to resume it."
        )
    unknown = {"losses": torch.full((num_samples,), math.nan, dtype=torch.float32)} if selects_all(state) else {}
    table.load_columns({**state, **unknown}, num_samples, device, part)
    table.epoch = state["epoch"]
    table.trained_steps, table.full_steps = state["trained_steps"], state["full_steps"]
    if state["open"]:  # its selection may depend on where in the run it began
        table.global_step = state.get("global_step", table.global_step)


def without_method(state: dict[str, Any], method: str | None) -> dict[str, Any]:
    """Return a state without what another method than ``method`` kept: its columns would be taken for the new one's."""
    if state.get("method", method) == method:
        return state
    return {**state, "columns": table_columns(state.get("columns", {})), "state": {}}


def begun_elsewhere(state: dict[str, Any], running: Running) -> Begun | None:
    """Return what of the open epoch is trained, where its rest is to be shared anew; None: it goes on as it was.

    Args:
        state: A run's state with an open epoch.
        running: That epoch, derived anew, by as many processes and with batches as large as there are now.

    Raises:
        StateMismatchError: If these are others than when the state was saved, and the rest cannot be shared anew.
    """
    epoch, plan = state["epoch"], running.plan
    before = (state.get("world_size", plan.world_size), state["step_size"])
    now = (plan.world_size, running.step_size)
    if before == now and state.get("begun") is None:
        return None
    if (why := _why_not_shared_anew(state, running)) is not None:
        raise StateMismatchError(
            f"Expected {before[0]} process(es) with {before[1]} samples per step in all (batch size times devices), as "
            f"when the checkpoint was written in the middle of epoch {epoch}, but got {now[0]} with {now[1]}: {why}. "
            "Resume as the run was, or from a checkpoint of an epoch's end."
        )
    check_same_epoch(state, running)
    return begun_part(state, plan)


def _why_not_shared_anew(state: dict[str, Any], running: Running) -> str | None:
    if not isinstance(running, RunningEpoch):
        return "each process has read a part of a stream"
    if not running.batch_sampler.is_alone:
        return "there are several train loaders, which go on as they were"
    return None if "steps" in state else "an older version did not note which part of the epoch that was"


def check_same_epoch(state: dict[str, Any], running: Running) -> None:
    """Raise StateMismatchError unless ``running``, derived anew, is the epoch that was open when this was saved."""
    epoch = state["epoch"]
    ranks = state["ranks"]
    log = ranks[running.rank % len(ranks)]["log"]  # all have the same rows; of many processes each is read from a file
    if state.get("plan") != running.digest or len(log) != len(running.log):
        raise StateMismatchError(
            f"Expected to derive the selection of epoch {epoch} again, in whose middle the checkpoint was "
            "written, but got another one: the method, its arguments, a sampler or batch sampler of yours, or the "
            "version of lightning-prune or torch is not the same. Resume as the run was started, or from a checkpoint "
            "of an epoch's end."
        )


def unpack_open(state: dict[str, Any], table: SampleTable, running: Running, rank: int) -> None:
    """Fill the log of an open epoch, and of one with :func:`selects_all` the table's losses.

    Raises:
        StateMismatchError: If ``running`` is not the epoch that was open when the state was saved.
    """
    check_same_epoch(state, running)
    shared_anew = isinstance(running, RunningEpoch) and running.begun is not None
    if selects_all(state):  # the state holds the losses of the samples that are not in the epoch's log
        ranks = [] if shared_anew else state["ranks"]
        known, losses = (values.to(table.losses.device) for values in running.recorded(ranks))
        rest = ids_of(~Selection(known).mask(table.num_samples))
        table.losses.index_copy_(0, known, losses).index_copy_(0, rest, state["losses"].to(losses.device))
    if not shared_anew:
        running.continue_from(state["batches_done"], state.get("num_dropped", 0), part_of(state, rank))


def part_of(state: dict[str, Any], rank: int) -> dict[str, Any]:
    """Return the :func:`local_part` of a rank; an empty one where the state has none."""
    ranks = state["ranks"]
    return dict(ranks[rank]) if rank < len(ranks) else {"rng": None, "log": None}
