"""Test every form of an image, in Python and as MLflow's scoring server parses requests."""

import base64
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from mlflow import pyfunc
from mlflow.exceptions import MlflowException
from mlflow.pyfunc.scoring_server import invocations

from pipeline.data.transforms.decode import decode_image
from pipeline.errors import UserError
from pipeline.predict import Predictor
from pipeline.registry import fetch_model
from tests.pipeline.registry.conftest import Registered
from tests.pipeline.registry.test_bundle import picture

ONE, TWO = picture(60, 40, kind="PNG"), picture(33, 50, seed=1, kind="PNG")
PIXELS = [decode_image(data) for data in (ONE, TWO)]
TEXTS = [base64.b64encode(data).decode() for data in (ONE, TWO)]


@pytest.fixture(scope="module")
def folder(registered: Registered, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fetch_model("models:/shapes/1", tmp_path_factory.mktemp("model"), registered.uri)


@pytest.fixture(scope="module")
def model(folder: Path) -> pyfunc.PyFuncModel:
    return pyfunc.load_model(str(folder))


@pytest.fixture(scope="module")
def expected(model: pyfunc.PyFuncModel) -> pd.DataFrame:
    table = model.predict(pd.DataFrame({"image": [ONE, TWO]}))
    assert set(table["image"]) == {0, 1}
    return table


def paths(folder: Path) -> list[Path]:
    found = [folder / "one.png", folder / "two.png"]
    for path, data in zip(found, (ONE, TWO), strict=True):
        path.write_bytes(data)
    return found


FORMS: dict[str, Callable[[Path], Any]] = {
    "bytes": lambda folder: [ONE, TWO],
    "other bytes": lambda folder: [bytearray(ONE), memoryview(TWO)],
    "base64": lambda folder: TEXTS,
    "base64 in lines": lambda folder: [base64.encodebytes(data).decode() for data in (ONE, TWO)],
    "paths": paths,
    "arrays": lambda folder: PIXELS,
    "arrays that are views": lambda folder: [np.asfortranarray(one) for one in PIXELS],
    "lists": lambda folder: [one.tolist() for one in PIXELS],
    "mixed": lambda folder: [paths(folder)[0], PIXELS[1]],
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_an_image_gives_the_same_detections(
    model: pyfunc.PyFuncModel, expected: pd.DataFrame, tmp_path: Path, form: str
) -> None:
    images = FORMS[form](tmp_path)
    column = pd.Series(images, dtype=object, name="image")
    for given in (
        pd.DataFrame({"image": column}),
        column,
        {"image": images},
        [{"image": image} for image in images],
    ):
        pd.testing.assert_frame_equal(model.predict(given), expected)


def test_array_of_images_gives_the_same_detections(model: pyfunc.PyFuncModel) -> None:
    images = np.stack([PIXELS[0], PIXELS[0][::-1]])
    separate = model.predict(pd.DataFrame({"image": list(images)}))
    pd.testing.assert_frame_equal(model.predict({"image": images}), separate)


ARRAYS = [one.tolist() for one in PIXELS]
REQUESTS: dict[str, Any] = {
    "records": {"dataframe_records": [{"image": text} for text in TEXTS]},
    "records of arrays": {"dataframe_records": [{"image": array} for array in ARRAYS]},
    "mixed records": {"dataframe_records": [{"image": TEXTS[0]}, {"image": ARRAYS[1]}]},
    "split": {"dataframe_split": {"columns": ["image"], "data": [[text] for text in TEXTS]}},
    "inputs by column": {"inputs": {"image": TEXTS}},
    "inputs by column, arrays": {"inputs": {"image": ARRAYS}},
    "inputs": {"inputs": TEXTS},
    "inputs by row": {"inputs": [{"image": text} for text in TEXTS]},
    "instances": {"instances": TEXTS},
    "instances by row": {"instances": [{"image": text} for text in TEXTS]},
}


def request(model: pyfunc.PyFuncModel, content: Any) -> pd.DataFrame:
    """Answer a request as the scoring server does."""
    schema = model.metadata.get_input_schema()
    found = invocations(json.dumps(content), "application/json", model, schema)
    assert found.status == 200
    return pd.DataFrame(json.loads(found.response)["predictions"])


@pytest.mark.parametrize("form", REQUESTS)
def test_every_form_of_a_request_gives_the_same_detections(
    model: pyfunc.PyFuncModel, expected: pd.DataFrame, form: str
) -> None:
    pd.testing.assert_frame_equal(request(model, REQUESTS[form]), expected)


def test_request_has_one_image_and_parameters(
    model: pyfunc.PyFuncModel, expected: pd.DataFrame
) -> None:
    first = expected[expected["image"] == 0].head(3)
    found = request(model, {"inputs": {"image": TEXTS[0]}, "params": {"max_detections": 3}})
    pd.testing.assert_frame_equal(found, first)


def test_parquet_of_bytes_is_read(model: pyfunc.PyFuncModel, expected: pd.DataFrame) -> None:
    file = io.BytesIO()
    pd.DataFrame({"image": [ONE, TWO]}).to_parquet(file)
    schema = model.metadata.get_input_schema()
    found = invocations(file.getvalue(), "application/vnd.apache.parquet", model, schema)
    pd.testing.assert_frame_equal(pd.DataFrame(json.loads(found.response)["predictions"]), expected)


def test_example_of_the_version_is_a_valid_request(model: pyfunc.PyFuncModel, folder: Path) -> None:
    content = json.loads(model.metadata.get_serving_input(str(folder)))
    (value,) = (row[0] for row in content["dataframe_split"]["data"])
    assert decode_image(base64.b64decode(value)).shape == (64, 64, 3)
    assert len(request(model, content)) == 20


def test_request_cannot_name_a_file_of_the_server(
    model: pyfunc.PyFuncModel, tmp_path: Path
) -> None:
    (present, _), absent = paths(tmp_path), tmp_path / "no.png"
    said = []
    for path in (present, absent):
        for value in (str(path), f"file://{path}", [str(path)], {"path": str(path)}):
            with pytest.raises(MlflowException, match="row 0: not a readable image") as error:
                request(model, {"dataframe_records": [{"image": value}]})
            assert error.value.get_http_status_code() == 400
            said.append(error.value.message.partition("Error:")[2].replace(str(path), "PATH"))
    assert said[: len(said) // 2] == said[len(said) // 2 :], (
        "the response depends on whether a file exists"
    )


BAD = {
    "of shape (40, 60) and": PIXELS[0][:, :, 0],
    r"of shape \(40, 60, 4\) and type uint8": np.zeros((40, 60, 4), np.uint8),
    r"and type float64 is not an image; expected \(H,W,3\) uint8, RGB": PIXELS[0] / 255,
    r"of shape \(0, 60, 3\)": np.zeros((0, 60, 3), np.uint8),
    "different lengths": [[[1, 2, 3]], [[1, 2, 3], [4, 5, 6]]],
    "type int64 is not an image": [[[1, 2, 256]]],
    "expected bytes, base64 text, a path or an array, got int": 7,
    "got NoneType": None,
    r"pass its bytes or a pathlib\.Path": "photo.jpg",
    "absent.jpg: No such file": Path("absent.jpg"),
    ": Is a directory": Path("/"),
}


@pytest.mark.parametrize("message", BAD)
def test_value_that_is_not_an_image_is_rejected(model: pyfunc.PyFuncModel, message: str) -> None:
    images = pd.Series([ONE, BAD[message]], dtype=object, name="image")
    pattern = message.replace("(40, 60) ", r"\(40, 60\) ")
    with pytest.raises(MlflowException, match=f"row 1: not a readable image: .*{pattern}") as error:
        model.predict(images)
    assert error.value.get_http_status_code() == 400
    assert "\n" not in error.value.message


def test_array_of_too_many_pixels_is_rejected(
    model: pyfunc.PyFuncModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    decode = model.unwrap_python_model().decode
    monkeypatch.setattr(decode, "MAX_PIXELS", 2399)
    with pytest.raises(MlflowException, match="60x40 pixels exceed the limit of 2399"):
        model.predict(pd.DataFrame({"image": [PIXELS[0]]}))


@pytest.fixture(scope="module")
def detect(registered: Registered) -> Predictor:
    return Predictor("models:/shapes/1", registered.uri)


def test_predictor_accepts_the_same_forms(
    detect: Predictor, expected: pd.DataFrame, tmp_path: Path
) -> None:
    first = expected[expected["image"] == 0]
    path = paths(tmp_path)[0]
    images = [ONE, TEXTS[0], path, str(path), PIXELS[0], PIXELS[0].tolist()]
    for found in [*map(detect, images), *detect.detect_all(images)]:
        boxes = first[["x1", "y1", "x2", "y2"]]
        np.testing.assert_allclose([one.box for one in found], boxes, rtol=1e-4, atol=1e-3)
        assert [one.score for one in found] == pytest.approx(list(first["score"]))


@pytest.mark.parametrize(
    ("image", "message"),
    [
        ("photo.jpg", r"^photo\.jpg: No such file or directory$"),
        (Path("photo.jpg"), r"^photo\.jpg: No such file or directory$"),
        ("abcd" * 50, r"^'(abcd){20}' is neither a file nor an image in base64$"),
        (b"text", "^image 1: not an image$"),
        (PIXELS[0][:, :, 0], r"^image 1: an array of shape \(40, 60\)"),
    ],
)
def test_predictor_names_the_image_that_it_cannot_read(
    detect: Predictor, image: Any, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        detect.detect_all([ONE, image])


def test_predictor_names_the_file_that_is_not_an_image(detect: Predictor, tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("no image")
    with pytest.raises(UserError, match=rf"^{path}: not an image$"):
        detect(str(path))
