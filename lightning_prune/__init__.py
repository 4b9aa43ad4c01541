"""Dynamic data pruning for PyTorch Lightning: add one callback, train on less data."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

_PROGRAM = (sys.argv or [""])[0]
_IS_COMMAND = Path(_PROGRAM).stem == "lightning-prune" or (_PROGRAM == "-m" and "lightning_prune" in sys.orig_argv)
"""Whether `__main__` answers first, which imports Lightning, and this module again, once it is needed."""
_WANTED = not _IS_COMMAND or "lightning.pytorch" in sys.modules

if _WANTED or TYPE_CHECKING:
    from lightning_prune.core.plan import Selection

try:
    if _WANTED:
        importlib.import_module("lightning.pytorch")
except ImportError:  # `core` needs torch and NumPy alone; for any other name, `__getattr__` says what is missing
    _WANTED = False

if _WANTED or TYPE_CHECKING:
    from lightning_prune.analysis.label_callback import LabelIssues
    from lightning_prune.analysis.monitor import PruningMonitor
    from lightning_prune.loop import Pruner
    from lightning_prune.methods.alignprune import AlignPrune
    from lightning_prune.methods.batch_loss_score import BatchLossScore
    from lightning_prune.methods.budget import Budget
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
    from lightning_prune.report.callback import PruningReport
    from lightning_prune.scoring.recorder import ScoreRecorder
    from lightning_prune.scoring.static_pruning import StaticPruning
    from lightning_prune.trainer.callback import PruningCallback
    from lightning_prune.trainer.mixin import WeightedLossMixin
    from lightning_prune.trainer.registry import ScoreRegistry

__all__ = [
    "IES",
    "RS2",
    "UCB",
    "AlignPrune",
    "BatchLossScore",
    "Budget",
    "DivBS",
    "EpsilonGreedy",
    "ImportanceSampling",
    "InfoBatch",
    "LabelIssues",
    "OrderDP",
    "Pruner",
    "PruningCallback",
    "PruningMonitor",
    "PruningReport",
    "RHOLoss",
    "RandomPruning",
    "RePB",
    "ScoreRecorder",
    "ScoreRegistry",
    "SeTa",
    "Selection",
    "SelectiveBackprop",
    "StaticPruning",
    "WeightedLossMixin",
]
__version__ = "0.2.0"

_ON_FIRST_USE = frozenset({"analysis", "data", "functional", "report", "schedules", "scoring", "testing"})


def __getattr__(name: str) -> Any:
    if name in _ON_FIRST_USE:
        return importlib.import_module(f"{__name__}.{name}")
    if name in __all__:
        importlib.import_module("lightning.pytorch")  # it could not be imported: raise why
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
