"""Runs trainings side by side, each in a process of its own, which does not outlive the command."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, final

import torch

from lightning_prune.compare import run
from lightning_prune.compare.run import PARENT, write_json

_POLL_SECONDS = 0.05
GRACE_SECONDS = 5.0
Spec = dict[str, Any]


class Runner(ABC):
    """Makes runs, one or several at a time."""

    num_jobs: int = 1
    """Runs at a time."""

    @abstractmethod
    def run(
        self,
        specs: Sequence[Spec],
        on_end: Callable[[Spec, str | None], None],
        on_tick: Callable[[Sequence[Spec]], None],
    ) -> None:
        """Run each spec.

        Args:
            specs: What `lightning_prune.compare.run` takes.
            on_end: Called with a spec when its run has ended, and with what went wrong, or None.
            on_tick: Called now and then with the specs of the runs that go on.
        """


@final
class Processes(Runner):
    """Runs each spec in a process of its own; all are ended when anything is raised here, or the command is killed.

    Args:
        num_jobs: Number of processes at a time.
        fresh: Start a new interpreter for each, as strategies that launch further processes need it. False: fork a
            process that has imported torch and Lightning already, which saves seconds (where the system can).
    """

    def __init__(self, num_jobs: int, *, fresh: bool = True) -> None:
        self.num_jobs = num_jobs
        self.fresh = fresh

    def run(
        self,
        specs: Sequence[Spec],
        on_end: Callable[[Spec, str | None], None],
        on_tick: Callable[[Sequence[Spec]], None],
    ) -> None:
        """Run each spec."""
        can_fork = "forkserver" in multiprocessing.get_all_start_methods()
        context: Any = multiprocessing.get_context("forkserver" if can_fork else "spawn")
        if can_fork:
            context.set_forkserver_preload([run.__name__])
        waiting, running = list(specs), list[tuple[Spec, BaseProcess]]()
        try:
            while waiting or running:
                while waiting and len(running) < self.num_jobs:
                    spec = waiting.pop(0)
                    running.append((spec, self._start(context, spec)))
                time.sleep(_POLL_SECONDS)
                on_tick([spec for spec, _ in running])
                for job in [job for job in running if job[1].exitcode is not None]:
                    spec, process = job
                    running.remove(job)
                    done = process.exitcode == 0 and Path(spec["result"]).exists()
                    on_end(spec, None if done else reason_of(log_of(spec), process.exitcode or 0))
        finally:
            _end([process for _, process in running])

    def _start(self, context: Any, spec: Spec) -> BaseProcess:
        path = prepare(spec)
        environment = dict(os.environ)
        if self.num_jobs > 1:  # else each process would use every core
            environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // self.num_jobs)))
        args = (str(path), str(log_of(spec)), os.getcwd(), environment, self.fresh)
        process: BaseProcess = context.Process(target=_train, args=args)
        with _without_main():
            process.start()
        return process


def prepare(spec: Spec) -> Path:
    """Write what a run is told into its folder; return that file."""
    folder = Path(spec["folder"])
    folder.mkdir(parents=True, exist_ok=True)
    for stale in folder.glob("*.tmp"):  # of a command that was killed while it wrote
        stale.unlink(missing_ok=True)
    write_json(folder / "spec.json", spec)
    return folder / "spec.json"


def _end(processes: Sequence[BaseProcess]) -> None:
    """End processes and what they have started: ask first, then kill."""
    for kind in (signal.SIGTERM, getattr(signal, "SIGKILL", signal.SIGTERM)):
        for process in processes:
            if process.exitcode is None and process.pid is not None:
                signal_group(process.pid, kind)
        deadline = time.monotonic() + GRACE_SECONDS
        for process in processes:
            process.join(max(0.0, deadline - time.monotonic()))


def signal_group(pid: int, kind: int) -> None:
    """Send a signal to a run's group of processes, or to the run alone if it has none yet."""
    try:
        os.killpg(pid, kind)
    except (ProcessLookupError, PermissionError, AttributeError):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, kind)


def log_of(spec: Spec) -> Path:
    """Return the file of what a run prints."""
    return Path(spec["folder"]) / "log.txt"


@contextlib.contextmanager
def _without_main() -> Iterator[None]:
    """Keep multiprocessing from running the main module again in the new process, where nothing needs it."""
    main = vars(sys.modules["__main__"])
    hidden: dict[str, Any] = {name: main[name] for name in ("__file__", "__spec__") if name in main}
    try:
        main.pop("__file__", None)
        main["__spec__"] = None
        yield
    finally:
        main.update(hidden)


def _train(spec_path: str, log_path: str, directory: str, environment: dict[str, str], fresh: bool) -> None:
    """Be the process of one run; what it prints goes to the log."""
    if hasattr(os, "setsid"):
        os.setsid()  # a group of its own, with what it starts: to be ended as one, and Ctrl-C is the command's
    parent = multiprocessing.parent_process()
    sentinel = parent.sentinel if parent is not None else None
    os.chdir(directory)
    os.environ.clear()
    os.environ.update(environment)
    with open(log_path, "wb") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    if fresh:
        if sentinel is not None and hasattr(os, "setsid"):
            os.set_inheritable(sentinel, True)
            os.environ[PARENT] = str(sentinel)
        os.execv(sys.executable, [sys.executable, "-m", run.__name__, spec_path])  # noqa: S606
    if sentinel is not None:
        threading.Thread(target=run.end_with, args=(sentinel,), daemon=True).start()
    if threads := environment.get("OMP_NUM_THREADS"):
        torch.set_num_threads(int(threads))
    sys.argv = [str(run.__file__)]
    run.main(Path(spec_path))


def reason_of(log: Path, code: int) -> str:
    """Return why a process ended: the last line that says something, or the signal."""
    if code < 0:
        return f"killed by signal {-code}, see {log}"
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines()] if log.exists() else []
    told = [line for line in lines if line.partition(":")[0].endswith(("Error", "Exception", "error"))]
    told = told or [line for line in lines if line]
    return f"{told[-1] if told else 'no output'} (exit code {code}, see {log})"
