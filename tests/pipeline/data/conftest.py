"""Fixtures that build small data sets."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import boto3
import numpy as np
import pytest
from PIL import Image

from pipeline.config import Config
from pipeline.data.conversion.convert import convert
from pipeline.data.conversion.frames.orientation import settle_frame
from pipeline.data.shards.manifest import Manifest
from pipeline.data.sources.record import Source
from pipeline.data.sources.synthetic import shapes_source
from tests.ports import free_port

Encode = Callable[..., bytes]


def picture(width: int = 40, height: int = 30, seed: int = 0) -> np.ndarray:
    """Return a smooth image (H,W,3) that differs in every corner and for every seed."""
    x, y = np.linspace(0, 1, width), np.linspace(0, 1, height)[:, None]
    planes = np.stack([x + 0 * y, y + 0 * x, (x + y) / 2], 2)
    return (planes * 200 + 20 + seed % 30).astype(np.uint8)


@pytest.fixture
def encode() -> Encode:
    """Return ``encode("JPEG", 40, 30, **options of Pillow's save)``: bytes of an image."""

    def run(kind: str = "JPEG", width: int = 40, height: int = 30, **options: Any) -> bytes:
        out = io.BytesIO()
        Image.fromarray(picture(width, height)).save(out, kind, **options)
        return out.getvalue()

    return run


OBJECT = """<object><name>{0}</name><difficult>{5}</difficult><bndbox><xmin>{1}</xmin><ymin>{2}
</ymin><xmax>{3}</xmax><ymax>{4}</ymax></bndbox></object>"""


@pytest.fixture
def voc(tmp_path: Path, encode: Encode) -> Any:
    """Return a VOC folder to fill: ``voc.add("a", [("cat", 1, 1, 10, 10)])``; ``voc.root``."""

    class Voc:
        root = tmp_path / "voc"

        def __init__(self) -> None:
            for folder in ("Annotations", "ImageSets/Main", "JPEGImages"):
                (self.root / folder).mkdir(parents=True)

        def add(
            self,
            image_id: str,
            objects: Sequence[tuple[Any, ...]] = (),
            *,
            split: str = "train",
            image: bytes | None = None,
            suffix: str = ".jpg",
            size: tuple[int, int] = (40, 30),
            xml: str | None = None,
        ) -> None:
            data = encode() if image is None else image
            (self.root / "JPEGImages" / f"{image_id}{suffix}").write_bytes(data)
            rows = "".join(OBJECT.format(*o, *([0] if len(o) == 5 else [])) for o in objects)
            default = (
                f"<annotation><size><width>{size[0]}</width><height>{size[1]}</height></size>"
                f"{rows}</annotation>"
            )
            (self.root / "Annotations" / f"{image_id}.xml").write_text(xml or default)
            self.list(image_id, split)

        def list(self, line: str, split: str = "train") -> None:
            with (self.root / "ImageSets/Main" / f"{split}.txt").open("a") as file:
                file.write(f"{line}\n")

    return Voc()


@pytest.fixture
def coco(tmp_path: Path, encode: Encode) -> Any:
    """Return ``coco(annotations, **replaced keys)``, which writes a folder of images and a JSON."""

    def run(annotations: list[dict[str, Any]], **other: Any) -> tuple[Path, Path]:
        images = tmp_path / "images"
        images.mkdir(exist_ok=True)
        (images / "one.jpg").write_bytes(encode())
        tree = {
            "images": [{"id": 7, "file_name": "one.jpg", "width": 40, "height": 30}],
            "annotations": [{"image_id": 7, "category_id": 1, **row} for row in annotations],
            "categories": [{"id": 90, "name": "brush"}, {"id": 1, "name": "person"}],
            **other,
        }
        file = tmp_path / "instances.json"
        file.write_text(json.dumps(tree))
        return images, file

    return run


def _convert(source: Source, out: Path, **options: Any) -> Manifest:
    """Convert a source as the job does."""
    source = settle_frame(source)
    arguments = {"name": source.name, "split": "train", "classes": source.classes, **options}
    return convert(source.images, source.problems, out, source=source.kind, **arguments)


@pytest.fixture
def convert_source() -> Callable[..., Manifest]:
    """Return ``convert_source(source, out, **options of convert)``."""
    return _convert


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return a shard set of 23 generated images in shards of 5."""
    out = tmp_path_factory.mktemp("scenes") / "train"
    _convert(shapes_source(23, "train", size=96), out, shard_samples=5)
    return str(out)


@pytest.fixture
def make_config() -> Callable[..., Config]:
    """Return ``make_config(**{"train.epochs": 2})``: 64 px, global batch 8, no loader processes."""
    base = {"model.image_size": 64, "train.batch_size": 8, "data.loader_workers": 0}

    def run(**overrides: Any) -> Config:
        return Config().replace({**base, **overrides})

    return run


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    """Start a moto server and return its address."""
    port = free_port()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    address = f"http://127.0.0.1:{port}"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        assert process.poll() is None, "moto exited"
        try:
            urllib.request.urlopen(f"{address}/moto-api/", timeout=1).close()
            break
        except OSError:
            time.sleep(0.1)
    yield address
    process.kill()
    process.wait()


@pytest.fixture
def s3_bucket(s3_endpoint: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> tuple[Any, str]:
    """Return an S3 client and the name of an empty bucket, with credentials in the environment."""
    for name, value in {
        "AWS_ACCESS_KEY_ID": "a",
        "AWS_SECRET_ACCESS_KEY": "b",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": s3_endpoint,
        "AWS_CONFIG_FILE": str(tmp_path / "none"),
        "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "none"),
        "AWS_EC2_METADATA_DISABLED": "true",
    }.items():
        monkeypatch.setenv(name, value)
    client = boto3.client("s3")
    name = f"b{time.monotonic_ns()}"
    client.create_bucket(Bucket=name)
    return client, name
