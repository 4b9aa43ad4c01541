"""NEWS: 20 Newsgroups in 7 groups, as averaged word vectors, and the 3-layer MLP of Co-teaching+ (2019)."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any, final

import lightning.pytorch as L
import numpy as np
import torch
import torch.nn.functional as F
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, Dataset
from torchmetrics.classification import MulticlassAccuracy

from lightning_prune import WeightedLossMixin

GROUPS = (0, 1, 1, 1, 1, 1, 2, 3, 3, 3, 3, 4, 4, 4, 4, 5, 6, 6, 6, 6)
"""Group of each of the 20 newsgroups: atheism, comp, forsale, rec, sci, christian, talk."""
SHARE = 0.7
"""Share of the texts that train: the first ones."""


@final
class Texts(Dataset[Any]):
    """Texts as vectors: those of their words in a row, averaged down to ``size`` numbers.

    Args:
        vectors: One per word ``(V, D)``.
        words: Word ids ``(n, T)``.
        targets: Class ids ``(n,)``.
        size: Numbers of a text.
    """

    def __init__(self, vectors: np.ndarray, words: np.ndarray, targets: np.ndarray, size: int) -> None:
        self.vectors = torch.as_tensor(np.asarray(vectors, np.float32))
        self.words, self.targets, self.size = torch.as_tensor(words).long(), torch.as_tensor(targets).long(), size

    def __len__(self) -> int:
        return len(self.words)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        row = self.vectors[self.words[index]].reshape(1, -1)
        return F.adaptive_avg_pool1d(row, self.size)[0], self.targets[index]


@final
class NewsData(L.LightningDataModule):
    """``news.pkl`` of https://github.com/xingruiyu/coteaching_plus: word vectors, texts of 1,000 words, newsgroups.

    It is a pickle: take it from nowhere else.

    Args:
        file: Its path.
        size: Numbers that a text is averaged down to.
        batch_size: Samples in a batch of one device.
        num_workers: Processes that load.
    """

    def __init__(
        self, file: str = "data/news.pkl", size: int = 4800, batch_size: int = 128, num_workers: int = 4
    ) -> None:
        super().__init__()
        self.file, self.size, self.batch_size, self.num_workers = Path(file), size, batch_size, num_workers

    def setup(self, stage: str) -> None:
        vectors, words, newsgroups = pickle.loads(self.file.read_bytes(), encoding="iso-8859-1")
        groups, cut = np.array(GROUPS)[np.asarray(newsgroups)], int(SHARE * len(words))
        self.train = Texts(vectors, words[:cut], groups[:cut], self.size)
        self.held_out = Texts(vectors, words[cut:], groups[cut:], self.size)

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.train, self.batch_size, shuffle=True, num_workers=self.num_workers, drop_last=True)

    def val_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.held_out, self.batch_size, num_workers=self.num_workers)


@final
class NewsModule(WeightedLossMixin, L.LightningModule):
    """Three linear layers with batch norms and softsigns, by Adam, whose rate falls from ``decay_from`` on.

    A sample's loss is the cross-entropy of its label, possibly wrong; it depends on the batch by the batch norms.

    Args:
        size: Numbers of a text.
        widths: Units of the two hidden layers.
        num_classes: Number of classes.
        lr: Learning rate.
        decay_from: Share of the epochs after which it falls.
    """

    def __init__(
        self,
        size: int = 4800,
        widths: tuple[int, int] = (1200, 300),
        num_classes: int = 7,
        lr: float = 1e-3,
        decay_from: float = 0.4,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        layers: list[nn.Module] = []
        for below, above in zip((size, *widths), widths, strict=False):
            layers += [nn.Linear(below, above), nn.BatchNorm1d(above), nn.Softsign()]
        self.net = nn.Sequential(*layers, nn.Linear(widths[-1], num_classes))
        self.accuracy = MulticlassAccuracy(num_classes, average="micro")

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        texts, targets = batch
        logits = self.net(texts)
        return self.weighted_loss(F.cross_entropy(logits, targets, reduction="none"), logits=logits, targets=targets)

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        texts, targets = batch
        logits = self.net(texts)
        self.accuracy(logits, targets)
        self.log("val_loss", F.cross_entropy(logits, targets), sync_dist=True)
        self.log("val_accuracy", self.accuracy, prog_bar=True)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        hp: Any = self.hparams
        optimizer = torch.optim.Adam(self.parameters(), lr=hp.lr)
        epochs = self.trainer.max_epochs or 1
        falls = max(1.0, epochs * (1 - hp.decay_from))
        schedule = LambdaLR(optimizer, lambda epoch: min(1.0, (epochs - epoch) / falls))
        return [optimizer], [schedule]
