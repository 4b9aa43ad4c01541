"""What two ranks exchange: the bytes and the time of an epoch's sync, and that steps exchange nothing."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed

from benchmarks.epoch_end import exponential_losses, make_method, record_epoch, start_run
from benchmarks.measure import ROOT, Row, cpu_seconds, environment, one_thread
from benchmarks.traffic import Sent

WORLD_SIZE, STEPS = 2, 200


def run_rank(rank: int, n: int, rounds: int, store: str) -> dict[str, Any]:
    """Join the group, and return :func:`figures_of`."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=WORLD_SIZE)
    found = figures_of(rank, n, rounds)
    torch.distributed.destroy_process_group()
    return found


def figures_of(rank: int, n: int, rounds: int) -> dict[str, Any]:
    """Return what one rank of the group exchanges, and how long the ends of its epochs take."""
    session = start_run(make_method("InfoBatch"), n, rank=rank, world_size=WORLD_SIZE)
    losses = exponential_losses(n)
    in_steps, at_end = Sent(), Sent()
    with_sync, alone = [], []
    for _ in range(rounds + 1):
        running = session.begin_epoch(0)  # in each round the same full epoch
        with in_steps:
            for batch_idx, _ in zip(range(STEPS), running.batch_sampler, strict=False):
                session.begin_step(batch_idx)
                session.step.record(torch.ones(running.step_length), None, None, None, None, None)
                session.end_step(batch_idx)
        record_epoch(session, losses)
        alone.append(cpu_seconds(lambda: running.log.clone()))  # noqa: B023  (called at once)
        torch.distributed.barrier()
        start = time.perf_counter()
        with at_end:
            running.collect()
        with_sync.append(time.perf_counter() - start)
    return {
        "step_calls": in_steps.calls,
        "bytes": at_end.bytes / (rounds + 1),
        "calls": at_end.calls / (rounds + 1),
        "seconds": with_sync[1:],
    }


def run_ranks(n: int, rounds: int) -> list[dict[str, Any]]:
    """Return what each rank's process found."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "benchmarks.ddp", str(n), str(rounds), str(Path(folder) / "store")]
        processes = [
            subprocess.Popen([*command, str(rank)], cwd=ROOT, env=environment(), stdout=subprocess.PIPE, text=True)
            for rank in range(WORLD_SIZE)
        ]
        outputs = [process.communicate(timeout=300)[0] for process in processes]
    if any(process.returncode for process in processes):
        raise RuntimeError("A rank failed; its error stands above.")
    return [json.loads(output.splitlines()[-1]) for output in outputs]


def seconds_per_image(batch_size: int = 4) -> float:
    """Return the CPU time per image of a training step of ResNet-18 at 224 x 224, one thread."""
    from torchvision.models import resnet18

    model = resnet18()
    images, targets = torch.randn(batch_size, 3, 224, 224), torch.zeros(batch_size, dtype=torch.int64)

    def step() -> None:
        torch.nn.functional.cross_entropy(model(images), targets).backward()

    step()
    return cpu_seconds(step) / batch_size


def measure(*, n: int = 1_280_000, rounds: int = 5, resnet: bool = True) -> list[Row]:
    """Return the rows, of all ranks together."""
    rows = rows_of(n, run_ranks(n, rounds))
    if not resnet:
        return rows
    epoch = seconds_per_image() * n / WORLD_SIZE
    what = "2 ranks: epoch sync / epoch of ResNet-18 at 224 px (extrapolated from a step)"
    return [*rows, Row(what, n, [value / 1e3 / epoch for value in rows[-1].values])]


def rows_of(n: int, ranks: list[dict[str, Any]]) -> list[Row]:
    """Return the rows of what the ranks found."""
    sent = sum(rank["bytes"] for rank in ranks) / n
    seconds = [max(pair) for pair in zip(*(rank["seconds"] for rank in ranks), strict=True)]
    return [
        Row("2 ranks (gloo): bytes sent by both per sample and epoch", n, [sent], 8, unit="B"),
        Row("2 ranks: collectives in an epoch's steps", STEPS, [sum(rank["step_calls"] for rank in ranks)], 0),
        Row("2 ranks: collectives at an epoch's end", n, [max(rank["calls"] for rank in ranks)], 1),
        Row("2 ranks: epoch sync, wall clock", n, [1e3 * value for value in seconds], unit="ms"),
    ]


if __name__ == "__main__":
    one_thread()
    print(json.dumps(run_rank(int(sys.argv[4]), int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])))
