"""InfoBatch in a Lightning Fabric loop: on what Fabric finds, with its launcher and precisions.

python -m examples.loops.fabric --epochs 20
fabric run --accelerator cpu --devices 2 examples/loops/fabric.py
"""

import argparse

import torch
import torch.nn.functional as F
from lightning.fabric import Fabric
from torch import nn

from examples.digits.task import DigitsData
from lightning_prune import InfoBatch, Pruner

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--epochs", type=int, default=20)
parser.add_argument("--devices", type=int, default=1)
parser.add_argument("--precision", default="32-true")
args = parser.parse_args()
fabric = Fabric(accelerator="auto", devices=args.devices, precision=args.precision)
fabric.launch()
fabric.seed_everything(0, verbose=False)

data = DigitsData()
data.setup("fit")
net = nn.Sequential(nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
model, optimizer = fabric.setup(net, torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9))

pruner = Pruner(InfoBatch(prune_ratio=0.5), max_epochs=args.epochs)
loader = pruner.attach(fabric.setup_dataloaders(data.train_dataloader()))
for epoch in pruner.epochs():
    for images, targets in loader:
        loss = pruner.weighted_loss(F.cross_entropy(model(images), targets, reduction="none"))
        optimizer.zero_grad()
        fabric.backward(loss)
        optimizer.step()
    fabric.print(f"epoch {epoch}: {100 * pruner.metrics['prune/kept_fraction']:.0f} % kept")

images, targets = fabric.to_device(data.held_out.tensors)
with torch.no_grad():
    accuracy = (model(images).argmax(1) == targets).float().mean()
saved = 100 * pruner.saved_fraction
fabric.print(f"test accuracy {100 * accuracy:.1f} %, {saved:.1f} % of the sample-steps saved")
