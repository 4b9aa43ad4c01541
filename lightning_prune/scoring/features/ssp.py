"""SSP (Sorscher et al., NeurIPS 2022): the distance to the nearest prototype of a self-supervised embedding."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_prune.core.checks import check_int
from lightning_prune.core.rng import resolve_generator
from lightning_prune.scoring._inputs import check_points

_CHUNK = 2**24  # elements of an (n, K) block


def ssp_score(embeddings: Tensor, centroids: Tensor) -> Tensor:
    """Return ``1 - cos`` to the nearest centroid; high: hard, kept when data abound, pruned when they are few.

    Args:
        embeddings: ``(n, D)`` of a self-supervised encoder.
        centroids: Prototypes ``(K, D)``, as from :func:`spherical_kmeans`.

    Returns:
        Scores ``(n,)``, float32, in [0, 2].

    Raises:
        TypeError: If an input is not a floating-point tensor.
        ValueError: If an element is not finite or the widths differ.

    References:
        Sorscher et al., "Beyond neural scaling laws: beating power law scaling via data pruning", NeurIPS 2022,
        arXiv:2206.14486.

    Example:
        >>> ssp_score(torch.tensor([[1.0, 0.0], [1.0, 1.0]]), torch.tensor([[2.0, 0.0]]))
        tensor([0.0000, 0.2929])
    """
    points = F.normalize(check_points("embeddings", embeddings).float())
    check_points("centroids", centroids)
    if centroids.shape[1] != points.shape[1]:
        raise ValueError(
            f"Expected `centroids` of width {points.shape[1]} as `embeddings`, but got {centroids.shape[1]}."
        )
    return 1 - _nearest(points, F.normalize(centroids.float().to(points.device)))[0]


def spherical_kmeans(
    embeddings: Tensor, num_clusters: int, *, max_iter: int = 50, generator: torch.Generator | None = None
) -> Tensor:
    """Cluster directions: k-means on the unit sphere, seeded as k-means++.

    Args:
        embeddings: ``(n, D)``.
        num_clusters: K, in [1, n]. The authors take about the number of classes.
        max_iter: Most rounds; it ends earlier when no sample changes its cluster.
        generator: CPU generator of the seeding. None: a fresh one, seeded from the system's entropy.

    Returns:
        Unit vectors ``(K, D)``, float32. A cluster that loses all its samples keeps its centre.

    Raises:
        TypeError: If ``embeddings`` is not a floating-point tensor.
        ValueError: If an element is not finite or ``num_clusters`` is out of range.
    """
    points = F.normalize(check_points("embeddings", embeddings).float())
    check_int("num_clusters", num_clusters, low=1, high=len(points))
    check_int("max_iter", max_iter, low=1)
    centroids = points[_spread_seeds(points, num_clusters, resolve_generator(generator))]
    clusters: Tensor | None = None
    for _ in range(max_iter):
        nearest = _nearest(points, centroids)[1]
        if clusters is not None and torch.equal(nearest, clusters):
            break
        clusters = nearest
        sums = torch.zeros_like(centroids).index_add_(0, clusters, points)
        empty = sums.square().sum(1, keepdim=True) == 0
        centroids = torch.where(empty, centroids, F.normalize(sums))
    return centroids


def _nearest(points: Tensor, centroids: Tensor) -> tuple[Tensor, Tensor]:
    """Return the cosine to the nearest centroid and its index, each ``(n,)``, for unit vectors."""
    parts = [(chunk @ centroids.T).max(1) for chunk in torch.split(points, max(1, _CHUNK // len(centroids)))]
    return torch.cat([part.values for part in parts]), torch.cat([part.indices for part in parts])


def _spread_seeds(points: Tensor, k: int, generator: torch.Generator) -> Tensor:
    """Draw ``k`` seeds, each with probability proportional to its ``1 - cos`` to the nearest one before."""
    seeds = [torch.randint(len(points), (), generator=generator)]
    distances = torch.full((len(points),), torch.inf, dtype=torch.float64)
    for u in torch.rand(k - 1, generator=generator, dtype=torch.float64):
        latest = (1 - points @ points[seeds[-1]]).double().cpu().clamp(min=0)
        latest[seeds[-1]] = 0
        distances = torch.minimum(distances, latest)
        cumulative = distances.cumsum(0)
        seeds.append(torch.searchsorted(cumulative, u * cumulative[-1], right=True).clamp(max=len(points) - 1))
    return torch.stack(seeds)
