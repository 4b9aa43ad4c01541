"""The command in a process of its own, forked from one that has imported torch and Lightning, as runs are."""

from __future__ import annotations

import multiprocessing
import os
import signal
import warnings

from lightning_prune.cli import main
from lightning_prune.compare import run


def start(*args):
    """Start ``lightning-prune ARGS`` here; what it says goes to said.txt, its exit code is that of the process."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([run.__name__])
    process = context.Process(target=_be_command, args=(os.getcwd(), dict(os.environ), args))
    process.start()
    return process


def _be_command(directory, environment, args):
    os.chdir(directory)
    os.environ.update(environment)
    warnings.simplefilter("ignore")
    signal.signal(signal.SIGINT, signal.default_int_handler)  # where the tests run in the background it is ignored
    with open("said.txt", "wb") as said:
        os.dup2(said.fileno(), 1)
        os.dup2(said.fileno(), 2)
    main(list(args))
