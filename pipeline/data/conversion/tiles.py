"""Cut large pictures into tiles, so that small objects keep their pixels.

Tiles overlap, and the last one of each row and column ends at the edge of the picture. An object
that is at least half in a tile is an object of the tile, with its box cut. With less of it in the
tile, it is a crowd region there, which training ignores: it is neither to be found nor background.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import NamedTuple

import numpy as np

from pipeline.data.conversion.image_bytes import StoredImage, encode_image
from pipeline.data.shards.manifest import Tiling
from pipeline.data.shards.problems import Problem
from pipeline.data.shards.sample import Sample, Tile
from pipeline.data.transforms.decode import decode_image

MIN_VISIBLE_SHARE = 0.5  # of the area of an object's box
MAX_TILES = 4096  # of a picture


class Piece(NamedTuple):
    """A sample as it is stored: the extension and the bytes of its image, and its annotation."""

    extension: str
    image: bytes
    sample: Sample


def tile_starts(length: int, size: int, overlap: float) -> list[int]:
    """Return where tiles of a side start along a picture of that length, in pixels."""
    if length <= size:
        return [0]
    step = max(1, round(size * (1 - overlap)))
    return [*range(0, length - size, step), length - size]


def cut_tiles(
    image: StoredImage, sample: Sample, tiling: Tiling, problems: list[Problem]
) -> Iterator[Piece]:
    """Yield the tiles of a picture, row by row; a picture that is not larger is one tile.

    Objects that are not half in any tile, and pictures with too many tiles, become problems.
    """
    width, height, size = sample.width, sample.height, tiling.size
    across, down = (tile_starts(side, size, tiling.overlap) for side in (width, height))
    if len(across) * len(down) > MAX_TILES:
        reason = (
            f"{width}x{height} pixels give {len(across) * len(down)} tiles of {size}, over the "
            f"limit of {MAX_TILES}; use a larger --tile"
        )
        lost = len(sample.boxes)
        problems.append(
            Problem(file=sample.file_name, kind="image skipped", reason=reason, objects=lost)
        )
        return
    whole = len(across) == len(down) == 1
    pixels = None if whole else decode_image(image.data, upright=False)  # (H,W,3)
    learned = np.zeros(len(sample.boxes), bool)
    for y in down:
        for x in across:
            cut, kept = _cut_sample(sample, x, y, size)
            learned |= kept
            if tiling.empty == "none" and not kept.any():
                continue
            data = image.data
            if pixels is not None:
                piece = np.ascontiguousarray(pixels[y : y + size, x : x + size])
                data = encode_image(piece, image.extension)
            yield Piece(image.extension, data, cut)
    for number in np.flatnonzero(~learned & ~np.array(sample.crowd, bool)).tolist():
        box = [round(value, 2) for value in sample.boxes[number]]
        reason = (
            f"object {number + 1}: {box}: less than half of it is in any tile, so that it is "
            "ignored; use a larger --tile"
        )
        problems.append(
            Problem(file=sample.file_name, kind="box dropped", reason=reason, objects=1)
        )


def _cut_sample(sample: Sample, x: int, y: int, size: int) -> tuple[Sample, np.ndarray]:
    """Return the part of a sample in a tile, and which of its boxes (M,) are objects there."""
    width, height = min(size, sample.width - x), min(size, sample.height - y)
    boxes = np.array(sample.boxes, np.float64).reshape(-1, 4)
    crowd = np.array(sample.crowd, bool)
    limits = np.array([width, height, width, height], np.float64)
    cut = np.clip(boxes - [x, y, x, y], 0, limits)  # (M,4)
    sides, full = cut[:, 2:] - cut[:, :2], boxes[:, 2:] - boxes[:, :2]  # (M,2)
    share = sides.prod(1) / full.prod(1)  # (M,)
    inside = (sides > 0).all(1)
    kept = inside & ~crowd & (share >= MIN_VISIBLE_SHARE)
    rows = np.flatnonzero(inside).tolist()
    moved = x or y or (width, height) != (sample.width, sample.height)
    name = PurePosixPath(sample.file_name)
    tile = Tile(sample.image_id, x, y, sample.width, sample.height)
    part = Sample.make(
        image_id=f"{sample.image_id}@{x},{y}" if moved else sample.image_id,
        file_name=str(name.with_name(f"{name.stem}@{x},{y}{name.suffix}")) if moved else str(name),
        width=width,
        height=height,
        boxes=[tuple(box) for box in cut[rows].tolist()],
        labels=[sample.labels[row] for row in rows],
        difficult=[sample.difficult[row] for row in rows],
        crowd=[not kept[row] for row in rows],
        area=[sample.area[row] * float(share[row]) for row in rows],
        tile=tile,
    )
    return part, kept
