"""The gradient of a selection beside that of all samples, at the same weights (OrderDP, E.2)."""

from __future__ import annotations

import inspect
import math
from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_prune.core.plan import Selection
from lightning_prune.core.rng import isolated_rng
from lightning_prune.core.step import ABSENT, Probed, StepRecord, wrong_length
from lightning_prune.trainer import private, probe
from lightning_prune.trainer.mixin import WeightedLossMixin


def gradient_alignment(pruned: Tensor, full: Tensor) -> tuple[float, float]:
    """Return the cosine between two gradients and the ratio of their norms, pruned to full.

    Args:
        pruned: Gradient of the selection ``(p,)``.
        full: Gradient of all samples ``(p,)``.

    Returns:
        Cosine in [-1, 1] (NaN if a gradient is zero), and ``|pruned| / |full|``.

    Raises:
        ValueError: If the shapes differ.

    Example:
        >>> gradient_alignment(torch.tensor([3.0, 4.0]), torch.tensor([10.0, 0.0]))
        (0.6, 0.5)
    """
    if pruned.shape != full.shape or pruned.dim() != 1:
        raise ValueError(f"Expected two gradients (p,), but got {tuple(pruned.shape)} and {tuple(full.shape)}.")
    a, b = pruned.double(), full.double()
    norms = torch.stack([a.norm(), b.norm()])
    return float(a @ b / norms.prod()), float(norms[0] / norms[1])


def sample_gradients(
    trainer: Trainer, module: LightningModule, loader: DataLoader[Any], ids: Tensor, selection: Selection, *, seed: int
) -> tuple[Tensor, Tensor]:
    """Return the gradients ``(p,)``, float32, of a selection's loss and of the full loss, both over these samples.

    The full one is the mean of the samples' gradients; the pruned one, that of the selected ones among them, weighted
    as in training: ``sum(w_i g_i) / number selected``. The module is in eval mode meanwhile; its weights, ``.grad``,
    BatchNorm statistics and the global random generators are as before afterwards. Samples without a finite loss are
    left out. Collective in a DDP run: each rank takes its share of the samples.

    Args:
        trainer: The trainer, in a fit.
        module: The user's module, a `WeightedLossMixin`.
        loader: The train loader.
        ids: Samples to go by ``(k,)``, int64, at least one.
        selection: Which of them, and with which weights, the epoch trained.
        seed: Seed of random transforms.

    Returns:
        The pruned gradient (NaN if none of ``ids`` is selected) and the full one, on the module's device.
    """
    device = module.device
    weights = torch.zeros(len(loader.dataset), dtype=torch.float32, device=device)  # type: ignore[arg-type]
    chosen = torch.zeros_like(weights, dtype=torch.bool)
    places = selection.indices.to(device)
    chosen[places] = True
    weights[places] = 1.0 if selection.weights is None else selection.weights.to(device)

    share = math.ceil(len(ids) / trainer.world_size)
    own = ids[trainer.global_rank * share :][:share]
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    sums = torch.zeros(2, sum(parameter.numel() for parameter in parameters), dtype=torch.float32, device=device)
    counts = torch.zeros(2, dtype=torch.float32, device=device)
    takes_index = len(inspect.signature(type(module).training_step).parameters) > 2  # self and the batch are two
    with isolated_rng(seed):
        start = 0
        for i, batch in enumerate(private.subset_loader(loader, own.tolist()) if len(own) else []):
            batch = private.to_device(trainer, batch)
            with private.forward_context(trainer):
                losses = _attached_losses(module, batch, *((i,) if takes_index else ()))
            batch_ids = own[start : start + len(losses)].to(device)
            start += len(losses)
            if len(batch_ids) != len(losses):
                raise ValueError(wrong_length(len(losses), len(batch_ids)))
            counted = losses.detach().isfinite() & (losses.detach() != ABSENT)
            kept = counted & chosen[batch_ids]
            pruned_loss = (losses[kept].float() * weights[batch_ids[kept]]).sum()
            for row, loss in zip(sums, (pruned_loss, losses[counted].float().sum()), strict=True):
                row += _gradient(loss, parameters)
            counts += torch.stack([kept.sum(), counted.sum()])
    if trainer.world_size > 1:
        torch.distributed.all_reduce(sums)
        torch.distributed.all_reduce(counts)
    pruned, full = sums / counts[:, None]
    return pruned, full


def _gradient(loss: Tensor, parameters: list[torch.nn.Parameter]) -> Tensor:
    """Return the gradient ``(p,)`` without touching ``.grad``; 0 where a parameter does not take part."""
    found = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
    return torch.cat(
        [(torch.zeros_like(p) if g is None else g).flatten().float() for p, g in zip(parameters, found, strict=True)]
    )


def _objective(step: StepRecord) -> Tensor:
    """Return each sample's term ``(B,)`` of the objective: its loss, times the weight that the user gives its class."""
    losses, weight = step.recorded_losses, step.sample_weight
    return losses if weight is None else losses.where(losses == ABSENT, losses * weight)


def _attached_losses(module: LightningModule, batch: Any, *args: Any) -> Tensor:
    """Return a batch's losses ``(B,)`` with their graph, as `probe.probe` finds them without."""
    step = StepRecord(detach=False)
    if isinstance(module, WeightedLossMixin):
        before, module._pruning_step, step.probing = module._pruning_step, step, True
        try:
            with probe.evaluating(module), torch.enable_grad():
                type(module).training_step(module, batch, *args)
        except Probed:
            return _objective(step)
        finally:
            module._pruning_step = before
    raise MisconfigurationException(
        f"Expected the gradients of a batch's losses, but `{type(module).__name__}` does not give them. "
        "Let it inherit `WeightedLossMixin` and return `self.weighted_loss(losses)` from `training_step`."
    )
