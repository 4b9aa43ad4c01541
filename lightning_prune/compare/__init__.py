"""``lightning-prune compare``: the same training per method, ratio and seed, as a table and plots."""

from lightning_prune.compare.main import main

__all__ = ["main"]
