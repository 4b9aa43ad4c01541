"""A registry whose state is shared: bytes that each process keeps, bytes sent, and the time of an epoch's end.

    python -m benchmarks.sharded --n 10000000 --ranks 2 4 --methods InfoBatch RandomPruning

Processes of one machine, joined by gloo. Losses are synthetic: a function of the sample's id. Times are wall clock, of
the process that takes longest: the end of a pruned epoch after its last step, and the next selection with its plan.
Plain sampling is timed with 10 million samples at most, and taken to be as fast with more.
"""

from __future__ import annotations

import argparse
import gc
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed
from torch import Tensor

from benchmarks.epoch_end import BATCH_SIZE, draw, make_method, plain
from benchmarks.measure import HEADER, ROOT, Row, cpu_seconds, environment, machine, one_thread
from benchmarks.memory import reset_peak, resident, tensor_bytes
from benchmarks.traffic import Sent
from lightning_prune import ScoreRegistry
from lightning_prune.core.sampler import PlanBatchSampler, PlanSampler
from lightning_prune.core.session import Session

_LOT = 1 << 22
_MOST_PLAIN = 10_000_000
"""Samples that plain sampling is timed with, at most: it holds them all as Python ints."""


def losses_of(ids: Tensor) -> Tensor:
    """Return losses as if drawn from an exponential distribution, a function of the ids; 63 % lie below the mean."""
    return -torch.log1p(-(ids.double() * 0.6180339887498949 % 1).clamp_(max=1 - 1e-9)).float()


def train(session: Session) -> None:
    """Log the losses of the running epoch's samples, as its steps would."""
    running = session.open_epoch
    order = running.plan.order
    for start in range(0, len(order), _LOT):
        some = slice(start, min(start + _LOT, len(order)))
        running.log[0, some] = losses_of(order[some])
    running.batches_done = len(running.batch_sampler)


def run_rank(name: str, n: int, rank: int, world_size: int, store: str) -> dict[str, Any]:
    """Return this process's figures of the end of a pruned epoch and of the plan of the next."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world_size)
    return figures_of(name, n, rank, world_size)


def figures_of(name: str, n: int, rank: int, world_size: int) -> dict[str, Any]:
    """Return what this process of a group that is joined keeps, sends and takes; it leaves the group."""
    gc.collect()
    before = tensor_bytes()
    session = Session(ScoreRegistry(sharded=True), make_method(name))
    sampler = PlanSampler(n, shuffle=True, seed=0, rank=rank, world_size=world_size)
    session.draw_from(PlanBatchSampler(sampler, BATCH_SIZE, drop_last=False))
    session.table.max_epochs = 100
    session.start(n, "cpu")
    for _ in range(2):  # a full epoch, in which a method begins its averages, and a pruned one
        session.begin_epoch()
        train(session)
        if session.table.epoch == 0:
            session.end_epoch()
    gc.collect()
    torch.distributed.barrier()
    held_before = resident()
    reset_peak()
    at_end, at_plan = Sent(), Sent()
    start, cpu = time.perf_counter(), time.process_time()
    with at_end:
        session.end_epoch()
    ended = time.perf_counter()
    with at_plan:
        running = session.begin_epoch()
    planned, cpu = time.perf_counter(), time.process_time() - cpu
    process = resident(peak=True)
    peak = process - held_before
    del running
    drawing = cpu_seconds(lambda: draw(session))
    num_plain = min(_MOST_PLAIN, n // world_size)
    plainly = cpu_seconds(lambda: plain(num_plain)) * (n / world_size / num_plain)
    plan = session.table.plan
    assert plan is not None
    columns = sum(values.nbytes for values in session.table._columns.values())  # `to_dict` would copy the ids
    # After the last collective has ended, a thread of gloo holds what it sent until that thread runs again.
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
    gc.collect()
    held = tensor_bytes() - before
    own_plan = plan.order.nbytes + (0 if plan.weights is None else plan.weights.nbytes)
    return {
        "held": held - own_plan - columns,
        "plan": own_plan,
        "columns": columns,
        "peak": peak,
        "process": process,
        "kept": plan.length,
        "sent_end": at_end.bytes,
        "sent_plan": at_plan.bytes,
        "calls": at_end.calls + at_plan.calls,
        "end": ended - start,
        "select": planned - ended,
        "cpu": cpu,
        "draw": drawing,
        "over_plain": (cpu + drawing) / plainly,
    }


def run_ranks(name: str, n: int, world_size: int) -> list[dict[str, Any]]:
    """Return what each rank's process found."""
    env = environment() | {"MALLOC_MMAP_THRESHOLD_": str(1 << 20)}
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "benchmarks.sharded", "--rank-of", str(Path(folder) / "store"), name, str(n)]
        processes = [
            subprocess.Popen(
                [*command, str(rank), str(world_size)], cwd=ROOT, env=env, stdout=subprocess.PIPE, text=True
            )
            for rank in range(world_size)
        ]
        outputs = [process.communicate()[0] for process in processes]
    if any(process.returncode for process in processes):
        raise RuntimeError("A rank failed; its error stands above.")
    return [json.loads(output.splitlines()[-1]) for output in outputs]


def rows_of(name: str, n: int, found: list[dict[str, Any]]) -> list[Row]:
    """Return the rows: bytes by sample of a process's part, bytes sent by sample of the epoch, seconds."""
    part, kept = n / len(found), found[0]["kept"]

    def row(what: str, value: float, unit: str, must: float | None = None) -> Row:
        return Row(f"{name}, {len(found)} processes: {what}", n, [value], must, unit=unit)

    def most(key: str) -> float:
        return float(max(figures[key] for figures in found))

    def total(key: str) -> float:
        return float(sum(figures[key] for figures in found))

    return [
        row("kept by each, per sample of its part", most("held") / part, "B", 15),
        row("and the plan, per sample of its part", most("plan") / part, "B", 8),
        row("and the method's columns, per sample of its part", most("columns") / part, "B"),
        row("more at the peak between two epochs, per sample of its part", most("peak") / part, "B"),
        row("memory of a process at its peak", most("process") / 2**30, "GiB"),
        row("sent by all at an epoch's end, per trained sample", total("sent_end") / kept, "B", 16),
        row("sent by all for the next plan, per selected sample", total("sent_plan") / kept, "B"),
        row("collectives between two epochs", most("calls"), ""),
        row("end of an epoch, wall clock", most("end"), "s"),
        row("selection and plan, wall clock", most("select"), "s"),
        row("both of them, CPU time of a process", most("cpu"), "s"),
        row("drawing the batches, CPU time of a process", most("draw"), "s"),
        row("CPU time of all three / plain sampling of as many as its part has", most("over_plain"), ""),
        row("memory of all at their peaks, per sample", total("process") / n, "B"),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=10_000_000, help="samples of all processes")
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 4, 8], help="numbers of processes")
    parser.add_argument("--methods", nargs="+", default=["InfoBatch", "RandomPruning"], help="rows of benchmarks.run")
    parser.add_argument("--rank-of", nargs=5, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    one_thread()
    if arguments.rank_of:
        store, name, *numbers = arguments.rank_of
        n, rank, world_size = (int(number) for number in numbers)
        print(json.dumps(run_rank(name, n, rank, world_size, store)))
        return
    print(", ".join(f"{key} {value}" for key, value in machine().items()), f"\n\n{HEADER}", sep="", flush=True)
    for name in arguments.methods:
        for world_size in arguments.ranks:
            for row in rows_of(name, arguments.n, run_ranks(name, arguments.n, world_size)):
                print(row, flush=True)


if __name__ == "__main__":
    main()
