"""Every model of the examples trains all of itself: each of its parameters is given a gradient by a training step."""

from __future__ import annotations

import ast
import json
import tempfile
from pathlib import Path

import pytest
import torch

from examples.adapters.detection import DetectionModule
from examples.adapters.masked_lm import MaskedLMModule
from examples.adapters.segmentation import SegmentationModule
from examples.cifar.task import Cifar10Model
from examples.digits.static import ScaledModel
from examples.digits.task import DigitsModel
from examples.experiments.label_issues import CifarModel
from examples.experiments.noise import NoisyModel
from examples.glyphs.task import GlyphModel
from examples.text.module import TextModule
from examples.text.news import NewsModule
from examples.vision.mae import MAEPretraining
from examples.vision.module import VisionModule
from examples.vision.sop import SOPModule
from tests.examples.conftest import ROOT

pytestmark = pytest.mark.filterwarnings("ignore:.*(CUDA|cuda).*:UserWarning")


def images(channels, size, classes=3):
    return torch.randn(4, channels, size, size), torch.arange(4) % classes


def detection():
    targets = [{"boxes": torch.tensor([[4.0, 4.0, 40.0, 50.0]]), "labels": torch.tensor([i])} for i in (1, 2)]
    batch = [torch.rand(3, 64, 64) for _ in targets], targets
    return DetectionModule(num_classes=3, backbone="resnet18", pretrained=False, size=64), batch


def hugging_face():
    transformers = pytest.importorskip("transformers")
    from examples.adapters.huggingface import HuggingFaceClassifier

    config = transformers.BertConfig(
        vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8
    )
    return HuggingFaceClassifier(config), {"input_ids": torch.randint(20, (4, 6)), "labels": torch.arange(4) % 2}


def pretrained():
    pytest.importorskip("transformers")
    from examples.text.pretrained import PretrainedClassifier

    size = {
        "vocab_size": 20,
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 8,
    }
    folder = Path(tempfile.mkdtemp())
    (folder / "config.json").write_text(json.dumps({"model_type": "bert", **size}))
    return PretrainedClassifier(str(folder), pretrained=False), (
        {"input_ids": torch.randint(20, (4, 6))},
        torch.arange(4),
    )


def masked_autoencoder():
    small = {"img_size": 32, "depth": 1, "embed_dim": 16, "num_heads": 2}
    return MAEPretraining(model_args=small, decoder_width=16, decoder_depth=1, decoder_heads=2), images(3, 32)


def text():
    return TextModule(3, vocabulary=20, width=32, layers=1), (torch.randint(1, 20, (4, 128)), torch.arange(4) % 3)


def segmentation():
    model = SegmentationModule("fcn_resnet50", 3, model_args={"aux_loss": True})
    return model, (torch.randn(2, 3, 32, 32), torch.randint(3, (2, 32, 32)))


def two_views():
    model = SOPModule(4, 3, model_args={"layers": [1, 1, 1, 1], "channels": [8, 8, 8, 8]})
    views, targets = images(3, 32)
    return model, ((views, views.flip(3)), targets, torch.arange(4))


MODELS = {
    "CifarModel": lambda: (CifarModel(), (torch.randint(256, (4, 3, 32, 32), dtype=torch.uint8), torch.arange(4))),
    "Cifar10Model": lambda: (Cifar10Model(), (torch.randint(256, (4, 3, 32, 32), dtype=torch.uint8), torch.arange(4))),
    "DetectionModule": detection,
    "DigitsModel": lambda: (DigitsModel(width=2), images(1, 8)),
    "GlyphModel": lambda: (GlyphModel(num_classes=3, width=2), images(1, 32)),
    "HuggingFaceClassifier": hugging_face,
    "MAEPretraining": masked_autoencoder,
    "MaskedLMModule": lambda: (MaskedLMModule(20, width=32, layers=1), torch.randint(3, 19, (4, 20))),
    "NewsModule": lambda: (NewsModule(12, (8, 4)), (torch.randn(4, 12), torch.arange(4))),
    "NoisyModel": lambda: (NoisyModel(), images(1, 8)),
    "PretrainedClassifier": pretrained,
    "SOPModule": two_views,
    "ScaledModel": lambda: (ScaledModel(), [*images(1, 8), torch.rand(4)]),
    "SegmentationModule": segmentation,
    "TextModule": text,
    "VisionModule": lambda: (
        VisionModule("resnet18", 3, model_args={"layers": [1, 1, 1, 1], "channels": [8, 8, 8, 8]}, cifar_stem=True),
        images(3, 32),
    ),
}  # fmt: skip
"""By class name: a small model, and a batch of its data."""


def test_every_model_is_here():
    found = set()
    elsewhere = {
        *ROOT.glob("examples/tutorials/**/*.py"),
        *ROOT.glob("examples/tasks/*.py"),
    }  # test_tasks.py runs these
    for path in sorted({*ROOT.glob("examples/**/*.py")} - elsewhere):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                bases = {ast.unparse(base) for base in node.bases}
                if bases & {"L.LightningModule", "DigitsClassifier"} and "ABC" not in bases:
                    found.add(node.name)
    assert found == set(MODELS)


@pytest.mark.parametrize("name", MODELS)
def test_every_parameter_is_given_a_gradient(name):
    torch.manual_seed(0)
    model, batch = MODELS[name]()
    model.training_step(batch, 0).backward()
    assert [key for key, value in model.named_parameters() if value.requires_grad and value.grad is None] == []


def test_the_noise_experiment_trains_the_network_of_its_tables():
    """A layer of 128 units: 64 x 128 + 128 weights, and 128 x 10 + 10."""
    assert sum(parameter.numel() for parameter in NoisyModel().parameters()) == 9_610


def test_the_digits_model_starts_from_the_weights_of_the_documented_runs():
    torch.manual_seed(5)
    model = DigitsModel(width=4)
    torch.manual_seed(5)
    layers = torch.nn.Conv2d(1, 4, 3), torch.nn.Conv2d(4, 8, 3), torch.nn.Linear(128, 10)
    for mine, theirs in zip((model.body[0], model.body[3], model.head), layers, strict=True):
        assert torch.equal(mine.weight, theirs.weight)
