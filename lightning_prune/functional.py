"""The pure selection rules, without a Trainer: tensors in, a `Selection` or a tensor out."""

from lightning_prune.methods.alignprune import alignment_score
from lightning_prune.methods.divbs import divbs
from lightning_prune.methods.epsilon_greedy import epsilon_greedy
from lightning_prune.methods.ies import instance_early_stopping
from lightning_prune.methods.importance_sampling import importance_inclusion, multiple_importance, systematic_sample
from lightning_prune.methods.infobatch import adjusted_epochs, infobatch
from lightning_prune.methods.orderdp import orderdp, orderdp_inclusion
from lightning_prune.methods.repb import ctr_weights, repb_resample, repb_retain
from lightning_prune.methods.selective_backprop import selective_backprop_probs
from lightning_prune.methods.seta import kmeans_1d, seta
from lightning_prune.methods.ucb import ucb_update

__all__ = [
    "adjusted_epochs",
    "alignment_score",
    "ctr_weights",
    "divbs",
    "epsilon_greedy",
    "importance_inclusion",
    "infobatch",
    "instance_early_stopping",
    "kmeans_1d",
    "multiple_importance",
    "orderdp",
    "orderdp_inclusion",
    "repb_resample",
    "repb_retain",
    "selective_backprop_probs",
    "seta",
    "systematic_sample",
    "ucb_update",
]
