"""The parser of the commands beside LightningCLI's."""

from __future__ import annotations

import argparse
import difflib
import re
import sys
from typing import NoReturn, final


@final
class CommandParser(argparse.ArgumentParser):
    """A parser that answers a mistake with the mistake and exit code 2, not with a page of usage."""

    def error(self, message: str) -> NoReturn:
        """Write the mistake, and end the program."""
        sys.stderr.write(f"error: {message}{suggestion(message)}\nFor all arguments: {self.prog} --help\n")
        raise SystemExit(2)


def suggestion(message: str) -> str:
    """Return a question that names the nearest of the words that were expected, or nothing.

    Example:
        >>> suggestion("Expected `method` to be one of ['AUM', 'TDDS'], but got 'TDS'.")
        ' Did you mean `TDDS`?'
    """
    found = re.search(r"(?:one of|that the training logs, of) (.*), but got '(\w+)'", message)
    if found is None or "Did you mean" in message:
        return ""
    known = {word.lower(): word for word in re.findall(r"\w+", found[1])}
    near = difflib.get_close_matches(found[2].lower(), known, n=1)
    return f" Did you mean `{known[near[0]]}`?" if near else ""
