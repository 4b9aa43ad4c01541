"""
Which method for my data?
=========================

No method is best on all data. This tutorial looks at the losses of a short run first, since they say how much there
is to leave out. Then it compares three methods at equal cost, over several seeds, with a verdict for each. You need
``pip install 'lightning-prune[compare,examples]'``.
"""

import logging
import warnings

import lightning.pytorch as L
import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_prune import ScoreRegistry, WeightedLossMixin
from lightning_prune.compare import compare_methods

warnings.filterwarnings("ignore", module=r"lightning\.")  # Lightning's own advice
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)

digits = load_digits()
images = torch.tensor(digits.images, dtype=torch.float32) / 16
labels = torch.tensor(digits.target)
order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
train, test = (TensorDataset(images[ids], labels[ids]) for ids in (order[360:], order[:360]))


class Model(WeightedLossMixin, L.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))

    def training_step(self, batch, batch_idx):
        x, y = batch
        return self.weighted_loss(F.cross_entropy(self.net(x), y, reduction="none"))

    def validation_step(self, batch, batch_idx):
        x, y = batch
        self.log("val_acc", (self.net(x).argmax(1) == y).float().mean())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


def make_data():
    return DataLoader(train, batch_size=64, shuffle=True), DataLoader(test, batch_size=360)


# %%
# A short run
# -----------
# Without a method, the registry only records. Three epochs are enough to see the shape of the losses.

L.seed_everything(0, verbose=False)
registry = ScoreRegistry()
trainer = L.Trainer(
    max_epochs=3,
    callbacks=[registry],
    accelerator="cpu",
    logger=False,
    enable_checkpointing=False,
    enable_progress_bar=False,
    enable_model_summary=False,
)
trainer.fit(Model(), make_data()[0])
losses = registry.losses.cpu()
below = (losses < losses.mean()).float().mean().item()

figure, axes = plt.subplots(figsize=(6, 2.5), layout="constrained")
axes.hist(losses.numpy(), bins=60, color="#3b7dd8")
axes.axvline(losses.mean().item(), color="#d8743b", label=f"mean: {below:.0%} of the samples are below")
axes.set(xlabel="loss of a sample after 3 epochs", ylabel="samples", yscale="log")
axes.legend()
plt.show()

# %%
# Most samples have nearly no loss left, and a few have much: there is something to leave out. Were the losses spread
# evenly, a method that goes by losses would have little to go by.
#
# ``lightning-prune advise --config base.yaml --save 0.4`` makes such a probe for you. It also looks at wrong labels,
# class sizes, and how stable the ranking is between epochs. It then names one method, with its reasons.
#
# A comparison
# ------------
# ``ratios=[0.4]`` means that each method saves 40 % of the sample-steps of its run, whatever its own arguments are
# called. Every seed also trains on all data, and on all data for fewer epochs: a method has to beat that row to be
# worth its while. ``margin`` is the loss of accuracy that would not matter to you.

result = compare_methods(
    Model, make_data, ["InfoBatch", "OrderDP", "RandomPruning"], ratios=[0.4], seeds=3, max_epochs=10, margin=0.01
)
print(result.table)

# %%
# "Saved" is measured, not what was asked for. "No worse" means: the whole 95 % interval lies above a loss of
# ``margin``. "Cannot tell yet" is no result: it says how many seeds are missing. ``result.plot("verdicts.png")`` draws
# the intervals; so do these lines.

compared = [(row.label, verdict) for row, verdict in zip(result.rows, result.verdicts, strict=True) if verdict]
figure, axes = plt.subplots(figsize=(7, 2.5), layout="constrained")
for label, verdict in compared:
    axes.plot([100 * verdict.low, 100 * verdict.high], [label, label], color="#3b7dd8")
    axes.plot(100 * verdict.difference, label, "o", color="#3b7dd8")
axes.axvline(0, color="gray", linewidth=1)
axes.axvline(-1, color="#d8743b", linewidth=1, linestyle="--", label="margin")
axes.set(xlabel="difference to full data, points of accuracy")
axes.invert_yaxis()
axes.legend()
plt.show()

# %%
# Three seeds of ten epochs seldom decide every row. ``until_decided=True`` adds seeds until each row has a verdict.
# ``lightning-prune compare --config base.yaml --methods InfoBatch,OrderDP --prune_ratios 0.4`` compares what a
# configuration trains. It makes several runs at a time, and goes on after an interruption.
