"""
First pruned run
================

We train a small network on scanned digits, first on all samples in every epoch, then with
:class:`~lightning_prune.InfoBatch`, which leaves out a part of the easy ones. Then we look at what was saved, and at
which digits were left out. You need ``pip install 'lightning-prune[examples,plot]'``.
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

from lightning_prune import InfoBatch, ScoreRegistry, WeightedLossMixin

warnings.filterwarnings("ignore", module=r"lightning\.")  # Lightning's own advice
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)

# %%
# The data
# --------
# 1,797 images of 8 x 8 pixels; 1,437 to train on, 360 to test on.

digits = load_digits()
images = torch.tensor(digits.images, dtype=torch.float32) / 16
labels = torch.tensor(digits.target)
order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
train, test = (TensorDataset(images[ids], labels[ids]) for ids in (order[360:], order[:360]))

# %%
# The module
# ----------
# Two things differ from any other ``LightningModule``: the mixin in front, and ``training_step`` hands one loss for
# each sample to ``weighted_loss`` where it would have returned their mean.


class Model(WeightedLossMixin, L.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))

    def training_step(self, batch, batch_idx):
        x, y = batch
        losses = F.cross_entropy(self.net(x), y, reduction="none")
        return self.weighted_loss(losses)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)

    def accuracy(self):
        x, y = test.tensors
        return (self.net(x).argmax(1) == y).float().mean().item()


# %%
# Two runs
# --------
# The callback is the only difference. The :class:`~lightning_prune.ScoreRegistry` keeps the losses by sample. It
# attaches itself; we list it to read it afterwards.


class KeptShare(L.Callback):
    """Notes what share of the samples each epoch trains on."""

    def __init__(self):
        self.shares = []

    def on_train_epoch_end(self, trainer, module):
        self.shares.append(trainer.callback_metrics["prune/kept_fraction"].item())


def fit(*callbacks):
    L.seed_everything(0, verbose=False)
    model = Model()
    trainer = L.Trainer(
        max_epochs=20,
        callbacks=list(callbacks),
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model, DataLoader(train, batch_size=64, shuffle=True))
    return model


full = fit()
registry, kept = ScoreRegistry(), KeptShare()
pruned = fit(registry, InfoBatch(prune_ratio=0.5), kept)

print(f"all samples: {full.accuracy():.1%} of the test digits right")
print(f"InfoBatch:   {pruned.accuracy():.1%}, and {registry.saved_fraction:.1%} of the sample-steps saved")

# %%
# What was saved
# --------------
# ``prune_ratio=0.5`` is not half of the data. InfoBatch leaves out half of the samples *whose loss is below the mean*.
# The first epoch trains on everything, since no loss is known yet. The last 12.5 % of the epochs do so, too: this
# takes away what bias is left ("annealing").

figure, axes = plt.subplots(figsize=(6, 2.5), layout="constrained")
axes.bar(range(20), [100 * share for share in kept.shares], color="#3b7dd8")
axes.set(xlabel="epoch", ylabel="samples trained on, %", ylim=(0, 105))
plt.show()

# %%
# What was left out
# -----------------
# ``registry.counts`` says in how many epochs each sample was trained, ``registry.losses`` what its last loss was.
# Above, digits that were trained least; below, those with the highest losses. The labels are the titles.

least = registry.counts.argsort()[:8]
hardest = registry.losses.argsort(descending=True)[:8]
figure, grid = plt.subplots(2, 8, figsize=(8, 2.6), layout="constrained")
for row, ids in zip(grid, (least, hardest), strict=True):
    for axes, i in zip(row, ids.tolist(), strict=True):
        image, label = train[i]
        axes.imshow(image, cmap="gray_r")
        axes.set_title(f"{label} ({registry.counts[i]} epochs)", fontsize=8)
        axes.axis("off")
plt.show()

# %%
# Where to go on
# --------------
# ``Budget(InfoBatch(), save=0.4)`` sets the ratio so that the whole run saves 40 %. The next tutorial measures which
# method suits a data set. If your loss has class weights or padding, read the page "What the loss means" first.
