from typing import final

from prune_quantile import QuantilePruning, WorstLoss

from lightning_prune.testing import MethodContract, TrackerContract


@final
class TestQuantilePruning(MethodContract):
    method = staticmethod(lambda: QuantilePruning(0.5, seed=1))
    neutral = staticmethod(lambda: QuantilePruning(0.0))


@final
class TestWorstLoss(TrackerContract):
    tracker = staticmethod(lambda: WorstLoss())
