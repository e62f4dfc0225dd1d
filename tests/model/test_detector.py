"""The detector: shapes, names, inputs."""

import json

import pytest
import torch

from model import BACKBONES, NECKS, Detector, build_detector
from model.anchor_shapes import AnchorShapes


@pytest.mark.parametrize("backbone", sorted(BACKBONES))
@pytest.mark.parametrize("neck", sorted(NECKS))
@pytest.mark.parametrize("size", [64, 128, 320, 512, 576])
def test_detector_gives_one_prediction_per_anchor(backbone: str, neck: str, size: int) -> None:
    with torch.device("meta"):  # shapes only, for speed
        detector = build_detector(backbone, neck, 5, size).eval()
        deltas, logits = detector(torch.zeros(1, 3, size, size, dtype=torch.uint8))
    assert deltas.shape == (1, len(detector.anchors), 4)
    assert logits.shape == (1, len(detector.anchors), 5)
    assert detector.anchor_strides.shape == (len(detector.anchors),)


def test_size_not_divisible_by_the_last_stride() -> None:
    detector = build_detector(image_size=576).eval()
    with torch.no_grad():
        deltas, _ = detector(torch.zeros(1, 3, 576, 576))
    assert deltas.shape[1] == len(detector.anchors)


def test_predictions_are_ordered_as_the_anchors() -> None:
    """A change in one corner changes only the predictions of anchors near it."""
    torch.manual_seed(0)
    detector = build_detector(image_size=512).eval()
    quiet = torch.zeros(1, 3, 512, 512)
    changed = quiet.clone()
    changed[..., :8, 440:] = 255  # top right: rows and columns differ
    with torch.no_grad():
        change = (detector(changed).logits - detector(quiet).logits).abs().amax(-1)[0]
    fine = detector.anchor_strides == 8
    centre = (detector.anchors[:, :2] + detector.anchors[:, 2:]) / 2
    strongest = centre[fine][change[fine].argsort(descending=True)[:50]]
    assert (strongest[:, 0] > 380).all()
    assert (strongest[:, 1] < 100).all()


def test_initial_scores_are_one_percent() -> None:
    detector = build_detector(num_classes=3, image_size=128).eval()
    with torch.no_grad():
        scores = detector(torch.zeros(1, 3, 128, 128)).logits.sigmoid()
    assert abs(float(scores.median()) - 0.01) < 0.005


def test_spec_rebuilds_the_detector() -> None:
    first = build_detector("resnet18", "retinanet", 7, 128, neck_channels=32)
    second = build_detector(**json.loads(json.dumps(first.spec)))
    assert second.spec == first.spec
    second.load_state_dict(first.state_dict())


@pytest.mark.parametrize("neck", sorted(NECKS))
def test_published_variant_survives_its_spec(neck: str) -> None:
    first = build_detector("resnet18", neck, 7, 128, neck_channels=32, neck_variant="published")
    second = build_detector(**json.loads(json.dumps(first.spec)))
    second.load_state_dict(first.state_dict())
    assert [head.in_channels for head in second.heads.classify] == list(first.neck.widths)
    with pytest.raises(ValueError, match="neck_variant 'light' does not exist; choose from: comp"):
        build_detector(neck_variant="light")


def test_state_dict_has_no_constants() -> None:
    detector = build_detector(image_size=128)
    learned = {name for name, _ in detector.named_parameters()}
    statistics = {"running_mean", "running_var", "num_batches_tracked"}
    for name in detector.state_dict():
        assert name in learned or name.rsplit(".", 1)[-1] in statistics


def test_dtypes_and_memory_formats_agree() -> None:
    detector = build_detector(image_size=128).eval()
    images = torch.randint(0, 256, (2, 3, 128, 128), dtype=torch.uint8)
    with torch.no_grad():
        expected = detector(images)
        for same in (images.float(), images.contiguous(memory_format=torch.channels_last)):
            torch.testing.assert_close(detector(same), expected, rtol=1e-4, atol=1e-4)


def test_batched_equals_one_by_one() -> None:
    detector = build_detector(image_size=128).eval()
    images = torch.randint(0, 256, (2, 3, 128, 128), dtype=torch.uint8)
    with torch.no_grad():
        together, alone = detector(images), detector(images[1:])
    torch.testing.assert_close(together.deltas[1:], alone.deltas, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("neck", sorted(NECKS))
def test_every_parameter_learns(neck: str) -> None:
    detector: Detector = build_detector(neck=neck, image_size=128)
    pred = detector(torch.randint(0, 256, (2, 3, 128, 128), dtype=torch.uint8))
    (pred.deltas.square().mean() + pred.logits.square().mean()).backward()
    for name, parameter in detector.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (
            {"backbone": "resnet1"},
            "backbone 'resnet1' does not exist; choose from: efficientnet_lite0, ",
        ),
        ({"neck": "fpn"}, "'fpn' does not exist; choose from: fssd, pafpn, retinanet, rfb"),
        ({"image_size": 300}, "300 is not divisible by 64; the nearest are 256 and 320"),
        ({"image_size": 32}, "the nearest are 64 and 128"),
        ({"num_classes": 0}, "at least one class"),
        ({"neck_channels": 0}, "neck_channels is 0; it must be a positive even number"),
        ({"anchor_base": 0}, "base is 0; it must be from 1 to 1024 pixels"),
        ({"anchor_scales": []}, "scales is empty; give at least one number"),
        ({"anchor_ratios": [1, float("nan")]}, "ratios contains nan; give numbers from 1/64 to 64"),
        ({"anchor_ratios": [1, 2, 1.0]}, "ratios contains a number twice: 1, 2, 1"),
        ({"anchor_scales": range(1, 34), "anchor_ratios": [1, 2]}, "more than 64 anchors per cell"),
    ],
)
def test_wrong_settings_are_refused(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_detector(**wrong)  # type: ignore[arg-type]


def test_images_of_another_size_are_refused() -> None:
    with pytest.raises(ValueError, match="built for 128 x 128"):
        build_detector(image_size=128)(torch.zeros(1, 3, 64, 64))


def test_input_size_can_change() -> None:
    """A resized detector equals one that was built for the new size."""
    detector, other = build_detector(image_size=128).eval(), build_detector(image_size=192).eval()
    other.load_state_dict(detector.state_dict())
    detector.resize_input(192)
    images = torch.rand(1, 3, 192, 192) * 255
    with torch.no_grad():
        assert torch.equal(detector(images).deltas, other(images).deltas)
    assert torch.equal(detector.anchors, other.anchors)
    assert detector.spec["image_size"] == 128
    for side in (200, 512):
        with pytest.raises(ValueError, match=f"image_size {side} does not fit"):
            detector.resize_input(side)


def test_anchors_per_cell_match_the_heads() -> None:
    detector = build_detector(num_classes=2, image_size=128)
    widths = {layer.out_channels for layer in detector.heads.classify}  # type: ignore[union-attr]
    assert widths == {AnchorShapes().per_cell * 2}


def test_other_anchors_change_heads_and_survive_spec_and_resizing() -> None:
    chosen = {"anchor_base": 10, "anchor_scales": [1, 1.5], "anchor_ratios": [1]}
    detector = build_detector(num_classes=3, image_size=64, **chosen).eval()  # type: ignore[arg-type]
    with torch.no_grad():
        deltas, logits = detector(torch.zeros(2, 3, 64, 64))
    assert deltas.shape == (2, 2 * 85, 4)
    assert logits.shape == (2, 2 * 85, 3)
    again = build_detector(**json.loads(json.dumps(detector.spec)))
    assert again.spec == detector.spec
    assert torch.equal(again.anchors, detector.anchors)
    detector.resize_input(128)
    assert torch.equal(detector.anchors[0], torch.tensor([-1.0, -1.0, 9.0, 9.0]))
    assert len(detector.anchors) == 2 * 340


def test_clamp_of_anchors_follows_the_input_and_survives_the_spec() -> None:
    detector = build_detector(image_size=128, anchor_clamp=True)
    again = build_detector(**json.loads(json.dumps(detector.spec)))
    for side in (128, 320):
        detector.resize_input(side)
        again.resize_input(side)
        sides = detector.anchors[:, 2:] - detector.anchors[:, :2]
        assert sides.max() == side
        assert torch.equal(again.anchors, detector.anchors)
    assert detector.anchor_shapes != build_detector(image_size=128).anchor_shapes


SOFT = {
    "neck_variant": "published", "strides": (16, 32, 64), "head": "decoupled", "activation": "silu",
}  # fmt: skip


@pytest.mark.parametrize("neck", sorted(NECKS))
def test_network_of_the_soft_version_survives_its_spec(neck: str) -> None:
    detector = build_detector("resnet18", neck, 3, 128, neck_channels=16, **SOFT).eval()
    strides, counts = detector.anchor_strides.unique(return_counts=True)
    assert strides.tolist() == [16, 32, 64] and counts.tolist() == [6 * n for n in (64, 16, 4)]
    first = detector.anchors[0]
    assert (first[2:] - first[:2]).tolist() == [48, 48]
    with torch.no_grad():
        deltas, logits = detector(torch.zeros(1, 3, 128, 128))
    assert (deltas.shape, logits.shape) == ((1, 504, 4), (1, 504, 3))
    again = build_detector(**json.loads(json.dumps(detector.spec)))
    again.load_state_dict(detector.state_dict())
    assert torch.equal(again.anchors, detector.anchors)
    detector.resize_input(512)  # the strides do not depend on the size
    assert detector.anchor_strides.unique().tolist() == [16, 32, 64]


@pytest.mark.parametrize("neck", sorted(NECKS))
@pytest.mark.parametrize("variant", ["compact", "published"])
def test_silu_replaces_every_relu_of_neck_and_heads(neck: str, variant: str) -> None:
    parts = {"neck_variant": variant, "head": "decoupled"}
    relu, silu = (
        build_detector("slim", neck, 2, 64, activation=name, **parts).eval()
        for name in ("relu", "silu")
    )
    silu.load_state_dict(relu.state_dict())
    left = [m for part in (silu.neck, silu.heads) for m in part.modules()]
    assert not any(isinstance(module, torch.nn.ReLU) for module in left)
    with torch.no_grad():
        maps = silu.backbone(torch.ones(1, 3, 64, 64))
        # The minimum of SiLU is -0.28; ReLU has none below 0.
        assert min(float(level.min()) for level in silu.neck(maps)) < 0
        assert min(float(level.min()) for level in relu.neck(maps)) >= 0


def test_decoupled_heads_are_a_3x3_and_a_1x1_with_the_same_prior() -> None:
    detector = build_detector("slim", "fssd", 3, 64, head="decoupled").eval()
    for head, outputs in ((detector.heads.localize[0], 24), (detector.heads.classify[0], 18)):
        kernels = [m.kernel_size for m in head.modules() if isinstance(m, torch.nn.Conv2d)]
        assert kernels == [(3, 3), (1, 1)] and head[1].out_channels == outputs
    with torch.no_grad():
        scores = detector(torch.zeros(1, 3, 64, 64)).logits.sigmoid()
    assert abs(float(scores.median()) - 0.01) < 0.005


@pytest.mark.parametrize("strides", [(4, 8), (8, 32), (16, 32, 64, 128, 256), (32, 16), (12,)])
def test_strides_that_do_not_double_are_rejected(strides: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="give 8, 16 or 32 and doubled values up to 128"):
        build_detector(strides=strides)


def test_strides_begin_at_a_map_of_the_backbone() -> None:
    expected = "strides begin at 32, but vgg16 has maps at strides up to 16; begin there"
    with torch.device("meta"), pytest.raises(ValueError, match=expected):
        build_detector("vgg16", strides=(32, 64))
