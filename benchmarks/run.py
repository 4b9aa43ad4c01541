"""Print every speed claim as a table of ratios: ``make bench`` or ``python -m benchmarks.run [--quick]``."""

from __future__ import annotations

import argparse
import logging
import platform
import warnings

import torch

from benchmarks import epoch_end, per_step, wall_clock
from benchmarks.measure import HEADER, one_thread


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    quick = parser.parse_args().quick
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    one_thread()
    print(f"Python {platform.python_version()}, torch {torch.__version__}, one thread, CPU\n\n{HEADER}")
    for rows in (
        lambda: per_step.measure(2000 if quick else 5000),
        lambda: epoch_end.measure(rounds=3 if quick else 7),
        lambda: wall_clock.measure(4 if quick else 8),
    ):
        for row in rows():
            print(row, flush=True)


if __name__ == "__main__":
    main()
