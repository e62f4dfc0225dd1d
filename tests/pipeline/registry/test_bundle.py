"""Bundles: predictions, content and independence of this project."""

import base64
import io
import json
import os
import re
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from mlflow import pyfunc
from mlflow.exceptions import MlflowException
from PIL import Image

from model.postprocess import postprocess
from pipeline.config import Config, read_recipe
from pipeline.data.transforms.decode import decode_image
from pipeline.data.transforms.resize import to_input
from pipeline.registry import fetch_model
from pipeline.tracking import connect

SIZES = [(150, 100), (64, 64), (90, 200)]


def picture(width, height, seed=0, kind="JPEG"):
    noise = np.random.default_rng(seed).integers(0, 255, (9, 9, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).resize((width, height)).save(file, kind)
    return file.getvalue()


@pytest.fixture(scope="module")
def folders(registered, tmp_path_factory):
    return [
        fetch_model(version.model_uri, tmp_path_factory.mktemp("fetched"), registered.uri)
        for version in registered.versions
    ]


@pytest.fixture(scope="module")
def models(folders):
    return [pyfunc.load_model(str(folder)) for folder in folders]


@pytest.fixture(scope="module")
def images():
    return [picture(width, height, seed) for seed, (width, height) in enumerate(SIZES)]


@pytest.mark.parametrize("which", [0, 1])
def test_bundle_predicts_like_the_detector(registered, models, images, which):
    detector, classes = registered.detectors[which], registered.classes[which]
    table = models[which].predict(pd.DataFrame({"image": images}))

    side = detector.image_size
    inputs = torch.from_numpy(np.stack([to_input(decode_image(i), side) for i in images]))
    with torch.inference_mode():
        raw = detector(inputs)
        found = postprocess(
            raw.deltas, raw.logits, detector.anchors, side, score_threshold=0.0, max_detections=20
        )
    assert list(table.columns) == ["image", "x1", "y1", "x2", "y2", "score", "label", "class_name"]
    assert len(table) == int((found.labels >= 0).sum()) > 20
    for row, (width, height) in enumerate(SIZES):
        rows = table[table["image"] == row]
        count = len(rows)
        factors = torch.tensor([width, height, width, height]) / side
        expected = (found.boxes[row, :count] * factors).double().numpy()
        np.testing.assert_array_equal(rows[["x1", "y1", "x2", "y2"]], expected)
        np.testing.assert_array_equal(rows["score"], found.scores[row, :count].double().numpy())
        assert list(rows["label"]) == found.labels[row, :count].tolist()
        assert list(rows["class_name"]) == [classes[label] for label in rows["label"]]
        assert rows["x2"].max() <= width
        assert rows["y2"].max() <= height


def test_batch_predicts_like_single_images(models, images):
    many = (images * 7)[:20]
    table = models[0].predict(pd.DataFrame({"image": many}))
    for row in (0, 15, 16, 19):
        alone = models[0].predict(pd.DataFrame({"image": [many[row]]}))
        part = table[table["image"] == row].drop(columns="image").reset_index(drop=True)
        pd.testing.assert_frame_equal(part, alone.drop(columns="image"), rtol=1e-4, atol=1e-3)


def test_parameters_change_the_prediction(models, images):
    data = pd.DataFrame({"image": images})
    all_rows = models[0].predict(data)
    assert models[0].predict(data, {"max_detections": 2})["image"].value_counts().max() == 2
    middle = float(all_rows["score"].median())
    above = models[0].predict(data, {"score_threshold": middle})
    assert len(above) == (all_rows["score"] >= middle).sum()
    assert len(models[0].predict(data, {"nms_iou": 0.05})) <= len(all_rows)


def test_no_detections_and_no_images_return_an_empty_table(models, images):
    nothing = models[0].predict(pd.DataFrame({"image": images}), {"score_threshold": 1.0})
    assert len(nothing) == 0
    assert nothing.dtypes["x1"] == np.float64
    assert len(models[0].predict(pd.DataFrame({"image": np.array([], dtype=object)}))) == 0


def test_base64_png_and_grey_images_are_read(models):
    png = picture(40, 30, kind="PNG")
    grey = io.BytesIO()
    Image.new("L", (33, 44), 90).save(grey, "PNG")
    text = base64.b64encode(png).decode()
    tables = [models[0].predict(pd.DataFrame({"image": [value]})) for value in (png, text)]
    pd.testing.assert_frame_equal(*tables)
    models[0].predict(pd.DataFrame({"image": [grey.getvalue()]}))


@pytest.mark.parametrize("bad", [b"", b"not an image", "%%%", None, 7])
def test_invalid_image_is_rejected_with_its_row(models, images, bad):
    with pytest.raises(MlflowException, match="row 1: not a readable image") as error:
        models[0].predict(pd.DataFrame({"image": pd.Series([images[0], bad], dtype=object)}))
    assert error.value.get_http_status_code() == 400
    assert "\n" not in error.value.message


def test_truncated_jpeg_is_rejected(models, images):
    with pytest.raises(MlflowException, match="row 0"):
        models[0].predict(pd.DataFrame({"image": [images[0][:-200]]}))


@pytest.mark.parametrize(
    "wrong", [{"score_threshold": 1.5}, {"nms_iou": -0.1}, {"max_detections": 0}]
)
def test_parameters_out_of_range_are_rejected(models, images, wrong):
    with pytest.raises(MlflowException, match=next(iter(wrong))) as error:
        models[0].predict(pd.DataFrame({"image": images}), wrong)
    assert error.value.get_http_status_code() == 400


def test_signature_has_columns_and_defaults(models):
    signature = models[0].metadata.signature
    assert signature.inputs.input_names() == ["image"]
    assert {p.name: p.default for p in signature.params} == {
        "score_threshold": 0.0,
        "nms_iou": 0.5,
        "max_detections": 20,
        "calibrated": False,
    }


def test_bundle_has_no_pickle_and_imports_nothing_of_the_project(folders):
    for folder in folders:
        files = [path for path in folder.rglob("*") if path.is_file()]
        assert not [p for p in files if p.suffix in (".pkl", ".pickle", ".pt", ".pth", ".bin")]
        for path in folder.rglob("*.py"):
            for line in path.read_text().splitlines():
                first = line.split()[:2]
                assert first[:1] not in (["from"], ["import"]) or first[1].split(".")[0] not in (
                    "model",
                    "pipeline",
                    "jobs",
                ), f"{path}: {line}"


def test_requirements_are_few_and_pinned(folders):
    lines = (folders[0] / "requirements.txt").read_text().split()
    assert all("==" in line and "+" not in line for line in lines)
    assert {"torch", "mlflow", "safetensors"} <= {line.split("==")[0] for line in lines}
    assert len(lines) < 10


def test_bundle_contains_config_and_evaluation(registered, folders):
    recipe = folders[0] / "artifacts" / "config.yaml"
    assert Config.from_dict(read_recipe(recipe)).recorded() == registered.config.recorded()
    figures = json.loads((folders[0] / "artifacts" / "evaluation.json").read_text())
    assert figures == {"test/ap": 0.5, "test/ap50": 0.75}


def test_model_card_describes_the_version(folders):
    card = (folders[1] / "README.md").read_text()
    for part in ("# shapes", "0. cat", "| test/ap50 | 0.7500 |", "Intended use", "Licence"):
        assert part in card


def test_example_of_the_model_card_runs(registered, folders, tmp_path, monkeypatch):
    (example,) = re.findall("```python\n(.*?)```", (folders[0] / "README.md").read_text(), re.S)
    client = connect(registered.uri)
    client.set_registered_model_alias("shapes", "champion", "1")
    (tmp_path / "photo.jpg").write_bytes(picture(60, 40))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", registered.uri)  # set_tracking_uri would remain
    try:
        names = {}
        exec(example, names)
    finally:
        client.delete_registered_model_alias("shapes", "champion")
    assert len(names["table"]) == 20


OUTSIDE = """
import json, sys
import mlflow, pandas as pd
for name in ("model", "pipeline", "jobs"):
    assert name not in sys.modules
    try:
        __import__(name)
    except ImportError:
        continue
    raise SystemExit(f"{name} is importable")
mlflow.set_tracking_uri(sys.argv[1])
data = pd.DataFrame({"image": [open(path, "rb").read() for path in sys.argv[2:]]})
both = [mlflow.pyfunc.load_model(f"models:/shapes/{v}") for v in (1, 2)]
tables = [model.predict(data) for model in (*both, both[0])]
assert tables[0].equals(tables[2])
print(json.dumps([table.to_dict("list") for table in tables[:2]]))
"""


@pytest.mark.integration
def test_two_versions_are_loaded_in_one_process_outside_the_checkout(
    registered, models, images, tmp_path
):
    files = [tmp_path / f"{number}.jpg" for number in range(len(images))]
    for path, data in zip(files, images, strict=True):
        path.write_bytes(data)
    clean = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    # -S -E would lose the packages. -P and another working directory keep the checkout off the
    # path, and adding only the packages' directory hides an editable install.
    packages = next(path for path in sys.path if path.endswith("site-packages"))
    code = f"import sys; sys.path.append({packages!r})\n{OUTSIDE}"
    done = subprocess.run(
        [sys.executable, "-P", "-S", "-c", code, registered.uri, *map(str, files)],
        cwd=tmp_path,
        env={**clean, "MLFLOW_DISABLE_TELEMETRY": "true"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for model, outside in zip(models, json.loads(done.stdout.splitlines()[-1]), strict=True):
        inside = model.predict(pd.DataFrame({"image": images}))
        pd.testing.assert_frame_equal(inside, pd.DataFrame(outside), rtol=1e-4, atol=1e-3)
