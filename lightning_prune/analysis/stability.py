"""How steady a training is: the spread of its gradient norm over epochs, and what it says of the accuracy."""

from __future__ import annotations

from torch import Tensor
from torchmetrics.functional import pearson_corrcoef

from lightning_prune.core.checks import check_int, check_scores


def rolling_std(values: Tensor, window: int) -> Tensor:
    """Return the standard deviation of a series in each window of consecutive values.

    Of gradient norms by epoch (`prune/grad_norm` of `PruningMonitor`) it is OrderDP's temporal stability.

    Args:
        values: Series ``(t,)``.
        window: Values in a window, in [2, t]. The paper gives none.

    Returns:
        ``(t - window + 1,)``, of the dtype of ``values``: the window that starts at each value; divided by
        ``window - 1``.

    Raises:
        TypeError: If ``values`` is not a floating-point tensor.
        ValueError: If it is not ``(t,)``, or ``window`` is out of range.

    References:
        Jin, Xu et al., "OrderDP", ICLR 2026, Figure 1c.

    Example:
        >>> import torch
        >>> rolling_std(torch.tensor([1.0, 1.0, 1.0, 4.0]), 3)
        tensor([0.0000, 1.7321])
    """
    check_scores("values", values)
    check_int("window", window, low=2, high=len(values))
    return values.unfold(0, window, 1).std(1)


def norm_accuracy_correlation(grad_norms: Tensor, accuracies: Tensor) -> float:
    """Return Pearson's correlation of gradient norm and accuracy over the epochs of a run.

    Near -1 where the norm tells how far the training is; the paper finds -0.93 for full training, and that pruning
    weakens it.

    Args:
        grad_norms: Norm of the gradient ``(t,)``, epoch by epoch.
        accuracies: Accuracy ``(t,)`` of the same epochs.

    Raises:
        TypeError: If an input is not a floating-point tensor.
        ValueError: If the shapes differ, there are fewer than 3 epochs, or one of the two never changes.

    References:
        Jin, Xu et al., "OrderDP", ICLR 2026, Figure 1d.

    Example:
        >>> import torch
        >>> round(norm_accuracy_correlation(torch.tensor([3.0, 2.0, 1.0]), torch.tensor([0.5, 0.7, 0.9])), 6)
        -1.0
    """
    norms, accuracies = check_scores("grad_norms", grad_norms), check_scores("accuracies", accuracies)
    if norms.shape != accuracies.shape or len(norms) < 3:
        raise ValueError(
            "Expected `grad_norms` and `accuracies` of the same epochs, at least 3, but got "
            f"{tuple(norms.shape)} and {tuple(accuracies.shape)}."
        )
    for name, values in (("grad_norms", norms), ("accuracies", accuracies)):
        if bool((values == values[0]).all()):
            raise ValueError(
                f"Expected `{name}` that change, since a constant has no correlation, but all are {values[0]:g}."
            )
    return float(pearson_corrcoef(norms.double(), accuracies.double().to(norms.device)))
