"""What a pruning method is, to a run: the rule that selects, and the state that it keeps. No Trainer is needed."""

from __future__ import annotations

import inspect
import os
from abc import ABC
from typing import Any, ClassVar

import torch
from torch import Tensor

from lightning_prune.core.checks import check_int
from lightning_prune.core.epoch import EpochRecord
from lightning_prune.core.plan import Selection
from lightning_prune.core.ratio import MEASURED, RatioSetting
from lightning_prune.core.step import StepRecord
from lightning_prune.core.table import SampleTable


class Method(ABC):  # noqa: B024  (`select` is what an author writes, or `pick`)
    """Base class of `PruningCallback`, for everything of it that is no Lightning hook.

    Args:
        seed: Seed of all draws. None: the global seed set by ``seed_everything``, else 0.
        warmup_epochs: Epochs at the start that train on everything.
        scale_lr_schedule: Step a step-interval LR schedule so that it ends on time although epochs are shorter.
        log: Log ``prune/*`` once an epoch.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If an argument is out of range.
    """

    needs_mixin: bool = True
    """Whether the module must be a `WeightedLossMixin`; False only for methods that take losses from elsewhere, or
    that need none."""
    for_any_module: ClassVar[str | None] = None
    """How to write it for a module without the mixin, for messages; None: it is not one to offer."""
    record_names: tuple[str, ...] = ()
    """Per-sample values recorded beside the loss, by the names that :meth:`per_sample` returns."""
    ranks_by_scores: bool = True
    """Whether `select` ranks by ``registry.scores``, so that a wrapping method may put other scores there."""
    weighs_losses: bool = False
    """Whether selections carry weights, which only ``weighted_loss`` can apply."""
    refreshes_losses: bool = False
    """Whether it asks for losses of skipped samples, ``registry.refresh_losses``, at an epoch's end."""
    picks_in_batch: bool = False
    """Whether :meth:`pick` chooses among the samples of a batch before it is trained."""
    picks_by_losses: bool = True
    """Whether :meth:`pick` reads losses only, which a module may give by a cheaper ``per_sample_loss(batch)``."""
    picks_by_ids: bool = False
    """Whether :meth:`pick` asks which samples the batch has, ``step.indices``; of a stream, only the batch can tell."""
    set_by_ratio: ClassVar[RatioSetting | None] = None
    """How a ratio sets the arguments of its ``__init__``, for :func:`ratio_setting`. None: it does not say."""
    not_as_base: ClassVar[str | None] = None
    """Why no other method may wrap it, and what to write; None: one may."""
    shares_state: bool = False
    """Whether it works with ``ScoreRegistry(sharded=True)``, where the registry has a part of the samples only, and its
    rule asks ``registry.part`` for what it needs of the others."""
    only_watches: ClassVar[bool] = False
    """Whether it never leaves anything out, so that a run does not say at its end what it saved."""
    needs_arguments: ClassVar[tuple[str, str] | None] = None
    """Why its name alone does not set it up, and the arguments to give, in yaml. None: its name is enough."""

    def __init__(
        self,
        *,
        seed: int | None = None,
        warmup_epochs: int = 0,
        scale_lr_schedule: bool = True,
        log: bool = True,
    ) -> None:
        if seed is not None:
            check_int("seed", seed, low=0)
        check_int("warmup_epochs", warmup_epochs, low=0)
        self.seed = seed
        self.warmup_epochs = warmup_epochs
        self.scale_lr_schedule = scale_lr_schedule
        self.log_metrics = log

    def select(self, registry: SampleTable, epoch: int, generator: torch.Generator) -> Selection:
        """Return the samples of ``epoch``; must not change any state. A method that picks in batches needs none.

        Args:
            registry: Per-sample state as of the epoch's start; read ``registry.scores``, ``registry.counts``, columns.
            epoch: Epoch number, from 0; at least ``warmup_epochs``.
            generator: CPU generator seeded from (seed, epoch); the same on every rank.
        """
        if self.picks_in_batch:
            return Selection.all(registry.num_samples, registry.losses.device)
        raise NotImplementedError(f"{type(self).__name__} must override `select(registry, epoch, generator)`.")

    def setup_columns(self, registry: SampleTable) -> None:  # noqa: B027
        """Declare per-sample state with ``registry.add_column``; called before the first epoch, and on resume."""

    def per_sample(self, step: StepRecord) -> dict[str, Tensor]:
        """Return a tensor ``(B,)`` for each of ``record_names``; called after each step if there are any; no sync."""
        return {}

    def missing_losses(self, step: StepRecord) -> Tensor | None:
        """Return losses ``(B,)`` to record for a step of a module without the mixin; None: there are none."""
        return None

    def picks_now(self, registry: SampleTable, epoch: int, batch_idx: int) -> bool:
        """Return whether :meth:`pick` is to be asked about this batch; it costs a forward pass."""
        return self.picks_in_batch

    def pick(self, step: StepRecord, generator: torch.Generator) -> Tensor:
        """Return the positions ``(k,)``, int64, of a batch that are trained; the same number on every rank.

        Args:
            step: Losses ``(B,)`` of the whole batch from a forward pass in eval mode, and what else
                ``weighted_loss`` was given.
            generator: CPU generator seeded from (seed, epoch, batch, rank).
        """
        raise NotImplementedError(f"{type(self).__name__} must override `pick(step, generator)`.")

    def on_epoch_recorded(self, registry: SampleTable, record: EpochRecord) -> None:  # noqa: B027
        """Update state after an epoch; the registry's losses and counts are already those of its end."""

    def before_save(self, registry: SampleTable) -> None:  # noqa: B027
        """Put into ``registry.state`` what is not there yet, as a time that runs; called when a state is saved."""

    def metrics(self, registry: SampleTable) -> dict[str, float | Tensor]:
        """Return what to log under ``prune/`` beside the common values; called after :meth:`on_epoch_recorded`."""
        return {}

    def trainer_only(self) -> str | None:
        """Return why this method, with these arguments, needs a Trainer; None: it does not."""
        return None

    def prunable(self, max_epochs: int) -> float:
        """Return the share of the epochs of a run that may leave something out, whatever the losses; 0: none will."""
        setting = ratio_setting(type(self)) or RatioSetting()
        return setting.prunable(max_epochs, self._given())

    @property
    def keeps_as(self) -> str:
        """Whose state it keeps: a run resumed with another method drops it."""
        return type(self).__name__

    @property
    def resolved_seed(self) -> int:
        """The seed in force: the argument, else the one that ``seed_everything`` set, else 0."""
        return self.seed if self.seed is not None else int(os.environ.get("PL_GLOBAL_SEED", 0))

    def arguments(self) -> dict[str, bool | int | float | str | None]:
        """Return the arguments that this method was made with; what is neither a number nor a text, as it prints."""
        plain = (bool, int, float, str, type(None))
        return {name: value if isinstance(value, plain) else repr(value) for name, value in self._given().items()}

    def _given(self) -> dict[str, Any]:
        kept_as = {"log": "log_metrics"}  # `Callback.log` is Lightning's
        names = {name: kept_as.get(name, name) for name in arguments_of(type(self))}
        return {name: getattr(self, attribute) for name, attribute in names.items() if hasattr(self, attribute)}

    def __repr__(self) -> str:
        shared = {"seed", "warmup_epochs", "scale_lr_schedule", "log"}
        names = [
            name
            for name in inspect.signature(type(self).__init__).parameters
            if name not in {"self", *shared} and hasattr(self, name)
        ]
        return f"{type(self).__name__}({', '.join(f'{name}={getattr(self, name)!r}' for name in names)})"


def arguments_of(method: type[Method]) -> dict[str, Any]:
    """Return what a method's ``__init__`` takes, and the defaults, or `inspect.Parameter.empty` where there is none.

    What ``**kwargs`` hands on to the ``__init__`` of a base class is included.

    Example:
        >>> class Mine(Method):
        ...     def __init__(self, sharpness, prune_ratio=0.5, **kwargs):
        ...         super().__init__(**kwargs)
        >>> list(arguments_of(Mine))
        ['sharpness', 'prune_ratio', 'seed', 'warmup_epochs', 'scale_lr_schedule', 'log']
    """
    found: dict[str, Any] = {}
    for cls in method.__mro__:
        if "__init__" not in vars(cls):
            continue
        _, *parameters = inspect.signature(vars(cls)["__init__"]).parameters.values()
        handed_on = [p for p in parameters if p.kind is p.VAR_KEYWORD]
        found |= {p.name: p.default for p in parameters if p.name not in found and p.kind is not p.VAR_POSITIONAL}
        if not handed_on:
            break
        del found[handed_on[0].name]
    return found


def ratio_setting(method: type[Method]) -> RatioSetting | None:
    """Return how a ratio sets a method; None: no argument of it is a ratio, as far as one can tell.

    What a base class says of its ``__init__`` does not hold for one that a derived class puts in its place. A method
    that says nothing and takes a ``prune_ratio`` is to be measured.
    """
    owner = next(cls for cls in method.__mro__ if "__init__" in vars(cls) or "set_by_ratio" in vars(cls))
    said: RatioSetting | None = vars(owner).get("set_by_ratio")
    return said or (MEASURED if "prune_ratio" in arguments_of(method) else None)
