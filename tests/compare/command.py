"""The command in a process of its own, forked from the tests'."""

from __future__ import annotations

import multiprocessing
import signal
from multiprocessing import forkserver
from pathlib import Path

from lightning_prune.cli import main
from lightning_prune.compare import run
from lightning_prune.testing.processes import fork, skip_without_fork

PRELOAD = [run.__name__, "examples.digits.task"]


def warm():
    """Start the process that runs are forked from, with what those of the tests import: else each imports it anew."""
    multiprocessing.get_context("forkserver").set_forkserver_preload(PRELOAD)
    forkserver.ensure_running()


def start(*args):
    """Start ``lightning-prune ARGS``; what it says goes to said.txt, its exit code is that of the process."""
    skip_without_fork()
    warm()
    return fork(_be_command, args, log=Path("said.txt"))


def _be_command(args):
    forkserver._forkserver.ensure_running = lambda: None  # it runs, as the tests' child and not this process's
    signal.signal(signal.SIGINT, signal.default_int_handler)  # where the tests run in the background it is ignored
    main(list(args))
