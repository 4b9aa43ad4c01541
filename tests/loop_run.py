"""Two gloo processes train the same with a plain loop, Fabric and the Trainer: ``torchrun -m tests.loop_run DIR``."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from lightning.fabric import Fabric
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DistributedSampler

from lightning_prune import InfoBatch, Pruner, RePB, ScoreRegistry, SelectiveBackprop
from tests.helpers import Model, make_dataset, make_loader, make_trainer

EPOCHS = 5
METHODS = {"InfoBatch": InfoBatch, "RePB": RePB, "SelectiveBackprop": lambda: SelectiveBackprop(start=0.2)}


class Task(torch.nn.Module):
    """`helpers.Model` as a plain module."""

    def __init__(self):
        super().__init__()
        self.layer = Model().layer
        self.seen = []

    def forward(self, batch):
        x, y, index = batch
        logits = self.layer(x)
        if self.training:
            self.seen.append(index.tolist())
        losses = torch.nn.functional.cross_entropy(logits, y, reduction="none")
        return losses, {"logits": logits.detach(), "targets": y, "features": x}


def loop(pruner, model, task, loader, optimizer, backward):
    for _ in pruner.epochs():
        for batch in loader:
            losses, outputs = model(batch)
            loss = pruner.weighted_loss(losses, **outputs)
            optimizer.zero_grad()
            backward(loss)
            optimizer.step()
    registry = pruner.registry
    return task.layer, [i for ids in task.seen for i in ids], registry, pruner.saved_fraction


def make_pruner(name, task):
    def hook(batch):
        task.eval()
        losses, outputs = task(batch)
        task.train()
        pruner.weighted_loss(losses, **outputs)

    pruner = Pruner(METHODS[name](), max_epochs=EPOCHS, per_sample_loss=hook, debug_sync=True)
    return pruner


def plain(name):
    task = Task()
    model = DistributedDataParallel(task)
    pruner = make_pruner(name, task)
    dataset = make_dataset(41)
    loader = pruner.attach(torch.utils.data.DataLoader(dataset, 4, sampler=DistributedSampler(dataset)))
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    return loop(pruner, model, task, loader, optimizer, torch.Tensor.backward)


def fabric(name):
    fabric = Fabric(accelerator="cpu", strategy="ddp", devices=2)
    fabric.launch()
    task = Task()
    model, optimizer = fabric.setup(task, torch.optim.SGD(task.parameters(), 0.1, momentum=0.9))
    pruner = make_pruner(name, task)
    loader = pruner.attach(fabric.setup_dataloaders(make_loader(41)))
    return loop(pruner, model, task, loader, optimizer, fabric.backward)


def trainer(name):
    model = Model()
    trainer = make_trainer(METHODS[name](), max_epochs=EPOCHS, strategy="ddp", devices=2)
    trainer.fit(model, make_loader(41))
    registry = ScoreRegistry.of(trainer)
    return model.layer, [i for _, ids in model.seen for i in ids], registry, registry.saved_fraction


def main(folder):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo")
    rank = torch.distributed.get_rank()
    for name in METHODS:
        for way in (plain, fabric, trainer):
            layer, seen, registry, saved = way(name)
            result = {"weight": layer.weight.detach(), "seen": seen, "table": registry.to_dict(), "saved": saved}
            torch.save(result, folder / f"{name}-{way.__name__}-{rank}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
