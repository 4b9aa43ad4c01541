"""Print every speed claim as a ratio: ``make bench``, or ``python -m benchmarks.run [--quick] [--json FILE]``.

One thread; the two sides of a ratio are measured in turn, and what counts is the median over the rounds. Times are CPU
times, except where the row says wall clock. ``--huge`` runs InfoBatch once at 100 million samples (16 GiB), ``--only``
the parts whose names contain a word.
"""

from __future__ import annotations

import argparse
import json
import logging
import time
import warnings
from collections.abc import Callable
from pathlib import Path

from benchmarks import alignment, ddp, epoch_end, imports, memory, per_step, trackers, wall_clock
from benchmarks.measure import HEADER, Row, machine, one_thread

Part = Callable[[], list[Row]]


def parts(*, quick: bool) -> dict[str, Part]:
    """Return what is measured, by name; ``quick``: with fewer rounds, and at a million samples only."""
    if quick:
        return {
            "step": lambda: per_step.measure(steps=2400),
            "epoch end": lambda: epoch_end.measure(rounds=2, large_rounds=1),
            "trackers": lambda: trackers.measure(70),
            "alignment": lambda: alignment.measure(rounds=2),
            "memory": lambda: memory.measure(n=1_000_000, rounds=1),
            "wall clock": lambda: wall_clock.measure(n=3200, rounds=3),
            "ddp": lambda: ddp.measure(rounds=1, resnet=False),
            "import": lambda: imports.measure(rounds=1),
        }
    return {
        "step": lambda: per_step.measure(),
        "epoch end": lambda: epoch_end.measure(),
        "trackers": lambda: trackers.measure(),
        "alignment": lambda: alignment.measure(),
        "memory": lambda: memory.measure(),
        "wall clock": lambda: wall_clock.measure(),
        "ddp": lambda: ddp.measure(),
        "import": lambda: imports.measure(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    parser.add_argument("--huge", action="store_true", help="100 million samples, one round, and nothing else")
    parser.add_argument("--only", default="", help="part of the names of what to run")
    parser.add_argument("--json", type=Path, help="also write machine and rows to this file")
    arguments = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    one_thread()
    described = machine()
    print(", ".join(f"{key} {value}" for key, value in described.items()), f"\n\n{HEADER}", sep="", flush=True)
    chosen: dict[str, Part] = {"huge": memory.huge} if arguments.huge else parts(quick=arguments.quick)
    start, rows = time.monotonic(), []
    for name, measure in chosen.items():
        if arguments.only in name:
            for row in measure():
                rows.append(row)
                print(row, flush=True)
    print(f"\n{time.monotonic() - start:.0f} s", flush=True)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps({"machine": described, "rows": [row.to_dict() for row in rows]}, indent=1))


if __name__ == "__main__":
    main()
