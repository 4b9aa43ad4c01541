"""Streams that leave out samples, corrected labels; label noise and corruption for experiments, and a loss."""

from lightning_prune.core.pruned_stream import PrunedStream
from lightning_prune.data.corrupted_images import CorruptedImages
from lightning_prune.data.corruption import (
    Fog,
    GaussianNoise,
    LowResolution,
    MotionBlur,
    Occlusion,
    corrupt_images,
)
from lightning_prune.data.noise import inject_label_noise
from lightning_prune.data.noisy_labels import NoisyLabels
from lightning_prune.data.relabelled import Relabelled
from lightning_prune.data.sop import SOPLoss

__all__ = [
    "CorruptedImages",
    "Fog",
    "GaussianNoise",
    "LowResolution",
    "MotionBlur",
    "NoisyLabels",
    "Occlusion",
    "PrunedStream",
    "Relabelled",
    "SOPLoss",
    "corrupt_images",
    "inject_label_noise",
]
