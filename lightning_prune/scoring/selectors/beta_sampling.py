"""Beta sampling (Cho et al., 2025): the harder the pruning, the easier the samples that DUAL keeps."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_prune.core.checks import check_number, check_ratio
from lightning_prune.core.rng import resolve_generator
from lightning_prune.scoring.selectors.rank import check_selectable, select_top

_CONCENTRATION = 15.0


def beta_sampling(
    scores: Tensor, difficulty_mean: Tensor, k: int, *, c_d: float = 4.0, generator: torch.Generator | None = None
) -> Tensor:
    """Draw ``k`` samples without replacement, with probabilities in proportion to :func:`beta_weights`.

    Args:
        scores: DUAL scores ``(n,)``, finite, >= 0.
        difficulty_mean: Mean probability of the target ``(n,)``, in [0, 1]: ``DUAL.difficulty_mean``.
        k: Samples to keep, in [1, n].
        c_d: How late easy samples are preferred, > 0. Published: 4 for CIFAR-100, 5.5 for CIFAR-10, 11 for ImageNet.
        generator: CPU generator of the draws. None: a fresh one, seeded from the system's entropy.

    Returns:
        Ids ``(k,)``, int64, ascending. Samples of weight 0 come last, the easiest of them first.

    Raises:
        TypeError: If an input is not a floating-point tensor.
        ValueError: If a score is negative or not finite, or an argument is out of range.

    References:
        Cho et al., "Lightweight Dataset Pruning without Full Training via Example Difficulty and Prediction
        Uncertainty", ICML 2025, arXiv:2502.06905.

    Example:
        >>> beta_sampling(torch.tensor([1.0, 0.0, 2.0]), torch.tensor([0.5, 0.9, 0.6]), 2).tolist()
        [0, 2]
    """
    check_selectable(scores, k)
    weights = beta_weights(scores, difficulty_mean, 1 - k / len(scores), c_d=c_d)
    # Successive draws without replacement, all at once: the k largest log w - log E, E ~ Exp(1)
    noise = torch.rand(len(scores), generator=resolve_generator(generator), dtype=torch.float64)
    keys = weights.log() - (-torch.log1p(-noise)).clamp(min=1e-300).log().to(weights.device)
    last = difficulty_mean - 1e4  # below any other key
    return select_top(torch.where(weights > 0, keys, last), k)


def beta_weights(scores: Tensor, difficulty_mean: Tensor, prune_ratio: float, *, c_d: float = 4.0) -> Tensor:
    """Return the probabilities of the first draw: the score times a Beta density at the sample's mean.

    With mu_A the mean of ``difficulty_mean`` over the ten largest scores, beta is
    ``15 (1 - mu_A) (1 - prune_ratio^c_d)`` and alpha is 16 - beta.

    Args:
        scores: DUAL scores ``(n,)``, finite, >= 0.
        difficulty_mean: Mean probability of the target ``(n,)``, in [0, 1]; kept within [1e-6, 1 - 1e-6].
        prune_ratio: Share left out, in [0, 1).
        c_d: See :func:`beta_sampling`.

    Returns:
        Probabilities ``(n,)``, float64, sum 1; uniform if every score is 0.

    Raises:
        TypeError: If an input is not a floating-point tensor.
        ValueError: If a score is negative or not finite, or an argument is out of range.
    """
    check_selectable(scores, 1)
    check_selectable(difficulty_mean, 1)
    check_ratio("prune_ratio", prune_ratio)
    check_number("c_d", c_d, "a number > 0", float(c_d) > 0)
    if len(difficulty_mean) != len(scores):
        raise ValueError(
            f"Expected `difficulty_mean` of the {len(scores)} samples of `scores`, but got {len(difficulty_mean)}."
        )
    low, high = (float(value) for value in torch.aminmax(difficulty_mean))
    if low < 0 or high > 1:
        raise ValueError(f"Expected `difficulty_mean`, mean probabilities, in [0, 1], but got [{low:g}, {high:g}].")
    if bad := int(((scores < 0) | scores.isinf()).sum()):
        raise ValueError(
            f"Expected `scores` to be finite and >= 0, as weights of a draw, but {bad} are not. Use a DUAL score "
            "file, or another selector."
        )
    scores, mu = scores.double(), difficulty_mean.double()
    hardest = scores.argsort(descending=True, stable=True)[:10]
    beta = _CONCENTRATION * (1 - mu[hardest].mean()) * (1 - prune_ratio**c_d)
    alpha = _CONCENTRATION + 1 - beta
    mu = mu.clamp(1e-6, 1 - 1e-6)
    log_weights: Tensor = (alpha - 1) * mu.log() + (beta - 1) * (1 - mu).log() + scores.log()
    return log_weights.softmax(0).nan_to_num(1 / len(scores))
