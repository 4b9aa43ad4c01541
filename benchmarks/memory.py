"""Bytes per sample: of the end-of-epoch logic at its peak, of the state that stays, of a checkpoint."""

from __future__ import annotations

import gc
import io
import json
import sys
from pathlib import Path
from typing import Any

import torch

from benchmarks.epoch_end import draw, exponential_losses, make_method, plain, plan_next, record_epoch, start_run
from benchmarks.measure import Row, cpu_seconds, fresh_process, one_thread
from lightning_prune.core.session import Session


def resident(peak: bool = False) -> int:
    """Return this process's resident bytes; the most since :func:`reset_peak`, if ``peak``."""
    key = "VmHWM:" if peak else "VmRSS:"
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith(key))) * 1024


def reset_peak() -> None:
    """Start a new peak of the resident bytes."""
    Path("/proc/self/clear_refs").write_text("5")


def tensor_bytes() -> int:
    """Return the bytes of all tensors that are alive, each storage counted once.

    Meta tensors count nothing: they have a size, but no memory, and all of them the same address.
    """
    storages = {}
    for thing in gc.get_objects():
        if type(thing) in (torch.Tensor, torch.nn.Parameter):  # not those of a compiler, which have no storage
            storage = thing.untyped_storage()
            if address := storage.data_ptr():
                storages[address] = storage.nbytes()
    return sum(storages.values())


def checkpoint_bytes(session: Session) -> int:
    """Return the size of the registry's part of a checkpoint."""
    buffer = io.BytesIO()
    torch.save(session.state_dict(), buffer)
    return buffer.tell()


def end_of_epoch(n: int) -> dict[str, Any]:
    """Return bytes per sample and CPU seconds of InfoBatch at ``n`` samples; run it in a fresh process."""
    warm = start_run(make_method("InfoBatch"), 10_000)  # what torch and NumPy load on first use is no state
    warm.begin_epoch()
    record_epoch(warm, exponential_losses(10_000))
    plan_next(warm)
    draw(warm)
    del warm
    gc.collect()
    before = tensor_bytes()
    session = start_run(make_method("InfoBatch"), n)
    session.begin_epoch()
    record_epoch(session, exponential_losses(n))
    gc.collect()
    figures: dict[str, Any] = {"state_full": (tensor_bytes() - before) / n}
    start = resident()
    reset_peak()
    figures["seconds"] = cpu_seconds(lambda: plan_next(session))
    figures["seconds_draw"] = cpu_seconds(lambda: draw(session))
    process = resident(peak=True)
    figures["peak_full"] = (process - start) / n
    gc.collect()
    figures["state"] = (tensor_bytes() - before) / n
    record_epoch(session, exponential_losses(n))
    gc.collect()
    start = resident()
    reset_peak()
    plan_next(session)
    draw(session)
    figures["peak"] = (resident(peak=True) - start) / n
    figures["process"] = max(process, resident(peak=True))
    if n <= 20_000_000:
        record_epoch(session, exponential_losses(n))
        figures["checkpoint_open"] = checkpoint_bytes(session) / n
        session.end_epoch()
        figures["checkpoint"] = checkpoint_bytes(session) / n
        full = start_run(make_method("InfoBatch"), n)
        full.begin_epoch()
        record_epoch(full, exponential_losses(n))
        figures["checkpoint_open_full"] = checkpoint_bytes(full) / n
    return figures


def available_bytes() -> int:
    """Return the memory that the system says it can give."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("MemAvailable:"))) * 1024


def huge(*, n: int = 100_000_000) -> list[Row]:
    """Return what InfoBatch takes at 100 million samples, one round in a process of its own, and plain sampling."""
    needed = 80 * n
    if available_bytes() < needed:
        return [Row("InfoBatch: end of epoch", n, [], why_not=f"needs {needed / 2**30:.0f} GiB of free memory")]
    figures = fresh_process("benchmarks.memory", n)
    seconds = figures["seconds"] + figures["seconds_draw"]
    base = cpu_seconds(lambda: plain(n))
    what, peak = "InfoBatch: end of epoch and the next one's batches", max(figures["peak"], figures["peak_full"])
    return [
        Row(what, n, [seconds], unit="s"),
        Row(f"{what} / plain sampling", n, [seconds / base]),
        Row("InfoBatch: memory of the whole process at its peak", n, [figures["process"] / 2**30], 16, unit="GiB"),
        Row(
            "InfoBatch: peak of the end of an epoch",
            n,
            [peak],
            16,
            10,
            unit="B/sample",
        ),
    ]


def measure(*, n: int = 10_000_000, rounds: int = 3) -> list[Row]:
    """Return the rows, each round in a process of its own."""
    if not Path("/proc/self/clear_refs").exists():
        return [Row("InfoBatch: peak of the end of an epoch", n, [], unit="B/sample", why_not="needs Linux's /proc")]
    # Each larger block is asked of the system, and given back, by itself: no holes of the allocator's heap are counted.
    figures = [fresh_process("benchmarks.memory", n, MALLOC_MMAP_THRESHOLD_="1048576") for _ in range(rounds)]

    def row(what: str, key: str, must: float | None = None, aim: float | None = None) -> Row:
        return Row(f"InfoBatch: {what}", n, [figure[key] for figure in figures], must, aim, unit="B/sample")

    # Pages of libraries that the system drops and must read again only add to a peak: the least of all counts.
    peak = max(min(figure[key] for figure in figures) for key in ("peak", "peak_full"))
    return [
        Row("InfoBatch: peak of the end of an epoch, over what was there", n, [peak], 16, 10, unit="B/sample"),
        row("tensors that stay during a pruned epoch", "state", 16, 12),
        row("tensors that stay during a full epoch", "state_full", 16, 12),
        row("checkpoint between epochs", "checkpoint", 8),
        row("checkpoint on the last batch of a pruned epoch", "checkpoint_open", 8),
        row("checkpoint on the last batch of a full epoch", "checkpoint_open_full", 8),
    ]


if __name__ == "__main__":
    one_thread()
    print(json.dumps(end_of_epoch(int(sys.argv[1]))))
