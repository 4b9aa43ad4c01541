"""Scores of features: one pass of a trained module over its training set, and rules on what it shows."""

from lightning_prune.scoring.features.collect import Features, collect_features
from lightning_prune.scoring.features.contextual_diversity import contextual_diversity
from lightning_prune.scoring.features.craig import craig
from lightning_prune.scoring.features.dataset_pruning import dataset_pruning, influence_vectors
from lightning_prune.scoring.features.deepfool import deepfool
from lightning_prune.scoring.features.elfs import agreement, double_end_scores, proxy_margins, pseudo_labels
from lightning_prune.scoring.features.feature_scores import score_features, score_module
from lightning_prune.scoring.features.glister import glister
from lightning_prune.scoring.features.herding import herding
from lightning_prune.scoring.features.influence import influence
from lightning_prune.scoring.features.kcenter import kcenter
from lightning_prune.scoring.features.moderate import moderate_distance
from lightning_prune.scoring.features.moso import moso
from lightning_prune.scoring.features.prune4rel import prune4rel
from lightning_prune.scoring.features.ssp import spherical_kmeans, ssp_score

__all__ = [
    "Features",
    "agreement",
    "collect_features",
    "contextual_diversity",
    "craig",
    "dataset_pruning",
    "deepfool",
    "double_end_scores",
    "glister",
    "herding",
    "influence",
    "influence_vectors",
    "kcenter",
    "moderate_distance",
    "moso",
    "proxy_margins",
    "prune4rel",
    "pseudo_labels",
    "score_features",
    "score_module",
    "spherical_kmeans",
    "ssp_score",
]
