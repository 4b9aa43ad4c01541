"""The per-sample state of a run: losses, counts, the columns that methods declare, and how far the run is."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_prune.core.arrays import ids_of, to_device, to_host
from lightning_prune.core.checks import StateMismatchError
from lightning_prune.core.export import check_table_path, save_table
from lightning_prune.core.moment import Moment
from lightning_prune.core.part import Part
from lightning_prune.core.plan import EpochPlan, Selection
from lightning_prune.core.shape import EpochShape

_UNANSWERED = "unanswered"
"""Column, only where there are any, of the samples that were trained and never gave a loss."""

_MOST_INT16 = torch.iinfo(torch.int16).max
_LOT = 1 << 22
"""Samples that are counted at a time."""

_Table = TypeVar("_Table", bound="SampleTable")


class SampleTable(ABC):
    """What a run knows of each sample, on one device, and how far it is; methods are handed it as ``registry``.

    Abstract in one thing: how losses are found outside a training step.

    With `ScoreRegistry(sharded=True)` a process keeps the samples of its ``part`` only; then every per-sample tensor is
    of these, ``(len(part),)`` in place of ``(n,)``, and ids are positions in the part, so that ``losses[ids]`` holds.

    Attributes:
        part: Which samples this process keeps the state of; with a part, a rule asks the others for what it needs.
        state: Small tensors of the method that are not per sample.
        epoch: Epoch that runs, or that comes next, from 0.
        max_epochs: Epochs of the run; None: no limit.
        max_steps: Optimizer steps of the run; None: no limit.
        global_step: Optimizer steps done at the epoch's start.
        trained_steps: Sample-steps trained in the finished epochs.
        full_steps: Sample-steps that these epochs would have had at full length.
        plan: What the running epoch, or the last one, visits; None before the first.
        shape: What an epoch trains by the number of samples selected; None before a loader is planned.
    """

    sharded: bool = False

    def __init__(self) -> None:
        self.part = Part.whole(0)
        self.state: dict[str, Tensor] = {}
        self._losses: Tensor | None = None
        self._counts: Tensor | None = None
        self._columns: dict[str, Tensor] = {}
        self._fills: dict[str, float] = {}  # what columns are of a sample of which nothing is known
        self._scores: Tensor | None = None
        self._selected: Tensor | None = None
        self.own_weights: Tensor | None = None  # of what is selected of a part, ids ascending, on the CPU
        self.epoch = 0
        self.max_epochs: int | None = None
        self.max_steps: int | None = None
        self.global_step = self.trained_steps = self.full_steps = 0
        self.plan: EpochPlan | None = None
        self.shape: EpochShape | None = None

    @abstractmethod
    def refresh_losses(self, indices: Tensor) -> Tensor:
        """Return the losses ``(k,)``, float32, of samples by id from a forward pass; for methods, at an epoch's end.

        Collective in a run of several processes. Nothing in the table changes.
        """

    @abstractmethod
    def mean_loss(self, loader: DataLoader[Any]) -> Tensor:
        """Return the mean of a loader's finite losses, a 0-d float64 tensor, as :meth:`refresh_losses` finds them."""

    @property
    def num_samples(self) -> int:
        """Length of the training dataset; 0 before the first fit."""
        return 0 if self._losses is None else self.part.total

    @property
    def has_begun(self) -> bool:
        """Whether a run has begun, be it one that knows no number of samples."""
        return self._losses is not None

    @property
    def losses(self) -> Tensor:
        """Last recorded loss of each sample ``(n,)``, float32; NaN: never recorded."""
        return _allocated(self._losses)

    @property
    def counts(self) -> Tensor:
        """Number of finished epochs ``(n,)`` in whose selection a sample was; int16, int32 beyond 32,767 epochs."""
        return _allocated(self._counts)

    @property
    def ranks_by_losses(self) -> bool:
        """Whether the scores are the losses: no wrapping method put others there."""
        return self._scores is None

    @property
    def scores(self) -> Tensor:
        """What methods rank by ``(n,)``, float32: the losses, unless a wrapping method put other scores there.

        NaN is unknown; see :meth:`settle` for samples that never give a loss.
        """
        return self.settle(self.losses if self._scores is None else self._scores)

    @property
    def unanswered(self) -> Tensor | None:
        """Which samples ``(n,)``, bool, were trained and never gave a loss, as fully masked ones; None: no one."""
        return self._columns.get(_UNANSWERED)

    def settle(self, scores: Tensor) -> Tensor:
        """Return scores ``(n,)`` with 0 for NaN where a sample was trained and never gave a loss.

        0 is what it added to the loss of its batch. Methods have unknown samples come first, or stay; these are not
        unknown, and would hold their places for ever.
        """
        unanswered = self.unanswered
        return scores if unanswered is None else torch.where(unanswered & scores.isnan(), 0, scores)

    def note_unanswered(self, asked: Tensor, answered: Tensor) -> None:
        """Note which samples an epoch trained without their giving a loss, now or ever.

        Args:
            asked: Ids ``(m,)``, int64, of the samples that were in a batch.
            answered: Ids ``(k,)``, int64, of those that gave a loss.
        """
        none = torch.zeros_like(self.losses, dtype=torch.bool)
        unanswered = none if self.unanswered is None else self.unanswered
        unanswered = unanswered.index_fill(0, asked, True).index_fill_(0, answered, False)
        unanswered.logical_and_(self.losses.isnan())
        if self.unanswered is not None or self.part.any(bool(unanswered.any())):
            self._columns[_UNANSWERED] = unanswered

    @property
    def selected(self) -> Tensor:
        """Which samples ``(n,)``, bool, are in the selection of the running epoch, or of the last one."""
        return torch.ones_like(self.losses, dtype=torch.bool) if self._selected is None else self._selected

    @property
    def selection(self) -> Selection | None:
        """Selection of the running epoch, or of the last one, ids ascending; None before the first.

        Made anew when asked for: what is kept is a mask, and the weights in the order of the visit.
        """
        plan = self.plan
        if plan is None:
            return None
        indices, known, given = ids_of(self.selected), plan.order, plan.weights
        if plan.part is not None:
            return Selection(indices, None if self.own_weights is None else self.own_weights.to(indices.device))
        if plan.selection is not None:  # the order is a user's sampler's, which may leave out some
            known, given = plan.selection.indices.cpu(), plan.selection.weights
        if given is None:
            return Selection(indices)
        weights = torch.ones(self.num_samples, dtype=torch.float32).index_copy_(0, known.long(), given.cpu())
        return Selection(indices, weights.to(indices.device).index_select(0, indices))

    @property
    def saved_fraction(self) -> float:
        """Share of the sample-steps of all finished epochs, at full length, that were not trained."""
        return 1 - self.trained_steps / self.full_steps if self.full_steps else 0.0

    @property
    def progress(self) -> float:
        """Share of the run that is done: of ``max_steps``, or else, by whole epochs, of ``max_epochs``."""
        return self.moment(self.epoch).progress

    def moment(self, epoch: int) -> Moment:
        """Return the start of an epoch as a point of the run, with the optimizer steps done so far."""
        return Moment(epoch, self.max_epochs, self.global_step, self.max_steps)

    def column(self, name: str) -> Tensor:
        """Return a column that a method declared, ``(n,)`` or ``(slots, n)``; writes to it are kept and checkpointed.

        Raises:
            KeyError: If there is no such column.
        """
        if name not in self._columns:
            raise KeyError(f"Expected the name of a registry column, one of {sorted(self._columns)}, but got {name!r}.")
        return self._columns[name]

    def has_column(self, name: str) -> bool:
        """Return whether there is such a column, declared by a method or from a checkpoint."""
        return name in self._columns

    def add_column(
        self, name: str, *, fill: float = 0.0, dtype: torch.dtype = torch.float32, slots: int | None = None
    ) -> None:
        """Declare per-sample state; what a checkpoint holds under that name is kept.

        Args:
            name: Name of the column.
            fill: Initial value, also of samples that are appended to the dataset later.
            dtype: Type of an element.
            slots: Values per sample, stored slot by slot ``(slots, n)``; None: one, ``(n,)``.

        Raises:
            ValueError: If the column exists with another shape or dtype.
        """
        num = len(self.losses)
        shape = (num,) if slots is None else (slots, num)
        old = self._columns.get(name)
        self._fills[name] = fill
        if old is None:
            self._columns[name] = torch.full(shape, fill, dtype=dtype, device=self.losses.device)
        elif tuple(old.shape) != shape or old.dtype != dtype:
            raise ValueError(
                f"Expected registry column {name!r} of shape {shape} and {dtype}, but the checkpoint holds "
                f"{tuple(old.shape)} and {old.dtype}. Resume with the arguments that the run was started with."
            )

    def add_state(self, name: str, initial: Tensor) -> None:
        """Declare small state that is not per sample; what a checkpoint holds under that name is kept."""
        self.state.setdefault(name, initial.to(self.losses.device))

    def replace_scores(self: _Table, scores: Tensor) -> _Table:
        """Return a view of this table whose :attr:`scores` are ``scores`` ``(n,)``; everything else is shared."""
        view = object.__new__(type(self))
        view.__dict__.update(self.__dict__, _scores=scores)
        return view

    def to_dict(self) -> dict[str, Tensor]:
        """Return all per-sample state on the CPU: ``indices``, ``losses``, ``counts``, and the methods' columns."""
        ids = torch.arange(self.part.start, self.part.stop)
        table = {"indices": ids, "losses": self.losses, "counts": self.counts, **self._columns}
        return {name: values.detach().cpu().clone() for name, values in table.items()}

    def save(self, path: str | Path) -> None:
        """Write :meth:`to_dict` as ``.npz`` (also without a suffix) or ``.parquet`` (extra ``export``).

        The file is written beside the target and renamed, so an interrupted write leaves an old file intact.

        Raises:
            ValueError: If the suffix is another one.
            ModuleNotFoundError: If Parquet is asked for and pyarrow is not installed.
        """
        save_table(self.to_dict(), check_table_path(path, default=".npz"))

    def allocate(self, num_samples: int, device: torch.device | str, part: Part | None = None) -> None:
        """Start a run on ``num_samples`` samples, of which nothing is known, or on this process's part of them."""
        self.part = Part.whole(num_samples) if part is None else part
        self.epoch = self.trained_steps = self.full_steps = 0
        self._selected = self.own_weights = self.plan = None
        self._losses = torch.full((len(self.part),), math.nan, dtype=torch.float32, device=device)
        self._counts = torch.zeros(len(self.part), dtype=torch.int16, device=device)
        self._columns, self._fills, self.state = {}, {}, {}

    def grow(self, num_samples: int) -> None:
        """Take in samples that were appended to the dataset, of which nothing is known; between epochs.

        Raises:
            StateMismatchError: If there are fewer than before.
        """
        before, more = self.num_samples, num_samples - self.num_samples
        if more < 0:
            raise StateMismatchError(
                f"Expected the training dataset of {before} samples that the per-sample state belongs to, or a longer "
                f"one, but got {num_samples} in epoch {self.epoch}: samples may be appended in a run, but none may go, "
                "since an id is a position. Keep them all in it and draw fewer by a sampler, or start a new run."
            )
        self.part = Part.whole(num_samples)
        self._selected = _extended(self.selected, more, fill=False)
        self._losses, self._counts = _extended(self.losses, more, fill=math.nan), _extended(self.counts, more, fill=0)
        columns = self._columns.items()
        self._columns = {name: _extended(values, more, fill=self._fills.get(name, 0)) for name, values in columns}

    def move_to(self, device: torch.device) -> None:
        """Move everything to a device."""
        self._losses, self._counts = self.losses.to(device), self.counts.to(device)
        self._columns = {name: values.to(device) for name, values in self._columns.items()}
        self.state = {name: values.to(device) for name, values in self.state.items()}
        self._selected = None if self._selected is None else self._selected.to(device)
        self.part = self.part.to(device)

    def take_selection(self, selection: Selection) -> None:
        """Note which samples the coming epoch trains."""
        everything = self.part.sum(len(selection)) == self.num_samples
        self._selected = None if everything else to_device(selection.mask(len(self.losses)), self.losses.device)
        if not self.sharded:
            return
        weights = selection.weights
        if weights is not None and not selection.ascending:
            weights = weights.index_select(0, selection.indices.argsort())
        self.own_weights = None if weights is None else to_host(weights)()[0]

    def let_go(self) -> None:
        """Forget the order of the last epoch, and the weights of its selection: the next ones take their place."""
        self.own_weights = None
        if self.plan is not None and self.plan.part is not None:
            self.plan = replace(self.plan, order=self.plan.order[:0].clone(), weights=None)

    @property
    def own_selected(self) -> Tensor | None:
        """Which of the samples that this process keeps are in the selection ``(len(part),)``, bool; None: all."""
        return self._selected

    @property
    def selects_all(self) -> bool:
        """Whether every sample is in the selection."""
        return self._selected is None

    def count_selected(self) -> None:
        """Add 1 to the counts of the selected samples."""
        counts = self.counts
        if self._selected is None:
            counts.add_(1)
        else:
            for some, chosen in zip(torch.split(counts, _LOT), torch.split(self._selected, _LOT), strict=True):
                some.add_(chosen)  # which first makes them as wide as the counts
        if len(counts) and int(counts.max()) == _MOST_INT16:
            self._counts = counts.int()

    def state_columns(self) -> dict[str, Any]:
        """Return the table as plain tensors on the CPU, for a checkpoint."""
        return {
            "num_samples": self.num_samples,
            "losses": self.losses.cpu().clone(),
            "counts": _narrow(self.counts.cpu()),
            "columns": {name: values.cpu().clone() for name, values in self._columns.items()},
            "state": {name: values.cpu().clone() for name, values in self.state.items()},
        }

    def load_columns(
        self, state: dict[str, Any], num_samples: int, device: torch.device, part: Part | None = None
    ) -> None:
        """Take over what :meth:`state_columns` returned, for a dataset of ``num_samples``, or for a part of it."""
        if state["num_samples"] != num_samples:
            raise StateMismatchError(changed_length(state["num_samples"], num_samples))
        self.part = part = Part.whole(num_samples) if part is None else part
        self._selected = self.own_weights = self.plan = None
        self._losses = part.own(state["losses"]).to(device, copy=True)  # the state may be loaded again
        counts = part.own(state["counts"])
        most = int(counts.max()) if len(counts) else 0
        self._counts = counts.to(device, torch.int32 if most >= _MOST_INT16 else torch.int16, copy=True)
        columns = {name: part.own(values) for name, values in state.get("columns", {}).items()}
        self._columns = {name: values.to(device, copy=True) for name, values in columns.items()}
        self.state = {name: values.to(device, copy=True) for name, values in state.get("state", {}).items()}


def table_columns(columns: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return those of the columns that are the table's own, and no method's."""
    return {name: values for name, values in columns.items() if name == _UNANSWERED}


def changed_length(before: int, now: int) -> str:
    """Return the message for per-sample state of a dataset of another length."""
    return (
        f"Expected the training dataset of {before} samples that the per-sample state belongs to, but got {now}. "
        "Resume with the same dataset, or start a new run."
    )


def _extended(values: Tensor, more: int, *, fill: float) -> Tensor:
    """Return values ``(..., n)`` with ``more`` of them, each ``fill``, at the end."""
    return torch.cat([values, values.new_full((*values.shape[:-1], more), fill)], dim=-1)


def _allocated(tensor: Tensor | None) -> Tensor:
    if tensor is None:
        raise RuntimeError(
            "Expected per-sample state, but there is none before training starts. Run `trainer.fit`, or iterate over "
            "`pruner.epochs()`."
        )
    return tensor


def _narrow(counts: Tensor) -> Tensor:
    """Return non-negative counts in the smallest integer type that holds them."""
    top = int(counts.max()) if len(counts) else 0
    dtype = next(t for t in (torch.uint8, torch.int16, torch.int32) if top <= torch.iinfo(t).max)
    return counts.to(dtype, copy=True)
