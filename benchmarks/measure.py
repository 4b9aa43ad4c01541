"""Rows of the table: what was measured, over which rounds, against which limit; and on which machine."""

from __future__ import annotations

import gc
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning
import lightning.pytorch as L
import numpy as np
import torch

ROOT = Path(__file__).parent.parent
HEADER = "| what | n | rounds | median: ratio, or unit | min..max | must | aim | verdict |\n" + "|---" * 8 + "|"


@dataclass(frozen=True)
class Row:
    """One claim: a figure, mostly a ratio of two timings, from rounds that each measured both.

    Args:
        name: What was measured; what it is divided by stands after the slash.
        n: Samples, steps or bytes that it was measured with.
        values: One figure per round.
        must: The worst median that is accepted; None: the row is for information.
        aim: The median that is aimed at.
        at_least: Whether larger is better.
        unit: Unit of the figures; none for a ratio.
        why_not: Why there are no values, where there are none.
    """

    name: str
    n: int
    values: list[float]
    must: float | None = None
    aim: float | None = None
    at_least: bool = False
    unit: str = ""
    why_not: str = ""

    @property
    def median(self) -> float:
        return statistics.median(self.values) if self.values else math.nan

    @property
    def verdict(self) -> str:
        if not self.values:
            return f"not run: {self.why_not}"
        if self.must is None:
            return "reported"
        sign = -1 if self.at_least else 1
        if sign * self.median > sign * self.must:
            return "MISSED"
        return "aim" if self.aim is not None and sign * self.median <= sign * self.aim else "must"

    def __str__(self) -> str:
        sign = ">=" if self.at_least else "<="
        limits = [f"{sign} {limit:g}" if limit is not None else "" for limit in (self.must, self.aim)]
        cells = [
            self.name,
            f"{self.n:,}",
            str(len(self.values)),
            f"{_figure(self.median)} {self.unit}".strip() if self.values else "",
            f"{_figure(min(self.values))}..{_figure(max(self.values))}" if self.values else "",
            *limits,
            self.verdict,
        ]
        return f"| {' | '.join(cells)} |"

    def to_dict(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "n": self.n,
            "rounds": len(self.values),
            "median": self.median if self.values else None,
            "values": self.values,
            "unit": self.unit,
            "must": self.must,
            "aim": self.aim,
            "at_least": self.at_least,
            "verdict": self.verdict,
        }


def _figure(value: float) -> str:
    return f"{value:.3g}" if abs(value) < 0.1 else f"{value:,.2f}" if abs(value) < 100 else f"{value:,.0f}"


def machine() -> dict[str, Any]:
    """Return what the figures depend on."""
    model = platform.processor()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [
            line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")
        ]
        model = names[0] if names else model
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "lightning": lightning.__version__,
        "numpy": np.__version__,
        "date": time.strftime("%Y-%m-%d"),
    }


def cpu_seconds(function: Callable[[], object]) -> float:
    """Return the CPU time of one call."""
    gc.collect()
    start = time.process_time()
    function()
    return time.process_time() - start


def one_thread() -> None:
    """Pin torch to one thread: with more, OpenMP's barriers on shared cores drown small operations."""
    torch.set_num_threads(1)


def environment() -> dict[str, str]:
    """Return the environment of the processes that we start."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}


def quiet_trainer(**arguments: Any) -> L.Trainer:
    """Return a Trainer that runs the loop and nothing beside it."""
    defaults: dict[str, Any] = {
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return L.Trainer(**defaults | arguments)


def fresh_process(module: str, *arguments: object, **variables: str) -> Any:
    """Return what ``python -m module arguments`` printed last, parsed as JSON; ``variables`` are of its environment."""
    command = [sys.executable, "-m", module, *(str(argument) for argument in arguments)]
    env = environment() | variables
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-4000:]}")
    return json.loads(done.stdout.splitlines()[-1])
