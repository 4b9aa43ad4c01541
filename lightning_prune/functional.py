"""The pure selection rules, without a Trainer: tensors in, a `Selection` or a tensor out."""

from lightning_prune.methods.infobatch import infobatch
from lightning_prune.methods.orderdp import orderdp, orderdp_inclusion

__all__ = ["infobatch", "orderdp", "orderdp_inclusion"]
