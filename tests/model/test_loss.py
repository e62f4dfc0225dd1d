"""The training loss: normalisation, empty images, masks, and that a detector learns by it."""

from typing import Any

import pytest
import torch
from torch import Tensor

from model import Predictions, build_detector
from model.anchors import make_anchors
from model.assign import ASSIGNERS, build_assigner
from model.boxes import box_iou, decode, encode
from model.loss import DetectionLoss
from model.losses import (
    CLASSIFICATION_LOSSES,
    LOCALIZATION_LOSSES,
    OVERLAP_LOSSES,
    balanced_l1,
    focal,
    quality_focal,
    siou,
)
from model.postprocess import postprocess

IMAGE, CLASSES = 128, 3
KEYS = {
    "loss", "loss_cls", "loss_loc", "positives_cls", "positives_loc", "objects",
    "objects_without_anchor",
}  # fmt: skip


STRIDES = make_anchors(IMAGE)[1]
COUNTED = ("atss", "max_iou", "mutual_guidance")  # positives known before the predictions
SOFT = {
    "classification": "quality_focal", "classification_weight": 2.0, "overlap": "siou",
}  # fmt: skip


def build(name: str, **options: Any) -> DetectionLoss:
    return DetectionLoss(build_assigner(name, anchor_strides=STRIDES), **options)


@pytest.fixture(params=sorted(ASSIGNERS))
def criterion(request: pytest.FixtureRequest) -> DetectionLoss:
    return build(request.param)


@pytest.fixture(params=COUNTED)
def counted(request: pytest.FixtureRequest) -> DetectionLoss:
    return build(request.param)


def predictions(images: int, seed: int = 0) -> Predictions:
    draw = torch.Generator().manual_seed(seed)
    count = len(make_anchors(IMAGE)[0])
    deltas = torch.randn(images, count, 4, generator=draw).requires_grad_()
    logits = (torch.randn(images, count, CLASSES, generator=draw) - 3).requires_grad_()
    return Predictions(deltas, logits)


def targets(images: int, objects: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    centre = torch.rand(images, objects, 2, generator=draw) * 100 + 14
    size = torch.rand(images, objects, 2, generator=draw) * 40 + 16
    labels = torch.randint(0, CLASSES, (images, objects), generator=draw)
    boxes = torch.cat([centre - size / 2, centre + size / 2], -1)
    return make_anchors(IMAGE)[0], boxes, labels


def test_loss_equals_its_definition(criterion: DetectionLoss) -> None:
    """Recompute it image by image from the assignment and the two loss functions."""
    pred, (anchors, boxes, labels) = predictions(2), targets(2, 6)
    parts = criterion(pred, anchors, boxes, labels)
    a = criterion.assigner(
        anchors, boxes, labels, decode(pred.deltas, anchors), pred.logits.sigmoid()
    )
    cls = loc = torch.tensor(0.0)
    for i in range(2):
        counted = a.cls_index[i] != -2
        positive = torch.zeros(len(anchors), CLASSES, dtype=torch.bool)
        for anchor in (a.cls_index[i] >= 0).nonzero().flatten().tolist():
            positive[anchor, labels[i, a.cls_index[i, anchor]]] = True
        cls = cls + focal(pred.logits[i], positive, 0.25, 1.0)[counted].sum()
        regressing = a.loc_index[i] >= 0
        goal = encode(boxes[i, a.loc_index[i, regressing]], anchors[regressing])
        error = balanced_l1(pred.deltas[i, regressing], goal).mean(-1)
        loc = loc + (error * a.loc_weight[i, regressing]).sum()
    cls, loc = cls / (a.cls_index >= 0).sum(), loc / a.loc_weight.sum()
    torch.testing.assert_close(parts["loss_cls"], cls.detach())
    torch.testing.assert_close(parts["loss_loc"], loc.detach())
    torch.testing.assert_close(parts["loss"], cls + loc)
    assert parts["positives_cls"] == (a.cls_index >= 0).sum()
    assert parts["objects"] == 12


@pytest.mark.parametrize("objects", [0, 4])
def test_images_without_objects_teach_background(criterion: DetectionLoss, objects: int) -> None:
    pred, (anchors, boxes, labels) = predictions(2), targets(2, objects)
    parts = criterion(pred, anchors, boxes, torch.full_like(labels, -1))
    parts["loss"].backward()
    assert parts.keys() == KEYS
    assert torch.isfinite(parts["loss"])
    assert parts["positives_cls"] == parts["positives_loc"] == parts["objects"] == 0
    assert pred.logits.grad is not None
    assert pred.deltas.grad is not None
    assert (pred.logits.grad > 0).all()
    assert (pred.deltas.grad == 0).all()


def test_empty_image_in_a_batch_teaches_background(criterion: DetectionLoss) -> None:
    pred, (anchors, boxes, labels) = predictions(2), targets(2, 4)
    labels[1] = -1
    parts = criterion(pred, anchors, boxes, labels)
    parts["loss"].backward()
    assert parts.keys() == KEYS
    assert pred.logits.grad is not None
    assert (pred.logits.grad[1] > 0).all()


def test_known_normalisers_equal_own_counts(counted: DetectionLoss) -> None:
    pred, (anchors, boxes, labels) = predictions(3), targets(3, 5)
    static = counted.static_part(anchors, boxes, labels)
    assert static is not None
    known = static.positives
    parts = counted(pred, anchors, boxes, labels)
    assert known.tolist() == [parts["positives_cls"], parts["positives_loc"]]
    assert known.is_contiguous()  # a collective sums it in place
    again = counted(pred, anchors, boxes, labels, normalisers=known)
    assert torch.equal(again["loss"], parts["loss"])
    reused = counted(pred, anchors, boxes, labels, normalisers=known, static=static)
    assert torch.equal(reused["loss"], parts["loss"])


def test_gradients_of_passes_add_up_to_the_whole_batch(counted: DetectionLoss) -> None:
    """Accumulating over uneven passes gives the gradient of one pass."""
    whole, (anchors, boxes, labels) = predictions(3), targets(3, 5)
    labels[1, 1:] = -1
    static = counted.static_part(anchors, boxes, labels)
    assert static is not None
    known = static.positives
    counted(whole, anchors, boxes, labels)["loss"].backward()
    split = predictions(3)
    for part in (slice(0, 2), slice(2, 3)):
        pred = Predictions(split.deltas[part], split.logits[part])
        counted(pred, anchors, boxes[part], labels[part], normalisers=known)["loss"].backward()
    torch.testing.assert_close(split.logits.grad, whole.logits.grad)
    torch.testing.assert_close(split.deltas.grad, whole.deltas.grad)


def test_dropped_image_contributes_nothing(criterion: DetectionLoss) -> None:
    pred, (anchors, boxes, labels) = predictions(3), targets(3, 5)
    valid = torch.tensor([True, False, True])
    parts = criterion(pred, anchors, boxes, labels, valid=valid)
    alone = Predictions(pred.deltas[valid], pred.logits[valid])
    expected = criterion(alone, anchors, boxes[valid], labels[valid])
    for key in KEYS:
        torch.testing.assert_close(parts[key], expected[key])
    static = criterion.static_part(anchors, boxes, labels, valid)
    if static is not None:
        assert static.positives.tolist() == [parts["positives_cls"], parts["positives_loc"]]
    parts["loss"].backward()
    assert pred.logits.grad is not None
    assert (pred.logits.grad[1] == 0).all()


def test_background_in_crowd_regions_is_ignored(criterion: DetectionLoss) -> None:
    pred, (anchors, boxes, labels) = predictions(2), targets(2, 2)
    crowd = torch.zeros(2, 3, 4)
    crowd[1, 0] = torch.tensor([0.0, 0.0, 128.0, 64.0])
    plain = criterion(pred, anchors, boxes, labels)
    parts = criterion(pred, anchors, boxes, labels, ignore_boxes=crowd)
    assert parts["positives_cls"] == plain["positives_cls"]
    assert parts["loss_cls"] < plain["loss_cls"]
    parts["loss"].backward()
    assert pred.logits.grad is not None
    centre = (anchors[:, :2] + anchors[:, 2:]) / 2
    small = (anchors[:, 2:] - anchors[:, :2]).amax(-1) < 40
    inside = small & (centre[:, 1] < 40) & (centre[:, 0] > 24) & (centre[:, 0] < 104)
    outside = small & (centre[:, 1] > 90)
    ignored = (pred.logits.grad == 0).all(-1)
    assert ignored[1, inside].float().mean() > 0.8
    assert ignored[1, outside].float().mean() < 0.2
    assert ignored[0, inside].float().mean() < 0.2


def test_autocast_changes_nothing(criterion: DetectionLoss) -> None:
    pred, (anchors, boxes, labels) = predictions(1), targets(1, 3)
    expected = criterion(pred, anchors, boxes, labels)["loss"]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(criterion(pred, anchors, boxes, labels)["loss"], expected)
    half = Predictions(pred.deltas.bfloat16(), pred.logits.bfloat16())
    assert criterion(half, anchors, boxes, labels)["loss"].dtype == torch.float32


def test_objects_without_anchor_are_counted() -> None:
    criterion = DetectionLoss(build_assigner("max_iou"))
    pred, (anchors, boxes, labels) = predictions(1), targets(1, 3)
    boxes[0, 1] += 1e4
    assert criterion(pred, anchors, boxes, labels)["objects_without_anchor"] == 1


def test_extreme_predictions_give_finite_gradients(criterion: DetectionLoss) -> None:
    pred, (anchors, boxes, labels) = predictions(1), targets(1, 3)
    extreme = Predictions(
        (pred.deltas * 1e4).detach().requires_grad_(), (pred.logits * 1e4).detach().requires_grad_()
    )
    criterion(extreme, anchors, boxes, labels)["loss"].backward()
    assert extreme.logits.grad is not None
    assert extreme.deltas.grad is not None
    assert torch.isfinite(extreme.logits.grad).all()
    assert torch.isfinite(extreme.deltas.grad).all()


@pytest.mark.parametrize("name", ["max_iou", "mutual_guidance_soft"])
@pytest.mark.parametrize("options", [{}, SOFT])
def test_class_weights_multiply_the_class_loss_of_positives(
    name: str, options: dict[str, Any]
) -> None:
    names = [f"class {number}" for number in range(CLASSES)]
    plain = build(name, **options)
    weighted = build(name, **options, classes=names, class_weights={"class 1": 3.0, "class 0": 0.5})
    pred, (anchors, boxes, labels) = predictions(2), targets(2, 6)
    labels = torch.arange(12).view(2, 6) % CLASSES
    whole, parts = (loss(pred, anchors, boxes, labels) for loss in (plain, weighted))
    a = plain.assigner(anchors, boxes, labels, decode(pred.deltas, anchors), pred.logits.sigmoid())
    # The parts of the positives of each class, by the gradient of their logits.
    label = labels.gather(1, a.cls_index.clamp(min=0)).masked_fill(a.cls_index < 0, -1)
    (before,) = torch.autograd.grad(whole["loss"], pred.logits, retain_graph=True)
    (after,) = torch.autograd.grad(parts["loss"], pred.logits, retain_graph=True)
    for number, weight in ((-1, 1.0), (0, 0.5), (1, 3.0), (2, 1.0)):
        assert (label == number).any()
        torch.testing.assert_close(after[label == number], weight * before[label == number])
    assert torch.equal(parts["loss_loc"], whole["loss_loc"])
    counts = ("positives_cls", "positives_loc", "objects")
    assert all(torch.equal(parts[key], whole[key]) for key in counts)


def test_class_weights_of_one_change_nothing() -> None:
    names = [f"class {number}" for number in range(CLASSES)]
    pred, (anchors, boxes, labels) = predictions(2), targets(2, 6)
    plain, none, ones = (
        build("max_iou", classes=names, class_weights=weights)(pred, anchors, boxes, labels)
        for weights in (None, {}, dict.fromkeys(names, 1.0))
    )
    assert torch.equal(plain["loss"], none["loss"]) and torch.equal(plain["loss"], ones["loss"])


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"dog": 2.0}, "class_weights: unknown class 'dog'; known: bird, cat"),
        ({"cat": 0.0}, "class_weights: 'cat' has the weight 0.0; give one above 0"),
        ({"cat": float("nan")}, "class_weights: 'cat' has the weight nan"),
    ],
)
def test_wrong_class_weights_are_refused(weights: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build("max_iou", classes=["cat", "bird"], class_weights=weights)


def test_unknown_losses_are_refused() -> None:
    with pytest.raises(ValueError, match="choose from: focal"):
        DetectionLoss(build_assigner("max_iou"), classification="hinge")
    with pytest.raises(ValueError, match="choose from: balanced_l1, smooth_l1"):
        DetectionLoss(build_assigner("max_iou"), localization="l3")
    with pytest.raises(ValueError, match="choose from: none, giou, siou"):
        DetectionLoss(build_assigner("max_iou"), overlap="diou")


def test_soft_loss_equals_its_definition() -> None:
    """2 x quality focal with poly term; Balanced L1 + 2 SIoU with weights that sum to 1."""
    criterion = build("mutual_guidance_soft", **SOFT)
    pred, (anchors, boxes, labels) = predictions(2), targets(2, 6)
    parts = criterion(pred, anchors, boxes, labels)
    decoded = decode(pred.deltas, anchors)
    a = criterion.assigner(anchors, boxes, labels, decoded, pred.logits.sigmoid())
    quality = torch.zeros_like(pred.logits)
    weight = a.loc_weight / a.loc_weight.sum()
    loc = torch.tensor(0.0)
    for image, anchor in (a.cls_index >= 0).nonzero().tolist():
        label = labels[image, a.cls_index[image, anchor]]
        quality[image, anchor, label] = a.cls_quality[image, anchor]
    for image, anchor in (a.loc_index >= 0).nonzero().tolist():
        box = boxes[image, a.loc_index[image, anchor]]
        error = balanced_l1(pred.deltas[image, anchor], encode(box, anchors[anchor])).mean()
        error = error + 2 * siou(decoded[image, anchor], box)
        loc = loc + weight[image, anchor] * error
    loss = quality_focal(pred.logits, quality, alpha=0.75, gamma=2.0, poly=1.0)
    cls = 2 * loss.sum() / (a.cls_index >= 0).sum()
    torch.testing.assert_close(parts["loss_cls"], cls.detach())
    torch.testing.assert_close(parts["loss_loc"], loc.detach())
    torch.testing.assert_close(parts["loss"], cls + loc)


@pytest.mark.parametrize("name", sorted(ASSIGNERS))
def test_class_loss_divided_by_the_sum_of_targets(name: str) -> None:
    by_count, by_targets = (
        build(name, classification="quality_focal", normaliser=normaliser)
        for normaliser in ("positives", "targets")
    )
    pred, (anchors, boxes, labels) = predictions(2), targets(2, 6)
    known = decode(pred.deltas, anchors), pred.logits.sigmoid()
    quality = by_count.assigner(anchors, boxes, labels, *known).cls_quality
    count, found = (loss(pred, anchors, boxes, labels) for loss in (by_count, by_targets))
    expected = count["loss_cls"] * count["positives_cls"] / quality.sum()
    torch.testing.assert_close(found["loss_cls"], expected)
    assert torch.equal(found["loss_loc"], count["loss_loc"])
    soft = name in ("mutual_guidance_soft", "sim_ota", "task_aligned")
    assert soft == (not torch.equal(found["loss_cls"], count["loss_cls"]))


@pytest.mark.parametrize("progress", [0.1, 1.0])
@pytest.mark.parametrize("scaled_targets", [False, True])
def test_sums_of_targets_of_both_tasks_of_soft_mutual_guidance(
    scaled_targets: bool, progress: float
) -> None:
    """Both losses of a batch with an image without objects, by the sums over the whole batch."""
    assigner = build_assigner(
        "mutual_guidance_soft",
        anchor_strides=STRIDES,
        scaled_targets=scaled_targets,
        static_fraction=0.2,
        min_positives=4,
        centre_radius=1.5,
        spare_iou=0.4,
    )
    criterion = DetectionLoss(assigner, "quality_focal", poly=0.0, normaliser="targets")
    pred, (anchors, boxes, labels) = predictions(3), targets(3, 6)
    labels[1] = -1
    assert criterion.static_part(anchors, boxes, labels, progress=progress) is None
    known = decode(pred.deltas, anchors), pred.logits.sigmoid()
    a = assigner(anchors, boxes, labels, *known, progress=progress)
    assert not torch.equal(a.cls_index >= 0, a.loc_index >= 0) or progress == 0.1
    target = torch.zeros_like(pred.logits)
    for image, anchor in (a.cls_index >= 0).nonzero().tolist():
        label = labels[image, a.cls_index[image, anchor]]
        target[image, anchor, label] = a.cls_quality[image, anchor]
    counted = quality_focal(pred.logits, target, alpha=0.75, gamma=2.0)[a.cls_index != -2]
    goal = encode(boxes[torch.arange(3)[:, None], a.loc_index.clamp(min=0)], anchors)
    error = balanced_l1(pred.deltas, goal).mean(-1)
    assert a.cls_quality.sum() > 1 and (a.cls_index == -2).any()
    parts = criterion(pred, anchors, boxes, labels, progress=progress)
    torch.testing.assert_close(parts["loss_cls"], (counted.sum() / a.cls_quality.sum()).detach())
    expected = ((error * a.loc_weight).sum() / a.loc_weight.sum()).detach()
    torch.testing.assert_close(parts["loss_loc"], expected)


@pytest.mark.parametrize(
    "options", [{"min_positives": 9}, {"min_positives": 4, "static_fraction": 0.5}]
)
def test_least_number_of_positives_is_part_of_the_known_normalisers(options: Any) -> None:
    criterion = DetectionLoss(build_assigner("mutual_guidance", spare_iou=0.5, **options))
    pred, (anchors, boxes, labels) = predictions(3), targets(3, 5)
    boxes[:, :2] = torch.cat([boxes[:, :2, :2], boxes[:, :2, :2] + 6], -1)  # small objects
    for progress in (0.2, 1.0):
        static = criterion.static_part(anchors, boxes, labels, progress=progress)
        assert static is not None
        given = {"normalisers": static.positives, "static": static}
        own, known = (
            criterion(pred, anchors, boxes, labels, progress=progress, **extra)
            for extra in ({}, given)
        )
        assert static.positives.tolist() == [own["positives_cls"], own["positives_loc"]]
        assert torch.equal(own["loss"], known["loss"])
        assert own["objects_without_anchor"] == 0


def test_sum_of_targets_is_at_least_one() -> None:
    pred, (anchors, boxes, labels) = predictions(1), targets(1, 1)
    labels_of_none = torch.full_like(labels, -1)
    criterion = build("task_aligned", classification="quality_focal", normaliser="targets")
    known = decode(pred.deltas, anchors), pred.logits.sigmoid()
    assert 0 < criterion.assigner(anchors, boxes, labels, *known).cls_quality.sum() < 1
    counted = build("task_aligned", classification="quality_focal")(pred, anchors, boxes, labels)
    found = criterion(pred, anchors, boxes, labels)
    torch.testing.assert_close(found["loss_cls"], counted["loss_cls"] * counted["positives_cls"])
    assert torch.isfinite(criterion(pred, anchors, boxes, labels_of_none)["loss"])


def test_focal_targets_sum_to_the_number_of_positives() -> None:
    pred, (anchors, boxes, labels) = predictions(2), targets(2, 6)
    count = build("task_aligned")(pred, anchors, boxes, labels)
    found = build("task_aligned", normaliser="targets")(pred, anchors, boxes, labels)
    assert torch.equal(found["loss_cls"], count["loss_cls"])


@pytest.mark.parametrize("classification", sorted(CLASSIFICATION_LOSSES))
@pytest.mark.parametrize("localization", sorted(LOCALIZATION_LOSSES))
@pytest.mark.parametrize("overlap", sorted(OVERLAP_LOSSES))
@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_any_choice_of_losses_gives_finite_gradients(
    classification: str, localization: str, overlap: str, scale: float
) -> None:
    criterion = build(
        "task_aligned", classification=classification, localization=localization, overlap=overlap
    )
    for label in (-1, 1):
        pred, (anchors, boxes, labels) = predictions(2), targets(2, 3)
        pred = Predictions(*((x.detach() * scale).requires_grad_() for x in pred))
        parts = criterion(pred, anchors, boxes, labels.fill_(label))
        parts["loss"].backward()
        assert torch.isfinite(parts["loss"])
        for x in pred:
            assert x.grad is not None
            assert torch.isfinite(x.grad).all()
        if label < 0:
            assert (pred.deltas.grad == 0).all()
            assert (pred.logits.grad >= 0).all()
            assert (pred.logits.grad > 0).any()


def test_weights_that_sum_to_less_than_one_are_normalised() -> None:
    criterion = build("task_aligned")
    pred, (anchors, boxes, labels) = predictions(1), targets(1, 1)
    a = criterion.assigner(
        anchors, boxes, labels, decode(pred.deltas, anchors), pred.logits.sigmoid()
    )
    assert 0 < a.loc_weight.sum() < 1
    goal = encode(boxes[:, 0], anchors)
    error = balanced_l1(pred.deltas, goal).mean(-1)
    expected = (error * a.loc_weight).sum() / a.loc_weight.sum()
    found = criterion(pred, anchors, boxes, labels)["loss_loc"]
    torch.testing.assert_close(found, expected.detach())


def test_loss_reads_no_value_from_the_device(criterion: DetectionLoss) -> None:
    """Meta tensors have no data: reading a value on the host raises."""
    pred, (anchors, boxes, labels) = predictions(2), targets(2, 5)
    pred, crowd = Predictions(*(x.to("meta") for x in pred)), torch.zeros(2, 1, 4, device="meta")
    valid = torch.ones(2, dtype=torch.bool, device="meta")
    given = [x.to("meta") for x in (anchors, boxes, labels)]
    parts = criterion(pred, *given, ignore_boxes=crowd, valid=valid)
    assert all(value.shape == () for value in parts.values())


def test_loss_compiles_to_one_graph(criterion: DetectionLoss) -> None:
    pred, (anchors, boxes, labels) = predictions(2), targets(2, 5)
    compiled = torch.compile(criterion, backend="aot_eager", fullgraph=True)
    parts, expected = (f(pred, anchors, boxes, labels) for f in (compiled, criterion))
    for key in KEYS:
        torch.testing.assert_close(parts[key], expected[key])


def test_detector_learns_one_image() -> None:
    torch.manual_seed(0)
    detector = build_detector("slim", "retinanet", CLASSES, 64).train()
    criterion = DetectionLoss(build_assigner("mutual_guidance"))
    image = torch.full((2, 3, 64, 64), 90.0)
    image[:, 0, 4:30, 8:36] = 250
    image[:, 2, 34:62, 28:60] = 250
    boxes = torch.tensor([[8.0, 4.0, 36.0, 30.0], [28.0, 34.0, 60.0, 62.0]]).expand(2, 2, 4)
    labels = torch.tensor([[0, 2], [0, 2]])
    optimizer = torch.optim.SGD(detector.parameters(), lr=0.02, momentum=0.9)
    losses = []
    for _ in range(25):
        loss = criterion(detector(image), detector.anchors, boxes, labels)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.2 * losses[0]
    found = postprocess(*detector(image), detector.anchors, 64)
    assert found.labels[0, :2].sort().values.tolist() == [0, 2]
    for label, box in zip(found.labels[0, :2], found.boxes[0, :2], strict=True):
        assert box_iou(box[None], boxes[0, int(label > 0)][None]) > 0.7
