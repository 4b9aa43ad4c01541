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
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from lightning_prune.testing.processes import fork, skip_without_fork

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
