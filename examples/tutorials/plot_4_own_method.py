"""
A method of my own
==================

A method is one function: given the losses that are known, which samples does the next epoch train on? We write one
and train with it. Then we hand it to the tests that the package's own methods go through. You need
``pip install 'lightning-prune[examples,plot,testing]'``.
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

from lightning_prune import PruningCallback, PruningMonitor, Selection, WeightedLossMixin
from lightning_prune.testing import MethodContract

warnings.filterwarnings("ignore", module=r"lightning\.")  # Lightning's own advice
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)

# %%
# The method
# ----------
# ``DropEasiest`` leaves out the samples with the lowest losses. A share of them, drawn anew in each epoch, is
# trained all the same, so that their losses are not forgotten. ``registry.scores`` are the last losses, NaN where a
# sample was never trained.
#
# Two rules make a method work under DDP and after a resume. ``select`` is a pure function of its arguments. All random
# numbers come from the ``generator``, which lives on the CPU. The types of the arguments let a yaml file set them.


class DropEasiest(PruningCallback):
    def __init__(
        self,
        prune_ratio: float = 0.4,
        explore: float = 0.1,
        *,
        seed: int | None = None,
        warmup_epochs: int = 0,
        scale_lr_schedule: bool = True,
        log: bool = True,
    ):
        super().__init__(seed=seed, warmup_epochs=warmup_epochs, scale_lr_schedule=scale_lr_schedule, log=log)
        self.prune_ratio = prune_ratio
        self.explore = explore

    def select(self, registry, epoch, generator):
        losses = registry.scores.nan_to_num(nan=torch.inf)  # never trained, or broken: keep
        easiest = losses.argsort(stable=True)[: int(self.prune_ratio * registry.num_samples)]
        stays = torch.rand(len(easiest), generator=generator).to(easiest.device) < self.explore
        mask = torch.ones(registry.num_samples, dtype=torch.bool, device=easiest.device)
        mask[easiest] = stays | losses[easiest].isinf()
        return Selection.from_mask(mask)


# %%
# A run with it
# -------------
# :class:`~lightning_prune.PruningMonitor` measures what a method does: here, how much consecutive selections overlap,
# and what share of each class they keep.

digits = load_digits()
images = torch.tensor(digits.images, dtype=torch.float32) / 16
train = TensorDataset(images, torch.tensor(digits.target))


class Model(WeightedLossMixin, L.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))

    def training_step(self, batch, batch_idx):
        x, y = batch
        return self.weighted_loss(F.cross_entropy(self.net(x), y, reduction="none"))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


L.seed_everything(0, verbose=False)
monitor = PruningMonitor(targets=1)  # the dataset's tensor with the classes
trainer = L.Trainer(
    max_epochs=10,
    callbacks=[DropEasiest(), monitor],
    accelerator="cpu",
    logger=False,
    enable_checkpointing=False,
    enable_progress_bar=False,
    enable_model_summary=False,
)
trainer.fit(Model(), DataLoader(train, batch_size=64, shuffle=True))
print(f"{trainer.callback_metrics['prune/saved_fraction']:.1%} of the sample-steps saved")

figure, axes = plt.subplots(figsize=(6, 3), layout="constrained")
epochs = [values["epoch"] for values in monitor.history]
for name, label in (
    ("class_kept_max", "kept of the class that is kept most"),
    ("class_kept_min", "kept of the class that is kept least"),
    ("jaccard", "overlap with the epoch before"),
):
    axes.plot(epochs, [values.get(name, float("nan")) for values in monitor.history], label=label)
axes.set(xlabel="epoch", ylabel="share", ylim=(0, 1.05))
axes.legend(fontsize=8)
plt.show()

# %%
# Its tests
# ---------
# In a project of your own, these lines are a file ``test_mine.py``, and ``pytest test_mine.py`` runs all tests of the
# contract: resume in mid-epoch, two processes, a kill, broken losses, permuted samples, and more.


class TestDropEasiest(MethodContract):
    method = staticmethod(lambda: DropEasiest(0.5))
    neutral = staticmethod(lambda: DropEasiest(0.0))


# %%
# A notebook is no place for pytest, so we call a few of the tests ourselves. A test that fails raises an error.

contract = TestDropEasiest()
for test in (
    contract.test_it_prunes,
    contract.test_nothing_to_prune_is_the_run_without_it,
    contract.test_global_random_numbers_are_left_alone,
    contract.test_selecting_changes_nothing,
    contract.test_permuting_the_samples,
):
    test()
    print(f"{test.__name__}: {(test.__doc__ or '').strip().splitlines()[0]}")

# %%
# The page "Test a method, or a score, of your own" lists all tests and the attributes that say what yours promises.
# A method with state puts it into columns of the registry, as the page "How it works" explains.
