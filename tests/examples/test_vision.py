"""Each vision recipe, through its yaml, on tiny files in the real formats: three epochs of two steps."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from examples.vision.cifar import CIFARData, CIFARNData
from examples.vision.clothing1m import Clothing1MData
from examples.vision.imagenet import ImageNetData
from examples.vision.module import VisionModule, warmup_cosine
from examples.vision.webvision import WebVisionData
from lightning_prune import AlignPrune
from lightning_prune.cli import main
from lightning_prune.data import SOPLoss
from lightning_prune.scoring import load_scores
from tests.examples import files
from tests.examples.conftest import QUICK, ROOT, registry_of
from tests.processes import be_module, forked

SMALL = "{layers: [1, 1, 1, 1], channels: [8, 8, 16, 16]}"
"""A thin ResNet, where what is tested is not the model."""

pytestmark = pytest.mark.filterwarnings("ignore")  # deprecations between Lightning's CLI and jsonargparse


def check(cli, share=None):
    """Some epochs were shorter, and what was trained and logged is finite.

    With ``share`` every epoch leaves exactly that out; else the first trains on everything.
    """
    registry, trainer = registry_of(cli), cli.trainer
    assert trainer.current_epoch == 3
    assert registry.num_samples == files.TRAIN
    assert registry.counts.max() <= 3
    assert registry.losses[registry.counts > 0].isfinite().all()
    if share is None:
        assert registry.counts.min() >= 1
        assert 0 < registry.saved_fraction < 0.67
    else:
        assert registry.saved_fraction == pytest.approx(share)
    assert all(parameter.isfinite().all() for parameter in cli.model.parameters())
    assert 0 <= float(trainer.callback_metrics["val_accuracy"]) <= 1
    assert torch.isfinite(trainer.callback_metrics["val_loss"])


@pytest.mark.parametrize(
    ("config", "name", "share"),
    [
        ("cifar10_resnet18_infobatch", "CIFAR10", None),
        ("cifar10_resnet18_orderdp", "CIFAR10", 0.7),
        ("cifar100_resnet18_seta", "CIFAR100", None),
        ("cifar100_resnet18_repb", "CIFAR100", None),
        ("cifar100_resnet50_infobatch", "CIFAR100", None),
        ("cifar100_resnet50_orderdp", "CIFAR100", 0.7),
    ],
)
def test_cifar(config, name, share, fit, tmp_path, monkeypatch):
    files.write_cifar(tmp_path / "data", name, monkeypatch)
    cli = fit(f"vision/configs/{config}.yaml", data__batch_size=5, model__model_args=SMALL)
    check(cli, share=share)
    assert cli.model.net.conv1.weight.shape[1:] == (3, 3, 3)


@pytest.mark.parametrize("method", ["infobatch", "seta", "repb", "orderdp", "alignprune"])
def test_any_recipe_takes_any_method(method, fit, tmp_path, monkeypatch):
    files.write_cifar(tmp_path / "data", "CIFAR10", monkeypatch)
    quick = {"data__batch_size": 5, "model__model_args": SMALL}
    cli = fit("vision/configs/cifar10_resnet18_infobatch.yaml", f"methods/{method}.yaml", **quick)
    check(cli, share=0.5 if method == "orderdp" else None)
    assert [type(callback).__name__.lower() for callback in cli.trainer.callbacks].count(method) == 1


def test_tdds_scores_then_prunes(fit, tmp_path, monkeypatch):
    files.write_cifar(tmp_path / "data", "CIFAR10", monkeypatch)
    quick = {"data__batch_size": 5, "model__model_args": SMALL}
    window = {"trainer__callbacks__tracker__init_args__window": 3}
    fit("vision/configs/cifar10_resnet18_tdds_score.yaml", **quick, **window)
    scores = load_scores(tmp_path / "scores" / "cifar10_tdds.npz")
    cli = fit("vision/configs/cifar10_resnet18_tdds_prune.yaml", **quick)
    kept = registry_of(cli).counts == 3
    assert kept.sum() == files.TRAIN // 2
    assert set(kept.nonzero().flatten().tolist()) == set(scores.scores.topk(files.TRAIN // 2).indices.tolist())


@pytest.mark.parametrize(
    ("config", "name", "classes", "label_set"),
    [("cifar10n_infobatch", "CIFAR10", 10, "worse_label"), ("cifar100n_seta", "CIFAR100", 100, "noisy_label")],
)
def test_cifar_n(config, name, classes, label_set, fit, tmp_path, monkeypatch):
    clean = files.write_cifar(tmp_path / "data", name, monkeypatch)
    sets = files.write_human_labels(tmp_path / "data" / f"CIFAR-{classes}_human.pt", clean, classes)
    cli = fit(f"vision/configs/{config}.yaml", data__batch_size=5, model__model_args=SMALL)
    check(cli)
    assert cli.datamodule.train.targets == sets[label_set].tolist()
    assert np.mean(np.array(cli.datamodule.train.targets) != np.array(clean)) == 0.4


ALIGNED = [
    ("cifar10n_alignprune", "InfoBatch"),
    ("cifar100n_alignprune", "SeTa"),
    ("webvision50_alignprune", "InfoBatch"),
    ("clothing1m_alignprune", "InfoBatch"),
]


@pytest.mark.parametrize(("config", "base"), ALIGNED)
def test_alignprune(config, base, fit, tmp_path, monkeypatch):
    """With a window of two epochs, so that the third is chosen by alignment."""
    sizes = {"data__image_size": 64, "data__resize": 72, "model__arch": "resnet18", "model__model_args": SMALL}
    if config.startswith("cifar"):
        classes = int(config.removeprefix("cifar").split("n")[0])
        clean = files.write_cifar(tmp_path / "data", f"CIFAR{classes}", monkeypatch)
        files.write_human_labels(tmp_path / "data" / f"CIFAR-{classes}_human.pt", clean, classes)
        sizes = {"model__model_args": SMALL}
    elif config.startswith("webvision"):
        files.write_webvision(tmp_path / "data" / "webvision")
    else:
        files.write_clothing1m(tmp_path / "data" / "clothing1m")
        sizes["model__pretrained"] = "false"
    aligned = {"trainer__callbacks__window": 2, "trainer__callbacks__base__init_args__anneal_ratio": 1.0}
    cli = fit(f"vision/configs/{config}.yaml", data__batch_size=5, **sizes, **aligned)
    check(cli)
    method = next(callback for callback in cli.trainer.callbacks if isinstance(callback, AlignPrune))
    assert type(method.base).__name__ == base
    reference = cli.trainer.callback_metrics["prune/align_reference"]
    assert torch.isfinite(reference)
    if method.reference == "val_loss":
        assert float(reference) == pytest.approx(float(cli.trainer.callback_metrics["val_loss"]), rel=1e-6)


def test_cifar_n_refuses_what_does_not_fit(tmp_path, monkeypatch):
    clean = files.write_cifar(tmp_path, "CIFAR10", monkeypatch)
    path = tmp_path / "CIFAR-10_human.pt"
    files.write_human_labels(path, clean, 10)
    with pytest.raises(ValueError, match=r"one of \['aggre_label', .*but got 'worst_label'"):
        CIFARNData(str(path), "worst_label", root=str(tmp_path)).setup("fit")
    files.write_human_labels(path, clean[::-1], 10)
    with pytest.raises(ValueError, match="`clean_label` differs"):
        CIFARNData(str(path), "worse_label", root=str(tmp_path)).setup("fit")


def test_a_damaged_cifar_is_refused(tmp_path, monkeypatch):
    """Torchvision's check of the files is in force in these tests."""
    files.write_cifar(tmp_path, "CIFAR10", monkeypatch)
    damaged = tmp_path / "cifar-10-batches-py" / "data_batch_3"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    with pytest.raises(RuntimeError, match="not found or corrupted"):
        CIFARData(root=str(tmp_path)).setup("fit")


@pytest.mark.parametrize(
    ("config", "changed", "share"),
    [
        ("imagenet_resnet18_orderdp", {"model__model_args": SMALL}, 0.3),
        ("imagenet_resnet50_orderdp", {"model__model_args": SMALL}, 0.5),  # 7 candidates of 10, then 5 of 7
        ("imagenet_resnet50_infobatch", {"model__model_args": SMALL}, None),
        ("imagenet_swin_t_repb", {"model__model_args": "{img_size: 64, depths: [1, 1, 1, 1], embed_dim: 24}"}, None),
        (
            "imagenet_vit_b_repb",
            {"model__arch": "vit_tiny_patch16_224", "model__model_args": "{img_size: 64, depth: 2}"},
            None,
        ),
    ],
)
def test_imagenet(config, changed, share, fit, tmp_path):
    files.write_imagenet(tmp_path / "data" / "imagenet")
    cli = fit(f"vision/configs/{config}.yaml", data__batch_size=5, data__image_size=64, **changed)
    check(cli, share=share)
    assert cli.datamodule.train.classes == ["n01440764", "n01443537"]


def test_webvision(fit, tmp_path):
    files.write_webvision(tmp_path / "data" / "webvision")
    sizes = {"data__batch_size": 5, "data__image_size": 64, "data__resize": 72, "model__arch": "resnet18"}
    cli = fit("vision/configs/webvision50_infobatch.yaml", **sizes, model__model_args=SMALL)
    check(cli)
    assert [label for _, label in cli.datamodule.train.samples] == [0, 49] * 5  # in the list's order, without class 50
    assert [label for _, label in cli.datamodule.held_out.samples] == [0, 49] * 2
    assert cli.trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.002)  # a tenth from epoch 1 on


def test_clothing1m(fit, tmp_path):
    files.write_clothing1m(tmp_path / "data" / "clothing1m")
    sizes = {"data__batch_size": 5, "data__image_size": 64, "data__resize": 72, "model__pretrained": "false"}
    cli = fit("vision/configs/clothing1m_infobatch.yaml", **sizes, model__model_args=SMALL)
    check(cli)
    assert [label for _, label in cli.datamodule.train.samples] == list(range(10))
    assert {label for _, label in cli.datamodule.held_out.samples} == {13}


def test_images_are_what_the_files_hold(tmp_path):
    """Colour, size and normalisation, for grey images too; validation has no randomness."""
    files.write_imagenet(tmp_path / "imagenet")
    files.write_webvision(tmp_path / "webvision")
    files.write_clothing1m(tmp_path / "clothing1m")
    for data in (
        ImageNetData(str(tmp_path / "imagenet"), image_size=32, augment="randaugment", erase=1.0),
        WebVisionData(str(tmp_path / "webvision"), image_size=32, resize=36),
        Clothing1MData(str(tmp_path / "clothing1m"), image_size=32, resize=36),
    ):
        data.setup("fit")
        assert {data.train[i][0].shape for i in range(files.TRAIN)} == {(3, 32, 32)}
        first, again = data.held_out[0][0], data.held_out[0][0]
        assert first.equal(again)
        assert first.dtype == torch.float32
        assert -2.2 <= first.min() < first.max() <= 2.7


def test_missing_classes_are_named(tmp_path):
    files.write_webvision(tmp_path)
    with pytest.raises(ValueError, match="none of the wanted classes"):
        WebVisionData(str(tmp_path), num_classes=0).setup("fit")


def test_mixed_targets_are_recorded_without_their_labels(fit, tmp_path):
    """MixUp's (B, C) targets train and are scored; a loss is finite and positive."""
    files.write_imagenet(tmp_path / "data" / "imagenet")
    mixed = {"model__mixup": 0.8, "model__cutmix": 1.0, "data__batch_size": 5, "data__image_size": 32}
    mixed["model__model_args"] = SMALL
    cli = fit("vision/configs/imagenet_resnet18_orderdp.yaml", **mixed)
    assert (registry_of(cli).losses > 0).all()


def test_bf16(fit, tmp_path, monkeypatch):
    files.write_cifar(tmp_path / "data", "CIFAR10", monkeypatch)
    config = "vision/configs/cifar10_resnet18_orderdp.yaml"
    quick = {"data__batch_size": 5, "model__model_args": SMALL}
    cli = fit(config, **quick, trainer__precision="bf16-mixed")
    check(cli, share=0.7)


@pytest.mark.ddp
def test_ddp_by_flag(tmp_path):
    files.write_imagenet(tmp_path / "data")
    config = ROOT / "examples" / "vision" / "configs" / "imagenet_resnet18_orderdp.yaml"
    options = {**QUICK, "trainer.devices": 2, "trainer.strategy": "ddp", "data.batch_size": 3, "data.image_size": 64}
    options |= {"data.root": tmp_path / "data", "trainer.enable_progress_bar": "true", "model.model_args": SMALL}
    given = [f"--{name}={value}" for name, value in options.items()]
    said = forked(be_module, "lightning_prune.cli", "fit", f"--config={config}", *given, folder=tmp_path)
    assert "max_epochs=3` reached" in said
    assert "prune/kept" in said
    assert "0.700" in said


def test_schedules_end_with_the_run():
    factors = [warmup_cosine(step / 100, 0.1) for step in range(101)]
    assert factors[10] == max(factors) == 1
    assert factors[-1] == pytest.approx(0)
    assert all(factor > 0 for factor in factors[:-1])
    assert np.all(np.diff(factors[:11]) > 0)
    assert np.all(np.diff(factors[10:]) < 0)


def test_lars_adapts_every_parameter():
    """Timm's LARS leaves what it does not decay at the full rate, thousands of times too high for it."""
    model = VisionModule(optimizer="lars", lr=5.2)
    model._trainer = type("Trainer", (), {"estimated_stepping_batches": 10})()
    groups = model.configure_optimizers()["optimizer"].param_groups
    assert {group["weight_decay"] for group in groups} == {5e-4}


@pytest.mark.parametrize("method", ["alignprune", "infobatch", "prune4rel"])
def test_sop_with_pruning(method, fit, tmp_path, monkeypatch):
    """Two views and three parameter groups; only rows of samples that were trained move."""
    clean = files.write_cifar(tmp_path / "data", "CIFAR10", monkeypatch)
    files.write_human_labels(tmp_path / "data" / "CIFAR-10_human.pt", clean, 10)
    quick = {"model__model_args": SMALL, "model__num_samples": files.TRAIN, "data__batch_size": 5}
    configs = ["vision/configs/cifar10n_sop_alignprune.yaml"]
    if method == "prune4rel":
        (tmp_path / "scores").mkdir()
        data = ROOT / "examples" / configs[0]
        options = {**QUICK, **{name.replace("__", "."): value for name, value in quick.items()}}
        command = ["score", f"--config={data}", "--method=Prune4ReL", "--save_to=scores/prune4rel.npz"]
        main([*command, *(f"--{name}={value}" for name, value in options.items())])
    if method != "alignprune":
        configs.append(f"methods/{method}.yaml")
    aligned = {"trainer__callbacks__window": 2, "trainer__callbacks__base__init_args__anneal_ratio": 1.0}
    cli = fit(*configs, **quick, **(aligned if method == "alignprune" else {}))
    check(cli, share=0.3 if method == "prune4rel" else None)
    groups = cli.trainer.optimizers[0].param_groups
    assert [group["momentum"] for group in groups] == [0.9, 0, 0]
    assert [group["lr"] for group in groups[1:]] == [10, 100]
    start = SOPLoss(files.TRAIN, 10, generator=torch.Generator().manual_seed(0)).v
    moved = (cli.model.sop.v != start).any(1)
    assert bool(moved.any())
    assert not bool(moved[registry_of(cli).counts == 0].any())
