"""Static scores: trackers fed by training batches, scores of features, selectors, and two callbacks."""

from lightning_prune.plan import num_keep
from lightning_prune.scoring.aum import AUM
from lightning_prune.scoring.beta_sampling import beta_sampling
from lightning_prune.scoring.ccs import ccs
from lightning_prune.scoring.contextual_diversity import contextual_diversity
from lightning_prune.scoring.craig import craig
from lightning_prune.scoring.deepfool import deepfool
from lightning_prune.scoring.dual import DUAL
from lightning_prune.scoring.dynunc import DynUnc
from lightning_prune.scoring.el2n import EL2N
from lightning_prune.scoring.entropy import Entropy
from lightning_prune.scoring.feature_scores import score_features, score_module
from lightning_prune.scoring.features import Features, collect_features
from lightning_prune.scoring.forgetting import Forgetting
from lightning_prune.scoring.glister import glister
from lightning_prune.scoring.grand import GraNd
from lightning_prune.scoring.herding import herding
from lightning_prune.scoring.kcenter import kcenter
from lightning_prune.scoring.least_confidence import LeastConfidence
from lightning_prune.scoring.margin import Margin
from lightning_prune.scoring.moderate import moderate_distance
from lightning_prune.scoring.prune4rel import prune4rel
from lightning_prune.scoring.recorder import ScoreRecorder
from lightning_prune.scoring.score_file import ScoreFile, load_scores, save_scores
from lightning_prune.scoring.selectors import rank_scores, select_middle, select_per_class, select_top
from lightning_prune.scoring.small_loss import SmallLoss
from lightning_prune.scoring.ssp import spherical_kmeans, ssp_score
from lightning_prune.scoring.static_pruning import StaticPruning
from lightning_prune.scoring.summary import summarize
from lightning_prune.scoring.tdds import TDDS, tdds
from lightning_prune.scoring.tracker import Tracker

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
    "beta_sampling",
    "ccs",
    "collect_features",
    "contextual_diversity",
    "craig",
    "deepfool",
    "glister",
    "herding",
    "kcenter",
    "load_scores",
    "moderate_distance",
    "num_keep",
    "prune4rel",
    "rank_scores",
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
