"""Frozen layers and frozen norms keep their exact values while the rest learns."""

import copy

import pytest
import torch
from torch import nn

from model import BACKBONES, Detector, build_detector

STAGES = {name: 4 if name == "slim" else 5 for name in BACKBONES}


def train(detector: Detector, steps: int = 1) -> None:
    detector.train()
    learned = [p for p in detector.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(learned, lr=0.01, momentum=0.9, weight_decay=0.1)
    size = detector.image_size
    for seed in range(steps):
        generator = torch.Generator().manual_seed(seed)
        pred = detector(torch.randint(0, 256, (2, 3, size, size), generator=generator))
        (pred.deltas.square().mean() + pred.logits.square().mean()).backward()
        optimizer.step()
        optimizer.zero_grad()


def changed(before: Detector, after: Detector) -> set[str]:
    old = before.state_dict()
    return {name for name, value in after.state_dict().items() if not torch.equal(old[name], value)}


def test_frozen_stages_keep_weights_and_statistics() -> None:
    torch.manual_seed(0)
    detector = build_detector("resnet18", image_size=64)
    detector.backbone.freeze(2)
    before = copy.deepcopy(detector)
    train(detector)
    moved = changed(before, detector)
    still = {n for n in detector.state_dict() if n.startswith(("backbone.conv1.", "backbone.bn1."))}
    still |= {n for n in detector.state_dict() if n.startswith("backbone.layer1.")}
    assert len(still) > 20
    assert moved.isdisjoint(still)
    assert moved == set(detector.state_dict()) - still


def test_frozen_norms_keep_statistics_scale_and_shift_while_convolutions_learn() -> None:
    torch.manual_seed(0)
    detector = build_detector("slim", image_size=64)
    detector.backbone.freeze(norm=True)
    before = copy.deepcopy(detector)
    train(detector)
    norms = [n for n, m in detector.backbone.named_modules() if isinstance(m, nn.BatchNorm2d)]
    still = {n for n in detector.state_dict() if n.rsplit(".", 1)[0][9:] in norms}
    assert len(still) == 5 * len(norms)
    assert changed(before, detector) == set(detector.state_dict()) - still


def test_frozen_norm_uses_its_running_statistics_in_training() -> None:
    detector = build_detector("slim", image_size=64)
    detector.backbone.freeze(norm=True)
    images = torch.randint(0, 256, (2, 3, 64, 64)).float()
    with torch.no_grad():
        training = detector.train().backbone(images)
        evaluating = detector.eval().backbone(images)
    for one, other in zip(training, evaluating, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("name", sorted(BACKBONES))
def test_stages_contain_every_layer_once(name: str) -> None:
    with torch.device("meta"):
        backbone = BACKBONES[name]()
    groups = backbone.stage_layers()
    assert len(groups) == STAGES[name]
    parameters = [id(p) for group in groups for layer in group for p in layer.parameters()]
    assert sorted(parameters) == sorted(id(p) for p in backbone.parameters())
    backbone.freeze(len(groups))
    assert not any(p.requires_grad for p in backbone.parameters())


def test_nothing_is_frozen_by_default() -> None:
    backbone = BACKBONES["slim"]()
    backbone.freeze()
    assert all(p.requires_grad for p in backbone.parameters())
    assert all(m.training for m in backbone.train().modules())


def test_freezing_too_many_stages_is_refused() -> None:
    with pytest.raises(ValueError, match="cannot freeze 5 stages; the backbone has 4"):
        BACKBONES["slim"]().freeze(5)
