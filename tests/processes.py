"""Python processes for tests, fresh or forked: what they start ends with the call; they have time on a busy machine.

A fresh one imports Lightning, for seconds; a forked one has all that the tests have imported.
"""

from __future__ import annotations

import contextlib
import os
import runpy
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from lightning_prune.testing.processes import fork, join_group, skip_without_fork

ROOT = Path(__file__).parents[1]
PATIENCE = 30 * 60
"""Seconds after which a process is taken for one that hangs."""


@contextlib.contextmanager
def started(
    *arguments: Any, cwd: Path | str = ROOT, program: Path | str = sys.executable, **environment: str
) -> Iterator[subprocess.Popen[str]]:
    """Start ``python ARGUMENTS``; at the end of the block it is killed, with all that it started."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore", **environment}
    env.pop("PYTEST_ADDOPTS", None)
    command = [str(program), *map(str, arguments)]
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, cwd=cwd, env=env, stdout=pipe, stderr=pipe, text=True, start_new_session=True)
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def python(
    *arguments: Any,
    cwd: Path | str = ROOT,
    fails: bool = False,
    program: Path | str = sys.executable,
    **environment: str,
) -> tuple[str, str]:
    """Run ``python ARGUMENTS`` to its end, and return what it wrote to its output and its errors."""
    with started(*arguments, cwd=cwd, program=program, **environment) as process:
        out, err = process.communicate(timeout=PATIENCE)
    assert bool(process.returncode) == fails, out[-2000:] + err[-4000:]
    return out, err


def forked(function: Callable[..., Any], *arguments: Any, folder: Path, fails: bool = False) -> str:
    """Call a function in a forked process, to its end; return what it, and what it started, wrote."""
    skip_without_fork()
    log = folder / "forked.log"
    child = fork(_lead, function, arguments, log=log)
    try:
        child.join(PATIENCE)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.kill()
        child.join()
    said = log.read_text()
    assert bool(child.exitcode) == fails, said[-6000:]
    return said


def be_module(name: str, *arguments: Any) -> None:
    """Run a module as ``python -m NAME ARGUMENTS`` does, in this process."""
    sys.argv = [name, *map(str, arguments)]
    runpy.run_module(name, run_name="__main__", alter_sys=True)


def torchrun(name: str, *arguments: Any, folder: Path) -> str:
    """Run a module as ``torchrun --standalone --nproc_per_node 2 -m NAME ARGUMENTS`` does; return what it wrote."""
    return forked(_be_torchrun, name, arguments, folder=folder)


def _lead(function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    os.setsid()  # what it starts can be killed with it
    os.environ |= {"PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}
    function(*arguments)


def _be_torchrun(name: str, arguments: tuple[Any, ...]) -> None:
    where = {"rdzv_backend": "c10d", "rdzv_endpoint": "localhost:0"}
    config = LaunchConfig(1, 1, 2, **where, start_method="fork", monitor_interval=0.05)
    elastic_launch(config, be_module)(name, *arguments)


def stage(
    function: Callable[[int, int, Path, bool], Any],
    world_size: int,
    folder: Path,
    kill_after: int | None = None,
    delay: float = 0.0,
) -> None:
    """Call ``function(rank, world_size, folder, waits)`` in processes of one gloo group, to the end or to a kill.

    Args:
        function: Writes checkpoints into the folder. If it is to be killed, it ``waits`` for that in its last epoch.
        world_size: Number of processes.
        folder: Where checkpoints go.
        kill_after: Number of new checkpoints after which all are killed (SIGKILL). None: they run to the end.
        delay: Seconds from then to the kill.
    """
    waits = kill_after is not None
    store = folder / f"store{len(list(folder.glob('store*')))}"
    logs = [folder / f"log{rank}" for rank in range(world_size)]
    children = [
        fork(_be_rank, function, rank, world_size, store, folder, waits, log=log) for rank, log in enumerate(logs)
    ]
    before, end_at = len(list(folder.glob("*.ckpt"))), time.monotonic() + PATIENCE
    try:
        while any(child.is_alive() for child in children) and not any(child.exitcode for child in children):
            assert time.monotonic() < end_at, "the processes hang"
            if kill_after is not None and len(list(folder.glob("*.ckpt"))) >= before + kill_after:
                time.sleep(delay)
                break
            children[0].join(0.005)
        codes = [child.exitcode for child in children]
    finally:
        for child in children:
            child.kill()
            child.join()
    expected = None if waits else 0
    assert codes == [expected] * world_size, "\n".join(log.read_text() for log in logs)


def _be_rank(function: Callable[..., Any], rank: int, world_size: int, store: Path, folder: Path, waits: bool) -> None:
    if world_size == 1:
        function(rank, 1, folder, waits)
    else:
        join_group(function, rank, world_size, store, (world_size, folder, waits))
