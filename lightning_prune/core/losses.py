"""From what a user has, unreduced losses of any shape, to one loss per sample, and to the mean that is trained."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, TypeAlias

import torch
from torch import Tensor

Losses: TypeAlias = Tensor | Mapping[str, Tensor]
"""Unreduced losses ``(B,)`` or ``(B, ...)``, or several such by name, which are added up."""
Normalize: TypeAlias = Literal["sample", "token"]
"""What a mean is taken over: samples, each of which is a mean itself, or all unmasked elements alike."""
NORMALIZATIONS = ("sample", "token")

_REDUCTION_HINT = (
    'Compute the loss with `reduction="none"`, as in `F.cross_entropy(logits, targets, reduction="none")`, '
    "and pass it to `{owner}.weighted_loss(losses)`."
)


def total_losses(losses: Losses, *, owner: str = "self") -> Tensor:
    """Return unreduced losses as one tensor: of several by name, their sum per sample.

    Args:
        losses: ``(B,)`` or ``(B, ...)``, floating point, or a mapping to such.
        owner: What the user calls ``weighted_loss`` on, for messages.

    Returns:
        A tensor as it is; of a mapping the elementwise sum where all shapes agree, else the sum ``(B,)`` of the means
        per sample.

    Raises:
        TypeError: If something is not a floating-point tensor.
        ValueError: If something is a scalar, or the parts are not of the same samples.

    Example:
        >>> total_losses({"class": torch.tensor([1.0, 2.0]), "box": torch.tensor([[1.0, 3.0], [0.0, 0.0]])})
        tensor([3., 2.])
    """
    if isinstance(losses, Tensor) or not isinstance(losses, Mapping):  # the first is quick to tell
        _check_floating("losses", losses)
        if losses.dim() == 0:
            hint = _REDUCTION_HINT.format(owner=owner)
            raise ValueError(f"Expected one loss per sample, shape (B,) or (B, ...), but got a scalar. {hint}")
        return losses
    if not losses:
        raise ValueError("Expected `losses` to have at least one part, but got an empty mapping.")
    for name, part in losses.items():
        _check_floating(f"losses[{name!r}]", part)
    if scalars := [name for name, part in losses.items() if part.dim() == 0]:
        raise ValueError(
            f"Expected one loss per sample in each part of `losses`, shape (B,) or (B, ...), but got scalars: "
            f'{scalars}. Compute them with `reduction="none"`; where the model adds up its losses itself, as '
            "torchvision's detectors do, run it on each image alone: `losses = torch.stack([sum(model([image], "
            f"[target]).values()) for image, target in zip(images, targets)])`, then `{owner}.weighted_loss(losses)`."
        )
    parts = list(losses.values())
    if len({part.shape[0] for part in parts}) > 1:
        shapes = {name: tuple(part.shape) for name, part in losses.items()}
        raise ValueError(
            f"Expected each part of `losses` to have one row per sample, but got shapes {shapes}. Average what belongs "
            "to one sample, or pass that part apart: `weighted_loss(part, record=False)`."
        )
    if len({part.shape for part in parts}) > 1:
        parts = [averages_of(part, None)[0] for part in parts]
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total


def _check_floating(name: str, value: object) -> None:
    if not isinstance(value, Tensor) or not value.is_floating_point():
        got = f"{value.dtype} tensor" if isinstance(value, Tensor) else type(value).__name__
        raise TypeError(f"Expected `{name}` to be a floating-point tensor of shape (B,) or (B, ...), but got {got}.")


def per_sample_losses(
    losses: Losses, mask: Tensor | None = None, *, owner: str = "self"
) -> tuple[Tensor, Tensor | None]:
    """Average unreduced losses per sample.

    Args:
        losses: ``(B,)`` or ``(B, ...)``, floating point, or several by name.
        mask: True (or non-zero) where an element counts, of the shape of ``losses``. None: all do.
        owner: What the user calls ``weighted_loss`` on, for messages.

    Returns:
        The losses ``(B,)``, 0 for a sample with nothing unmasked, and which samples have something unmasked
        ``(B,)`` (None without a mask).

    Raises:
        TypeError: If ``losses`` is not a floating-point tensor.
        ValueError: If it has no batch dimension, or ``mask`` has another shape.

    Example:
        >>> per_sample_losses(torch.tensor([[1.0, 3.0], [5.0, 7.0]]), torch.tensor([[1, 0], [0, 0]]))
        (tensor([1., 0.]), tensor([ True, False]))
    """
    averages, counts = averages_of(total_losses(losses, owner=owner), mask)
    return averages, None if counts is None else counts > 0


def averages_of(losses: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Return the losses ``(B,)`` per sample, and of how many unmasked elements ``(B,)``; None: there is no mask."""
    if mask is None:
        return (losses.flatten(1).mean(1) if losses.dim() > 1 else losses), None
    if mask.shape != losses.shape:
        raise ValueError(
            f"Expected `mask` to have the shape of `losses`, {tuple(losses.shape)}, but got {tuple(mask.shape)}."
        )
    mask = mask.bool()
    kept = torch.where(mask, losses, 0)
    if losses.dim() == 1:
        return kept, mask
    counts = mask.flatten(1).sum(1)
    return kept.flatten(1).sum(1) / counts.clamp(min=1), counts


def weighted_mean(
    losses: Tensor, weights: Tensor | None, sample_weight: Tensor | None = None, counts: Tensor | None = None
) -> Tensor:
    r"""Return the weighted mean of per-sample losses ``l``.

    With pruning weights p, the user's weights w and c elements a sample,

    .. math:: \frac{\sum_i p_i w_i c_i l_i}{\sum_i c_i} \Big/ \frac{\sum_i p_i w_i c_i}{\sum_i p_i c_i}

    The first fraction divides by what is in the batch, so that over a shorter epoch the gradients still add up to those
    of the full one. The second is the mean of w over the data that the batch stands for, not over what is left of it:
    pruning takes more of the easy classes, and the mean of w over the rest would change the size of the steps.

    Args:
        losses: ``(B,)``.
        weights: Pruning weights p ``(B,)``. None: all ones.
        sample_weight: The user's weights w ``(B,)``. None: all ones.
        counts: Elements c ``(B,)`` of which each loss is the mean. None: one.

    Returns:
        A scalar; 0 where all weights or counts are 0.

    Example:
        >>> losses, p, w = torch.tensor([1.0, 2.0]), torch.tensor([3.0, 1.0]), torch.tensor([1.0, 5.0])
        >>> weighted_mean(losses, None, w)  # (1 + 10) / (1 + 5)
        tensor(1.8333)
        >>> weighted_mean(losses, p, w)  # (3 + 10) / 2, by a mean weight of (3 + 5) / 4
        tensor(3.2500)
    """
    units = torch.ones_like(losses, dtype=torch.float32) if counts is None else counts.float()
    stands_for = units if weights is None else weights * units
    masses = stands_for if sample_weight is None else stands_for * sample_weight
    total, divisor = (masses * losses).sum(), units.sum()
    if sample_weight is not None:
        divisor = masses.sum() if weights is None else divisor * masses.sum() / stands_for.sum()
    return total / torch.where(divisor > 0, divisor, 1)


def told_of_zeros(elements: Tensor, *, owner: str = "self") -> str | None:
    """Return what to tell of losses ``(B, ...)`` without a mask that look as if some were of padding; None: nothing.

    They do if some of them, but not all, are exactly 0, which ``ignore_index`` makes of what it ignores. A loss per
    sample, ``(B,)`` or ``(B, 1)``, is left alone: it may well be 0. Reads the device.
    """
    if elements.numel() == len(elements):
        return None
    zeros = int((elements == 0).sum())
    if not 0 < zeros < elements.numel():
        return None
    return (
        f"{zeros} of the {elements.numel()} losses of the first step, of shape {tuple(elements.shape)}, are exactly 0. "
        "If they are of padding or of an `ignore_index`, they are averaged in: the loss is too small, and padded "
        f'samples look easy. `{owner}.weighted_loss(losses, mask=targets != ignore_index, normalize="token")` has the '
        'value of `F.cross_entropy(..., ignore_index=...)`, `normalize="sample"` that of the mean of the means of the '
        "samples. If they are right, `mask=torch.ones_like(losses)` says so."
    )
