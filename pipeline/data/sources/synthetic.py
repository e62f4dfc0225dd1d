"""Draw scenes of simple shapes: a detection task for demos and tests, without a download.

Each scene depends on seed, split, index, size and the limits of its objects alone. Shapes are
slightly rotated, on a muted, textured background with lines, soft blobs and noise; at most 40% of a
shape is covered. Every class has a typical hue that overlaps with its neighbours': colour helps,
shape decides.
"""

from __future__ import annotations

import colorsys
import math
import zlib
from dataclasses import dataclass

import cv2
import numpy as np
import simplejpeg

from pipeline.data.keyed_rng import generator
from pipeline.data.sources.record import Object, Record, Source, estimate_label_bytes
from pipeline.errors import UserError

CLASSES = ["circle", "cross", "square", "star", "triangle"]
MAX_OBJECTS = 6
OBJECT_SIDES = (16, 60)  # of objects, in pixels of a 128 px scene
MIN_SIDE = 4  # pixels; below, shapes look the same
MIN_VISIBLE = 0.6
MAX_ROTATION = math.radians(30)
HUE_SPREAD = 50.0  # degrees to each side; classes are 72 apart
MAX_PLACEMENTS = 30
SUBPIXEL_BITS = 4  # cv2 draws in 1/16 pixels


def shapes_source(
    count: int,
    split: str,
    size: int = 128,
    seed: int = 0,
    sides: tuple[float, float] | None = None,
    max_objects: int | None = None,
) -> Source:
    """Return ``count`` scenes of size x size pixels, as JPEG; each split has different ones.

    ``sides`` are the smallest and largest side of an object, in pixels (default: `OBJECT_SIDES`, in
    proportion to the scene); a scene has 1 to ``max_objects`` (default: `MAX_OBJECTS`). Raises
    UserError if objects would be too small, or larger than the scene.
    """
    if sides is not None and not MIN_SIDE <= sides[0] <= sides[1] <= size:
        raise UserError(
            f"sides of objects from {sides[0]:g} to {sides[1]:g} pixels in images of {size}: give "
            f"{MIN_SIDE} <= smallest <= largest <= {size}"
        )
    images = (SyntheticImage(seed, split, i, size, sides, max_objects) for i in range(count))
    return Source("shapes", "shapes", list(CLASSES), images, count, boxes_are="stored")


def draw_scene(
    seed: int,
    split: str,
    index: int,
    size: int,
    sides: tuple[float, float] | None = None,
    max_objects: int | None = None,
) -> tuple[np.ndarray, list[Object]]:
    """Draw one scene. Returns (size,size,3) uint8 RGB and its objects."""
    rng = generator("shapes", seed, zlib.crc32(split.encode()), index, size)
    image = _background(rng, size)
    low, high = sides or [side * size / 128 for side in OBJECT_SIDES]
    placed: list[tuple[str, np.ndarray]] = []
    for _ in range(1 + int(rng.random() * (max_objects or MAX_OBJECTS))):
        _place_object(rng, image, placed, low, high)
    noise = rng.random((size, size, 3), dtype=np.float32) * 24 - 12
    image = (image + noise).clip(0, 255).astype(np.uint8)
    return image, [Object(name, _extent(mask)) for name, mask in placed]


@dataclass(frozen=True, slots=True)
class SyntheticImage:
    """A scene that is drawn when it is converted."""

    seed: int
    split: str
    index: int
    size: int
    sides: tuple[float, float] | None = None
    max_objects: int | None = None

    @property
    def image_id(self) -> str:
        """Return the id, made of split, seed and index."""
        return f"{self.split}-{self.seed}-{self.index:06d}"

    @property
    def file_name(self) -> str:
        """Return the id with the suffix of a JPEG."""
        return f"{self.image_id}.jpg"

    @property
    def image(self) -> None:
        """Return None: there is no file."""

    @property
    def estimated_bytes(self) -> int:
        """Return about the bytes in a shard; noise at this quality takes one byte per pixel."""
        return self.size**2 + estimate_label_bytes((self.max_objects or MAX_OBJECTS) // 2)

    def read_record(self) -> Record:
        """Draw the scene."""
        image, objects = draw_scene(
            self.seed, self.split, self.index, self.size, self.sides, self.max_objects
        )
        data = bytes(simplejpeg.encode_jpeg(image, quality=92, colorsubsampling="444"))
        size = (self.size, self.size)
        return Record(self.image_id, self.file_name, data, self.image_id, size, objects)


def _place_object(
    rng: np.random.Generator,
    image: np.ndarray,
    placed: list[tuple[str, np.ndarray]],
    low: float,
    high: float,
) -> None:
    """Draw one more object with a side from ``low`` to ``high`` pixels.

    There is none if every position tried covers too much of another object.
    """
    size = len(image)
    name = CLASSES[int(rng.random() * len(CLASSES))]
    colour = _random_colour(rng, name)
    for _ in range(MAX_PLACEMENTS):
        # Log-uniform: small objects are as frequent as large ones.
        log_low, log_high = math.log(low), math.log(high)
        radius = math.exp(log_low + rng.random() * (log_high - log_low)) / 2
        centre = radius + rng.random(2) * (size - 2 * radius)
        mask = np.zeros((size, size), np.uint8)
        rotation = (rng.random() - 0.5) * 2 * MAX_ROTATION
        cv2.fillPoly(
            mask, [_outline(name, centre, radius, rotation)], 255, cv2.LINE_AA, SUBPIXEL_BITS
        )
        if all(_visible(other, placed[i + 1 :], mask) for i, (_, other) in enumerate(placed)):
            cover = (mask / np.float32(255))[..., None]
            image[:] = image * (1 - cover) + colour * cover
            placed.append((name, mask))
            return


def _visible(mask: np.ndarray, above: list[tuple[str, np.ndarray]], new: np.ndarray) -> bool:
    covered, own = new > 127, mask > 127
    if not (covered & own).any():
        return True  # as visible as before
    for _, other in above:
        covered |= other > 127
    return bool((own & ~covered).sum() >= MIN_VISIBLE * own.sum())


def _outline(name: str, centre: np.ndarray, radius: float, rotation: float) -> np.ndarray:
    """Return the corners (K,2) of a shape within a circle, in 1/16 pixels."""
    if name == "cross":
        arm = 0.33
        x = np.array([arm, arm, 1, 1, arm, arm, -arm, -arm, -1, -1, -arm, -arm])
        y = np.array([-1, -arm, -arm, arm, arm, 1, 1, arm, arm, -arm, -arm, -1])
        points = np.stack([x, y], 1) / math.hypot(1, arm)
    else:
        corners = {"circle": 48, "square": 4, "star": 10, "triangle": 3}[name]
        angles = np.arange(corners) * 2 * math.pi / corners
        reach = np.where(np.arange(corners) % 2, 0.45, 1.0) if name == "star" else 1.0
        points = np.stack([np.cos(angles), np.sin(angles)], 1) * np.reshape(reach, (-1, 1))
    cos, sin = math.cos(rotation), math.sin(rotation)
    points = points @ np.array([[cos, sin], [-sin, cos]]) * radius + centre
    return np.round((points - 0.5) * 2**SUBPIXEL_BITS).astype(np.int32)


def _extent(mask: np.ndarray) -> tuple[float, float, float, float]:
    """Return the box around the pixels of a mask (H,W) that are at least half covered."""
    rows, columns = np.flatnonzero((mask > 127).any(1)), np.flatnonzero((mask > 127).any(0))
    return float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)


def _background(rng: np.random.Generator, size: int) -> np.ndarray:
    """Return a textured background (size,size,3) with clutter."""
    ground = 50 + rng.random() * 150 + (rng.random(3) - 0.5) * 40
    coarse = (rng.random((6, 6, 3), dtype=np.float32) - 0.5) * 70
    image = ground.astype(np.float32) + cv2.resize(
        coarse, (size, size), interpolation=cv2.INTER_CUBIC
    )
    for _ in range(int(rng.random() * 4)):
        _soft_blob(rng, image)
    for _ in range(int(rng.random() * 7)):
        start, end = (rng.random((2, 2)) * size * 2**SUBPIXEL_BITS).astype(int).tolist()
        colour = (rng.random(3) * 255).tolist()
        cv2.line(image, start, end, colour, 1 + int(rng.random() * 2), cv2.LINE_AA, SUBPIXEL_BITS)
    return image


def _soft_blob(rng: np.random.Generator, image: np.ndarray) -> None:
    """Add a round stain without an edge, as a distractor."""
    size = len(image)
    x, y, reach = rng.random() * size, rng.random() * size, (0.05 + 0.15 * rng.random()) * size
    steps = np.arange(size, dtype=np.float32)
    weight = np.exp(-(((steps - x) ** 2)[None] + ((steps - y) ** 2)[:, None]) / (2 * reach**2))
    image += weight[..., None] * ((rng.random(3) - 0.5) * 80).astype(np.float32)


def _random_colour(rng: np.random.Generator, name: str) -> np.ndarray:
    """Return a strong colour (3,) from the range of hues of a class."""
    centre = 360.0 * CLASSES.index(name) / len(CLASSES)
    hue = (centre + (rng.random() - 0.5) * 2 * HUE_SPREAD) % 360.0
    rgb = colorsys.hsv_to_rgb(hue / 360.0, 0.6 + 0.4 * rng.random(), 0.5 + 0.5 * rng.random())
    return np.array(rgb, np.float32) * 255
