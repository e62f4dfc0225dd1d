"""Plain, slow versions of all assigners: one image, lists of numbers, one loop per "for each".

They follow the words of the papers and share no code with the assigners.
"""

import math
from typing import NamedTuple

Rows = list[list[float]]
Strides = list[float]


class Answer(NamedTuple):
    """What `Assignment` holds, of one image."""

    cls_index: list[int]
    cls_quality: list[float]
    loc_index: list[int]
    loc_weight: list[float]


class Image(NamedTuple):
    """What an assigner sees of one image."""

    anchors: Rows
    strides: Strides
    objects: Rows
    labels: list[int]
    boxes: Rows
    scores: Rows


def iou(a: list[float], b: list[float]) -> float:
    width = max(min(a[2], b[2]) - max(a[0], b[0]), 0.0)
    height = max(min(a[3], b[3]) - max(a[1], b[1]), 0.0)
    areas = [max(x2 - x1, 0.0) * max(y2 - y1, 0.0) for x1, y1, x2, y2 in (a, b)]
    return width * height / max(areas[0] + areas[1] - width * height, 1e-300)


def overlaps(objects: Rows, boxes: Rows) -> Rows:
    return [[iou(g, x) for x in boxes] for g in objects]


def centre(box: list[float]) -> tuple[float, float]:
    return (box[0] + box[2]) / 2, (box[1] + box[3]) / 2


def inside(anchor: list[float], g: list[float]) -> bool:
    x, y = centre(anchor)
    return g[0] < x < g[2] and g[1] < y < g[3]


def force_best(quality: Rows) -> Rows:
    """Each object's best anchor, the lowest among equals, gets quality 1."""
    quality = [list(row) for row in quality]
    for row in quality:
        if max(row) > 0:
            row[row.index(max(row))] = 1.0
    return quality


def claim(quality: Rows) -> tuple[list[int], list[float]]:
    """Each anchor stays with its best object, the lowest among equals."""
    owners, values = [], []
    for column in zip(*quality, strict=True):
        best = max(column)
        owners.append(column.index(best) if best > 0 else -1)
        values.append(best)
    return owners, values


def ranked(owners: list[int], values: list[float], g: int) -> list[int]:
    return sorted((i for i, o in enumerate(owners) if o == g), key=lambda i: -values[i])


def hard(cls: list[int], loc: list[int]) -> Answer:
    ones = [[float(x >= 0) for x in index] for index in (cls, loc)]
    return Answer(cls, ones[0], loc, ones[1])


def max_iou(image: Image, positive: float = 0.5, ignore: float = 0.4) -> Answer:
    owners, values = claim(force_best(overlaps(image.objects, image.anchors)))
    loc = [o if v >= positive else -1 for o, v in zip(owners, values, strict=True)]
    cls = [
        -2 if o >= 0 and ignore <= v < positive else x
        for o, v, x in zip(owners, values, loc, strict=True)
    ]
    return hard(cls, loc)


def mutual_guidance(
    image: Image, sigma: float = 2.0, guide_cls: bool = True, guide_loc: bool = True
) -> Answer:
    a = overlaps(image.objects, image.anchors)
    r = overlaps(image.objects, image.boxes) if guide_cls else a
    q = a
    if guide_loc:
        q = [
            [v ** ((sigma - p[label]) / sigma) for v, p in zip(row, image.scores, strict=True)]
            for row, label in zip(a, image.labels, strict=True)
        ]
    static, for_cls, for_loc = (claim(force_best(x)) for x in (a, r, q))
    cls, loc = [-1] * len(image.anchors), [-1] * len(image.anchors)
    for g in range(len(image.objects)):
        held = [v for o, v in zip(*static, strict=True) if o == g]
        positives, spared = sum(v >= 0.5 for v in held), sum(v >= 0.4 for v in held)
        for rank, i in enumerate(ranked(*for_cls, g)):
            cls[i] = g if rank < positives else -2 if rank < spared else -1
        for i in ranked(*for_loc, g)[:positives]:
            loc[i] = g
    return hard(cls, loc)


def mutual_guidance_soft(
    image: Image, sigma: float = 2.0, guide_cls: bool = True, guide_loc: bool = True
) -> Answer:
    a = overlaps(image.objects, image.anchors)
    r = overlaps(image.objects, image.boxes) if guide_cls else a
    q = a
    if guide_loc:
        q = [
            [
                min(1.0, v * math.exp(p[label] / sigma))
                for v, p in zip(row, image.scores, strict=True)
            ]
            for row, label in zip(a, image.labels, strict=True)
        ]
    answer = []
    for quality in (r, q):
        owners, values = claim(quality)
        index, worth = [-1] * len(image.anchors), [0.0] * len(image.anchors)
        for g in range(len(image.objects)):
            order = ranked(owners, values, g)
            count = max(1, math.floor(sum(values[i] for i in order[:15])))
            for i in order[:count]:
                index[i], worth[i] = g, values[i]
        answer += [index, worth]
    return Answer(*answer)


def settle(choices: list[dict[int, float]], anchors: int) -> list[int]:
    """Anchors go to the object of highest merit among those that chose them, lowest if equal."""
    index = [-1] * anchors
    for i in range(anchors):
        merits = [choice.get(i, -math.inf) for choice in choices]
        if max(merits) > -math.inf:
            index[i] = merits.index(max(merits))
    return index


def atss(image: Image) -> Answer:
    choices = []
    cells = []
    for box, stride in zip(image.anchors, image.strides, strict=True):
        x, y = centre(box)
        cells.append(((x // stride + 0.5) * stride, (y // stride + 0.5) * stride))
    for g in image.objects:
        x, y = centre(g)
        near = []
        for stride in sorted(set(image.strides)):
            level = [i for i, s in enumerate(image.strides) if s == stride]
            level.sort(key=lambda i: (cells[i][0] - x) ** 2 + (cells[i][1] - y) ** 2)
            near += level[: 9 * 6]
        values = [iou(g, image.anchors[i]) for i in near]
        mean = sum(values) / len(values)
        std = math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1))
        choices.append(
            {
                i: v
                for i, v in zip(near, values, strict=True)
                if v >= mean + std and v > 0 and inside(image.anchors[i], g)
            }
        )
    index = settle(choices, len(image.anchors))
    return hard(index, index)


def sim_ota(image: Image, topk: int = 10, radius: float = 2.5) -> Answer:
    def log(p: float) -> float:
        return max(math.log(p), -100.0) if p > 0 else -100.0

    choices = []
    for g, label in zip(image.objects, image.labels, strict=True):
        first, second, values = {}, {}, []
        for i, anchor in enumerate(image.anchors):
            reach = radius * image.strides[i]
            near = all(abs(p - q) < reach for p, q in zip(centre(anchor), centre(g), strict=True))
            if not (near or inside(anchor, g)):
                continue
            u = iou(g, image.boxes[i])
            named = [log(p) if c == label else log(1 - p) for c, p in enumerate(image.scores[i])]
            cost = -sum(named) - 3 * log(max(u, 1e-8))
            (first if near and inside(anchor, g) else second)[i] = cost
            values.append(u)
        count = max(1, math.floor(sum(sorted(values, reverse=True)[:topk])))
        order = sorted(first, key=first.__getitem__) + sorted(second, key=second.__getitem__)
        # Second choices are worth less than any first one, to whichever object.
        merits = {i: -cost for i, cost in first.items()}
        merits |= {i: -cost - 1e6 for i, cost in second.items()}
        choices.append({i: merits[i] for i in order[:count]})
    index = settle(choices, len(image.anchors))
    return hard(index, index)


def task_aligned(image: Image, topk: int = 13) -> Answer:
    choices, alignments = [], []
    for g, label in zip(image.objects, image.labels, strict=True):
        t, u = {}, {}
        for i, anchor in enumerate(image.anchors):
            u[i] = iou(g, image.boxes[i])
            value = image.scores[i][label] * u[i] ** 6
            if inside(anchor, g) and value > 0:
                t[i] = value
        taken = sorted(t, key=lambda i: -t[i])[:topk]
        choices.append({i: u[i] for i in taken})
        alignments.append(t)
    index = settle(choices, len(image.anchors))
    target = [0.0] * len(index)
    for g, (choice, t) in enumerate(zip(choices, alignments, strict=True)):
        mine = [i for i, owner in enumerate(index) if owner == g]
        for i in mine:
            target[i] = t[i] / max(t[j] for j in mine) * max(choice[j] for j in mine)
    return Answer(index, target, index, target)


LOOPS = {
    "atss": atss,
    "max_iou": max_iou,
    "mutual_guidance": mutual_guidance,
    "mutual_guidance_soft": mutual_guidance_soft,
    "sim_ota": sim_ota,
    "task_aligned": task_aligned,
}
