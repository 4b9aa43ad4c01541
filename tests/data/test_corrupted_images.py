"""Any data module, with corrupted images in training."""

from __future__ import annotations

from typing import NamedTuple

import lightning.pytorch as L
import pytest
import torch
import torch.nn.functional as F
import yaml
from lightning.pytorch import LightningDataModule
from torch.utils.data import Dataset, TensorDataset
from torchvision.transforms.functional import pil_to_tensor, to_pil_image

from lightning_prune import WeightedLossMixin
from lightning_prune.cli import PruneCLI
from lightning_prune.data import CorruptedImages, Fog, LowResolution, MotionBlur, Occlusion

pytestmark = pytest.mark.filterwarnings("ignore:.*pin_memory.*:UserWarning")  # of `from_datasets`


def make_images(num=20):
    return torch.randint(256, (num, 3, 32, 32), generator=torch.Generator().manual_seed(0)).to(torch.uint8)


class Bytes(LightningDataModule):
    """Images as bytes; the batches are scaled, as a model of vectors wants them."""

    def train_dataloader(self):
        return torch.utils.data.DataLoader(TensorDataset(make_images(), torch.arange(20) % 2), 4, shuffle=True)

    def on_after_batch_transfer(self, batch, dataloader_idx):
        images, labels = batch
        return images.float().mean((2, 3)) / 255, labels


class Rows(WeightedLossMixin, L.LightningModule):
    """A linear model of three colours."""

    def __init__(self):
        super().__init__()
        self.net = torch.nn.Linear(3, 2)

    def training_step(self, batch, batch_idx):
        images, labels = batch
        return self.weighted_loss(F.cross_entropy(self.net(images), labels, reduction="none"))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


class Sample(NamedTuple):
    label: int
    image: object


class Pictures(Dataset):
    def __len__(self):
        return 20

    def __getitem__(self, index):
        return Sample(index % 2, to_pil_image(make_images()[index]))


def around(dataset, **arguments):
    module = LightningDataModule.from_datasets(dataset, dataset, batch_size=4)
    return CorruptedImages(module, **{"rate": 0.1, **arguments})


def test_a_share_of_the_training_images_is_corrupted_once_and_others_are_not():
    images = make_images()
    module = around(TensorDataset(images, torch.arange(20)))
    dataset = module.train_dataloader().dataset
    assert [int((dataset.corruption == kind).sum()) for kind in range(-1, 5)] == [10, 2, 2, 2, 2, 2]
    assert torch.equal(dataset.corrupted, dataset.corruption >= 0)
    for kind, transform in enumerate((MotionBlur(), Fog(), LowResolution(), Occlusion())):
        for index in (dataset.corruption == kind).nonzero().squeeze(1).tolist():
            assert torch.equal(dataset[index][0], transform(images[index]))
    noise = [dataset[index][0] for index in (dataset.corruption == 4).nonzero().squeeze(1).tolist()]
    assert all((image.float().mean() - 255 * 0.5).abs() < 40 and image.float().std() > 80 for image in noise)
    assert all(torch.equal(dataset[i][0], images[i]) for i in (~dataset.corrupted).nonzero().squeeze(1).tolist())
    assert [int(dataset[i][1]) for i in range(20)] == list(range(20))
    again = around(TensorDataset(images, torch.arange(20))).train_dataloader().dataset
    assert all(torch.equal(again[i][0], dataset[i][0]) for i in range(20))
    other = around(TensorDataset(images, torch.arange(20)), noise_seed=1).train_dataloader().dataset
    assert not torch.equal(other.corruption, dataset.corruption)
    assert all(torch.equal(module.val_dataloader().dataset[i][0], images[i]) for i in range(20))


def test_pil_images_of_a_named_tuple_and_what_comes_after():
    images = make_images()
    dataset = around(Pictures(), position=1).train_dataloader().dataset
    index = int((dataset.corruption == 3).nonzero()[0])
    assert isinstance(dataset[index], Sample)
    assert torch.equal(pil_to_tensor(dataset[index].image), Occlusion()(images[index]))
    after = around(Pictures(), position=1, transform=pil_to_tensor).train_dataloader().dataset
    assert torch.equal(after[index].image, Occlusion()(images[index]))


@pytest.mark.filterwarnings("ignore")
def test_from_yaml_with_wrong_labels(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    corrupted = {
        "class_path": "lightning_prune.data.CorruptedImages",
        "init_args": {
            "data": {"class_path": f"{__name__}.Bytes"},
            "rate": 0.1,
            "transform": {"class_path": "torchvision.transforms.RandomHorizontalFlip"},
        },
    }
    callbacks = [
        {"class_path": "InfoBatch"},
        {"class_path": "lightning_prune.PruningMonitor", "init_args": {"flipped": "corrupted"}},
    ]
    config = {
        "trainer": {"max_epochs": 2, "accelerator": "cpu", "logger": False, "enable_checkpointing": False,
                    "callbacks": callbacks},
        "model": {"class_path": f"{__name__}.Rows"},
        "data": {"class_path": "lightning_prune.data.NoisyLabels",
                 "init_args": {"data": corrupted, "rate": 0.2, "num_classes": 2}},
    }  # fmt: skip
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    cli = PruneCLI(args=["fit", "--config", "config.yaml"], save_config_callback=None)
    metrics = cli.trainer.callback_metrics
    assert 0 < float(metrics["prune/noise_ratio"]) < 1
    assert cli.trainer.train_dataloader.dataset.flipped.sum() == 4


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (lambda: CorruptedImages(make_images()), TypeError, "`data` to be a LightningDataModule, but got Tensor"),
        (lambda: around(Pictures(), rate=0.3), ValueError, "Expected `rate`"),
        (lambda: around(Pictures(), noise_seed=-1), ValueError, "Expected `noise_seed`"),
        (
            lambda: around(TensorDataset(torch.zeros(20, 3, 8, 8), torch.arange(20))).train_dataloader(),
            TypeError,
            "uint8 tensor .* but got torch.float32. Build the data module without its transform",
        ),
    ],
)
def test_mistakes(make, error, match):
    with pytest.raises(error, match=match):
        make()
