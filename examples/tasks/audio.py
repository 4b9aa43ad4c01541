"""Sounds by their spectrograms: Speech Commands. ``lightning-prune fit --config examples/tasks/audio.yaml``

**The loss of a sample** is the cross-entropy of its label, as for images. Waves shorter than a second are padded with
silence before the spectrogram, so every sample has as many frames, and no mask is needed.

**Pruning** leaves out words that are told well; no sample's loss depends on its batch, since each spectrogram is
normalised by its own mean and deviation.

Data: ``root/<word>/*.wav`` of 16,000 samples a second and 16 bits, ``root/validation_list.txt`` and
``root/testing_list.txt``; files that these name are not trained on, nor is ``_background_noise_``.
"""

from __future__ import annotations

import wave
from pathlib import Path
from typing import Any, final

import lightning.pytorch as L
import numpy as np
import torch
import torch.nn.functional as F
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.utils.data import Dataset
from transformers import ASTConfig, ASTForAudioClassification
from transformers.audio_utils import mel_filter_bank

from examples.tasks.data import TaskData
from lightning_prune import WeightedLossMixin

RATE, FRAME, HOP, BINS = 16_000, 400, 160, 128
"""Samples a second, of a frame, and from frame to frame; and bands of a spectrogram."""


@final
class Waves(Dataset[Any]):
    """Waves ``(16000,)`` in [-1, 1] and the numbers of their words."""

    def __init__(self, paths: list[Path]) -> None:
        self.paths, self.words = paths, sorted({path.parent.name for path in paths})

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        path = self.paths[index]
        with wave.open(str(path)) as file:
            samples = np.frombuffer(file.readframes(RATE), "<i2").astype(np.float32) / 32768
        return torch.from_numpy(np.pad(samples, (0, RATE - len(samples)))), self.words.index(path.parent.name)


@final
class SpeechCommands(TaskData):
    """Google's Speech Commands, as it unpacks."""

    def dataset(self) -> Waves:
        lists = [self.root / f"{split}_list.txt" for split in ("validation", "testing")]
        held_out = {self.root / name for file in lists for name in file.read_text().split()}
        return Waves(sorted(set(self.root.glob("[!_]*/*.wav")) - held_out))


@final
class SpectrogramClassifier(WeightedLossMixin, L.LightningModule):
    """Gong et al., "AST: Audio Spectrogram Transformer", Interspeech 2021.

    Args:
        num_classes: Number of classes.
        model_args: What differs from transformers' `ASTConfig`.
        lr: Learning rate of AdamW.
    """

    def __init__(self, num_classes: int = 35, model_args: dict[str, Any] | None = None, lr: float = 2.5e-4) -> None:
        super().__init__()
        self.lr = lr
        shape = {"max_length": RATE // HOP + 1, "num_mel_bins": BINS, "num_labels": num_classes}
        self.net = ASTForAudioClassification(ASTConfig(**shape, **(model_args or {})))
        bands = mel_filter_bank(FRAME // 2 + 1, BINS, 20.0, RATE / 2, RATE)
        self.register_buffer("bands", torch.tensor(bands, dtype=torch.float32))
        self.register_buffer("window", torch.hann_window(FRAME))
        self.bands: Tensor
        self.window: Tensor

    def spectrograms(self, waves: Tensor) -> Tensor:
        """Return logarithms of power ``(B, frames, bands)`` of waves ``(B, 16000)``, normalised one by one."""
        with torch.autocast(waves.device.type, enabled=False):  # a product in bfloat16 would be too coarse
            spectra: Tensor = torch.stft(waves, FRAME, HOP, window=self.window, return_complex=True).abs().square()
            logs = (spectra.transpose(1, 2) @ self.bands).clamp(min=1e-10).log()
        return (logs - logs.mean((1, 2), keepdim=True)) / (logs.std((1, 2), keepdim=True) + 1e-5)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        waves, targets = batch
        logits = self.net(self.spectrograms(waves)).logits
        losses = F.cross_entropy(logits, targets, reduction="none")
        return self.weighted_loss(losses, logits=logits, targets=targets)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        return torch.optim.AdamW(self.parameters(), lr=self.lr)
