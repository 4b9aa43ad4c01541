"""What a run did: overlap of selections, kept classes and noise, gradients, OrderDP's surrogate; and wrong labels."""

from lightning_prune.analysis.bounds import (
    GeneralizationBound,
    convergence_bound,
    generalization_bound,
    spectrum_deviation,
    surrogate_gap,
    surrogate_loss,
)
from lightning_prune.analysis.consistency import ScoreDrift, cumulative_alignment, drift_bound, score_drift
from lightning_prune.analysis.gradients import gradient_alignment, sample_gradients
from lightning_prune.analysis.label_callback import LabelIssues
from lightning_prune.analysis.label_doubt import label_doubt
from lightning_prune.analysis.label_issues import label_issues
from lightning_prune.analysis.label_table import save_issues, summarize_issues
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
from lightning_prune.analysis.stability import norm_accuracy_correlation, rolling_std
from lightning_prune.analysis.surrogate import Unbiasedness, check_unbiased, limit_density, surrogate_weights
from lightning_prune.core.names import sample_names

__all__ = [
    "GeneralizationBound",
    "LabelIssues",
    "PruningMonitor",
    "ScoreDrift",
    "Unbiasedness",
    "check_unbiased",
    "class_kept_share",
    "convergence_bound",
    "cumulative_alignment",
    "drift_bound",
    "generalization_bound",
    "gradient_alignment",
    "hard_clean",
    "jaccard",
    "label_doubt",
    "label_issues",
    "limit_density",
    "noise_ratio",
    "norm_accuracy_correlation",
    "rolling_std",
    "sample_gradients",
    "sample_names",
    "save_issues",
    "score_drift",
    "score_summary",
    "separation",
    "spectrum_deviation",
    "summarize_issues",
    "surrogate_gap",
    "surrogate_loss",
    "surrogate_weights",
    "usage_histogram",
]
