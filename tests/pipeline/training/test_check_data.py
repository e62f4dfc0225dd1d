"""The data of a training is checked before anything is started."""

import io

import pytest
from PIL import Image

from jobs import evaluate
from pipeline.config import Config
from pipeline.data.conversion.convert import convert
from pipeline.data.sources.record import Object, ParsedImage, Record
from pipeline.errors import UserError
from pipeline.training.fit import check_data, fit


@pytest.fixture
def write_set(tmp_path):
    """Return ``run(objects)``, which writes a shard set of one image and returns its folder."""

    def run(objects):
        out = io.BytesIO()
        Image.new("RGB", (40, 30)).save(out, "PNG")
        record = Record("a", "a.png", out.getvalue(), "a.xml", None, objects)
        folder = tmp_path / f"{len(list(tmp_path.iterdir()))}"
        convert([ParsedImage(record)], [], folder, "x", "train", ["cat"], source="voc")
        return str(folder)

    return run


CROWD = Object("cat", (0, 0, 9, 9), crowd=True)


@pytest.mark.parametrize("objects", [[], [CROWD]])
def test_training_without_an_object_is_rejected_unless_allowed(write_set, objects):
    uri = write_set(objects)
    config = Config().replace({"data.train": uri})
    with pytest.raises(UserError, match=r"data\.train .* has no object to learn in 1 sample; .*se"):
        check_data(config)
    assert check_data(config.replace({"data.allow_no_objects": True}))["train"].samples == 1
    val = {"data.train": write_set([CROWD._replace(crowd=False)]), "data.val": uri}
    assert set(check_data(Config().replace(val))) == {"train", "val"}


def test_class_weights_of_unknown_classes_are_rejected(write_set):
    uri = write_set([CROWD._replace(crowd=False)])
    config = Config().replace({"data.train": uri, "loss.class_weights": {"cat": 2.0}})
    assert check_data(config)["train"].classes == ["cat"]
    wrong = config.replace({"loss.class_weights": {"cat": 2.0, "dog": 3.0}})
    message = r"loss\.class_weights: unknown class 'dog'; known: cat"
    with pytest.raises(UserError, match=message):
        check_data(wrong)
    with pytest.raises(UserError, match=message):
        fit(wrong, run="x")


@pytest.mark.parametrize(("objects", "crowds"), [([], ""), ([CROWD], " but crowd regions")])
def test_evaluation_without_an_object_says_that_there_is_nothing_to_find(
    write_set, tmp_path, objects, crowds
):
    options = ["--model", str(tmp_path), "--data", write_set(objects), "--no-track"]
    with pytest.raises(UserError, match=f"has no objects{crowds}, so that there is nothing to fi"):
        evaluate.main([*options, "--out", str(tmp_path / "page")])
