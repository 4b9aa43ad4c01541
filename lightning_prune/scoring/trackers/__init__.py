"""Scores that are by-products of training: trackers, fed one batch at a time."""

from lightning_prune.scoring.trackers.aum import AUM
from lightning_prune.scoring.trackers.dual import DUAL
from lightning_prune.scoring.trackers.dynunc import DynUnc
from lightning_prune.scoring.trackers.el2n import EL2N
from lightning_prune.scoring.trackers.entropy import Entropy
from lightning_prune.scoring.trackers.forgetting import Forgetting
from lightning_prune.scoring.trackers.grand import GraNd
from lightning_prune.scoring.trackers.least_confidence import LeastConfidence
from lightning_prune.scoring.trackers.margin import Margin
from lightning_prune.scoring.trackers.small_loss import SmallLoss
from lightning_prune.scoring.trackers.tdds import TDDS, tdds
from lightning_prune.scoring.trackers.tracker import Tracker

__all__ = [
    "AUM",
    "DUAL",
    "EL2N",
    "TDDS",
    "DynUnc",
    "Entropy",
    "Forgetting",
    "GraNd",
    "LeastConfidence",
    "Margin",
    "SmallLoss",
    "Tracker",
    "tdds",
]
