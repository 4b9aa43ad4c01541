"""Static scores: trackers fed by training batches, scores of features, selectors, and two callbacks."""

from lightning_prune.core.plan import num_keep
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
from lightning_prune.scoring.random_scores import random_scores
from lightning_prune.scoring.recorder import ScoreRecorder
from lightning_prune.scoring.score_file import ScoreFile, load_scores, save_scores
from lightning_prune.scoring.score_table import save_score_table
from lightning_prune.scoring.selectors.beta_sampling import beta_sampling
from lightning_prune.scoring.selectors.ccs import ccs
from lightning_prune.scoring.selectors.rank import rank_scores, select_middle, select_per_class, select_top
from lightning_prune.scoring.static_pruning import StaticPruning
from lightning_prune.scoring.summary import summarize
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
    "Features",
    "Forgetting",
    "GraNd",
    "LeastConfidence",
    "Margin",
    "ScoreFile",
    "ScoreRecorder",
    "SmallLoss",
    "StaticPruning",
    "Tracker",
    "agreement",
    "beta_sampling",
    "ccs",
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
    "load_scores",
    "moderate_distance",
    "moso",
    "num_keep",
    "proxy_margins",
    "prune4rel",
    "pseudo_labels",
    "random_scores",
    "rank_scores",
    "save_score_table",
    "save_scores",
    "score_features",
    "score_module",
    "select_middle",
    "select_per_class",
    "select_top",
    "spherical_kmeans",
    "ssp_score",
    "summarize",
    "tdds",
]
