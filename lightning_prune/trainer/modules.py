"""What a module must be, and do in its training step, to be pruned by a method."""

from __future__ import annotations

import sys
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities import rank_zero_warn

from lightning_prune.core.method import Method
from lightning_prune.core.step import StepRecord
from lightning_prune.trainer import probe
from lightning_prune.trainer.ending import swapped
from lightning_prune.trainer.mixin import WeightedLossMixin


def check_called(pl_module: LightningModule, step: StepRecord, outputs: Any) -> None:
    """Raise RuntimeError if the training step should have called ``weighted_loss``, but never did."""
    if step.losses is not None or not isinstance(pl_module, WeightedLossMixin):
        return  # the method said that it needs no losses
    if is_skipped(pl_module, outputs):
        return
    raise RuntimeError(
        "Expected `training_step` to call `self.weighted_loss(losses)`, but it never did. Compute the loss "
        'with `reduction="none"` and return `self.weighted_loss(losses)`.'
    )


def is_skipped(pl_module: LightningModule, outputs: Any) -> bool:
    """Return whether ``training_step`` returned None: the user skips this batch."""
    return pl_module.automatic_optimization and isinstance(outputs, dict) and outputs.get("loss") is None


def check_module(pl_module: LightningModule, method: Method | None) -> None:
    """Refuse a module without the mixin, unless the method can do without."""
    name, bases = type(pl_module).__name__, type(pl_module).__mro__
    if isinstance(pl_module, WeightedLossMixin):
        hidden_by = [base.__name__ for base in bases[: bases.index(WeightedLossMixin)]]
        if "LightningModule" in hidden_by:  # by name: `pytorch_lightning` has one of its own
            rank_zero_warn(swapped(name))
        return
    hook = callable(getattr(pl_module, "per_sample_loss", None))
    if method is not None and not method.needs_mixin and method.picks_in_batch and not hook:
        raise MisconfigurationException(
            f"Expected per-sample losses for {type(method).__name__} to pick by, but `{name}` does not give them. "
            f"{probe.HOOK_HINT} {without_mixin(pl_module)}"
        )
    if method is None or method.needs_mixin or method.weighs_losses:
        raise MisconfigurationException(
            f"Expected a module with `WeightedLossMixin`, but `{name}` does not have it. Write "
            f"`class {name}(WeightedLossMixin, LightningModule)` and return `self.weighted_loss(losses)` from "
            f'`training_step`, with losses of `reduction="none"`. {without_mixin(pl_module)}'
        )


def without_mixin(pl_module: LightningModule | None) -> str:
    """Return what to say to users who cannot edit their module: the exported methods that say they can do with it."""
    package = sys.modules[__name__.partition(".")[0]]
    exported = [getattr(package, name) for name in package.__all__]
    methods = [one for one in exported if isinstance(one, type) and issubclass(one, Method)]
    if pl_module is not None and not pl_module.automatic_optimization:  # then its step need not return a loss
        methods = [one for one in methods if one.missing_losses is Method.missing_losses]
    written = [f"`{one.for_any_module}`" for one in methods if one.for_any_module is not None]
    return f"A module that you cannot edit is pruned as it is by {', '.join(written[:-1])} or {written[-1]}."
