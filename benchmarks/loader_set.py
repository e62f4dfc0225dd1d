"""Generate images to measure loaders: 500x375 JPEG, quality 90, as costly as photographs.

The spectrum of each image falls with frequency like that of photographs, which determines the work
of a decoder; flat drawings decode in half the time and would flatter every loader.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import simplejpeg

WIDTH, HEIGHT, QUALITY = 500, 375, 90
SPECTRUM_EXPONENT = 1.25  # of the amplitude: about 80 kB per image
TEXTURES = 24


def write_folder(folder: Path, images: int) -> None:
    """Write ``images`` JPEGs with a JSON beside each, and one ``instances.json``."""
    rng = np.random.default_rng(0)
    textures = [_texture(rng) for _ in range(TEXTURES)]
    records, annotations = [], []
    folder.mkdir(parents=True)
    for number in range(images):
        planes = [textures[k] for k in rng.integers(0, TEXTURES, 4)]
        shift = rng.integers(0, min(WIDTH, HEIGHT), 2)
        grey = np.roll(planes[0], shift, (0, 1))
        pixels = np.stack([grey + 0.3 * plane for plane in planes[1:]], 2) * 48 + 128
        data = simplejpeg.encode_jpeg(
            np.ascontiguousarray(pixels.clip(0, 255).astype(np.uint8)),
            quality=QUALITY,
            colorsubsampling="420",
        )
        boxes = [_box(rng) for _ in range(1 + rng.poisson(2))]
        labels = rng.integers(0, 20, len(boxes)).tolist()
        name = f"{number:06d}"
        (folder / f"{name}.jpg").write_bytes(data)
        tree = {"width": WIDTH, "height": HEIGHT, "boxes": boxes, "labels": labels}
        (folder / f"{name}.json").write_text(json.dumps(tree))
        records.append({"id": number, "file_name": f"{name}.jpg", "width": WIDTH, "height": HEIGHT})
        annotations += [
            {
                "id": len(annotations) + k,
                "image_id": number,
                "category_id": label,
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "iscrowd": 0,
                "area": (x2 - x1) * (y2 - y1),
            }
            for k, ((x1, y1, x2, y2), label) in enumerate(zip(boxes, labels, strict=True))
        ]
    categories = [{"id": k, "name": f"class{k}"} for k in range(20)]
    tree = {"images": records, "annotations": annotations, "categories": categories}
    (folder / "instances.json").write_text(json.dumps(tree))


def convert(folder: Path, out: Path) -> None:
    """Convert such a folder to shards of 16 MiB, a third of the default: it then has many."""
    command = [sys.executable, "-m", "jobs.prepare", "--source", "coco", "--images", str(folder)]
    command += ["--annotations", str(folder / "instances.json"), "--out", str(out)]
    command += ["--shard-mib", "16"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def _texture(rng: np.random.Generator) -> np.ndarray:
    frequency = np.hypot(np.fft.fftfreq(HEIGHT)[:, None], np.fft.rfftfreq(WIDTH))
    frequency[0, 0] = 1
    noise = rng.normal(size=(2, *frequency.shape))
    plane = np.fft.irfft2(
        (noise[0] + 1j * noise[1]) / frequency**SPECTRUM_EXPONENT, (HEIGHT, WIDTH)
    )
    return np.asarray(plane / plane.std())


def _box(rng: np.random.Generator) -> list[float]:
    width, height = (float(v) for v in rng.integers(16, 240, 2))
    x, y = float(rng.integers(0, WIDTH - width)), float(rng.integers(0, HEIGHT - height))
    return [x, y, x + width, y + height]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--images", type=int, default=2000)
    options = parser.parse_args()
    write_folder(options.out / "loose", options.images)
    convert(options.out / "loose", options.out / "shards")
