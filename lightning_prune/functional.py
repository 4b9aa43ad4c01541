"""The pure selection rules, without a Trainer: tensors in, a `Selection` or a tensor out."""

from lightning_prune.methods.infobatch import infobatch

__all__ = ["infobatch"]
