"""Pearson's correlation of every sample's losses with a reference over a sliding window, from running sums.

A sum over the window gains what enters and loses what leaves, whatever the window's length. In float64 that is exact to
rounding; what rounding leaves behind is bounded by `_CONSTANT`, and forgotten as parts of the sums are made anew.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_prune.core.arrays import is_finite

NUM_SUMS = 7
"""Per sample, over the observed epochs of the window: 1, y, y², x, xy, x²; and x² of all that has entered."""

_CONSTANT = 1e-12
"""Share of the mean square of what was summed below which a variance is rounding: of 16 digits 4 are left."""

_CHUNK = 1 << 16
"""Samples at a time on the CPU: few enough for the cache, and enough to make the calls' overhead small."""


def only_observed(losses: Tensor, observed: Tensor | None) -> Tensor:
    """Return losses ``(n,)``, not finite where ``observed`` ``(n,)`` is False; in a third of a scatter's time."""
    return losses if observed is None else losses / observed.view(torch.uint8).float()


def slide(
    sums: Tensor,
    row: Tensor,
    losses: Tensor,
    observed: Tensor | None,
    left: Tensor,
    references: Tensor,
    slot: int,
    min_observed: int,
    out: Tensor | None = None,
) -> None:
    """Have an epoch enter the window for another, in place, and write the correlations into ``out``, if wanted.

    A loss that is not finite was not observed; nor was any in an epoch whose reference's is not.

    Args:
        sums: Running sums ``(NUM_SUMS, n)``, float64.
        row: Losses ``(n,)``, float32, of the epoch that leaves; afterwards of the one that enters.
        losses: Losses ``(n,)`` of the epoch that enters.
        observed: Which of these ``(n,)`` count; None: all.
        left: The reference's loss, 0-d float64, in the epoch that leaves.
        references: The reference's losses ``(window,)``, float64, with the epoch that enters.
        slot: Where among them that one is.
        min_observed: Observations that a correlation needs; NaN where there are fewer.
        out: Where the correlations ``(n,)``, float32, go; None: nowhere.
    """
    y = torch.stack([references[slot], left])
    powers = _powers(y) * y.new_tensor([1, -1])
    known, rounding_y = bool(references[slot].isfinite()), _CONSTANT * float(references.square().nansum())
    size = _CHUNK if sums.device.type == "cpu" else 64 * _CHUNK
    for start in range(0, sums.shape[1], size):
        part, span = sums[:, start : start + size], slice(start, start + size)
        entering = only_observed(losses[span], None if observed is None else observed[span])
        seen, x = _observed(torch.stack([entering, row[span]]))
        row[span] = entering
        part[0:3].addmm_(powers, seen)
        part[3:5].addmm_(powers[:2], x)
        part[5:6].addmm_(powers[:1], x.square_())
        if known:
            part[6].add_(x[0])
        if out is not None:
            _correlate(part, rounding_y, len(references), min_observed, out=out[span])


def make_sums(ring: Tensor, references: Tensor) -> Tensor:
    """Return the sums ``(NUM_SUMS, n)`` of a window of losses ``(window, n)`` with the reference's ``(window,)``."""
    sums = torch.empty(NUM_SUMS, ring.shape[1], dtype=torch.float64, device=ring.device)
    powers = _powers(references)
    size = _CHUNK // len(ring) + 1 if ring.device.type == "cpu" else 64 * _CHUNK
    for start in range(0, ring.shape[1], size):
        part = sums[:, start : start + size]
        seen, x = _observed(ring[:, start : start + size])
        part[0:3] = powers @ seen
        part[3:5] = powers[:2] @ x
        part[5:7] = powers[:1] @ x.square_()
    return sums


def _powers(y: Tensor) -> Tensor:
    """Return 1, y and y² ``(3, k)`` of reference losses ``(k,)``, all 0 where they are not finite."""
    known = y.isfinite()
    y = torch.where(known, y, 0)
    return torch.stack([known.to(y), y, y * y])


def _observed(losses: Tensor) -> tuple[Tensor, Tensor]:
    """Return in float64 which losses are finite, as 1 and 0, and the losses, 0 where they are not."""
    seen = is_finite(losses).view(torch.uint8).double()  # a cast of bool takes thrice the time
    return seen, losses.nan_to_num(0, 0, 0).double()


def _correlate(sums: Tensor, rounding_y: float, window: int, min_observed: int, out: Tensor) -> None:
    """Write the correlations ``(c,)`` that sums ``(NUM_SUMS, c)`` amount to; 0 where a variance is but rounding."""
    count, y, yy, x, xy, xx, entered = sums
    var_x = (count * xx).addcmul_(x, x, value=-1)
    var_y = (count * yy).addcmul_(y, y, value=-1)
    along = (count * xy).addcmul_(x, y, value=-1)
    above_x = var_x.addcmul(count, entered, value=-_CONSTANT)
    constant = None
    if not (float(above_x.amin()) > 0 and float(var_y.amin()) > window * rounding_y):  # the least are enough, mostly
        constant = (above_x <= 0) | (var_y <= count * rounding_y)
    out.copy_(along.mul_(var_x.mul_(var_y).rsqrt_())).clamp_(-1, 1)
    if constant is not None:
        out.masked_fill_(constant, 0)
    if float(count.amin()) < min_observed:
        out.masked_fill_(count < min_observed, torch.nan)
