"""Runs trainings side by side, each in a process of its own."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

from lightning_prune.compare import run
from lightning_prune.compare.run import write_json

_POLL_SECONDS = 0.05


def run_all(
    specs: Sequence[dict[str, Any]],
    num_jobs: int,
    on_end: Callable[[dict[str, Any], str | None], None],
    *,
    fresh: bool = True,
) -> None:
    """Run each spec in a process of its own, ``num_jobs`` at a time; end them all if anything is raised here.

    Args:
        specs: What `lightning_prune.compare.run` takes.
        num_jobs: Number of processes at a time.
        on_end: Called with a spec when its process has ended, and with what went wrong, or None.
        fresh: Start a new interpreter for each, as strategies that launch further processes need it. False: fork a
            process that has imported torch and Lightning already, which saves seconds (where the system can).
    """
    can_fork = "forkserver" in multiprocessing.get_all_start_methods()
    context: Any = multiprocessing.get_context("forkserver" if can_fork else "spawn")
    if can_fork:
        context.set_forkserver_preload([run.__name__])
    waiting, running = list(specs), list[tuple[dict[str, Any], BaseProcess]]()
    try:
        while waiting or running:
            while waiting and len(running) < num_jobs:
                spec = waiting.pop(0)
                running.append((spec, _start(context, spec, num_jobs, fresh)))
            time.sleep(_POLL_SECONDS)
            for job in [job for job in running if job[1].exitcode is not None]:
                spec, process = job
                running.remove(job)
                done = process.exitcode == 0 and Path(spec["result"]).exists()
                on_end(spec, None if done else _reason(_log(spec), process.exitcode or 0))
    finally:
        for _, process in running:
            process.terminate()
        for _, process in running:
            process.join()


def _log(spec: dict[str, Any]) -> Path:
    return Path(spec["folder"]) / "log.txt"


def _start(context: Any, spec: dict[str, Any], num_jobs: int, fresh: bool) -> BaseProcess:
    folder = Path(spec["folder"])
    folder.mkdir(parents=True, exist_ok=True)
    for stale in folder.glob("*.tmp"):  # of a command that was killed while it wrote
        stale.unlink(missing_ok=True)
    write_json(folder / "spec.json", spec)
    environment = dict(os.environ)
    if num_jobs > 1:  # else each process would use every core
        environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // num_jobs)))
    args = (str(folder / "spec.json"), str(_log(spec)), os.getcwd(), environment, fresh)
    process: BaseProcess = context.Process(target=_train, args=args)
    with _without_main():
        process.start()
    return process


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
    os.chdir(directory)
    os.environ.clear()
    os.environ.update(environment)
    with open(log_path, "wb") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    if fresh:
        os.execv(sys.executable, [sys.executable, "-m", run.__name__, spec_path])  # noqa: S606
    if threads := environment.get("OMP_NUM_THREADS"):
        torch.set_num_threads(int(threads))
    sys.argv = [str(run.__file__)]
    run.main(Path(spec_path))


def _reason(log: Path, code: int) -> str:
    """Return why a process ended: the last line that says something, or the signal."""
    if code < 0:
        return f"killed by signal {-code}, see {log}"
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines()] if log.exists() else []
    told = [line for line in lines if line.partition(":")[0].endswith(("Error", "Exception", "error"))]
    told = told or [line for line in lines if line]
    return f"{told[-1] if told else 'no output'} (exit code {code}, see {log})"
