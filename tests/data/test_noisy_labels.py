"""Any data module, with wrong labels in training."""

from __future__ import annotations

import pytest
import torch
import yaml
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, Dataset

from lightning_prune import InfoBatch, PruningMonitor
from lightning_prune.cli import main
from lightning_prune.data import NoisyLabels
from tests.helpers import Model, make_dataset, make_trainer

pytestmark = pytest.mark.filterwarnings("ignore:.*pin_memory.*:UserWarning")  # of `from_datasets`


class Mapped(Dataset):
    def __len__(self):
        return 40

    def __getitem__(self, index):
        return {"x": torch.zeros(2), "y": index % 4}


def module():
    return LightningDataModule.from_datasets(make_dataset(40), make_dataset(40), batch_size=4)


def test_training_labels_are_wrong_and_others_are_not():
    noisy = NoisyLabels(module(), rate=0.25, num_classes=2)
    loader = noisy.train_dataloader()
    clean = make_dataset(40)
    given = torch.tensor([int(loader.dataset[i][1]) for i in range(40)])
    assert torch.equal(given != clean.tensors[1], loader.dataset.flipped)
    assert int(loader.dataset.flipped.sum()) == 10
    assert isinstance(loader, DataLoader)
    assert loader.batch_size == 4
    assert all(int(noisy.val_dataloader().dataset[i][1]) == int(clean.tensors[1][i]) for i in range(40))
    assert noisy.train_dataloader().dataset is not None
    again = NoisyLabels(module(), rate=0.25, num_classes=2).train_dataloader().dataset.flipped
    other = NoisyLabels(module(), rate=0.25, num_classes=2, noise_seed=1).train_dataloader().dataset.flipped
    assert torch.equal(again, loader.dataset.flipped)
    assert not torch.equal(other, loader.dataset.flipped)


def test_labels_by_key_and_one_by_one():
    noisy = NoisyLabels(LightningDataModule.from_datasets(Mapped(), batch_size=4), "pairflip", 0.5, 4, position="y")
    dataset = noisy.train_dataloader().dataset
    changed = [i for i in range(40) if dataset[i]["y"] != i % 4]
    assert changed == dataset.flipped.nonzero().squeeze(1).tolist()
    assert all(dataset[i]["y"] == (i + 1) % 4 for i in changed)


def test_a_run_trains_on_them_and_watches_them():
    noisy = NoisyLabels(module(), rate=0.4, num_classes=2)
    trainer = make_trainer(InfoBatch(seed=0), PruningMonitor(flipped="flipped"))
    trainer.fit(Model(), datamodule=noisy)
    assert 0.2 < float(trainer.callback_metrics["prune/noise_ratio"]) < 0.8


@pytest.mark.filterwarnings("ignore")
def test_from_yaml(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    inner = {"class_path": "examples.digits.task.DigitsData"}
    config = {
        "trainer": {"max_epochs": 1, "accelerator": "cpu", "logger": False, "enable_checkpointing": False,
                    "limit_train_batches": 4, "callbacks": [{"class_path": "InfoBatch"}]},
        "model": {"class_path": "examples.digits.task.DigitsModel", "init_args": {"width": 2}},
        "data": {"class_path": "lightning_prune.data.NoisyLabels", "init_args": {"data": inner, "rate": 0.3}},
    }  # fmt: skip
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    main(["fit", "--config", "config.yaml"])


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"data": make_dataset(4)}, TypeError, "`data` to be a LightningDataModule, but got TensorDataset"),
        ({"kind": "odd"}, ValueError, "Expected `kind`"),
        ({"rate": 1.5}, ValueError, "Expected `rate`"),
        ({"num_classes": 1}, ValueError, "Expected `num_classes`"),
    ],
)
def test_mistakes(arguments, error, match):
    with pytest.raises(error, match=match):
        NoisyLabels(**{"data": module(), **arguments})


def test_what_is_no_loader_of_a_map_style_dataset_is_refused():
    class Lists(LightningDataModule):
        def train_dataloader(self):
            return [1, 2]

    with pytest.raises(TypeError, match="to return a DataLoader of a map-style dataset, but got list"):
        NoisyLabels(Lists()).train_dataloader()
