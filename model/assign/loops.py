"""Plain loop versions of all assigners: what they compute, without what makes it fast.

One image at a time, lists instead of tensors, one loop for each "for each" of the papers. They
share no code with the assigners, and tests compare both. Throughout, g is an object and i an
anchor, and lists of lists are indexed [g][i]:

    a[g][i]  IoU of object g with anchor i
    r[g][i]  IoU of object g with the box regressed from anchor i
    p[g][i]  score of anchor i for the class of object g

Equal values go to the lowest anchor, and between objects to the lowest object.
"""

import math
from collections.abc import Callable
from itertools import product
from typing import Any, NamedTuple

from ..options import (
    ATSSOptions,
    MaxIoUOptions,
    MutualGuidanceOptions,
    MutualGuidanceSoftOptions,
    SimOTAOptions,
    TaskAlignedOptions,
)

BACKGROUND = -1
IGNORED = -2

Box = list[float]
"""x1, y1, x2, y2"""
Qualities = list[list[float]]
"""One value per object and anchor, [g][i]."""


class Image(NamedTuple):
    """The inputs of an assigner for one image, without padded objects."""

    anchors: list[Box]
    strides: list[float]
    """Stride of the level of each anchor."""
    objects: list[Box]
    labels: list[int]
    """Class of each object."""
    boxes: list[Box]
    """Box regressed from each anchor."""
    scores: list[list[float]]
    """Score of each anchor for each class, [i][class]."""
    progress: float = 1.0
    """Completed part of the training, 0 to 1."""


class ImageAssignment(NamedTuple):
    """The fields of `Assignment` for one image, one entry per anchor."""

    cls_index: list[int]
    cls_quality: list[float]
    loc_index: list[int]
    loc_weight: list[float]


class Matches(NamedTuple):
    """The object that each anchor is matched with, -1 for none, and its quality for that object."""

    gt_index: list[int]
    quality: list[float]


# --------------------------------------------------------------------- matched first, ranked then


def max_iou(image: Image, options: MaxIoUOptions) -> ImageAssignment:
    """Assign by the IoU of the static anchors."""
    a = iou_of_pairs(image.objects, image.anchors)
    # Each object's best anchor is set to 1, then each anchor stays with its best object.
    by_a = match_best(force_best(a))
    cls_index = [BACKGROUND] * len(image.anchors)
    loc_index = [BACKGROUND] * len(image.anchors)
    for i, (g, quality) in enumerate(zip(*by_a, strict=True)):
        if g >= 0 and quality >= options.pos_threshold:
            cls_index[i] = loc_index[i] = g
        elif g >= 0 and quality >= options.ignore_threshold:
            cls_index[i] = IGNORED
    return hard_assignment(cls_index, loc_index)


def mutual_guidance(image: Image, options: MutualGuidanceOptions) -> ImageAssignment:
    """Assign by the four steps of Mutual Guidance (ACCV 2020)."""
    objects, anchors, sigma = range(len(image.objects)), range(len(image.anchors)), options.sigma
    a = iou_of_pairs(image.objects, image.anchors)
    r = iou_of_pairs(image.objects, image.boxes)
    p = class_scores(image)
    q = [[a[g][i] ** ((sigma - p[g][i]) / sigma) for i in anchors] for g in objects]

    # Step 1: in each of A, R and Q, each object's best anchor is set to 1, then each anchor stays
    # with its best object. In the first part of the training, A stands for R and Q.
    first_part = image.progress < options.static_fraction
    by_a = match_best(force_best(a))
    by_r = by_q = by_a
    if options.localize_to_classify and not first_part:
        by_r = match_best(force_best(r))
    if options.classify_to_localize and not first_part:
        by_q = match_best(force_best(q))

    cls_index = [BACKGROUND] * len(image.anchors)
    loc_index = [BACKGROUND] * len(image.anchors)
    for g in objects:
        # Step 2: A fixes how many anchors are positive, and positive or ignored.
        qualities = [by_a.quality[i] for i in ranked(by_a, g)]
        n_pos = sum(quality >= options.pos_threshold for quality in qualities)
        n_pos = max(n_pos, min(options.min_positives, len(qualities)))
        n_ign = sum(quality >= options.ignore_threshold for quality in qualities)
        # Step 3, localize to classify: R chooses which anchors classify.
        for rank, i in enumerate(ranked(by_r, g)):
            if rank < n_pos:
                cls_index[i] = g
            elif rank < n_ign:
                cls_index[i] = IGNORED
        # Step 4, classify to localize: Q chooses which anchors regress.
        for i in ranked(by_q, g)[:n_pos]:
            loc_index[i] = g
    guided = options.localize_to_classify and not first_part
    iou = r if guided else force_best(a)
    return hard_assignment(spare_background(cls_index, iou, options.spare_iou), loc_index)


def mutual_guidance_soft(image: Image, options: MutualGuidanceSoftOptions) -> ImageAssignment:
    """Assign by the soft version of Mutual Guidance (2021-2023)."""
    objects, anchors, sigma = range(len(image.objects)), range(len(image.anchors)), options.sigma
    a = iou_of_pairs(image.objects, image.anchors)
    r = iou_of_pairs(image.objects, image.boxes)
    p = class_scores(image)
    q = [[min(1.0, a[g][i] * math.exp(p[g][i] / sigma)) for i in anchors] for g in objects]
    first_part = image.progress < options.static_fraction

    iou = [list(row) for row in (r if options.localize_to_classify and not first_part else a)]
    # Only anchors near an object are matched with it.
    if options.centre_radius > 0:
        for g, i in product(objects, anchors):
            reach = options.centre_radius * image.strides[i]
            if not centre_near(image.anchors[i], image.objects[g], reach):
                a[g][i] = r[g][i] = q[g][i] = 0.0

    # Each anchor stays with its best object, by R to classify and by Q to localize; by A in the
    # first part of the training.
    by_cls = match_best(r if options.localize_to_classify and not first_part else a)
    by_loc = match_best(q if options.classify_to_localize and not first_part else a)
    counts = len(image.objects), options.topk, max(1, options.min_positives)
    cls_index, cls_quality = dynamic_topk(by_cls, *counts)
    loc_index, loc_weight = dynamic_topk(by_loc, *counts)
    if options.scaled_targets and not first_part:
        cls_quality = scaled_targets(cls_index, cls_quality, r, p)
        loc_weight = scaled_targets(loc_index, loc_weight, r, p)
    cls_index = spare_background(cls_index, iou, options.spare_iou)
    return ImageAssignment(cls_index, cls_quality, loc_index, loc_weight)


def dynamic_topk(
    matches: Matches, num_objects: int, topk: int, at_least: int
) -> tuple[list[int], list[float]]:
    """Give each object its k best anchors, k the sum of its highest qualities or a minimum."""
    index = [BACKGROUND] * len(matches.gt_index)
    weight = [0.0] * len(matches.gt_index)
    for g in range(num_objects):
        best = ranked(matches, g)
        k = max(at_least, math.floor(sum(matches.quality[i] for i in best[:topk])))
        for i in best[:k]:
            index[i] = g
            weight[i] = matches.quality[i]
    return index, weight


def spare_background(cls_index: list[int], iou: Qualities, spare_iou: float) -> list[int]:
    """Ignore background anchors that overlap any object by at least `spare_iou`, unless it is 0."""
    spared = list(cls_index)
    for i, column in enumerate(zip(*iou, strict=True)):
        if cls_index[i] == BACKGROUND and 0 < spare_iou <= max(column):
            spared[i] = IGNORED
    return spared


def scaled_targets(
    index: list[int], quality: list[float], r: Qualities, p: Qualities
) -> list[float]:
    """Return t = p R^6 of each positive, scaled so that an object's highest t is its highest R."""
    target = list(quality)
    for g in range(len(r)):
        positives = [i for i, assigned in enumerate(index) if assigned == g]
        t = {i: p[g][i] * r[g][i] ** 6 for i in positives}
        for i in positives:
            if max(t.values()) > 0:
                target[i] = t[i] / max(t.values()) * max(r[g][j] for j in positives)
    return target


# -------------------------------------------------------------------- chosen first, resolved then


def atss(image: Image, options: ATSSOptions) -> ImageAssignment:
    """Assign by ATSS."""
    choices: list[dict[int, float]] = []  # of each object: the anchors it chooses, with their IoU
    for g in image.objects:
        candidates = [
            i
            for stride in sorted(set(image.strides))
            for i in nearest(image, g, stride)[: options.candidates * per_cell(image)]
        ]
        ious = [iou(g, image.anchors[i]) for i in candidates]
        mean = sum(ious) / len(ious)
        std = math.sqrt(sum((value - mean) ** 2 for value in ious) / (len(ious) - 1))
        choices.append(
            {
                i: value
                for i, value in zip(candidates, ious, strict=True)
                if value >= mean + std and value > 0 and centre_inside(image.anchors[i], g)
            }
        )
    index = resolve_conflicts(choices, len(image.anchors))
    return hard_assignment(index, index)


def nearest(image: Image, g: Box, stride: float) -> list[int]:
    """Return the anchors of one level by the distance of their cell from an object's centre."""

    def squared_distance(i: int) -> float:
        x, y = centre(image.anchors[i])
        cell_x, cell_y = (x // stride + 0.5) * stride, (y // stride + 0.5) * stride
        return (cell_x - centre(g)[0]) ** 2 + (cell_y - centre(g)[1]) ** 2

    level = [i for i, s in enumerate(image.strides) if s == stride]
    return sorted(level, key=squared_distance)


def per_cell(image: Image) -> int:
    """Return the number of anchors of one cell: those with the first anchor's centre."""
    first, stride = image.anchors[0], image.strides[0]
    distances = [math.dist(centre(first), centre(anchor)) for anchor in image.anchors]
    levels = image.strides
    return sum(d < stride / 2 and s == stride for d, s in zip(distances, levels, strict=True))


def sim_ota(image: Image, options: SimOTAOptions) -> ImageAssignment:
    """Assign by SimOTA."""
    choices: list[dict[int, float]] = []  # of each object: the anchors it chooses, with minus cost
    for g, label in zip(image.objects, image.labels, strict=True):
        # First choice: centre inside the object and near its centre. Second choice: either of them.
        first: dict[int, float] = {}
        second: dict[int, float] = {}
        ious = []
        for i, anchor in enumerate(image.anchors):
            inside = centre_inside(anchor, g)
            near = centre_within(anchor, g, options.radius * image.strides[i])
            if inside or near:
                r = iou(g, image.boxes[i])
                cost = cross_entropy(image.scores[i], label)
                cost -= options.iou_weight * math.log(max(r, 1e-8))
                (first if inside and near else second)[i] = cost
                ious.append(r)
        # The k candidates of lowest cost, k the sum of the highest IoUs, at least 1.
        k = max(1, math.floor(sum(sorted(ious, reverse=True)[: options.topk])))
        by_cost = sorted(first, key=first.__getitem__) + sorted(second, key=second.__getitem__)
        # An anchor goes to an object that has it as first choice before any that has it as second.
        quality = {i: -cost for i, cost in first.items()}
        quality |= {i: -cost - 1e6 for i, cost in second.items()}
        choices.append({i: quality[i] for i in by_cost[:k]})
    index = resolve_conflicts(choices, len(image.anchors))
    assigned = hard_assignment(index, index)
    if not options.iou_targets:
        return assigned
    target = [iou(image.objects[g], image.boxes[i]) if g >= 0 else 0.0 for i, g in enumerate(index)]
    return assigned._replace(cls_quality=target)


def cross_entropy(scores: list[float], label: int) -> float:
    """Return the summed binary cross-entropy of class scores; logarithms are clamped to -100."""

    def log(p: float) -> float:
        return max(math.log(p), -100.0) if p > 0 else -100.0

    return -sum(log(p) if c == label else log(1 - p) for c, p in enumerate(scores))


def task_aligned(image: Image, options: TaskAlignedOptions) -> ImageAssignment:
    """Assign by TaskAligned (TOOD), in the first part of the training by ATSS."""
    if image.progress < options.static_fraction:
        return atss(image, ATSSOptions())
    r = iou_of_pairs(image.objects, image.boxes)
    alignments: list[dict[int, float]] = []  # of each object: t of its candidates
    choices: list[dict[int, float]] = []  # of each object: the anchors it chooses, with their IoU
    for g, (box, label) in enumerate(zip(image.objects, image.labels, strict=True)):
        t = {}
        for i, anchor in enumerate(image.anchors):
            t_i = image.scores[i][label] ** options.alpha * r[g][i] ** options.beta
            if centre_inside(anchor, box) and t_i > 0:
                t[i] = t_i
        alignments.append(t)
        best = sorted(t, key=lambda i: -t[i])[: options.topk]
        choices.append({i: r[g][i] for i in best})
    index = resolve_conflicts(choices, len(image.anchors))
    # Scale t so that an object's highest value is its highest IoU.
    target = [0.0] * len(image.anchors)
    for g, t in enumerate(alignments):
        positives = [i for i, assigned in enumerate(index) if assigned == g]
        for i in positives:
            max_t = max(t[j] for j in positives)
            max_u = max(r[g][j] for j in positives)
            target[i] = t[i] / max_t * max_u
    return ImageAssignment(index, target, index, target)


# ----------------------------------------------------------------------------------- shared steps


def force_best(quality: Qualities) -> Qualities:
    """Set each object's best anchor to quality 1, unless it overlaps none."""
    quality = [list(row) for row in quality]
    for row in quality:
        if max(row) > 0:
            row[row.index(max(row))] = 1.0
    return quality


def match_best(quality: Qualities) -> Matches:
    """Match each anchor with its best object; one of quality 0 with none."""
    gt_index, best_quality = [], []
    for column in zip(*quality, strict=True):  # of one anchor: its quality for each object
        best = max(column)
        gt_index.append(column.index(best) if best > 0 else -1)
        best_quality.append(best)
    return Matches(gt_index, best_quality)


def ranked(matches: Matches, g: int) -> list[int]:
    """Return the anchors matched with an object, best first."""
    matched = [i for i, owner in enumerate(matches.gt_index) if owner == g]
    return sorted(matched, key=lambda i: -matches.quality[i])


def resolve_conflicts(choices: list[dict[int, float]], num_anchors: int) -> list[int]:
    """Give each anchor to the object of highest quality among those that chose it.

    `choices` holds one dictionary per object, from chosen anchor to quality.
    """
    index = [BACKGROUND] * num_anchors
    for i in range(num_anchors):
        qualities = [choice.get(i, -math.inf) for choice in choices]
        if max(qualities) > -math.inf:
            index[i] = qualities.index(max(qualities))
    return index


def hard_assignment(cls_index: list[int], loc_index: list[int]) -> ImageAssignment:
    """Return the assignment whose positives all have weight 1."""
    cls_quality = [1.0 if g >= 0 else 0.0 for g in cls_index]
    loc_weight = [1.0 if g >= 0 else 0.0 for g in loc_index]
    return ImageAssignment(cls_index, cls_quality, loc_index, loc_weight)


# --------------------------------------------------------------------------------------- geometry


def iou(a: Box, b: Box) -> float:
    """Return the IoU of two boxes. Empty and inverted ones overlap nothing."""
    width = max(min(a[2], b[2]) - max(a[0], b[0]), 0.0)
    height = max(min(a[3], b[3]) - max(a[1], b[1]), 0.0)
    areas = [max(x2 - x1, 0.0) * max(y2 - y1, 0.0) for x1, y1, x2, y2 in (a, b)]
    return width * height / max(areas[0] + areas[1] - width * height, 1e-300)


def iou_of_pairs(objects: list[Box], boxes: list[Box]) -> Qualities:
    """Return the IoU of each object with each box."""
    return [[iou(g, box) for box in boxes] for g in objects]


def class_scores(image: Image) -> Qualities:
    """Return the score of each anchor for the class of each object."""
    return [[scores[label] for scores in image.scores] for label in image.labels]


def centre(box: Box) -> tuple[float, float]:
    """Return the centre of a box."""
    return (box[0] + box[2]) / 2, (box[1] + box[3]) / 2


def centre_inside(anchor: Box, g: Box) -> bool:
    """Return whether the centre of an anchor is strictly inside an object."""
    x, y = centre(anchor)
    return g[0] < x < g[2] and g[1] < y < g[3]


def centre_near(anchor: Box, g: Box, reach: float) -> bool:
    """Return whether the centre of an anchor is strictly inside an object whose sides are raised to
    at least twice `reach`, about its centre."""
    sides = g[2] - g[0], g[3] - g[1]
    distances = (abs(p - q) for p, q in zip(centre(anchor), centre(g), strict=True))
    return all(d < max(side / 2, reach) for d, side in zip(distances, sides, strict=True))


def centre_within(anchor: Box, g: Box, reach: float) -> bool:
    """Return whether two centres are less than `reach` apart along both axes."""
    return all(abs(p - q) < reach for p, q in zip(centre(anchor), centre(g), strict=True))


LOOPS: dict[str, Callable[[Image, Any], ImageAssignment]] = {
    "atss": atss,
    "max_iou": max_iou,
    "mutual_guidance": mutual_guidance,
    "mutual_guidance_soft": mutual_guidance_soft,
    "sim_ota": sim_ota,
    "task_aligned": task_aligned,
}
