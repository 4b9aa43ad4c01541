"""
Finding wrong labels
====================

A training shows which labels do not fit. :class:`~lightning_prune.LabelIssues` collects the evidence during an
ordinary run, or a pruned one. We turn one label in ten into a wrong one, find them again, and correct them. You need
``pip install 'lightning-prune[examples,plot]'``.
"""

import logging
import warnings

import lightning.pytorch as L
import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from sklearn.metrics import precision_recall_curve
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_prune import InfoBatch, LabelIssues, WeightedLossMixin
from lightning_prune.data import Relabelled, inject_label_noise

warnings.filterwarnings("ignore", module=r"lightning\.")  # Lightning's own advice
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)

# %%
# The data
# --------

digits = load_digits()
images = torch.tensor(digits.images, dtype=torch.float32) / 16
clean = torch.tensor(digits.target)
order = torch.randperm(len(clean), generator=torch.Generator().manual_seed(0))
held_out, ids = order[:360], order[360:]
generator = torch.Generator().manual_seed(0)
noisy, wrong = inject_label_noise(clean[ids], "symmetric", 0.1, 10, generator=generator)
train = TensorDataset(images[ids], noisy)
print(f"{int(wrong.sum())} of {len(wrong)} labels are wrong")

# %%
# One run
# -------
# The module passes ``logits`` and ``targets``, too: that is all the callback needs. InfoBatch beside it is not needed.


class Model(WeightedLossMixin, L.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))

    def training_step(self, batch, batch_idx):
        x, y = batch
        logits = self.net(x)
        losses = F.cross_entropy(logits, y, reduction="none")
        return self.weighted_loss(losses, logits=logits, targets=y)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)

    def accuracy(self):
        return (self.net(images[held_out]).argmax(1) == clean[held_out]).float().mean().item()


def fit(dataset, *callbacks):
    L.seed_everything(0, verbose=False)
    model = Model()
    trainer = L.Trainer(
        max_epochs=15,
        callbacks=list(callbacks),
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model, DataLoader(dataset, batch_size=64, shuffle=True))
    return model


issues = LabelIssues()
before = fit(train, InfoBatch(prune_ratio=0.5), issues)
print(f"estimated number of wrong labels: {issues.num_issues}")

# %%
# Suspicious labels
# -----------------
# ``issues.issues()`` is a table of all samples, the most suspicious first: the label, the one suggested instead, and
# a score in [0, 1]. Titles say what is given, and what is suggested.

table = issues.issues()
figure, grid = plt.subplots(2, 8, figsize=(8, 2.6), layout="constrained")
for axes, i, given, suggested in zip(
    grid.flat, table["index"].tolist(), table["given"].tolist(), table["suggested"].tolist(), strict=False
):
    axes.imshow(train[i][0], cmap="gray_r")
    axes.set_title(f"{given}: a {suggested}?", fontsize=8)
    axes.axis("off")
plt.show()

# %%
# How good is it?
# ---------------
# Here we know which labels are wrong. Precision is the share of wrong ones among the first labels of the table, recall
# the share of the wrong labels that are among them.

precision, recall, _ = precision_recall_curve(wrong[table["index"]], table["score"])
figure, axes = plt.subplots(figsize=(4, 3), layout="constrained")
axes.plot(recall, precision, color="#3b7dd8")
axes.set(xlabel="recall", ylabel="precision", xlim=(0, 1.02), ylim=(0, 1.05))
plt.show()

# %%
# Correct them
# ------------
# ``suggestions`` holds the labels to change; :class:`~lightning_prune.data.Relabelled` is the dataset with these.
# Nothing is written into your data. In practice, look at the labels first: a person decides, not a threshold.

suggestions = issues.suggestions(min_score=0.5)
after = fit(Relabelled(train, suggestions), InfoBatch(prune_ratio=0.5))
print(f"{len(suggestions)} labels changed")
print(f"test accuracy before: {before.accuracy():.1%}, after: {after.accuracy():.1%}")

# %%
# ``issues.save("labels.csv")`` writes the table. ``lightning-prune find-label-issues --config train.yaml`` does all of
# this from a configuration.
