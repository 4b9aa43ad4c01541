"""Dynamic data pruning for PyTorch Lightning: add one callback, train on less data."""

from lightning_prune.analysis.monitor import PruningMonitor
from lightning_prune.callback import PruningCallback
from lightning_prune.methods.infobatch import InfoBatch
from lightning_prune.methods.orderdp import OrderDP
from lightning_prune.methods.random import RandomPruning
from lightning_prune.methods.repb import RePB
from lightning_prune.methods.seta import SeTa
from lightning_prune.mixin import WeightedLossMixin
from lightning_prune.plan import Selection
from lightning_prune.registry import ScoreRegistry

__all__ = [
    "InfoBatch",
    "OrderDP",
    "PruningCallback",
    "PruningMonitor",
    "RandomPruning",
    "RePB",
    "ScoreRegistry",
    "SeTa",
    "Selection",
    "WeightedLossMixin",
]
__version__ = "0.1.0"
