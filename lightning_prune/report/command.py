"""``lightning-prune report``: a page of one run, or of several side by side."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from lightning_prune.parser import parse_report, report_parser
from lightning_prune.report.write import write_report


def main(args: Sequence[str] | None = None) -> None:
    """Run ``lightning-prune report RUN [RUN ...] --output report.html``.

    Args:
        args: The arguments after ``report``. None: those of the command line.

    Raises:
        SystemExit: With code 2 for a mistake in the arguments, or a folder that holds no history.
    """
    options, _ = parse_report(sys.argv[2:] if args is None else args)
    try:
        path = write_report(options.runs, options.output)
    except (OSError, ValueError, ModuleNotFoundError) as error:
        if not str(error).startswith("Expected "):
            raise
        report_parser().error(str(error))
    sys.stdout.write(f"Wrote {path} of {len(options.runs)} run{'s' if len(options.runs) > 1 else ''}.\n")
