"""AUM (Pleiss et al., NeurIPS 2020): the area under the margin, which is low for mislabelled samples."""

from __future__ import annotations

from typing import Literal, final

import torch
from torch import Tensor

from lightning_prune.core.checks import check_choice
from lightning_prune.scoring.trackers.tracker import Batch, Tracker


def target_margin(values: Tensor, targets: Tensor) -> Tensor:
    """Return the target's value minus the largest other one, ``(B,)`` float32.

    Args:
        values: Logits or probabilities ``(B, C)``.
        targets: Class ids ``(B,)``, int64.

    Example:
        >>> target_margin(torch.tensor([[3.0, 1.0, 2.0], [3.0, 1.0, 2.0]]), torch.tensor([0, 1]))
        tensor([ 1., -2.])
    """
    targets = targets[:, None]
    others = values.float().scatter(1, targets, -torch.inf)
    return values.float().gather(1, targets).squeeze(1) - others.amax(1)


@final
class AUM(Tracker):
    """Sum of the target's margin over all epochs; low: hard or mislabelled.

    Args:
        num_samples: Length of the dataset. None: set by whoever feeds the tracker.
        space: ``"prob"``: margins of probabilities, as in the pruning literature. ``"logit"``: as in the AUM paper.
        keep: The end to keep. ``"low"`` is what gave the numbers published for the AUM baseline (poor at high ratios);
            a paper's text and another code say ``"high"``.

    Raises:
        ValueError: If an argument is out of range.

    Note:
        An epoch in which a sample was not visited adds nothing to its sum. A published implementation starts the sum
        anew in each epoch and so returns the last margin.

    References:
        Pleiss et al., "Identifying Mislabeled Data using the Area Under the Margin Ranking", NeurIPS 2020,
        arXiv:2001.10528.

    Example:
        >>> tracker = AUM(num_samples=1, space="logit")
        >>> tracker.update(torch.tensor([0]), logits=torch.tensor([[3.0, 1.0]]), targets=torch.tensor([0]))
        >>> tracker.compute()
        tensor([2.])
    """

    high = "easy, the label is far ahead of the other classes; a low one: hard, or labelled wrong"

    def __init__(
        self,
        num_samples: int | None = None,
        space: Literal["prob", "logit"] = "prob",
        *,
        keep: Literal["low", "high"] = "low",
    ) -> None:
        check_choice("space", space, ("prob", "logit"))
        check_choice("keep", keep, ("low", "high"))
        super().__init__(num_samples)
        self.space = space
        self.keep = keep

    def measure(self, batch: Batch) -> Tensor:
        """Return the margins ``(B,)``."""
        return target_margin(batch.probs if self.space == "prob" else batch.logits, batch.targets)

    def fold(self, old: dict[str, Tensor], values: Tensor) -> dict[str, Tensor]:
        """Add a visit."""
        return {"value": old["value"].nan_to_num() + values}
