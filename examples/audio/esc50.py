"""ESC-50: 2,000 sounds of five seconds in 50 classes; Piczak, 2015."""

from __future__ import annotations

import csv
from math import gcd
from pathlib import Path
from typing import Any, final

import lightning.pytorch as L
import numpy as np
import torch
from scipy.io import wavfile
from scipy.signal import resample_poly
from torch import Tensor
from torch.utils.data import DataLoader, Dataset


@final
class Sounds(Dataset[Any]):
    """Waveforms by path, each with mean 0 and variance 1, as ``({"input_values": (T,)}, label)``.

    Args:
        samples: Pairs of path, of a wav file, and label.
        rate: Samples a second, to which the file is resampled.
        seconds: Length to which it is cut or padded.
    """

    def __init__(self, samples: list[tuple[Path, int]], rate: int, seconds: float) -> None:
        if not samples:
            raise ValueError("Expected sounds in each fold, but got a list of none.")
        self.samples, self.rate, self.length = samples, rate, round(rate * seconds)
        self.targets = [label for _, label in samples]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[dict[str, Tensor], int]:
        path, label = self.samples[index]
        rate, wave = wavfile.read(path)
        wave = np.asarray(wave, np.float32)
        wave = wave.mean(1) if wave.ndim == 2 else wave
        common = gcd(rate, self.rate)
        wave = resample_poly(wave, self.rate // common, rate // common)[: self.length]
        wave = (wave - wave.mean()) / np.sqrt(wave.var() + 1e-7)
        padded = np.pad(wave, (0, self.length - len(wave))).astype(np.float32)
        return {"input_values": torch.from_numpy(padded)}, label


@final
class ESC50Data(L.LightningDataModule):
    """The release as it unpacks: ``meta/esc50.csv`` and ``audio/*.wav``, in five folds.

    Args:
        root: Folder with ``meta`` and ``audio``.
        held_out_fold: Which fold validates, from 1 to 5; the others train.
        rate: Samples a second that the model hears.
        seconds: Length of a sound.
        batch_size: Samples in a batch of one device.
        num_workers: Processes that load.
    """

    def __init__(
        self,
        root: str = "data/ESC-50-master",
        held_out_fold: int = 5,
        rate: int = 16_000,
        seconds: float = 5.0,
        batch_size: int = 8,
        num_workers: int = 4,
    ) -> None:
        super().__init__()
        self.root, self.held_out_fold, self.rate, self.seconds = Path(root), held_out_fold, rate, seconds
        self.batch_size, self.num_workers = batch_size, num_workers

    def setup(self, stage: str) -> None:
        with (self.root / "meta" / "esc50.csv").open(newline="", encoding="utf-8") as lines:
            rows = list(csv.DictReader(lines))
        found: dict[bool, list[tuple[Path, int]]] = {True: [], False: []}
        for row in rows:
            sound = self.root / "audio" / row["filename"], int(row["target"])
            found[int(row["fold"]) == self.held_out_fold].append(sound)
        self.train, self.held_out = (Sounds(found[held_out], self.rate, self.seconds) for held_out in (False, True))

    def train_dataloader(self) -> DataLoader[Any]:
        return self.loader(self.train, shuffle=True)

    def val_dataloader(self) -> DataLoader[Any]:
        return self.loader(self.held_out, shuffle=False)

    def loader(self, dataset: Sounds, *, shuffle: bool) -> DataLoader[Any]:
        return DataLoader(dataset, self.batch_size, shuffle=shuffle, num_workers=self.num_workers)
