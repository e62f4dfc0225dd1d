"""An evaluation of a shard set with chosen errors, and a set whose names are hostile."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jobs import prepare
from pipeline.data.shards.reader import ShardSet, parse_sample
from pipeline.evaluation.evaluate import Evaluation, match_detections
from pipeline.evaluation.model_evaluation import ModelEvaluation
from pipeline.evaluation.protocol import score
from pipeline.metrics import ImageDetections

HOSTILE_CLASS = '"><script>alert(1)</script>'
HOSTILE_FILE = "<img src=x onerror=alert(2)>.png"
HOSTILE_MODEL = "models:/<b>&'\"/1"


@pytest.fixture
def judged() -> Callable[..., ModelEvaluation]:
    """Return a function that evaluates a set as a detector with every kind of error would.

    Per image: the first object has its class missed, the second is not found, the others are; and
    one detection is where no object is.
    """

    def run(uri: str, model: str = "models:/shapes/1") -> ModelEvaluation:
        shards = ShardSet(uri)
        classes = shards.manifest.classes
        pairs = []
        for index in range(len(shards)):
            sample = parse_sample(shards.read(index), len(classes))
            boxes = np.array(sample.boxes).reshape(-1, 4)
            labels = np.array(sample.labels, np.int64)
            kept = np.arange(len(labels)) != 1
            labels[:1] = (labels[:1] + 1) % len(classes)
            corner = [0.0, 0.0, 3.0, 3.0]
            found = np.concatenate([boxes[kept], [corner]])
            scores = 0.9 - 0.05 * np.arange(len(found)) - 0.01 * index
            pairs.append((sample, ImageDetections(found, scores, np.append(labels[kept], 0))))
        table = match_detections(pairs).sorted_by_image_id()
        result = score(table, classes, "coco")
        return ModelEvaluation(model, shards.manifest, classes, Evaluation(result, table))

    return run


@pytest.fixture(scope="session")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return a shard set whose class and file names are HTML."""
    folder = tmp_path_factory.mktemp("hostile")
    images = folder / "images"
    images.mkdir()
    generator = np.random.default_rng(0)
    entries, annotations = [], []
    for number, name in enumerate([HOSTILE_FILE, "plain.png"]):
        pixels = generator.integers(0, 255, (60, 80, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(images / name)
        entries.append({"id": number, "file_name": name, "width": 80, "height": 60})
        for place in range(3):
            box = {"bbox": [10 + 20 * place, 20, 15, 15], "area": 225, "iscrowd": 0}
            ids = {"id": 10 * number + place + 1, "image_id": number, "category_id": place % 2 + 1}
            annotations.append({**ids, **box})
    categories = [{"id": 1, "name": HOSTILE_CLASS}, {"id": 2, "name": "plain"}]
    path = folder / "instances.json"
    content = {"images": entries, "annotations": annotations, "categories": categories}
    path.write_text(json.dumps(content))
    out: Path = folder / "shards"
    arguments = ["--source", "coco", "--images", str(images), "--annotations", str(path)]
    prepare.main([*arguments, "--out", str(out)])
    return str(out)
