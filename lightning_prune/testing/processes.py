"""Child processes, made by fork: a class of a test module, lambdas and all, cannot be sent to a fresh interpreter."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import sys
import time
import warnings
from collections.abc import Callable
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import torch

PATIENCE = 15 * 60.0
"""Seconds after which a child is taken for one that hangs."""


def skip_without_fork() -> None:
    """Skip the running test where processes cannot be forked, or where what they fork cannot train."""
    if "fork" not in multiprocessing.get_all_start_methods():
        pytest.skip("needs processes that are made by fork")
    if torch.cuda.is_available() or torch.backends.mps.is_available():
        pytest.skip("torch's autograd does not work in a forked process where it sees a GPU: hide it from the tests")


def fork(function: Callable[..., Any], *args: Any, log: Path) -> BaseProcess:
    """Call a function in a forked child; what it says goes to a file."""
    child = multiprocessing.get_context("fork").Process(target=_call, args=(function, args, log))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the threads of a test runner, which the child has no use for
        child.start()
    return child


def _call(function: Callable[..., Any], args: tuple[Any, ...], log: Path) -> None:
    sys.stdout = sys.stderr = log.open("w", buffering=1)
    for descriptor in (1, 2):
        os.dup2(sys.stderr.fileno(), descriptor)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)  # the threads of OpenMP did not survive the fork
    function(*args)


def run_ranks(function: Callable[..., Any], *args: Any, folder: Path, world_size: int = 2) -> None:
    """Call ``function(rank, *args)`` in processes of one gloo group; what they started ends with this call.

    Raises:
        AssertionError: If one of them fails; the message is what it said.
    """
    logs = [folder / f"rank{rank}.log" for rank in range(world_size)]
    store = folder / "store"
    ranks = [fork(join_group, function, rank, world_size, store, args, log=log) for rank, log in enumerate(logs)]
    end_at = time.monotonic() + PATIENCE
    try:
        while (running := [rank for rank in ranks if rank.is_alive()]) and not any(rank.exitcode for rank in ranks):
            assert wait([rank.sentinel for rank in running], end_at - time.monotonic()), "the processes hang"
    finally:
        failed = any(rank.exitcode for rank in ranks)
        for rank in ranks:
            rank.kill()
            rank.join()
    assert not failed, "\n".join(f"Rank {rank} says:\n{log.read_text()}" for rank, log in enumerate(logs))


def join_group(function: Callable[..., Any], rank: int, world_size: int, store: Path, args: tuple[Any, ...]) -> None:
    """Call ``function(rank, *args)`` as a rank of a gloo group, which meets by a file, and may be left by it."""
    os.environ |= {"LOCAL_RANK": str(rank), "NODE_RANK": "0"}
    torch.distributed.init_process_group("gloo", init_method=store.as_uri(), rank=rank, world_size=world_size)
    function(rank, *args)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def kill(function: Callable[..., Any], *args: Any, once: Callable[[], bool], delay: float, log: Path) -> None:
    """Call a function in a forked child, and kill it ``delay`` seconds after ``once()`` is true.

    Raises:
        AssertionError: If it ended before.
    """
    end_at = time.monotonic() + PATIENCE
    child = fork(function, *args, log=log)
    try:
        while not once() and child.is_alive():
            assert time.monotonic() < end_at, "the process hangs"
            time.sleep(0.002)
        time.sleep(delay)
    finally:
        child.kill()
        child.join()
    assert child.exitcode == -signal.SIGKILL, log.read_text()


def kill_and_resume(train: Callable[[Path, Path | None], Any], folder: Path, kills: int, seed: int = 0) -> Any:
    """Kill a run at random moments, resume it each time from its newest whole checkpoint, and return how it ends.

    Args:
        train: Trains into a folder of checkpoints ``{step}.ckpt``, from where it stands; ``train(folder, marker)``
            makes the file ``marker`` in its last epoch and waits to be killed, ``train(folder, None)`` ends.
        folder: Where checkpoints go.
        kills: Number of kills.
        seed: Seed of the moments.
    """
    draw, log = random.Random(seed), folder / "killed.log"
    for i in range(kills):
        before = len(list(folder.glob("*.ckpt"))) + draw.randrange(4)
        marker = folder / f"waits{i}"

        def once(marker: Path = marker, before: int = before) -> bool:
            return marker.exists() or len(list(folder.glob("*.ckpt"))) > before

        kill(train, folder, marker, once=once, delay=draw.random() * 0.03, log=log)
    return train(folder, None)


def newest_checkpoint(folder: Path) -> Path | None:
    """Return the newest checkpoint ``{step}.ckpt`` that is whole, or None."""
    for path in sorted(folder.glob("*.ckpt"), key=lambda path: int(path.stem.split("=")[-1]), reverse=True):
        try:
            torch.load(path, weights_only=True)
        except Exception:  # noqa: S112  (killed while it was written; how it fails to load depends on where)
            continue
        return path
    return None
