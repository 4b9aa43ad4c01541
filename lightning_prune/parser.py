"""The parser of the commands beside LightningCLI's."""

from __future__ import annotations

import argparse
import sys
from typing import NoReturn, final


@final
class CommandParser(argparse.ArgumentParser):
    """A parser that answers a mistake with the mistake and exit code 2, not with a page of usage."""

    def error(self, message: str) -> NoReturn:
        """Write the mistake, and end the program."""
        sys.stderr.write(f"error: {message}\nFor all arguments: {self.prog} --help\n")
        raise SystemExit(2)
