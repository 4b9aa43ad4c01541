"""GraNd (Paul et al., NeurIPS 2021): the gradient norm of the last layer, early in training."""

from __future__ import annotations

from typing import final

from torch import Tensor

from lightning_prune.scoring.trackers._mean import MeanTracker
from lightning_prune.scoring.trackers.el2n import error_norm
from lightning_prune.scoring.trackers.tracker import Batch


def last_layer_grad_norm(probs: Tensor, targets: Tensor, features: Tensor) -> Tensor:
    """Return the norm of the cross entropy's gradient by the last layer's weight and bias, ``(B,)`` float32.

    The gradient is the outer product of ``p - y`` and ``[h, 1]``, so its norm is ``||p - y|| sqrt(1 + ||h||^2)``: no
    backward pass.

    Args:
        probs: Predicted probabilities ``(B, C)``.
        targets: Class ids ``(B,)``, int64.
        features: Input h of the last linear layer ``(B, D)``.

    Example:
        >>> import torch
        >>> last_layer_grad_norm(torch.tensor([[0.5, 0.5]]), torch.tensor([0]), torch.tensor([[1.0]]))
        tensor([1.0000])
    """
    return error_norm(probs, targets) * (1 + features.float().square().sum(1)).sqrt()


@final
class GraNd(MeanTracker):
    """Mean gradient norm of the last layer over the first epochs; high: hard or mislabelled, kept.

    Args:
        num_samples: Length of the dataset. None: set by whoever feeds the tracker.
        num_epochs: Epochs, from the first, that are averaged.

    Note:
        The paper takes all parameters and the mean over ten initialisations; benchmarks take the last layer, as here.
        One of them divides by the batch size, which inflates the last, shorter batch; the gradient of each sample's own
        loss is meant.

    References:
        Paul et al., "Deep Learning on a Data Diet: Finding Important Examples Early in Training", NeurIPS 2021,
        arXiv:2107.07075.
    """

    high = "a large gradient in the first epochs: hard, or labelled wrong"
    needs = ("logits", "targets", "features")

    def measure(self, batch: Batch) -> Tensor:
        """Return the gradient norms ``(B,)``."""
        return last_layer_grad_norm(batch.probs, batch.targets, batch.features)
