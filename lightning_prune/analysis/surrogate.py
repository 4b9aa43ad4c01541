"""The loss that a method really minimises: OrderDP's surrogate weights, and a check of any rule for bias."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from lightning_prune.core.checks import check_int
from lightning_prune.core.plan import Selection
from lightning_prune.core.rng import resolve_generator
from lightning_prune.methods.orderdp import orderdp_inclusion


def surrogate_weights(num_samples: int, explore_size: int, exploit_size: int) -> Tensor:
    """Return the weight of the sample of each rank in the loss that OrderDP minimises, highest score first.

    ``gamma_j / q`` (Eq. 3): probabilities that fall with the rank and add up to 1; the full loss has ``1 / n``.

    Args:
        num_samples: Number of samples n.
        explore_size: Number of candidates s, in [1, n].
        exploit_size: Number kept q, in [1, s]. s: uniform weights.

    Returns:
        ``(n,)``, float64.

    Raises:
        ValueError: If a size is out of range.

    References:
        Jin, Xu et al., "OrderDP", ICLR 2026, Appendix D.2, Figures 6-8.

    Example:
        >>> surrogate_weights(5, 3, 1)
        tensor([0.6000, 0.3000, 0.1000, 0.0000, 0.0000], dtype=torch.float64)
    """
    return orderdp_inclusion(num_samples, explore_size, exploit_size) / exploit_size


def limit_density(positions: Tensor, explore_size: int, exploit_size: int) -> Tensor:
    """Return what ``n gamma_j`` tends to at ``j / n = z`` when n grows and s and q stay (Proposition 2).

    ``gamma(z) = s P(Binomial(s - 1, z) <= q - 1)``: s at the hardest end, 0 at the easiest. Here ``1 - gamma(z) / s``
    is the distribution function of Beta(q, s - q).

    Args:
        positions: z ``(m,)``, float, in [0, 1]: rank by score, highest first, over n.
        explore_size: Number of candidates s, at least 1.
        exploit_size: Number kept q, in [1, s].

    Returns:
        ``(m,)``, float64.

    Raises:
        ValueError: If a size or a position is out of range.

    Note:
        The paper's text prints the scale as n / s and names the law Beta(z; s - q); both are slips there.

    Example:
        >>> [round(float(x), 9) for x in limit_density(torch.tensor([0.0, 0.5, 1.0]), 4, 2)]
        [4.0, 2.0, 0.0]
    """
    check_int("explore_size", explore_size, low=1)
    check_int("exploit_size", exploit_size, low=1, high=explore_size)
    z = positions.double().unsqueeze(-1)
    if not bool(((z >= 0) & (z <= 1)).all()):
        raise ValueError(f"Expected `positions` in [0, 1], but got some in [{float(z.min()):g}, {float(z.max()):g}].")
    trials = explore_size - 1
    hits = torch.arange(exploit_size, dtype=torch.float64, device=z.device)
    ways = math.lgamma(trials + 1) - torch.lgamma(hits + 1) - torch.lgamma(trials - hits + 1)
    return explore_size * (ways + torch.xlogy(hits, z) + torch.xlogy(trials - hits, 1 - z)).exp().sum(-1)


@final
@dataclass(frozen=True)
class Unbiasedness:
    """How far the weighted sum over random selections lies from a target, see :func:`check_unbiased`.

    Attributes:
        attendance: Mean over the draws of ``w_i`` if sample i was selected, else 0 ``(n,)``, float64; 1 for all
            samples: unbiased for the plain sum.
        mean: Mean over the draws of the weighted sum of the values, divided by ``num_draws`` only.
        target: What it should be.
        standard_error: Standard error of ``mean``.
    """

    attendance: Tensor
    mean: float
    target: float
    standard_error: float

    @property
    def relative_bias(self) -> float:
        """``(mean - target) / |target|``."""
        return (self.mean - self.target) / abs(self.target)

    @property
    def z(self) -> float:
        """``mean - target`` in standard errors; beyond 5, the rule is biased. 0 or infinite if nothing varies."""
        difference = self.mean - self.target
        if self.standard_error == 0:
            return 0.0 if math.isclose(self.mean, self.target, rel_tol=1e-6) else math.copysign(math.inf, difference)
        return difference / self.standard_error


def check_unbiased(
    select: Callable[[torch.Generator], Selection],
    values: Tensor,
    num_draws: int,
    *,
    target: float | None = None,
    generator: torch.Generator | None = None,
) -> Unbiasedness:
    """Draw selections, and compare the weighted sum of the selected values with the sum over all samples.

    ``E[sum over the selection of w_i v_i] = sum of all v_i`` for every v is what "unbiased gradient" means: the
    expected gradient of an epoch is that of the full data.

    Args:
        select: The rule: takes a CPU generator, returns a `Selection`.
        values: One number per sample ``(n,)``, for example its loss, or its gradient along some direction.
        num_draws: Number of draws, at least 2.
        target: What to compare with. None: the sum of ``values``. For OrderDP's surrogate, ``(gamma * sorted).sum()``.
        generator: CPU generator of the draws. None: a fresh one, seeded from the system's entropy.

    Raises:
        ValueError: If ``values`` is not ``(n,)`` or ``num_draws < 2``.

    Example:
        >>> from lightning_prune.functional import infobatch
        >>> losses = torch.tensor([0.1, 0.2, 0.3, 2.0])
        >>> draws = torch.Generator().manual_seed(0)
        >>> check = check_unbiased(lambda g: infobatch(losses, 0.5, generator=g), losses, 500, generator=draws)
        >>> abs(check.z) < 5
        True
    """
    check_int("num_draws", num_draws, low=2)
    if values.dim() != 1:
        raise ValueError(f"Expected `values` to have shape (n,), but got {tuple(values.shape)}.")
    generator = resolve_generator(generator)
    values = values.detach().double().cpu()
    attendance = torch.zeros_like(values)
    sums = torch.empty(num_draws, dtype=torch.float64)
    for draw in range(num_draws):
        selection = select(generator)
        ids, weights = selection.indices.cpu(), selection.weights
        drawn = torch.ones(len(ids), dtype=torch.float64) if weights is None else weights.double().cpu()
        attendance.index_add_(0, ids, drawn)
        sums[draw] = (drawn * values[ids]).sum()
    error = float(sums.std()) / math.sqrt(num_draws)
    return Unbiasedness(
        attendance / num_draws, float(sums.mean()), float(values.sum()) if target is None else target, error
    )
