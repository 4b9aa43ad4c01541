"""Captions of videos: MSR-VTT. ``lightning-prune fit --config examples/tasks/video_captioning.yaml``

**The loss of a sample**, a video with one of its captions, is that of ``examples/tasks/captioning.py``, whose module
this is: the mean cross-entropy of the caption's own tokens. The decoder attends to the patches of all frames, so there
is one loss a pair, however many frames are seen.

**Pruning** leaves out pairs whose caption is predicted well; no sample's loss depends on its batch. MSR-VTT has twenty
captions a video: a video is seen as long as one of them is kept.

Data: ``root/train_val_videodatainfo.json``, and the frames of each video, in order, ``root/frames/video0/*.jpg``, such
as ``ffmpeg -i video0.mp4 -vf fps=2 frames/video0/%04d.jpg`` writes.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.datasets.folder import default_loader
from torchvision.transforms import v2

from examples.tasks.texts import ImageTextData
from examples.vision.data import IMAGENET, to_tensor


@final
class VideosWithTexts(Dataset[Any]):
    """Pairs of a video's frames ``(frames, 3, *size)`` and a text; each pair is a sample.

    Args:
        pairs: Folder of the frames, and text, of each.
        frames: Frames that are seen, at equal distances; of a shorter video some are seen twice.
        size: Height and width that they are scaled to.
    """

    def __init__(self, pairs: list[tuple[Path, str]], frames: int, size: tuple[int, int]) -> None:
        self.pairs, self.frames = pairs, frames
        self.transform = v2.Compose([v2.Resize(size), *to_tensor(*IMAGENET)])

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> tuple[Tensor, str]:
        folder, text = self.pairs[index]
        paths = sorted(folder.glob("*.jpg"))
        if not paths:
            raise ValueError(f"Expected frames of a video, '*.jpg', in {str(folder)!r}, but got none.")
        seen = [paths[i * len(paths) // self.frames] for i in range(self.frames)]
        return torch.stack([self.transform(default_loader(str(path))) for path in seen]), text


@final
class MSRVTT(ImageTextData):
    """Frames of MSR-VTT's training videos, each with one of its captions.

    Args:
        root: Folder of the data.
        frames: Frames of a video that are seen.
        size: Height and width that they are scaled to.
        max_length: Tokens of a text that are read.
        batch_size: Samples in a batch of one device.
        num_workers: Processes that load.
    """

    def __init__(
        self,
        root: str,
        frames: int = 8,
        size: tuple[int, int] = (224, 224),
        max_length: int = 128,
        batch_size: int = 16,
        num_workers: int = 4,
    ) -> None:
        super().__init__(root, size, max_length, batch_size, num_workers)
        self.frames = frames

    def dataset(self) -> VideosWithTexts:
        found = json.loads((self.root / "train_val_videodatainfo.json").read_text())
        train = {video["video_id"] for video in found["videos"] if video["split"] == "train"}
        sentences = [one for one in found["sentences"] if one["video_id"] in train]
        pairs = [(self.root / "frames" / one["video_id"], one["caption"]) for one in sentences]
        return VideosWithTexts(pairs, self.frames, self.size)
