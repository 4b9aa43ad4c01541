"""Runs trainings elsewhere: by Ray, by Slurm through submitit, or by an executor of your own."""

from __future__ import annotations

import contextlib
import os
import pkgutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, final

from lightning_prune.compare import run
from lightning_prune.compare.jobs import (
    GRACE_SECONDS,
    Processes,
    Runner,
    Spec,
    log_of,
    prepare,
    reason_of,
    signal_group,
)
from lightning_prune.compare.methods import RefusedError
from lightning_prune.core.export import atomic_write

_POLL_SECONDS = 0.1
_PULSE_SECONDS = 5.0
PULSE_PATIENCE = 300.0
"""Seconds without a sign of the command after which a run ends itself: files of a cluster are seen late."""


class Job(Protocol):
    """What `submit` returns: a `concurrent.futures.Future`, or what has these three of it."""

    def done(self) -> bool:
        """Return whether it has ended."""

    def result(self) -> Any:
        """Return what the function returned, or raise what it raised."""

    def cancel(self) -> Any:
        """Do not start it, if that is still possible."""


class Executor(Protocol):
    """What runs functions elsewhere: a `concurrent.futures.Executor`, or what has ``submit`` as it does."""

    def submit(self, function: Callable[..., Any], /, *args: Any) -> Job:
        """Call ``function(*args)`` there."""


def make_runner(launcher: str, arguments: Mapping[str, Any], num_jobs: int, folder: Path, *, fresh: bool) -> Runner:
    """Return what makes the runs of a comparison.

    Args:
        launcher: ``"local"``, ``"ray"``, ``"submitit"``, or the import path of an executor.
        arguments: What it is made with.
        num_jobs: Runs at a time.
        folder: That of the comparison.
        fresh: Whether runs of this machine each need a new interpreter.

    Raises:
        RefusedError: If there is no such launcher, it is not installed, or it does not take the arguments.
    """
    if launcher == "local":
        if arguments:
            raise RefusedError(f"Expected no `--launcher_args` for the local launcher, but got {dict(arguments)}.")
        return Processes(num_jobs, fresh=fresh)
    known: dict[str, Callable[..., Executor]] = {"ray": _RayExecutor, "submitit": _make_submitit}
    try:
        if launcher == "submitit":
            arguments = {"folder": str(folder / "submitit"), **arguments}
        executor = (known.get(launcher) or _class_at(launcher))(**arguments)
    except ModuleNotFoundError as error:
        raise RefusedError(
            f"Expected `--launcher {launcher}` to be installed, but it is not ({error}). Run `pip install {launcher}`."
        ) from error
    except (TypeError, NameError, ValueError) as error:
        raise RefusedError(
            f"Expected `--launcher_args` that {launcher} takes, but got {dict(arguments)}: {error}"
        ) from error
    return Launched(executor, num_jobs, folder)


def _class_at(path: str) -> Callable[..., Executor]:
    """Return the executor's class at an import path."""
    try:
        found: Any = pkgutil.resolve_name(path)
    except (ImportError, AttributeError, ValueError) as error:
        raise RefusedError(
            "Expected `--launcher` to be local, ray, submitit, or the import path of an executor, such as "
            f"`concurrent.futures.ThreadPoolExecutor`, but got {path!r}: {error}"
        ) from error
    if not isinstance(found, type) or not callable(getattr(found, "submit", None)):
        raise RefusedError(f"Expected `--launcher` to name a class that has `submit`, but got {path!r}.")
    return found


def _make_submitit(folder: str, cluster: str | None = None, **parameters: Any) -> Executor:
    """Return submitit's executor: of Slurm, where that is, or of this machine."""
    import submitit

    executor = submitit.AutoExecutor(folder=folder, cluster=cluster)
    executor.update_parameters(**{"timeout_min": 24 * 60, "name": "compare", **parameters})  # its own limit is minutes
    made: Executor = executor
    return made


@final
class _RayExecutor:
    """Runs functions as tasks of a Ray cluster: that at ``RAY_ADDRESS``, else one of this machine alone.

    Args:
        options: What `ray.remote` takes, such as ``num_cpus`` and ``num_gpus`` of a run.
    """

    def __init__(self, **options: Any) -> None:
        import ray

        if not ray.is_initialized():
            ray.init(log_to_driver=False)
        self._call = ray.remote(**{"max_retries": 0, **options})(lambda function, *args: function(*args))

    def submit(self, function: Callable[..., Any], /, *args: Any) -> Job:
        """Call ``function(*args)`` there."""
        job: Job = self._call.remote(function, *args).future()
        return job


@final
class Launched(Runner):
    """Runs each spec by an executor, in a new interpreter there; all machines see the folder.

    Runs end when the command does: it gives signs of life in the folder, and takes them away when it ends.

    Args:
        executor: Where they run.
        num_jobs: Number of them at a time.
        folder: That of the comparison.
    """

    def __init__(self, executor: Executor, num_jobs: int, folder: Path) -> None:
        self.executor = executor
        self.num_jobs = num_jobs
        self.pulse = folder.resolve() / f"pulse-{uuid.uuid4().hex}"

    def run(
        self,
        specs: Sequence[Spec],
        on_end: Callable[[Spec, str | None], None],
        on_tick: Callable[[Sequence[Spec]], None],
    ) -> None:
        """Run each spec."""
        for stale in self.pulse.parent.glob("pulse-*"):  # of a command that was killed: its runs end
            stale.unlink(missing_ok=True)
        waiting, running, last = list(specs), list[tuple[Spec, Job]](), -_PULSE_SECONDS
        try:
            while waiting or running:
                if time.monotonic() - last >= _PULSE_SECONDS:
                    last = time.monotonic()
                    with atomic_write(self.pulse) as file:
                        file.write(repr(last).encode())
                while waiting and len(running) < self.num_jobs:
                    spec = waiting.pop(0)
                    command, log = command_of(prepare(spec).resolve()), str(log_of(spec).resolve())
                    running.append((spec, self.executor.submit(train, command, log, os.getcwd(), str(self.pulse))))
                time.sleep(_POLL_SECONDS)
                on_tick([spec for spec, _ in running])
                for spec, job in [pair for pair in running if pair[1].done()]:
                    running.remove((spec, job))
                    on_end(spec, _outcome(spec, job))
        finally:
            self.pulse.unlink(missing_ok=True)  # runs that go on see it and end
            for _, job in running:
                with contextlib.suppress(Exception):
                    job.cancel()


def _outcome(spec: Spec, job: Job) -> str | None:
    """Return why a run failed; None: it did not."""
    try:
        code = int(job.result())
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    done = code == 0 and Path(spec["result"]).exists()
    return None if done else reason_of(log_of(spec), code)


def command_of(spec_path: Path) -> list[str]:
    """Return the command of a run."""
    return [sys.executable, "-m", run.__name__, str(spec_path)]


def train(command: Sequence[str], log_path: str, directory: str, pulse_path: str) -> int:
    """Run a command to its end, or until the comparison that wants it is gone; return its exit code.

    Args:
        command: The program and its arguments.
        log_path: File of what it prints.
        directory: Where it runs.
        pulse_path: File that changes while the comparison goes on, and is gone when it has ended.
    """
    pulse, since = Path(pulse_path), time.monotonic()
    seen = _text_of(pulse)
    with open(log_path, "wb") as log:
        process = subprocess.Popen(  # noqa: S603
            command, cwd=directory, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            while process.poll() is None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(1.0)
                now = _text_of(pulse)
                if now not in ("", seen):
                    seen, since = now, time.monotonic()
                elif (seen and not now) or time.monotonic() - since > PULSE_PATIENCE:
                    break
        finally:
            end(process)
    return process.returncode


def _text_of(path: Path) -> str:
    """Return what a file holds; nothing, if there is none."""
    try:
        return path.read_text()
    except FileNotFoundError:
        return ""


def end(process: subprocess.Popen[bytes]) -> None:
    """End a process and what it has started: ask first, then kill."""
    for kind in (signal.SIGTERM, getattr(signal, "SIGKILL", signal.SIGTERM)):
        if process.poll() is None:
            signal_group(process.pid, kind)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(GRACE_SECONDS)
