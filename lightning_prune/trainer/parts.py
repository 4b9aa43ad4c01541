"""Checkpoints of a run whose processes keep a part of the per-sample state each: files beside the checkpoint."""

from __future__ import annotations

import contextlib
import secrets
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, final

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer
from lightning.pytorch.plugins import CheckpointIO
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from lightning.pytorch.utilities import rank_zero_warn

from lightning_prune.core.method import Method
from lightning_prune.core.part import Part
from lightning_prune.core.part_files import read_part, write_part
from lightning_prune.trainer.base import TrainerCallback

_KEY = "parts"
_LEFT = 24 * 3600.0
"""Seconds after which files that processes wrote first are taken for those of a run that was killed."""
_MEND = "Leave out `sharded=True`, which any dataset below 100 million samples can do without"


def check_sharded(trainer: Trainer, method: Method | None, callbacks: list[Any]) -> None:
    """Raise MisconfigurationException for what does not work where each process knows a part of the samples only."""
    if method is not None and not method.shares_state:
        raise MisconfigurationException(
            "Expected a method whose rule works where each process knows a part of the samples only, with "
            f"`ScoreRegistry(sharded=True)`, but got {type(method).__name__}, which needs all of them. {_MEND}, or use "
            "a method whose class says `shares_state = True`."
        )
    for callback in callbacks:
        if isinstance(callback, TrainerCallback) and not getattr(callback, "shares_state", False):
            raise MisconfigurationException(
                "Expected callbacks that work where each process knows a part of the samples only, with "
                f"`ScoreRegistry(sharded=True)`, but got {type(callback).__name__}, which needs all of them. {_MEND}, "
                "or leave out the callback."
            )
    if not isinstance(trainer.strategy, DDPStrategy | SingleDeviceStrategy):
        raise MisconfigurationException(
            "Expected DDP or a single device, with `ScoreRegistry(sharded=True)`, but got "
            f"`{type(trainer.strategy).__name__}`, whose checkpoints are written in another way. {_MEND}."
        )
    check_local(trainer.default_root_dir)


def check_local(path: Any) -> None:
    """Raise MisconfigurationException unless a path is of a file system, where files can be put beside others."""
    if "://" in str(path):
        raise MisconfigurationException(
            "Expected checkpoints on a file system that all processes see, with `ScoreRegistry(sharded=True)`, but got "
            f"'{path}'. Give a folder as `default_root_dir` and as `ModelCheckpoint(dirpath=...)`. {_MEND}."
        )


@final
class PartsIO(CheckpointIO):
    """Puts the processes' files beside each checkpoint that another `CheckpointIO` writes: ``x.ckpt.parts-...``.

    Processes write their files before a checkpoint's path is known, into a folder of ``default_root_dir``; that folder
    is renamed before the checkpoint is written, and the one of an older checkpoint of that name removed after it. So
    a kill at any moment leaves a checkpoint that has its files. What it leaves in ``default_root_dir`` the first run
    that saves there a day later removes.

    Args:
        inner: What writes checkpoints.
        root: Where processes write first.
    """

    def __init__(self, inner: CheckpointIO, root: Path) -> None:
        self.inner = inner
        self.root = root
        self._last: Path | None = None

    def stage(self, state: dict[str, Any], part: Part) -> dict[str, Any]:
        """Write what grows with the samples, each process its part; return what is left; collective."""
        name = f"parts-{part.sum(secrets.randbits(48) if part.rank == 0 else 0):012x}"
        if part.rank == 0:
            self.discard()
            self._discard_left()
        self._last = self.root / f".{name}"
        return {**write_part(self._last, state, part), _KEY: {"name": name, "folder": None}}

    def discard(self) -> None:
        """Remove what was staged, and came into no checkpoint."""
        if self._last is not None:
            shutil.rmtree(self._last, ignore_errors=True)
            self._last = None

    def _discard_left(self) -> None:
        """Remove what runs staged that were killed then: each is as large as the state of all samples."""
        for folder in self.root.glob(".parts-*"):
            with contextlib.suppress(FileNotFoundError):  # another run has just put it beside its checkpoint
                if time.time() - folder.stat().st_mtime > _LEFT:
                    shutil.rmtree(folder, ignore_errors=True)

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Put the files of a checkpoint beside it, and write it."""
        names = [parts["name"] for parts in _parts_in(checkpoint)]
        if names:
            check_local(path)
            Path(path).parent.mkdir(parents=True, exist_ok=True)
        for name in names:
            shutil.move(self.root / f".{name}", f"{path}.{name}")
        self.inner.save_checkpoint(checkpoint, path, storage_options)
        _remove_parts(path, but=names)

    def load_checkpoint(self, path: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Read a checkpoint, and note where its files are."""
        checkpoint = self.inner.load_checkpoint(path, *args, **kwargs)
        for parts in _parts_in(checkpoint):
            places = [Path(f"{place}.{parts['name']}") for place in (path, Path(path).resolve())]
            parts["folder"] = next((str(place) for place in places if place.is_dir()), None)
            parts["expected"] = str(places[0])
        return checkpoint

    def remove_checkpoint(self, path: Any) -> None:
        """Remove a checkpoint and its files."""
        self.inner.remove_checkpoint(path)
        _remove_parts(path)

    def teardown(self) -> None:
        """End what the other one has begun."""
        self.inner.teardown()


def _parts_in(checkpoint: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for state in checkpoint.get("callbacks", {}).values():
        if isinstance(state, dict) and isinstance(state.get(_KEY), dict):
            yield state[_KEY]


def _remove_parts(path: Any, but: list[str] | None = None) -> None:
    path = Path(path)
    for folder in path.parent.glob(f"{path.name}.parts-*"):
        if folder.name.removeprefix(f"{path.name}.") not in (but or []):
            shutil.rmtree(folder, ignore_errors=True)


def without_parts(state: dict[str, Any]) -> dict[str, Any]:
    """Return a state that knows no sample, where the processes cannot write theirs; it cannot be resumed from."""
    rank_zero_warn(
        "A checkpoint was written outside `fit`, or after an exception, where the processes of "
        "`ScoreRegistry(sharded=True)` cannot each write their part: it has the model, but no per-sample state. Save "
        "in `on_train_end`, or by `ModelCheckpoint`."
    )
    kept = {name: value for name, value in state.items() if name not in ("losses", "counts", "columns", "ranks")}
    return {**kept, _KEY: {"name": None, "folder": None}}


def whole_state(state: dict[str, Any], part: Part, *, sharded: bool) -> dict[str, Any]:
    """Return a state of this process's part of the samples, whatever run it is of.

    Raises:
        MisconfigurationException: If its files are not there, or it is of an open epoch of another kind of run.
    """
    parts = state.get(_KEY)
    if sharded and parts is None and not state["open"]:
        return state
    if sharded != (parts is not None):
        written, now = (f"`ScoreRegistry(sharded={flag})`" for flag in (not sharded, sharded))
        raise MisconfigurationException(
            f"Expected to resume with {written}, with which the checkpoint was written, but got {now}. "
            + ("From a checkpoint of an epoch's end it may be changed." if sharded else "")
        )
    if parts is None:
        return state
    if parts["folder"] is None:
        place = parts.get("expected")
        raise MisconfigurationException(
            "Expected a checkpoint with the per-sample state of all processes, but it was written outside `fit`, or "
            "after an exception, where there was none to write. Resume from an earlier one."
            if parts["name"] is None
            else f"Expected the folder '{place}' with the per-sample state of the checkpoint, but it is not there. "
            "Copy it along with the checkpoint."
        )
    return read_part(Path(parts["folder"]), {name: value for name, value in state.items() if name != _KEY}, part)
