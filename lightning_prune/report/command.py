"""``lightning-prune report``: a page of one run, or of several side by side."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from lightning_prune.parser import CommandParser
from lightning_prune.report.record import FILE_NAME
from lightning_prune.report.write import write_report


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command's arguments."""
    parser = CommandParser(
        "lightning-prune report",
        description="Write a page of one run, or of several side by side: what was saved, kept and lost, and which "
        "samples are hard, forgotten or perhaps labelled wrong. The runs must have had `PruningReport` among their "
        "callbacks, and be on the same training dataset.",
        allow_abbrev=False,
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help=f"log folder of a run, which holds its {FILE_NAME}")
    parser.add_argument(
        "--output", default="report.html", help="file to write, .html, .md or .json (default: report.html)"
    )
    return parser


def main(args: Sequence[str] | None = None) -> None:
    """Run ``lightning-prune report RUN [RUN ...] --output report.html``.

    Args:
        args: The arguments after ``report``. None: those of the command line.

    Raises:
        SystemExit: With code 2 for a mistake in the arguments, or a folder that holds no history.
    """
    parser = make_parser()
    options = parser.parse_args(sys.argv[2:] if args is None else args)
    try:
        path = write_report(options.runs, options.output)
    except (OSError, ValueError, ModuleNotFoundError) as error:
        if not str(error).startswith("Expected "):
            raise
        parser.error(str(error))
    sys.stdout.write(f"Wrote {path} of {len(options.runs)} run{'s' if len(options.runs) > 1 else ''}.\n")
