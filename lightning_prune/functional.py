"""The pure selection rules, without a Trainer: tensors in, a `Selection` or a tensor out."""

from lightning_prune.methods.infobatch import infobatch
from lightning_prune.methods.orderdp import orderdp, orderdp_inclusion
from lightning_prune.methods.repb import ctr_weights, repb_resample, repb_retain
from lightning_prune.methods.seta import kmeans_1d, seta

__all__ = [
    "ctr_weights",
    "infobatch",
    "kmeans_1d",
    "orderdp",
    "orderdp_inclusion",
    "repb_resample",
    "repb_retain",
    "seta",
]
