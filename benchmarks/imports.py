"""What ``import lightning_prune`` adds to ``import lightning``."""

from __future__ import annotations

import subprocess
import sys

from benchmarks.measure import ROOT, Row, environment

SCRIPT = """
import time, lightning
start = time.process_time()
import lightning_prune
print(time.process_time() - start)
"""


def seconds() -> float:
    """Return the CPU time of the import in a fresh process that has imported Lightning."""
    command = [sys.executable, "-c", SCRIPT]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, check=True)
    return float(done.stdout)


def measure(*, rounds: int = 5) -> list[Row]:
    """Return the row."""
    seconds()  # compiles what is not compiled yet
    values = [seconds() for _ in range(rounds)]
    return [Row("import lightning_prune, beyond import lightning", 1, values, 0.15, unit="s")]
