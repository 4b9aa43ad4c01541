"""OrderDP's theory in numbers: its surrogate loss of given losses, and the terms of Theorems 3 and 4."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from lightning_prune.analysis.surrogate import surrogate_weights
from lightning_prune.core.checks import check_number, check_scores


def surrogate_loss(losses: Tensor, explore_size: int, exploit_size: int) -> Tensor:
    """Return the loss that OrderDP minimises: ``sum_j gamma_j / q L_(j)``, the highest loss first (Eq. 3).

    It is the expected mean loss of the samples kept. The gradient flows through it: that of an epoch of OrderDP, on
    average (Theorem 1).

    Args:
        losses: Losses ``(n,)``, by which the samples are ranked, too.
        explore_size: Number of candidates s, in [1, n].
        exploit_size: Number kept q, in [1, s]. s: the mean loss.

    Returns:
        A scalar, of the dtype and on the device of ``losses``.

    Raises:
        TypeError: If ``losses`` is not a floating-point tensor.
        ValueError: If it is not ``(n,)``, or a size is out of range.

    References:
        Jin, Xu et al., "OrderDP", ICLR 2026, Eq. 3 and Theorem 1.

    Example:
        >>> surrogate_loss(torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0]), 3, 1)  # 0.6 * 5 + 0.3 * 4 + 0.1 * 3
        tensor(4.5000)
    """
    check_scores("losses", losses)
    weights = surrogate_weights(len(losses), explore_size, exploit_size)
    return (weights.to(losses) * losses.sort(descending=True).values).sum()


def surrogate_gap(losses: Tensor, explore_size: int, exploit_size: int) -> Tensor:
    """Return how much the surrogate loss exceeds the mean loss: Theorem 4's ``Q_n`` of one state, never negative.

    Args:
        losses: Losses ``(n,)``, or of several states of a training ``(t, n)``.
        explore_size: Number of candidates s, in [1, n].
        exploit_size: Number kept q, in [1, s]. s: the gap is 0.

    Returns:
        A scalar, or ``(t,)``; the theorem takes the least of them.

    Raises:
        TypeError: If ``losses`` is not a floating-point tensor.
        ValueError: If a shape or a size is wrong.

    References:
        Jin, Xu et al., "OrderDP", ICLR 2026, Theorem 4.

    Example:
        >>> surrogate_gap(torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0]), 3, 1)
        tensor(1.5000)
    """
    states = _states(losses)
    gaps = [surrogate_loss(state, explore_size, exploit_size) - state.mean() for state in states]
    return gaps[0] if losses.dim() == 1 else torch.stack(gaps)


def spectrum_deviation(num_samples: int, explore_size: int, exploit_size: int) -> float:
    """Return ``C_s``: the largest distance of the surrogate's weights, times n, from 1, those of the mean loss.

    The spectrum is the density on (0, 1) whose parts of length 1 / n are the weights, so it is a step function, and the
    hardest or the easiest rank has the largest distance: ``s / q - 1``, or at most 1.

    Args:
        num_samples: Number of samples n.
        explore_size: Number of candidates s, in [1, n].
        exploit_size: Number kept q, in [1, s]. s: 0.

    Raises:
        ValueError: If a size is out of range.

    References:
        Jin, Xu et al., "OrderDP", ICLR 2026, Theorem 4 and its proof in Appendix A.4. The text squares the distance,
        the proof does not.

    Example:
        >>> round(spectrum_deviation(400, 100, 25), 9), round(spectrum_deviation(400, 100, 80), 9)
        (3.0, 1.0)
    """
    weights = surrogate_weights(num_samples, explore_size, exploit_size)
    return float((num_samples * weights - 1).abs().max())


def convergence_bound(
    distance: float, lipschitz: float, learning_rates: Sequence[float] | Tensor, *, averaged: bool = False
) -> float:
    """Return the bound of Theorem 3 on how far OrderDP is from the least surrogate loss, at its best step.

    ``eta_max (|theta_1 - theta*|^2 + G^2 sum eta_t^2) / (2 eta_min sum eta_t)``, for convex losses.

    Args:
        distance: ``|theta_1 - theta*|`` from the start to the best parameters, >= 0.
        lipschitz: Largest length G of a sample's gradient, >= 0.
        learning_rates: ``eta_t`` of the steps, at least one, all > 0.
        averaged: Of the mean of the parameters, weighted by the learning rates: without ``eta_max / eta_min``.

    Raises:
        TypeError: If a number is none.
        ValueError: If one is out of range.

    References:
        Jin, Xu et al., "OrderDP", ICLR 2026, Theorem 3, Eqs. 17 and 18. Its Eq. 26 has lost a factor of 2.

    Example:
        >>> round(convergence_bound(1.0, 2.0, [0.05] * 100), 9)  # G |theta_1 - theta*| / sqrt(T), at its best rate
        0.2
    """
    check_number("distance", distance, "a number >= 0", distance >= 0)
    check_number("lipschitz", lipschitz, "a number >= 0", lipschitz >= 0)
    rates = [float(rate) for rate in learning_rates]
    if not rates or not all(0 < rate < math.inf for rate in rates):
        raise ValueError(f"Expected `learning_rates` > 0, at least one, but got {rates[:5]}.")
    bound = (distance**2 + lipschitz**2 * math.fsum(rate**2 for rate in rates)) / (2 * math.fsum(rates))
    return bound if averaged else bound * max(rates) / min(rates)


@final
@dataclass(frozen=True)
class GeneralizationBound:
    """The terms of Theorem 4, see :func:`generalization_bound`.

    Attributes:
        deviation: ``C_s``, see :func:`spectrum_deviation`.
        largest_loss: ``B``: the largest loss of a sample, in the state in which it is least.
        gap: ``Q_n``: the least :func:`surrogate_gap` of the states.
        sampling: ``sqrt(2) C_s B sqrt((n - s) / (s (n - 1)))``.
        optimization: The unbiased term, a :func:`convergence_bound`.
    """

    deviation: float
    largest_loss: float
    gap: float
    sampling: float
    optimization: float

    @property
    def bias(self) -> float:
        """The bias term: ``sampling - gap``."""
        return self.sampling - self.gap

    @property
    def total(self) -> float:
        """Bound on the least expected loss minus the expected surrogate loss: ``bias + optimization``."""
        return self.bias + self.optimization


def generalization_bound(
    losses: Tensor, explore_size: int, exploit_size: int, *, optimization: float = 0.0
) -> GeneralizationBound:
    """Return the terms of Theorem 4's bound: what pruning can cost beyond the training itself.

    Args:
        losses: Losses of the training samples ``(n,)``, or in several states of a training ``(t, n)``; n >= 2.
        explore_size: Number of candidates s, in [1, n].
        exploit_size: Number kept q, in [1, s].
        optimization: The unbiased term, from :func:`convergence_bound`.

    Raises:
        TypeError: If ``losses`` is not a floating-point tensor.
        ValueError: If a shape or a size is wrong.

    References:
        Jin, Xu et al., "OrderDP", ICLR 2026, Theorem 4 and Appendix A.4.

    Example:
        >>> bound = generalization_bound(torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0]), 3, 1)
        >>> bound.deviation, bound.largest_loss, bound.gap, round(bound.sampling, 3)
        (2.0, 5.0, 1.5, 5.774)
    """
    states = _states(losses)
    n = states.shape[1]
    if n < 2:
        raise ValueError(f"Expected `losses` of at least 2 samples, but got {n}.")
    deviation = spectrum_deviation(n, explore_size, exploit_size)
    largest = float(states.abs().amax(1).min())
    gap = float(surrogate_gap(losses, explore_size, exploit_size).min())
    spread = math.sqrt((n - explore_size) / (explore_size * (n - 1)))
    return GeneralizationBound(deviation, largest, gap, math.sqrt(2) * deviation * largest * spread, optimization)


def _states(losses: Tensor) -> Tensor:
    """Return losses of one or of several states as ``(t, n)``."""
    if losses.dim() not in (1, 2) or losses.numel() == 0:
        raise ValueError(f"Expected `losses` to have shape (n,) or (t, n), but got {tuple(losses.shape)}.")
    return losses.view(-1, losses.shape[-1])
