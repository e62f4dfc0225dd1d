"""Detections equal those of a plain greedy loop, on random and tied inputs."""

import pytest
import torch
from torch import Tensor, nn

from model.anchors import make_anchors
from model.boxes import box_iou, decode
from model.detector import build_detector
from model.postprocess import TILE, Detections, nms, postprocess

IMAGE = 64
Detection = tuple[float, int, list[float]]


class Whole(nn.Module):
    """A detector with its post-processing, as it is deployed."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.detector = build_detector("slim", "retinanet", 3, IMAGE)

    def forward(self, images: Tensor) -> Detections:
        pred = self.detector(images)
        return postprocess(*pred, self.detector.anchors, IMAGE, 0.0, 0.5, 300, 20)


def plain(
    deltas: Tensor,
    logits: Tensor,
    anchors: Tensor,
    threshold: float,
    nms_iou: float,
    candidates: int,
    detections: int,
) -> list[Detection]:
    """Detect in one image, (A, 4) and (A, C): sort, decode, keep what no kept box overlaps."""
    scores, boxes = logits.flatten().sigmoid().tolist(), decode(deltas, anchors).clamp(0, IMAGE)
    overlap, solid = box_iou(boxes, boxes).tolist(), (boxes[:, 2:] > boxes[:, :2]).all(1).tolist()
    ranking = sorted(range(len(scores)), key=logits.flatten().neg().tolist().__getitem__)
    kept: list[int] = []
    for pair in ranking[:candidates]:
        anchor, label = divmod(pair, logits.shape[1])
        rivals = [other // logits.shape[1] for other in kept if other % logits.shape[1] == label]
        free = all(overlap[other][anchor] <= nms_iou for other in rivals)
        if free and solid[anchor] and scores[pair] >= threshold:
            kept.append(pair)
    return [
        (scores[pair], pair % logits.shape[1], boxes[pair // logits.shape[1]].tolist())
        for pair in kept[:detections]
    ]


def case(seed: int, tied: bool) -> tuple[Tensor, Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    anchors = make_anchors(IMAGE)[0]
    deltas = torch.randn(3, len(anchors), 4, generator=draw)
    logits = torch.randn(3, len(anchors), 3, generator=draw) * 2 - 2
    if tied:
        deltas, logits = torch.zeros_like(deltas), logits.round()
    return deltas, logits, anchors


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("candidates", [50, 400, 10_000])
@pytest.mark.parametrize("nms_iou", [0.31, 0.61])  # exactly 0.3 is an IoU of two anchors
def test_detections_equal_a_plain_loop(tied: bool, candidates: int, nms_iou: float) -> None:
    deltas, logits, anchors = case(candidates, tied)
    found = postprocess(deltas, logits, anchors, IMAGE, 0.05, nms_iou, candidates, 40)
    for i in range(3):
        expected = plain(deltas[i], logits[i], anchors, 0.05, nms_iou, candidates, 40)
        kept = int((found.labels[i] >= 0).sum())
        assert found.labels[i, :kept].tolist() == [label for _, label, _ in expected]
        assert found.scores[i, :kept].tolist() == pytest.approx([s for s, _, _ in expected])
        torch.testing.assert_close(found.boxes[i, :kept], torch.tensor([b for *_, b in expected]))
        assert (found.labels[i, kept:] == -1).all()
        assert (found.scores[i, kept:] == 0).all()
        assert (found.boxes[i, kept:] == 0).all()


@pytest.mark.parametrize("candidates", [1, 1000])
def test_no_candidates_give_no_detections(candidates: int) -> None:
    deltas, logits, anchors = case(0, False)
    found = postprocess(deltas, logits - 100, anchors, IMAGE, max_candidates=candidates)
    assert found.boxes.shape == (3, 100, 4)
    assert (found.labels == -1).all()
    assert (found.scores == 0).all()


def test_batched_equals_one_by_one() -> None:
    deltas, logits, anchors = case(1, True)
    together = postprocess(deltas, logits, anchors, IMAGE)
    alone = postprocess(deltas[1:2], logits[1:2], anchors, IMAGE)
    for one, other in zip(together, alone, strict=True):
        assert torch.equal(one[1:2], other)


def test_chain_across_tiles_is_resolved_greedily() -> None:
    """Each box overlaps only its neighbours, so greedy NMS keeps every other one."""
    count = 2 * TILE + 30
    left = torch.arange(count) * 4.0
    boxes = torch.stack([left, torch.zeros(count), left + 10, torch.full((count,), 10.0)], -1)
    keep = nms(
        boxes[None], torch.zeros(1, count, dtype=torch.int64), torch.ones(1, count).bool(), 0.4
    )
    assert torch.equal(keep[0], torch.arange(count) % 2 == 0)


def test_nms_by_scan_equals_nms_by_tiles() -> None:
    """Compiled and exported graphs use the scan."""
    deltas, _, anchors = case(3, False)
    boxes = decode(deltas, anchors)[:, : 2 * TILE + 9]
    labels = torch.arange(boxes.shape[1]).expand(3, -1) % 3
    valid = torch.rand(3, boxes.shape[1], generator=torch.Generator().manual_seed(0)) < 0.9
    keep = nms(boxes, labels, valid, 0.4)
    assert keep.any() and (keep != valid).any()
    compiled = torch.compile(nms, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(boxes, labels, valid, 0.4), keep)


def test_exports_with_its_detector_for_any_batch() -> None:
    whole = Whole().eval()
    images = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 255
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(whole, (images,), dynamic_shapes=({0: batch},))
    assert len(program.graph.nodes) < 1000
    for some in (images, images[:1]):
        for one, other in zip(program.module()(some), whole(some), strict=True):
            torch.testing.assert_close(one, other)


def test_postprocessing_reads_no_value_from_the_device() -> None:
    """Meta tensors have no data: reading a value on the host raises."""
    deltas, logits, anchors = (x.to("meta") for x in case(0, False))
    assert postprocess(deltas, logits, anchors, IMAGE).boxes.shape == (3, 100, 4)


def test_class_agnostic_nms_compares_all_boxes() -> None:
    deltas, logits, anchors = case(4, False)
    found = postprocess(deltas, logits, anchors, IMAGE, 0.05, 0.4, 300, 50, class_agnostic=True)
    for i in range(3):
        scores, pairs = logits[i].flatten().sort(descending=True, stable=True)
        boxes = decode(deltas[i], anchors).clamp(0, IMAGE)[pairs[:300] // 3]
        overlap = box_iou(boxes, boxes)
        kept: list[int] = []
        for k in range(300):
            solid = bool((boxes[k, 2:] > boxes[k, :2]).all()) and scores[k].sigmoid() >= 0.05
            if solid and all(overlap[k, j] <= 0.4 for j in kept):
                kept.append(k)
        kept = kept[:50]
        assert found.labels[i, : len(kept)].tolist() == (pairs[kept] % 3).tolist()
        torch.testing.assert_close(found.boxes[i, : len(kept)], boxes[kept])


def test_nms_keeps_classes_apart() -> None:
    boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0]]).expand(1, 3, 4)
    keep = nms(boxes, torch.tensor([[0, 1, 0]]), torch.ones(1, 3).bool(), 0.5)
    assert keep.tolist() == [[True, True, False]]


def test_non_finite_predictions_are_dropped() -> None:
    deltas, logits, anchors = case(2, False)
    logits[0] = float("nan")
    deltas[1] = float("nan")
    found = postprocess(deltas, logits, anchors, IMAGE)
    assert (found.labels[:2] == -1).all()
    assert (found.labels[2] >= 0).any()
    assert torch.isfinite(found.boxes).all()


def test_saturated_scores_are_ordered_by_logit() -> None:
    anchors = make_anchors(IMAGE)[0]
    logits = torch.full((1, len(anchors), 1), -50.0)
    far_apart = [0, 6 * 7, 6 * 56]
    logits[0, far_apart, 0] = torch.tensor([30.0, 50.0, 40.0])
    found = postprocess(torch.zeros(1, len(anchors), 4), logits, anchors, IMAGE)
    centres = (found.boxes[0, :3, :2] + found.boxes[0, :3, 2:]) / 2
    assert (found.scores[0, :3] == 1).all()
    assert (centres[0] > torch.tensor([40.0, -1.0])).all()
    assert (centres[1] > torch.tensor([-1.0, 40.0])).all()
    assert (found.labels[0, 3:] == -1).all()
