"""Losses outside a training step: to pick the samples of a batch before it is trained, or to refresh skipped ones."""

from __future__ import annotations

import functools
import inspect
import math
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, final

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm  # type: ignore[import-untyped]  # `tqdm.auto` would make an iterator of its own, and draw

from lightning_prune.core.losses import per_sample_losses
from lightning_prune.core.rng import isolated_rng
from lightning_prune.core.step import Probed, StepRecord
from lightning_prune.trainer import private
from lightning_prune.trainer.mixin import WeightedLossMixin

_SECONDS_UNTIL_BAR = 2.0

HOOK_HINT = (
    "Let the module inherit `WeightedLossMixin` and return `self.weighted_loss(losses)` from `training_step`, or give "
    "it a method `per_sample_loss(batch)` that returns the losses (B,) of a batch."
)


@contextmanager
def evaluating(module: torch.nn.Module) -> Iterator[None]:
    """Put a module into eval mode without gradients, so that BatchNorm statistics stay; undone child by child."""
    training = [child for child in module.modules() if child.training]
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        torch.clear_autocast_cache()  # torch 2.4 would hand training the weights that it cast without gradients
        for child in training:
            child.training = True


def probe(module: LightningModule, batch: Any, *args: Any, hook: bool = True) -> StepRecord:
    """Return the per-sample losses of a batch, and what else ``weighted_loss`` was given, without training on it.

    Asks ``module.per_sample_loss(batch)`` if there is one; else runs ``training_step`` up to its call of
    ``weighted_loss``. Neither logs anything, nor changes the statistics of BatchNorm layers.

    Args:
        module: The user's module, in a fit.
        batch: A batch on the module's device.
        args: Further arguments of ``training_step``.
        hook: Use ``per_sample_loss``. False: only ``training_step`` tells what is needed (logits, features).

    Raises:
        MisconfigurationException: If the module has neither.
    """
    step = StepRecord()
    if hook and callable(per_sample_loss := getattr(module, "per_sample_loss", None)):
        with evaluating(module):
            losses, present = per_sample_losses(per_sample_loss(batch))
        step.record(losses, present, None, None, None, None)
        return step
    if isinstance(module, WeightedLossMixin):
        before, module._pruning_step, step.probing = module._pruning_step, step, True
        try:
            with evaluating(module):
                type(module).training_step(module, batch, *args)
        except Probed:
            return step
        finally:
            module._pruning_step = before
    raise MisconfigurationException(
        f"Expected the per-sample losses of a batch, but `{type(module).__name__}` does not give them. {HOOK_HINT}"
    )


def take_samples(batch: Any, positions: Tensor, size: int) -> Any:
    """Return a batch with only the samples at ``positions``, in their order.

    Tensors whose first dimension is ``size``, and sequences of that length that do not hold whole-batch tensors
    themselves, are indexed; mappings, sequences and named tuples are walked; anything else stays.

    Args:
        batch: What the loader yields, on the device.
        positions: Positions ``(k,)``, int64, in [0, ``size``), on the batch's device.
        size: Number of samples in the batch.

    Raises:
        ValueError: If nothing in the batch is of that length.

    Example:
        >>> x, names = torch.tensor([[1.0], [2.0], [3.0]]), ("a", "b", "c")
        >>> take_samples({"x": x, "name": names}, torch.tensor([2, 0]), 3)
        {'x': tensor([[3.],
                [1.]]), 'name': ('c', 'a')}
    """
    taken, found = _take(batch, positions, size)
    if not found:
        raise ValueError(
            f"Expected a batch made of tensors, lists or dicts with {size} samples, of which some can be taken, but "
            f"got {type(batch).__name__}. Give the module a method `take_samples(batch, positions)`."
        )
    return taken


def _take(value: Any, positions: Tensor, size: int) -> tuple[Any, bool]:
    if isinstance(value, Tensor):
        if value.dim() and len(value) == size:
            return value.index_select(0, positions.to(value.device)), True
        return value, False
    if isinstance(value, Mapping):
        parts = {key: _take(part, positions, size) for key, part in value.items()}
        taken = {key: part for key, (part, _) in parts.items()}
        found = any(hit for _, hit in parts.values())
        return (taken if type(value) is dict else type(value)(taken)), found  # type: ignore[call-arg]
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        fields = [_take(part, positions, size) for part in value]
        if any(hit for _, hit in fields):
            return _like(value, [part for part, _ in fields]), True
        if len(value) == size:
            return _like(value, [value[i] for i in positions.tolist()]), True
    return value, False


def _like(value: Sequence[Any], parts: list[Any]) -> Any:
    return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)  # type: ignore[call-arg]


def take(module: LightningModule, batch: Any, positions: Tensor, size: int) -> Any:
    """Return the part of a batch at ``positions``: by the module's own ``take_samples``, if it has one."""
    own = getattr(module, "take_samples", None)
    return take_samples(batch, positions, size) if own is None else own(batch, positions)


@final
class PickingStep:
    """Stands in for a module's ``training_step`` during a fit, and trains only the part of a batch that is picked.

    Args:
        module: The user's module.
        pick: Returns the part of the batch to train, from the arguments of ``training_step``.
    """

    def __init__(self, module: LightningModule, pick: Callable[..., Any]) -> None:
        self.module, self.pick = module, pick
        self.before = module.__dict__.get("training_step")
        functools.update_wrapper(self, module.training_step)  # Lightning asks for its signature
        module.training_step = self  # type: ignore[method-assign]

    def __call__(self, batch: Any, *args: Any, **kwargs: Any) -> Any:
        """Train on what is picked of the batch."""
        return self.__wrapped__(self.pick(batch, *args, *kwargs.values()), *args, **kwargs)  # type: ignore[attr-defined]

    def uninstall(self) -> None:
        """Give the module its own ``training_step`` back."""
        self.module.__dict__.pop("training_step", None)
        if self.before is not None:
            self.module.training_step = self.before  # type: ignore[method-assign]

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        copied = memo.get(id(self.module), self.module)  # a copied module (EMA, SWA) is not the one in training
        return types.MethodType(type(self.module).training_step, copied)

    def __reduce__(self) -> Any:
        return types.MethodType, (type(self.module).training_step, self.module)


def losses_of(
    trainer: Trainer, module: LightningModule, batches: DataLoader[Any], *, seed: int, description: str, stride: int = 1
) -> Tensor:
    """Return the losses ``(m,)``, float32, of a loader's batches, in eval mode and in the precision of training.

    The global random generators are as before afterwards; random transforms draw from ``seed``. A bar appears when it
    takes long.

    Args:
        trainer: The trainer, in a fit.
        module: The user's module.
        batches: The loader.
        seed: Seed of the transforms' draws.
        description: What the bar says.
        stride: Of how many batches this rank takes one; its own is ``trainer.global_rank % stride``.
    """
    takes_index = len(inspect.signature(type(module).training_step).parameters) > 2  # self and the batch are two
    bar = tqdm(
        batches,
        description,
        leave=False,
        delay=_SECONDS_UNTIL_BAR,
        disable=trainer.progress_bar_callback is None or not trainer.is_global_zero,
    )
    losses: list[Tensor] = [torch.zeros(0, dtype=torch.float32, device=module.device)]
    with isolated_rng(seed):
        for i, batch in enumerate(bar):
            if i % stride == trainer.global_rank % stride:
                batch = private.to_device(trainer, batch)
                with private.forward_context(trainer):
                    found = probe(module, batch, *((i,) if takes_index else ())).losses
                assert found is not None  # noqa: S101  (narrowing: `probe` records it)
                losses.append(found.float())
    return torch.cat(losses)


def losses_by_id(
    find: Callable[[DataLoader[Any]], Tensor],
    original: DataLoader[Any],
    indices: Tensor,
    *,
    rank: int,
    world_size: int,
) -> Tensor:
    """Return the losses ``(k,)``, float32, of training samples by id; collective: each rank takes its share of them.

    Args:
        find: Returns the losses ``(m,)``, float32, of a loader's batches.
        original: The user's loader.
        indices: Ids ``(k,)``, int64.
        rank: This process's rank.
        world_size: Number of ranks.
    """
    share = math.ceil(len(indices) / world_size)
    own = indices[rank * share :][:share].tolist()
    losses = torch.full((share,), torch.nan, dtype=torch.float32, device=indices.device)
    if own:
        losses[: len(own)] = find(private.subset_loader(original, own))
    if world_size > 1:
        everyone = torch.empty(world_size * share, dtype=torch.float32, device=indices.device)
        torch.distributed.all_gather_into_tensor(everyone, losses)
        losses = everyone
    return losses[: len(indices)]


def mean_loss(trainer: Trainer, module: LightningModule, loader: DataLoader[Any], *, seed: int) -> Tensor:
    """Return the mean of a loader's finite losses, a 0-d float64 tensor; collective: ranks take batches in turn."""
    losses = losses_of(
        trainer, module, loader, seed=seed, description="Reference losses", stride=trainer.world_size
    ).double()
    finite = losses.isfinite()
    total = torch.stack([torch.where(finite, losses, 0).sum(), finite.sum().double()])
    if trainer.world_size > 1:
        torch.distributed.all_reduce(total)
    return total[0] / total[1]
