"""InfoBatch in a plain PyTorch loop: a checkpoint after each epoch, DDP under torchrun.

python -m examples.loops.plain --epochs 20
torchrun --nproc_per_node 2 -m examples.loops.plain
"""

import argparse
import os
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from examples.digits.task import DigitsData
from lightning_prune import InfoBatch, Pruner

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--epochs", type=int, default=20)
parser.add_argument("--checkpoint", type=Path, help="written after each epoch; where it is, the run goes on from it")
args = parser.parse_args()
distributed, rank = "LOCAL_RANK" in os.environ, int(os.environ.get("RANK", 0))
if distributed:
    torch.distributed.init_process_group("gloo")

torch.manual_seed(0)
data = DigitsData()
data.setup("fit")
net = nn.Sequential(nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
model = DistributedDataParallel(net) if distributed else net
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)

pruner = Pruner(InfoBatch(prune_ratio=0.5), max_epochs=args.epochs, seed=0)
loader = pruner.attach(data.train_dataloader())  # before the first epoch, its length is that of a full one
scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=args.epochs * len(loader))
parts: dict[str, Any] = {"net": net, "optimizer": optimizer, "scheduler": scheduler, "pruner": pruner}
if args.checkpoint and args.checkpoint.exists():
    for name, state in torch.load(args.checkpoint, weights_only=True).items():
        parts[name].load_state_dict(state)
for _ in pruner.epochs():
    for images, targets in loader:
        loss = pruner.weighted_loss(F.cross_entropy(model(images), targets, reduction="none"))
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        pruner.step_scheduler(scheduler)
    states = {name: part.state_dict() for name, part in parts.items()}  # on every rank: the pruner's is collective
    if args.checkpoint and rank == 0:
        torch.save(states, args.checkpoint)

images, targets = data.held_out.tensors
accuracy = (net(images).argmax(1) == targets).float().mean()
if rank == 0:
    print(f"test accuracy {100 * accuracy:.1f} %, {100 * pruner.saved_fraction:.1f} % of the sample-steps saved")
if distributed:
    torch.distributed.destroy_process_group()
