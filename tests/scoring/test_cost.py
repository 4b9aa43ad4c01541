"""What the greedy rules may cost at n = 50,000, D = 128, k = 5,000: 120 s and 2 GiB; and what importing must not."""

from __future__ import annotations

import subprocess
import sys

SCRIPT = """
import sys, time, torch
import lightning.pytorch  # imports what it finds: only what we add is our doing
before = set(sys.modules)
import lightning_prune.data
from lightning_prune.scoring import contextual_diversity, herding, kcenter, prune4rel
assert not {"sklearn", "matplotlib", "timm", "pyarrow", "jsonargparse", "cv2"} & (sys.modules.keys() - before)
torch.set_num_threads(1)
generator = torch.Generator().manual_seed(0)
x = torch.randn(50_000, 128, generator=generator)
probs = torch.randn(50_000, 10, generator=generator).softmax(1)
for rule in (
    lambda k: kcenter(x, k, first=0),
    lambda k: herding(x, k),
    lambda k: prune4rel(probs, x, k),
    lambda k: contextual_diversity(probs, k, first=0),
):
    start = time.process_time()
    rule(250)
    print(time.process_time() - start)
print(next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) / 2**20)
"""


def test_greedy_rules():
    """A step costs the same whatever k is: 250 of the 5,000 are timed."""
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True, timeout=100)
    *seconds, gibibytes = (float(value) for value in done.stdout.split())
    assert 20 * max(seconds) < 120
    assert gibibytes < 2
