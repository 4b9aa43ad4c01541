"""Selectors: which samples a score keeps."""

from lightning_prune.scoring.selectors.beta_sampling import beta_sampling
from lightning_prune.scoring.selectors.ccs import ccs
from lightning_prune.scoring.selectors.rank import rank_scores, select_middle, select_per_class, select_top

__all__ = ["beta_sampling", "ccs", "rank_scores", "select_middle", "select_per_class", "select_top"]
