"""What a pruned run did: overlap and use of selections, kept classes and noise, gradients, OrderDP's surrogate."""

from lightning_prune.analysis.gradients import gradient_alignment, sample_gradients
from lightning_prune.analysis.monitor import PruningMonitor
from lightning_prune.analysis.selections import (
    class_kept_share,
    hard_clean,
    jaccard,
    noise_ratio,
    score_summary,
    separation,
    usage_histogram,
)
from lightning_prune.analysis.surrogate import Unbiasedness, check_unbiased, limit_density, surrogate_weights

__all__ = [
    "PruningMonitor",
    "Unbiasedness",
    "check_unbiased",
    "class_kept_share",
    "gradient_alignment",
    "hard_clean",
    "jaccard",
    "limit_density",
    "noise_ratio",
    "sample_gradients",
    "score_summary",
    "separation",
    "surrogate_weights",
    "usage_histogram",
]
