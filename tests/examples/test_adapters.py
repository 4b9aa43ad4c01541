"""Each adapter: its losses are those of the task, sample by sample, and a method prunes by them."""

from __future__ import annotations

import math

import lightning.pytorch as L
import pytest
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader
from torchvision.models.detection import RetinaNet

from examples.adapters.detection import DetectionModule
from examples.adapters.masked_lm import IGNORED, MaskedLMModule, hide_tokens
from examples.adapters.segmentation import SegmentationModule
from lightning_prune import OrderDP, ScoreRegistry

pytestmark = pytest.mark.filterwarnings("ignore:.*(CUDA|cuda).*:UserWarning")


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def fit(model, samples, *, epochs=1, batch_size=None, collate_fn=None):
    """Fit in the samples' order and return the registry; without a batch size, all samples are one step."""
    registry = ScoreRegistry()
    method = OrderDP(explore_ratio=1.0, exploit_ratio=0.5, warmup_epochs=1)
    trainer = L.Trainer(
        max_epochs=epochs, accelerator="cpu", callbacks=[registry, method], logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(model, DataLoader(samples, batch_size or len(samples), collate_fn=collate_fn))
    return registry


def hardest_half(losses):
    return set(losses.topk(len(losses) // 2).indices.tolist())


# Segmentation


def pictures(number=6, size=64):
    images = torch.randn(number, 3, size, size, generator=generator())
    targets = torch.randint(0, 5, (number, size, size), generator=generator(1))
    targets[0, :, 10:] = 255
    targets[1] = 255  # nothing labelled
    return images, targets


def test_segmentation_losses_are_means_over_labelled_pixels():
    images, targets = pictures()
    torch.manual_seed(0)
    model = SegmentationModule("lraspp_mobilenet_v3_large", 5, lr=0.0).train()
    logits = model.net(images)["out"].detach()
    expected = [F.cross_entropy(logits[i : i + 1], targets[i : i + 1], ignore_index=255).item() for i in range(6)]
    registry = fit(model, list(zip(images, targets, strict=True)))
    assert math.isnan(expected[1])  # torch's mean over no pixels
    assert registry.losses[1].isnan()  # not recorded
    labelled = [0, 2, 3, 4, 5]
    assert registry.losses[labelled].tolist() == pytest.approx([expected[i] for i in labelled], rel=1e-5)
    assert float(model.trainer.callback_metrics["prune/nonfinite"]) == 0


class Watched(SegmentationModule):
    """Notes what is passed on to the library, in order."""

    def weighted_loss(self, losses, **options):
        self.seen.append((losses.detach(), options.get("record", True)))
        return super().weighted_loss(losses, **options)


def test_segmentation_prunes_by_the_main_loss():
    images, targets = pictures(size=32)
    targets[1] = 0
    model = Watched("fcn_resnet50", 5, lr=0.0, model_args={"aux_loss": True})
    model.seen = []
    registry = fit(model, list(zip(images, targets, strict=True)), epochs=2)
    assert [recorded for _, recorded in model.seen] == [True, False, True, False]
    mask, main = targets != 255, model.seen[0][0]
    per_image = (main * mask).flatten(1).sum(1) / mask.flatten(1).sum(1)
    assert set(registry.selection.indices.tolist()) == hardest_half(per_image)


# Detection


def scenes(number=4, size=64):
    """Images with 0, 1, 2, 3 boxes."""
    images = [torch.rand(3, size, size, generator=generator(i)) for i in range(number)]
    corners = torch.rand(number, number, 2, generator=generator()) * size / 2
    return images, [
        {
            "boxes": torch.cat([corners[i, :i], corners[i, :i] + 20], dim=1),
            "labels": torch.arange(1, i + 1),
        }
        for i in range(number)
    ]


def collate(samples):
    return tuple(zip(*samples, strict=True))


@pytest.fixture
def detector():
    torch.manual_seed(0)
    return DetectionModule(num_classes=5, backbone="resnet18", pretrained=False, size=64, lr=0.0)


def test_detection_losses_are_torchvisions_image_by_image(detector):
    images, targets = scenes()
    net = detector.net.train()
    net.backbone.eval()  # no batch statistics, so that one image's losses do not depend on the others
    net.head.eval()
    plain = RetinaNet(net.backbone, 5, min_size=64, max_size=128)
    plain.load_state_dict(net.state_dict())
    plain.head.eval()
    ours = {name: value.detach() for name, value in net(images, targets).items()}
    whole = plain(images, targets)
    single = [plain([image], [target]) for image, target in zip(images, targets, strict=True)]
    for name, losses in ours.items():
        assert losses.shape == (4,)
        assert losses.mean().item() == pytest.approx(whole[name].item(), rel=1e-5)
        assert losses.tolist() == pytest.approx([loss[name].item() for loss in single], rel=1e-4, abs=1e-6)
    assert ours["bbox_regression"][0] == 0  # no boxes
    assert ours["classification"][0] > 0


def test_detection_prunes_by_the_images_losses(detector):
    images, targets = scenes()
    expected = {name: value.detach() for name, value in detector.net.train()(images, targets).items()}
    total = expected["classification"] + expected["bbox_regression"]
    samples = list(zip(images, targets, strict=True))
    registry = fit(detector, samples, collate_fn=collate)
    assert registry.losses.tolist() == pytest.approx(total.tolist(), rel=1e-4)
    registry = fit(detector, samples, epochs=2, collate_fn=collate)
    assert set(registry.selection.indices.tolist()) == hardest_half(total)


def test_detection_keeps_torchvisions_parameters():
    from torchvision.models.detection import retinanet_resnet50_fpn

    ours = DetectionModule(pretrained=False).net.state_dict()
    theirs = retinanet_resnet50_fpn(weights=None, weights_backbone=None).state_dict()
    assert {name: value.shape for name, value in ours.items()} == {name: value.shape for name, value in theirs.items()}


# Masked language modelling


def test_hidden_tokens_follow_berts_shares():
    tokens = torch.randint(0, 99, (500, 200), generator=generator())
    torch.manual_seed(0)
    seen, targets = hide_tokens(tokens, mask_id=99, special=5)
    chosen = targets != IGNORED
    assert targets[chosen].equal(tokens[chosen])
    assert seen[~chosen].equal(tokens[~chosen])
    assert not chosen[tokens < 5].any()
    number = int(chosen.sum())
    for share, expected in (
        (chosen[tokens >= 5].float().mean(), 0.15),
        ((seen[chosen] == 99).float().mean(), 0.8),
        ((seen[chosen] == tokens[chosen]).float().mean(), 0.1 + 0.1 / 94),
    ):
        assert float(share) == pytest.approx(expected, abs=5 * math.sqrt(0.25 / number))


def texts(number=8, length=12):
    tokens = torch.randint(3, 49, (number, length), generator=generator())
    tokens[:, length - 3 :] = 0
    tokens[:, 0], tokens[:, length - 4] = 1, 2
    tokens[2, 1:] = 0  # an empty text: its start only
    return list(tokens)


def test_masked_lm_losses_are_means_over_hidden_tokens(monkeypatch):
    model = MaskedLMModule(vocabulary=50, max_length=12, width=32, layers=1, lr=0.0)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    model.encoder.layers[0].self_attn.dropout = 0.0
    hidden = torch.rand(8, 12, generator=generator(1)) < 0.4

    def hide(tokens, mask_id, special):
        chosen = hidden & (tokens >= special)
        return torch.where(chosen, mask_id, tokens), torch.where(chosen, tokens, IGNORED)

    monkeypatch.setattr("examples.adapters.masked_lm.hide_tokens", hide)
    samples = texts()
    seen, targets = hide(torch.stack(samples), 49, 3)
    present = (targets != IGNORED).any(1)
    with torch.no_grad():
        logits = model(seen)
    expected = [F.cross_entropy(logits[i], targets[i], ignore_index=IGNORED).item() for i in range(8)]
    registry = fit(model, samples)
    assert registry.losses.isfinite().equal(present)
    assert not present[2]
    known = present.nonzero().flatten().tolist()
    assert registry.losses[known].tolist() == pytest.approx([expected[i] for i in known], rel=1e-5)


def test_masked_lm_learns_while_pruned():
    torch.manual_seed(0)
    model = MaskedLMModule(vocabulary=50, max_length=12, width=32, layers=1, lr=1e-2)
    registry = fit(model, texts(), epochs=5, batch_size=4)
    assert registry.saved_fraction == pytest.approx(0.4)  # half of four of five epochs
    assert all(parameter.isfinite().all() for parameter in model.parameters())


# Hugging Face


def test_hugging_face_losses_are_the_models_own():
    transformers = pytest.importorskip("transformers")
    from examples.adapters.huggingface import HuggingFaceClassifier

    sizes = {"vocab_size": 60, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    torch.manual_seed(0)
    config = transformers.BertConfig(**sizes, **dropout, intermediate_size=32, max_position_embeddings=16)
    model = HuggingFaceClassifier(config, num_labels=3, lr=0.0).train()
    ids = torch.randint(5, 60, (6, 10), generator=generator())
    mask = torch.arange(10) < torch.tensor([10, 9, 8, 7, 6, 5]).unsqueeze(1)
    samples = [
        {"input_ids": ids[i] * mask[i], "attention_mask": mask[i].long(), "labels": torch.tensor(i % 3)}
        for i in range(6)
    ]
    with torch.no_grad():
        expected = torch.tensor(
            [model.net(**{name: value[None] for name, value in sample.items()}).loss for sample in samples]
        )
    registry = fit(model, samples, epochs=2)
    assert set(registry.selection.indices.tolist()) == hardest_half(expected)
    assert model.net.config.num_labels == 3
    kept = registry.selection.indices
    assert registry.losses[kept].tolist() == pytest.approx(expected[kept].tolist(), rel=1e-5)
