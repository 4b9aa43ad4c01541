"""``lightning-prune compare`` and `compare_methods`: did pruning hurt, and was it worth it?"""

from lightning_prune.compare.api import compare_methods
from lightning_prune.compare.main import main
from lightning_prune.compare.result import Result
from lightning_prune.compare.verdict import Verdict

__all__ = ["Result", "Verdict", "compare_methods", "main"]
