"""What is loaded from published weights and from other detectors, and what is reported."""

import pytest
import torch

from model import Detector, build_detector
from pipeline.errors import UserError
from pipeline.pretrained import Weights, transfer
from tests.published import CLASSIFIERS, PARAMETERS, published_state


def detector(backbone: str = "slim", classes: int = 2, seed: int = 0, **spec: object) -> Detector:
    torch.manual_seed(seed)
    return build_detector(backbone, num_classes=classes, **{"image_size": 64, **spec})


def weights_of(source: Detector, classes: list[str] | None = None) -> Weights:
    """Return the weights of a detector as of a checkpoint, or without classes as of a file."""
    backbone = source.spec["backbone"] if classes else None
    return Weights("w", source.state_dict(), backbone, classes)


def equal_tensors(one: Detector, other: Detector) -> set[str]:
    """Return the names of the tensors that are equal in two detectors."""
    theirs = other.state_dict()
    return {
        name
        for name, value in one.state_dict().items()
        if name in theirs and torch.equal(theirs[name], value)
    }


@pytest.mark.parametrize("name", sorted(PARAMETERS))
def test_published_weights_fill_the_backbone(name: str) -> None:
    here, published = detector(name), published_state(name)
    before = {k: v.clone() for k, v in here.state_dict().items() if not k.startswith("backbone.")}
    report = transfer(here, Weights("w", published), ["a", "b"])
    filled = here.backbone.state_dict()
    classifier = CLASSIFIERS.get(name, ("fc.",))
    for key, value in published.items():
        if not key.startswith(classifier):
            assert torch.equal(filled.pop(here.backbone.own_name(key)), value), key
    assert not filled
    assert all(torch.equal(here.state_dict()[key], value) for key, value in before.items())
    assert all(key.startswith(classifier) for key in report.unused)
    assert report.lines()[1:] == [
        "not in the source, left random: heads, neck",
        f"unused: {', '.join(sorted(part.rstrip('.') for part in classifier))}",
    ]


def test_missing_batch_counts_are_not_reported() -> None:
    old = {k: v for k, v in published_state("resnet18").items() if "num_batches" not in k}
    report = transfer(detector("resnet18"), Weights("w", old), ["a", "b"])
    assert not any(name.startswith("backbone.") for name in report.missing)


def test_half_precision_is_converted_to_float32() -> None:
    half = {
        k: v.half() if v.is_floating_point() else v for k, v in published_state("resnet18").items()
    }
    here = detector("resnet18")
    transfer(here, Weights("w", half), ["a", "b"])
    assert here.backbone.conv1.weight.dtype == torch.float32
    assert torch.equal(here.backbone.conv1.weight, half["conv1.weight"].float())


@pytest.mark.parametrize(
    ("here", "there", "layers"),
    [
        (
            "resnet18",
            "resnet50",
            r"backbone\.layer1\.0\.conv1\.weight is 64x64x1x1 in the source, 64x64x3x3",
        ),
        (
            "resnet50",
            "resnet34",
            r"backbone\.layer1\.0\.conv1\.weight is 64x64x3x3 in the source, 64x64x1x1",
        ),
    ],
)
def test_other_backbone_is_rejected_with_its_layers(here: str, there: str, layers: str) -> None:
    with pytest.raises(UserError, match=f"another backbone; layers differ in shape: {layers}") as e:
        transfer(detector(here), Weights("w.pth", published_state(there)), ["a", "b"])
    assert str(e.value).startswith("w.pth") and "and " in str(e.value)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(
    ("here", "there", "expected"),
    [
        (
            "resnet34",
            "resnet18",
            r"than resnet34: it lacks backbone\.layer1\.2, backbone\.layer2\.2",
        ),
        ("resnet18", "resnet34", r"than resnet18, with layer1\.2\.conv1\.weight, .* too"),
        ("mobilenetv2", "efficientnet_lite0", "no tensor of this backbone"),
        ("efficientnet_lite0", "resnet50", "no tensor of this backbone"),
    ],
)
def test_checkpoint_of_another_network_is_rejected(here: str, there: str, expected: str) -> None:
    with pytest.raises(UserError, match=expected) as caught:
        transfer(detector(here), Weights("w.pth", published_state(there)), ["a", "b"])
    assert str(caught.value).startswith("w.pth") and "\n" not in str(caught.value)


def test_published_norms_of_batches_fit_group_norms() -> None:
    here = detector("resnet18", norm="group")
    report = transfer(here, Weights("w", published_state("resnet18")), ["a", "b"])
    assert not any(name.startswith("backbone.") for name in report.missing)


@pytest.mark.parametrize("heads", [["head.classification_head.cls_logits"], ["rpn", "roi_heads"]])
def test_backbone_of_a_detector_of_torchvision_is_loaded(heads: list[str]) -> None:
    published = published_state("resnet50")
    state = {
        f"backbone.body.{key}": value
        for key, value in published.items()
        if not key.startswith("fc.") and "num_batches" not in key  # its norms are frozen
    }
    others = ["backbone.fpn.inner_blocks.0.0.weight", *(f"{name}.weight" for name in heads)]
    here = detector("resnet50")
    report = transfer(here, Weights("w", {**state, **dict.fromkeys(others, torch.ones(1))}), ["a"])
    for key, value in here.backbone.state_dict().items():
        assert key.endswith("num_batches_tracked") or torch.equal(value, published[key]), key
    assert report.unused == others
    with pytest.raises(UserError, match="w is of another network than resnet50: it lacks"):
        transfer(here, Weights("w", {k: v for k, v in state.items() if ".layer4." not in k}), ["a"])
    with pytest.raises(UserError, match="no tensor of this backbone; its names are: backbone"):
        transfer(detector("vgg16"), Weights("w", state), ["a"])


def test_weights_without_a_matching_name_are_rejected() -> None:
    with pytest.raises(UserError, match=r"no tensor of this backbone; its names are: bn1\.bias"):
        transfer(detector("vgg16"), Weights("w", published_state("resnet18")), ["a", "b"])


def test_detector_of_the_same_classes_is_loaded_completely() -> None:
    there, here = detector(seed=1), detector()
    report = transfer(here, weights_of(there, ["a", "b"]), ["a", "b"])
    assert equal_tensors(here, there) == set(here.state_dict()) == set(report.loaded)
    assert report.lines() == [
        f"starting from w: {len(report.loaded)} of {len(report.loaded)} tensors loaded"
    ]


def class_rows(of: Detector, classes: list[str]) -> dict[tuple[str, str], torch.Tensor]:
    """Return the rows (K, ...) of the class heads by tensor and class."""
    return {
        (name, label): value.unflatten(0, (-1, len(classes)))[:, index]
        for name, value in of.state_dict().items()
        if name.startswith("heads.classify.")
        for index, label in enumerate(classes)
    }


@pytest.mark.parametrize(
    ("classes", "expected"),
    [
        (["a", "b", "c"], "same name are loaded: a, b; left random: c; the classes of the source"),
        (["c", "b"], "same name are loaded: b; left random: c; the classes of the source are a, b"),
        (["b", "a"], "same name are loaded: b, a; the classes of the source are a, b"),
        (["c", "d"], "class heads left random: the classes of the source are a, b"),
        (["A", "b "], "class heads left random: the classes of the source are a, b"),
    ],
)
def test_class_heads_keep_the_rows_of_classes_with_the_same_name(
    classes: list[str], expected: str
) -> None:
    there, here = detector(seed=1), detector(classes=len(classes))
    random = class_rows(detector(classes=len(classes)), classes)
    for layer in there.heads.classify:  # biases are equal at first
        torch.nn.init.normal_(layer.bias)
    report = transfer(here, weights_of(there, ["a", "b"]), classes)
    published = class_rows(there, ["a", "b"])
    for key, value in class_rows(here, classes).items():
        assert torch.equal(value, published.get(key, random[key])), key
    heads = {name for name in here.state_dict() if name.startswith("heads.classify.")}
    assert set(here.state_dict()) - heads <= set(report.loaded)
    assert set(report.new_class_heads) == (set() if set(classes) == {"a", "b"} else heads)
    assert report.kept_classes == [name for name in classes if name in ("a", "b")]
    assert report.new_classes == [name for name in classes if name not in ("a", "b")]
    assert any(expected in line for line in report.lines())


def test_class_heads_of_other_anchors_are_left_random() -> None:
    there, here = detector(seed=1), detector(classes=3, anchor_ratios=[1.0])
    before = class_rows(here, ["a", "b", "c"])
    report = transfer(here, weights_of(there, ["a", "b"]), ["a", "b", "c"])
    assert all(torch.equal(v, before[k]) for k, v in class_rows(here, ["a", "b", "c"]).items())
    assert report.kept_classes == []
    assert "class heads left random: the classes of the source are a, b" in report.lines()


def test_rows_of_classes_fit_on_meta_tensors() -> None:
    """The driver checks the weights on a detector without values."""
    with torch.device("meta"):
        here = build_detector("slim", num_classes=3, image_size=64)
    report = transfer(here, weights_of(detector(), ["a", "b"]), ["b", "c", "d"])
    assert report.kept_classes == ["b"]


def test_file_with_class_heads_of_another_shape_leaves_them_random() -> None:
    there, here = detector(seed=1, classes=3), detector(classes=2)
    report = transfer(here, weights_of(there), ["a", "b"])
    assert set(report.other_shape) == {n for n in here.state_dict() if "heads.classify" in n}
    assert "other shape in the source, left random: heads.classify" in report.lines()


def test_other_neck_is_left_random_and_reported() -> None:
    there, here = detector(seed=1, neck="fssd"), detector(neck="pafpn")
    report = transfer(here, weights_of(there, ["a", "b"]), ["a", "b"])
    assert {n for n in here.state_dict() if n.startswith(("backbone.", "heads."))} == set(
        report.loaded
    )
    assert report.lines()[1:] == ["not in the source, left random: neck", "unused: neck"]


def test_additional_levels_are_reported() -> None:
    there, here = detector(seed=1, image_size=64), detector(image_size=512)
    report = transfer(here, weights_of(there, ["a", "b"]), ["a", "b"])
    missing = report.lines()[1]
    assert "heads.classify.4" in missing and "neck.outputs.4" in missing


def test_other_anchors_are_reported() -> None:
    there, here = detector(seed=1), detector(anchor_base=12.0)
    weights = weights_of(there, ["a", "b"])._replace(anchors=there.anchor_shapes)
    report = transfer(here, weights, ["a", "b"])
    assert set(report.loaded) == set(here.state_dict())
    (line,) = report.lines()[1:]
    assert "(base 24 px, scales 1, 1.414, ratios 1, 2, 0.5)" in line
    same = transfer(there, weights, ["a", "b"])
    assert same.lines()[1:] == []
    fewer = transfer(detector(anchor_ratios=[1, 2]), weights, ["a", "b"])
    assert {name.split(".")[0] for name in fewer.other_shape} == {"heads"}


def test_detector_on_another_backbone_is_rejected() -> None:
    with pytest.raises(UserError, match=r"w is a detector on slim, model\.backbone is resnet18"):
        transfer(detector("resnet18"), weights_of(detector(), ["a", "b"]), ["a", "b"])
