"""Tiny data sets in every format, made by code."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

SIZE = 64
BOX = (8, 8, 40, 32)


def draw(path: Path, seed: int) -> None:
    """Write an image of noise, different for every seed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    coarse = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(coarse).resize((SIZE, SIZE), Image.Resampling.BICUBIC).save(path)


def make_voc(root: Path, splits: dict[str, Sequence[int]], images: int = 8) -> Path:
    """Write a VOC data set; ``splits`` are the images in each list."""
    (root / "Annotations").mkdir(parents=True)
    for number in range(images):
        draw(root / "JPEGImages" / f"{number:03d}.jpg", number)
        x1, y1, x2, y2 = BOX
        (root / "Annotations" / f"{number:03d}.xml").write_text(
            f"<annotation><filename>{number:03d}.jpg</filename><size><width>{SIZE}</width>"
            f"<height>{SIZE}</height><depth>3</depth></size><object>"
            f"<name>{'cat' if number % 2 else 'dog'}</name><bndbox><xmin>{x1 + 1}</xmin>"
            f"<ymin>{y1 + 1}</ymin><xmax>{x2}</xmax><ymax>{y2}</ymax></bndbox></object>"
            "</annotation>"
        )
    for split, numbers in splits.items():
        path = root / "ImageSets" / "Main" / f"{split}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(f"{number:03d}\n" for number in numbers))
    return root


def make_coco(root: Path, splits: dict[str, Sequence[int]]) -> Path:
    """Write a COCO data set with a JSON per split."""
    for split, numbers in splits.items():
        for number in numbers:
            draw(root / "images" / f"{number:03d}.jpg", number)
        x1, y1, x2, y2 = BOX
        tree = {
            "images": [
                {"id": n + 1, "file_name": f"{n:03d}.jpg", "width": SIZE, "height": SIZE}
                for n in numbers
            ],
            "annotations": [
                {"id": n + 1, "image_id": n + 1, "category_id": 7, "iscrowd": 0}
                | {"bbox": [x1, y1, x2 - x1, y2 - y1], "area": 768}
                for n in numbers
            ],
            "categories": [{"id": 7, "name": "cat"}],
        }
        path = root / "annotations" / f"instances_{split}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(tree))
    return root


def make_yolo(root: Path, splits: dict[str, Sequence[int]], yaml: bool = True) -> Path:
    """Write a YOLO data set with folders of splits."""
    for split, numbers in splits.items():
        for number in numbers:
            draw(root / "images" / split / f"{number:03d}.jpg", number)
            label = root / "labels" / split / f"{number:03d}.txt"
            label.parent.mkdir(parents=True, exist_ok=True)
            label.write_text("0 0.375 0.3125 0.5 0.375\n")
    if yaml:
        lines = [f"{split}: images/{split}" for split in splits]
        (root / "data.yaml").write_text("\n".join([*lines, "names: [cat]"]) + "\n")
    return root


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    """Return a VOC data set with lists of train, val and test."""
    splits = {"train": range(4), "val": (4, 5), "trainval": range(6), "test": (6, 7)}
    return make_voc(tmp_path / "pets", splits)
