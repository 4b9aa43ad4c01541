"""ELFS (Zheng et al., ICLR 2025): scores without labels, from training dynamics on clusters of features."""

from __future__ import annotations

import importlib
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_prune.core.checks import check_int, check_number, check_ratio
from lightning_prune.core.plan import num_keep
from lightning_prune.core.rng import resolve_generator
from lightning_prune.scoring._inputs import check_points, check_targets
from lightning_prune.scoring.trackers.aum import target_margin

_BATCH = 256


def pseudo_labels(features: Tensor, num_clusters: int, *, generator: torch.Generator | None = None) -> Tensor:
    """Cluster the directions of features by k-means of scikit-learn; a cluster stands for a class.

    Args:
        features: ``(n, D)``, best of a self-supervised encoder.
        num_clusters: Clusters K, in [2, n]: the number of classes.
        generator: CPU generator of the start. None: a fresh one, seeded from the system's entropy.

    Returns:
        Cluster of each sample ``(n,)``, int64, in [0, K).

    Raises:
        ModuleNotFoundError: If scikit-learn is missing.
        TypeError: If ``features`` is not a floating-point tensor.
        ValueError: If an element is not finite or ``num_clusters`` is out of range.

    Note:
        The paper clusters by TEMI, heads trained on self-supervised features; k-means needs no training.

    Example:
        >>> features = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]])
        >>> labels = pseudo_labels(features, 2, generator=torch.Generator().manual_seed(0))
        >>> bool(labels[0] == labels[1]), bool(labels[0] == labels[2])
        (True, False)
    """
    points = F.normalize(check_points("features", features).float())
    check_int("num_clusters", num_clusters, low=2, high=len(points))
    seed = int(torch.randint(2**31, (), generator=resolve_generator(generator)))
    cluster = _needed("sklearn.cluster")
    found = cluster.KMeans(num_clusters, n_init=10, random_state=seed).fit_predict(points.cpu().numpy())
    return torch.from_numpy(found).long()


def proxy_margins(
    features: Tensor,
    labels: Tensor,
    *,
    num_epochs: int = 20,
    learning_rate: float = 0.1,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Return the mean margin of each label while a linear layer on the features learns them: AUM of a proxy.

    Args:
        features: ``(n, D)``; each is scaled to variance 1.
        labels: Class ids ``(n,)``, such as :func:`pseudo_labels`.
        num_epochs: Epochs of SGD with momentum 0.9, in batches of 256.
        learning_rate: Its learning rate.
        generator: CPU generator of the order. None: a fresh one, seeded from the system's entropy.

    Returns:
        ``(n,)``, float32, in [-1, 1]; low: hard, or labelled otherwise than its neighbours.

    Raises:
        TypeError: If an input is not of the expected type.
        ValueError: If an element is not finite, a shape is wrong, or an argument is out of range.

    Example:
        >>> features = torch.tensor([[1.0], [1.1], [-1.0], [-1.1], [-0.9]])
        >>> proxy_margins(features, torch.tensor([0, 0, 1, 1, 0])).argmin()
        tensor(4)
    """
    points = check_points("features", features).float().cpu()
    labels = check_targets(labels, rows=len(points)).cpu()
    check_int("num_epochs", num_epochs, low=1)
    check_number("learning_rate", learning_rate, "a number > 0", float(learning_rate) > 0)
    generator = resolve_generator(generator)
    spread = points.std(0, correction=0).clamp(min=1e-6)
    points = F.pad((points - points.mean(0)) / spread / points.shape[1] ** 0.5, (0, 1), value=1.0)
    labels = torch.unique(labels, return_inverse=True)[1]
    num_classes = max(2, int(labels.max()) + 1)
    onehot = F.one_hot(labels, num_classes).float()
    weight = torch.zeros(num_classes, points.shape[1], dtype=torch.float32)
    velocity, sums = torch.zeros_like(weight), torch.zeros(len(points), dtype=torch.float32)
    for _ in range(num_epochs):
        for rows in torch.split(torch.randperm(len(points), generator=generator), _BATCH):
            probs = (points[rows] @ weight.T).softmax(1)
            sums[rows] += target_margin(probs, labels[rows])
            velocity = 0.9 * velocity + (probs - onehot[rows]).T @ points[rows] / len(rows)
            weight -= learning_rate * velocity
    return sums / num_epochs


def agreement(labels: Tensor, targets: Tensor) -> Tensor:
    """Return where a cluster, named by the class that it matches best, is the given class: ``(n,)`` bool.

    Clusters and classes are paired one to one (the Hungarian algorithm of SciPy), so that as many samples as possible
    agree; a cluster without a class agrees with none.

    Raises:
        ModuleNotFoundError: If SciPy is missing.

    Example:
        >>> agreement(torch.tensor([1, 1, 0, 0]), torch.tensor([0, 0, 1, 0]))
        tensor([ True,  True,  True, False])
    """
    labels, targets = labels.cpu(), check_targets(targets, rows=len(labels)).cpu()
    classes, given = torch.unique(targets, return_inverse=True)
    num_clusters = int(labels.max()) + 1
    counts = torch.zeros(num_clusters, len(classes), dtype=torch.int64)
    counts.view(-1).index_add_(0, labels * len(classes) + given, torch.ones_like(labels))
    rows, columns = _needed("scipy.optimize").linear_sum_assignment(counts.numpy(), maximize=True)
    match = torch.full((num_clusters,), -1, dtype=torch.int64)
    match[torch.from_numpy(rows)] = torch.from_numpy(columns)
    return torch.eq(match[labels], given)


def double_end_scores(margins: Tensor, hard_cutoff: float) -> Tensor:
    """Return scores whose high end is what ELFS keeps: hard first, but the very hardest last.

    Args:
        margins: AUM ``(n,)``; low: hard.
        hard_cutoff: Share of the samples, those of the lowest margins, that come last, in [0, 1).

    Returns:
        ``(n,)``, float32: n for what is kept first, down to 1.

    Raises:
        ValueError: If ``hard_cutoff`` is out of range.

    Example:
        >>> double_end_scores(torch.tensor([0.9, -0.5, 0.1, 0.4]), 0.25)
        tensor([2., 1., 4., 3.])
    """
    check_ratio("hard_cutoff", hard_cutoff)
    n = len(margins)
    order = margins.argsort(stable=True)
    cut = n - num_keep(n, 1 - hard_cutoff)
    order = torch.cat([order[cut:], order[:cut].flip(0)])
    return torch.empty(n, dtype=torch.float32).scatter_(0, order, torch.arange(n, 0, -1, dtype=torch.float32))


def _needed(module: str) -> Any:
    """Return a module of the extra.

    Raises:
        ModuleNotFoundError: If it is missing, with the way to install it.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "Expected scikit-learn, by which ELFS clusters features, but it is not installed. Write "
            "`pip install 'lightning-prune[cluster]'`."
        ) from error
