"""The base of all scores that are by-products of training: fed one batch at a time, a few bytes per sample."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from functools import cached_property
from typing import Any, ClassVar, Literal, final

import torch
from torch import Tensor

from lightning_prune.core.checks import check_int
from lightning_prune.scoring._inputs import check_matrix, check_targets

STATE_VERSION = 1


@final
class Batch:
    """A checked training batch, and what several scores make of it, computed once.

    Args:
        indices: Sample ids ``(B,)``, int64.
        losses: Per-sample losses ``(B,)``; float32 afterwards, as all floating-point inputs.
        logits: ``(B, C)``, C >= 2.
        targets: Class ids ``(B,)``, integer; int64 afterwards.
        features: Input of the last linear layer ``(B, D)``.

    Raises:
        TypeError: If an input is of the wrong type.
        ValueError: If a shape is wrong.
    """

    def __init__(self, indices: Tensor, **inputs: Tensor | None) -> None:
        if not isinstance(indices, Tensor) or indices.dtype != torch.int64 or indices.dim() != 1:
            got = f"{indices.dtype} {tuple(indices.shape)}" if isinstance(indices, Tensor) else type(indices).__name__
            raise TypeError(f"Expected `indices` to be an int64 tensor of shape (B,), but got {got}.")
        self.indices = indices
        self._inputs = {name: _check(name, value, len(indices)) for name, value in inputs.items()}

    def __getattr__(self, name: str) -> Tensor:
        if name.startswith("_") or name not in self._inputs:
            raise AttributeError(f"Expected one of {sorted(self._inputs)} of the batch, but got {name!r}.")
        return self._inputs[name]

    @cached_property
    def probs(self) -> Tensor:
        """Softmax of the logits ``(B, C)``."""
        return self.logits.softmax(1)

    @cached_property
    def first(self) -> Tensor:
        """Position ``(B,)`` of the first occurrence of each sample in the batch."""
        return first_occurrence(self.indices)


def _check(name: str, value: Tensor | None, rows: int) -> Tensor:
    if name == "targets":
        return check_targets(value, rows=rows)
    if name != "losses":
        return check_matrix(name, value, rows=rows, min_columns=2 if name == "logits" else 1).detach().float()
    if not isinstance(value, Tensor) or value.shape != (rows,):
        got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(f"Expected `losses` to have shape ({rows},), but got {got}.")
    return value.detach().float()


class Tracker(ABC):
    """Turns what training batches show of each sample into one score per sample.

    A subclass says what one visit measures (:meth:`measure`) and, unless the score is the last measurement, how a
    sample's state takes it in (:meth:`fold`) and what the score is (:meth:`score`). The rest is here: a sample counts
    once per epoch, by its first visit; further ones (a sampler's padding) are ignored. A visit whose measurement is NaN
    or infinite is no visit. A sample without a score has NaN: nothing is ever invented. Updates run on the device of
    the inputs, without a host sync.

    State is measured in the training forward pass (training mode, augmented), before the step's update. With mixup or
    cutmix the logits belong to mixed targets: pass those of an unmixed view.

    Args:
        num_samples: Length of the dataset. None: whoever feeds the tracker sets it before the first update.

    Attributes:
        keep: Which end of the score the paper keeps, ``"high"`` or ``"low"``.
        high: What a high score says of a sample, in words for people; empty: nothing is said.
        needs: What :meth:`update` must be given beside the indices.
        epoch: Epochs ended so far.
        num_epochs: Epochs that are scored; what comes later is ignored. None: all.
        min_epochs: Visits that a sample needs to have a score.
        state: Per-sample tensors ``(n, ...)``; empty before the first update.
    """

    keep: Literal["high", "low"] = "high"
    high: ClassVar[str] = ""
    needs: ClassVar[tuple[str, ...]] = ("logits", "targets")
    min_epochs: int = 1

    def __init__(self, num_samples: int | None = None, *, num_epochs: int | None = None) -> None:
        if num_samples is not None:
            check_int("num_samples", num_samples, low=1)
        if num_epochs is not None:
            check_int("num_epochs", num_epochs, low=1)
        self.num_samples = num_samples
        self.num_epochs = num_epochs
        self.reset()

    def reset(self) -> None:
        """Forget everything recorded."""
        self.epoch = 0
        self.state: dict[str, Tensor] = {}
        self._seen: Tensor | None = None  # who was visited this epoch; freed between epochs

    @abstractmethod
    def measure(self, batch: Batch) -> Tensor:
        """Return what a visit shows of each sample, ``(B,)`` or ``(B, m)`` float32, from the inputs in ``needs``."""

    def initial(self, num_samples: int, values: Tensor) -> dict[str, Tensor]:
        """Return the state of samples never visited; ``values`` is a first measurement, for its shape and device."""
        return {"value": torch.full((num_samples,), torch.nan, dtype=torch.float32, device=values.device)}

    def fold(self, old: dict[str, Tensor], values: Tensor) -> dict[str, Tensor]:
        """Return the state ``(B, ...)`` of samples after a visit; unless overridden, that of the last value."""
        return {"value": values}

    def score(self) -> Tensor:
        """Return the scores ``(n,)`` of the state, NaN where there is none."""
        return self.state["value"].clone()

    def update(
        self,
        indices: Tensor,
        *,
        losses: Tensor | None = None,
        logits: Tensor | None = None,
        targets: Tensor | None = None,
        features: Tensor | None = None,
    ) -> None:
        """Record a training batch.

        Args:
            indices: Sample ids ``(B,)``, int64.
            losses: Per-sample losses ``(B,)``.
            logits: ``(B, C)``, C >= 2.
            targets: Class ids ``(B,)``, integer.
            features: Input of the last linear layer ``(B, D)``.

        Raises:
            TypeError: If an input is of the wrong type.
            ValueError: If an input that this score needs is missing, or a shape is wrong.
        """
        given = {"losses": losses, "logits": logits, "targets": targets, "features": features}
        for name in self.needs:
            if given[name] is None:
                raise ValueError(
                    f"Expected `{name}` for {type(self).__name__}, but got None. Pass "
                    f"`update(indices, {name}=...)`, in a module `self.weighted_loss(losses, {name}=...)`."
                )
        self.record(Batch(indices, **{name: given[name] for name in self.needs}))

    @torch.no_grad()
    def record(self, batch: Batch) -> None:
        """Record a training batch that is already checked; several trackers may share one."""
        if self.num_samples is None:
            raise ValueError("Expected `num_samples` to be set before the first update, but it is None.")
        if len(batch.indices) == 0 or (self.num_epochs is not None and self.epoch >= self.num_epochs):
            return
        values = self.measure(batch).index_select(0, batch.first)  # copies of a sample carry the same values
        indices = batch.indices.to(values.device)
        seen = self._prepare(values, self.num_samples)
        before = seen.index_select(0, indices)
        fresh = (values if values.dim() == 1 else values.sum(1)).isfinite() & ~before
        seen.index_copy_(0, indices, before | fresh)
        old = {name: state.index_select(0, indices) for name, state in self.state.items()}
        for name, new in self.fold(old, values).items():
            mask = fresh if new.dim() == 1 else fresh[:, None]
            self.state[name].index_copy_(0, indices, torch.where(mask, new.to(old[name].dtype), old[name]))

    def end_epoch(self) -> None:
        """Mark the end of an epoch: every sample may be recorded again."""
        self.epoch += 1
        self._seen = None

    def compute(self) -> Tensor:
        """Return the scores ``(n,)``, float32; NaN: the sample has none, for want of visits.

        Raises:
            ValueError: If no sample has one.
        """
        scores = self.score().float() if self.state else torch.full((1,), torch.nan, dtype=torch.float32)
        if bool(scores.isnan().all()):
            raise ValueError(
                f"Expected at least {self.min_epochs} recorded epochs for a score of {self!r}, but got too few in "
                f"{self.epoch} epochs. Train longer or choose a shorter window."
            )
        return scores

    def columns(self) -> dict[str, Tensor]:
        """Return further per-sample values ``(n,)`` that belong in the score file."""
        return {}

    @property
    def parameters(self) -> dict[str, Any]:
        """The constructor's arguments but ``num_samples``."""
        names = inspect.signature(type(self).__init__).parameters
        return {name: getattr(self, name) for name in names if name not in {"self", "num_samples"}}

    def state_dict(self) -> dict[str, Any]:
        """Return everything recorded, as plain tensors on the CPU and numbers."""
        tensors = {name: values.cpu().clone() for name, values in self.state.items()}
        return {
            "version": STATE_VERSION,
            "method": type(self).__name__,
            "parameters": self.parameters,
            "num_samples": self.num_samples,
            "epoch": self.epoch,
            "state": tensors,
            "seen": None if self._seen is None else self._seen.cpu().clone(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what :meth:`state_dict` returned.

        Raises:
            ValueError: If it is of another method, other parameters, another dataset length or a newer version.
        """
        expected: dict[str, Any] = {"method": type(self).__name__, "parameters": self.parameters}
        if self.num_samples is not None and state_dict["num_samples"] is not None:
            expected["num_samples"] = self.num_samples
        for name, value in expected.items():
            if state_dict[name] != value:
                raise ValueError(
                    f"Expected the state of a tracker with {name}={value!r}, but the checkpoint has "
                    f"{state_dict[name]!r}. Resume with the tracker that the run was started with."
                )
        if state_dict.get("version", 1) > STATE_VERSION:
            raise ValueError(
                f"Expected tracker state of version <= {STATE_VERSION}, but got {state_dict['version']}. It was "
                "written by a newer lightning-prune: upgrade to resume it."
            )
        self.num_samples = state_dict["num_samples"] or self.num_samples
        self.epoch = state_dict["epoch"]
        self.state = {name: values.clone() for name, values in state_dict["state"].items()}
        seen = state_dict.get("seen")
        self._seen = None if seen is None else seen.clone()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in self.parameters.items())})"

    def _prepare(self, values: Tensor, num_samples: int) -> Tensor:
        """Have the state on the inputs' device; return who was seen this epoch ``(n,)``."""
        if not self.state:
            self.state = self.initial(num_samples, values)
        elif next(iter(self.state.values())).device != values.device:
            self.state = {name: state.to(values.device) for name, state in self.state.items()}
        if self._seen is None:
            self._seen = torch.zeros(num_samples, dtype=torch.bool, device=values.device)
        self._seen = self._seen.to(values.device)
        return self._seen


def first_occurrence(indices: Tensor) -> Tensor:
    """Return, for each id ``(B,)``, the position of its first occurrence in the batch; no host sync.

    Example:
        >>> first_occurrence(torch.tensor([7, 3, 7, 7, 3])).tolist()
        [0, 1, 0, 0, 1]
    """
    ids, order = indices.sort(stable=True)
    positions = torch.arange(len(ids), device=ids.device)
    is_new = torch.ones_like(ids, dtype=torch.bool)
    is_new[1:] = ids[1:] != ids[:-1]
    start_of_run = torch.where(is_new, positions, 0).cummax(0).values
    return torch.empty_like(order).scatter_(0, order, order[start_of_run])
