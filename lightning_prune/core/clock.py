"""The one place that tells the time, so that a test can."""

from __future__ import annotations

import time

import torch


def now() -> float:
    """Return the seconds since some moment; only differences mean something."""
    return time.monotonic()


def of_first_rank(seconds: float, device: torch.device) -> float:
    """Return what the process of rank 0 measured, so that all plan the same; collective in a run of several."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return seconds
    box = torch.tensor(seconds, dtype=torch.float64, device=device)
    torch.distributed.broadcast(box, src=0)
    return float(box)
