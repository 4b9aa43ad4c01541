"""Dynamic data pruning for PyTorch Lightning: add one callback, train on less data."""

from lightning_prune.analysis.monitor import PruningMonitor
from lightning_prune.callback import PruningCallback
from lightning_prune.methods.alignprune import AlignPrune
from lightning_prune.methods.batch_loss_score import BatchLossScore
from lightning_prune.methods.divbs import DivBS
from lightning_prune.methods.epsilon_greedy import EpsilonGreedy
from lightning_prune.methods.ies import IES
from lightning_prune.methods.importance_sampling import ImportanceSampling
from lightning_prune.methods.infobatch import InfoBatch
from lightning_prune.methods.orderdp import OrderDP
from lightning_prune.methods.random import RandomPruning
from lightning_prune.methods.repb import RePB
from lightning_prune.methods.rho_loss import RHOLoss
from lightning_prune.methods.rs2 import RS2
from lightning_prune.methods.selective_backprop import SelectiveBackprop
from lightning_prune.methods.seta import SeTa
from lightning_prune.methods.ucb import UCB
from lightning_prune.mixin import WeightedLossMixin
from lightning_prune.plan import Selection
from lightning_prune.registry import ScoreRegistry

__all__ = [
    "IES",
    "RS2",
    "UCB",
    "AlignPrune",
    "BatchLossScore",
    "DivBS",
    "EpsilonGreedy",
    "ImportanceSampling",
    "InfoBatch",
    "OrderDP",
    "PruningCallback",
    "PruningMonitor",
    "RHOLoss",
    "RandomPruning",
    "RePB",
    "ScoreRegistry",
    "SeTa",
    "Selection",
    "SelectiveBackprop",
    "WeightedLossMixin",
]
__version__ = "0.1.0"
