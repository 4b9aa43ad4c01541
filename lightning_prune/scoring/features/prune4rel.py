"""Prune4ReL (Park et al., NeurIPS 2023): many confident neighbours, so that re-labelling succeeds."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_prune.core.checks import check_int, check_number, check_ratio
from lightning_prune.scoring._inputs import check_points


def prune4rel(
    probs: Tensor, embeddings: Tensor, k: int, *, threshold: float = 0.95, temperature: float = 1.0
) -> Tensor:
    """Choose samples greedily so that all samples together gain the most confident neighbours.

    A chosen sample j adds ``sim_ij conf_j`` to the neighbourhood confidence ``N_i`` of each i with
    ``sim_ij = (1 + cos) / 2 > threshold``; the next one is where ``tanh((N + conf) / T) - tanh(N / T)`` is largest.

    Args:
        probs: Predicted probabilities ``(n, C)`` after the warm-up; the largest one is the confidence.
        embeddings: ``(n, D)`` of the same pass.
        k: Samples to choose, in [1, n].
        threshold: Similarity above which samples are neighbours, in [0, 1). Published: 0.975 for CIFAR-10, 0.95 for
            CIFAR-100, WebVision and ImageNet, 0.8 for Clothing-1M.
        temperature: Scale T > 0 of the saturation. Published: 1.

    Returns:
        Ids ``(k,)``, int64, in the order of choice. Ties go to the lower id.

    Raises:
        TypeError: If an input is not a floating-point tensor.
        ValueError: If an element is not finite, or an argument is out of range.

    Note:
        The gain is computed as its logarithm: tanh saturates where neighbourhoods are dense, and the published code
        then chooses by index.

    References:
        Park et al., "Robust Data Pruning under Label Noise via Maximizing Re-labeling Accuracy", NeurIPS 2023,
        arXiv:2311.01002.

    Example:
        >>> probs = torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.6, 0.4]])
        >>> prune4rel(probs, torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0]]), 2).tolist()
        [0, 2]
    """
    check_points("probs", probs, min_columns=2)
    points = F.normalize(check_points("embeddings", embeddings, rows=len(probs)).float())
    check_int("k", k, low=1, high=len(points))
    check_ratio("threshold", threshold)
    check_number("temperature", temperature, "a number > 0", float(temperature) > 0)
    confidence = probs.double().amax(1) / temperature
    neighbours = torch.zeros_like(confidence)
    gains = _log_gain(neighbours, confidence)
    order = []
    for _ in range(k):
        best = gains.argmax()
        order.append(best)
        cosines = points @ points[best]
        near = (cosines > 2 * threshold - 1).nonzero().squeeze(1)  # nothing changes elsewhere
        neighbours[near] += (1 + cosines[near]) / 2 * confidence[best]
        gains[near] = torch.where(gains[near].isinf(), gains[near], _log_gain(neighbours[near], confidence[near]))
        gains[best] = -torch.inf
    return torch.stack(order)


def _log_gain(neighbours: Tensor, confidence: Tensor) -> Tensor:
    """Return ``log(tanh(N + c) - tanh(N)) = log sinh(c) - log cosh(N + c) - log cosh(N)``, up to a constant."""
    log_sinh = confidence + torch.log(-torch.expm1(-2 * confidence))
    return log_sinh - _log_cosh(neighbours + confidence) - _log_cosh(neighbours)


def _log_cosh(x: Tensor) -> Tensor:
    """Return ``log cosh x`` for x >= 0, up to a constant."""
    return x + torch.log1p(torch.exp(-2 * x))
