"""Scores of features: one pass of a trained module over its training set, and rules on what it shows."""

from lightning_prune.scoring.features.collect import Features, collect_features
from lightning_prune.scoring.features.contextual_diversity import contextual_diversity
from lightning_prune.scoring.features.craig import craig
from lightning_prune.scoring.features.deepfool import deepfool
from lightning_prune.scoring.features.feature_scores import score_features, score_module
from lightning_prune.scoring.features.glister import glister
from lightning_prune.scoring.features.herding import herding
from lightning_prune.scoring.features.kcenter import kcenter
from lightning_prune.scoring.features.moderate import moderate_distance
from lightning_prune.scoring.features.prune4rel import prune4rel
from lightning_prune.scoring.features.ssp import spherical_kmeans, ssp_score

__all__ = [
    "Features",
    "collect_features",
    "contextual_diversity",
    "craig",
    "deepfool",
    "glister",
    "herding",
    "kcenter",
    "moderate_distance",
    "prune4rel",
    "score_features",
    "score_module",
    "spherical_kmeans",
    "ssp_score",
]
