"""MoSo (Tan et al., NeurIPS 2023): how much the loss of the others would rise without a sample."""

from __future__ import annotations

from torch import Tensor

from lightning_prune.scoring.features.influence import read_head


def moso(logits: Tensor, features: Tensor, targets: Tensor) -> Tensor:
    """Return the agreement of each sample's gradient with the mean gradient of all others.

    ``<mean of G_j over j != i, G_i>`` with the gradients of the last layer's weight and bias: how fast a step on sample
    i lowers the loss of the others. The moving-one-sample-out score is its mean over states of a training, each times
    its learning rate (and times T / n, alike for all samples, which is left out).

    Args:
        logits: ``(n, C)`` of the model in one state.
        features: Input of its last linear layer ``(n, D)``.
        targets: Class ids ``(n,)``; n >= 2.

    Returns:
        Scores ``(n,)``, float32; high: the sample teaches what the others do, kept.

    Raises:
        TypeError: If an input is not of the expected type.
        ValueError: If an element is not finite, a shape is wrong, or there is one sample only.

    Note:
        The paper takes the gradients of all parameters; here it is the last layer, so no gradient is ever built.

    References:
        Tan et al., "Data Pruning via Moving-one-Sample-out", NeurIPS 2023, arXiv:2310.14664, Proposition 1.1.

    Example:
        >>> import torch
        >>> logits = torch.tensor([[0.0, 1.0], [0.0, 1.0], [0.0, 1.0]])
        >>> (moso(logits, torch.ones(3, 1), torch.tensor([0, 0, 1])) > 0).tolist()  # the third one is alone
        [True, True, False]
    """
    _, errors, inputs = read_head(logits, features, targets)
    n = len(errors)
    if n < 2:
        raise ValueError(f"Expected at least 2 samples, as each is seen from the others, but got {n}.")
    with_sum = (errors * (inputs @ (errors.T @ inputs).T)).sum(1)
    own = errors.square().sum(1) * inputs.square().sum(1)
    return ((with_sum - own) / (n - 1)).float()
