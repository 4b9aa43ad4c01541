"""Fresh Python processes for tests: what they start ends with the call, and they have time on a busy machine."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PATIENCE = 30 * 60
"""Seconds after which a process is taken for one that hangs."""
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "tests.rank")


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
