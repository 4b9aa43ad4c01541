"""What the experiments share: their seeds, and how values are printed."""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence


def count(text: str) -> int:
    """Return a number of at least 1 from the command line."""
    if (value := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"Expected a number of at least 1, but got {text}.")
    return value


def add_seeds(parser: argparse.ArgumentParser, num_seeds: int) -> None:
    """Add ``--seeds`` and ``--first_seed``, with which anybody can repeat an experiment on seeds nobody has seen."""
    parser.add_argument("--seeds", type=count, default=num_seeds, help=f"number of seeds (default: {num_seeds})")
    parser.add_argument("--first_seed", type=int, default=0, help="the first of them (default: 0)")


def seeds_of(args: argparse.Namespace) -> range:
    """Return the seeds that were asked for."""
    return range(args.first_seed, args.first_seed + args.seeds)


def spread(values: Sequence[float], digits: int = 3) -> str:
    """Return mean and standard deviation as text; of one value, the value.

    Example:
        >>> spread([1.0, 2.0], 1), spread([1.0], 1)
        ('1.5 ± 0.7', '1.0')
    """
    deviation = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.{digits}f}{deviation}"


def table(header: list[str], rows: list[list[str]]) -> str:
    """Return a table in Markdown; the first column to the left."""
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
