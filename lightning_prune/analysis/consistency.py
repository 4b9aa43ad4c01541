"""RePB's theory in numbers: how far scores of two model states differ, and how well weights make up for absence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from lightning_prune.core.checks import check_int, check_number, check_scores


def drift_bound(lipschitz: float, grad_bound: float, learning_rate: float, steps: int) -> float:
    """Return the most that a sample's loss can change within a window of SGD steps: ``L W eta G`` (Eq. 5).

    Args:
        lipschitz: Lipschitz constant L of a sample's loss in the parameters, >= 0.
        grad_bound: Largest length G of a step's gradient, >= 0.
        learning_rate: Learning rate eta, >= 0.
        steps: Steps W between the two states, >= 0. Within one batch there are none.

    Raises:
        TypeError: If a number is none.
        ValueError: If one is out of range.

    References:
        Zhou et al., "RePB", ICLR 2026, Eq. 5.

    Example:
        >>> drift_bound(2.0, 1.5, 0.1, 4)
        1.2
    """
    given = {"lipschitz": lipschitz, "grad_bound": grad_bound, "learning_rate": learning_rate}
    for name, value in given.items():
        check_number(name, value, "a number >= 0", value >= 0)
    check_int("steps", steps, low=0)
    return round(lipschitz * steps * learning_rate * grad_bound, 12)


@final
@dataclass(frozen=True)
class ScoreDrift:
    """How far scores of the same samples in two model states differ, see :func:`score_drift`.

    Attributes:
        mean: Mean absolute difference.
        largest: Largest absolute difference.
        flipped: Share of the samples that are below the mean by the one and not by the other: what a rule that goes by
            the mean decides otherwise.
    """

    mean: float
    largest: float
    flipped: float


def score_drift(before: Tensor, after: Tensor) -> ScoreDrift:
    """Measure what RePB calls score context drift: scores of the same samples, of two states of a model.

    Args:
        before: Losses or other scores ``(n,)`` of the one state.
        after: Of the other ``(n,)``.

    Raises:
        TypeError: If an input is not a floating-point tensor.
        ValueError: If the shapes differ, or a score is not finite.

    References:
        Zhou et al., "RePB", ICLR 2026, Section 4.1.

    Example:
        >>> score_drift(torch.tensor([0.0, 1.0, 2.0, 5.0]), torch.tensor([0.0, 3.0, 2.0, 5.0]))
        ScoreDrift(mean=0.5, largest=2.0, flipped=0.5)
    """
    old, new = check_scores("before", before).double(), check_scores("after", after).double()
    if old.shape != new.shape:
        raise ValueError(
            f"Expected `before` and `after` of the same samples, but got shapes {tuple(old.shape)} and "
            f"{tuple(new.shape)}."
        )
    if bad := int((~(old.isfinite() & new.isfinite())).sum()):
        raise ValueError(
            f"Expected finite scores, but {bad} of {len(old)} samples have others. Leave them out of both."
        )
    gaps = (new - old).abs()
    flipped = (old < old.mean()) != (new < new.mean())
    return ScoreDrift(float(gaps.mean()), float(gaps.max()), float(flipped.double().mean()))


def cumulative_alignment(attended: Tensor) -> Tensor:
    """Return each sample's mean weight per epoch under cumulative rescaling: 1 for all samples is full training.

    An epoch after the first weighs a sample that is in it by ``E / N``, the epochs before over those that it was in
    (Eq. 3), and one that is not by 0. By Eqs. 7-9 the mean tends to the ratio of a sample's chance now to its chance
    so far: 1, once chances are steady. It starts below: all attend the first epoch, so with a constant chance p the
    expected weight in the epoch after E others is ``1 - (1 - p)^E``.

    Args:
        attended: Which samples were in which epoch ``(e, n)``, bool; e >= 2, and all were in the first.

    Returns:
        ``(n,)``, float64: the mean over the epochs after the first.

    Raises:
        TypeError: If ``attended`` is not a bool tensor.
        ValueError: If it has another shape, or a sample was not in the first epoch.

    Note:
        The paper expects a slight overweight, as ``E[1 / N] >= 1 / E[N]``. That is against the inverse of the mean
        attendance, which the full first epoch raises above p by more.

    References:
        Zhou et al., "RePB", ICLR 2026, Eqs. 3 and 7-9.

    Example:
        >>> cumulative_alignment(torch.tensor([[True, True], [True, False], [True, True]]))  # 1, 1; 0, 2 / 1
        tensor([1., 1.], dtype=torch.float64)
    """
    if not isinstance(attended, Tensor) or attended.dtype != torch.bool:
        got = attended.dtype if isinstance(attended, Tensor) else type(attended).__name__
        raise TypeError(f"Expected `attended` to be a bool tensor, but got {got}.")
    if attended.dim() != 2 or len(attended) < 2:
        raise ValueError(f"Expected `attended` of shape (e, n) with e >= 2 epochs, but got {tuple(attended.shape)}.")
    if absent := int((~attended[0]).sum()):
        raise ValueError(f"Expected every sample to be in the first epoch, `attended[0]`, but {absent} are not.")
    counts = attended.cumsum(0)[:-1].double()
    epochs = torch.arange(1, len(attended), dtype=torch.float64, device=attended.device)[:, None]
    return (attended[1:] * epochs / counts).mean(0)
