"""The model card: the contents, evaluation and use of a model version."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pipeline.config import Config

_TEMPLATE = """\
# {name}

An object detector: {backbone} backbone, {neck} neck, {size} x {size} px input, trained with the
`{assigner}` anchor assignment. It returns boxes in pixels of the original image.

## Classes

{classes}

## Evaluation

{metrics}

COCO metrics (AP is the mean over IoU 0.50 to 0.95). They are valid for data like the evaluation
set, not for other cameras, places or populations.

## Use

```python
import mlflow, pandas as pd

model = mlflow.pyfunc.load_model("models:/{name}@champion")
images = pd.DataFrame({{"image": [open("photo.jpg", "rb").read()]}})
table = model.predict(images, params={{"score_threshold": {score_threshold}}})
# image (row number), x1, y1, x2, y2, score, label, class_name
```

Parameters: `score_threshold`, `nms_iou`, `max_detections`. Images are the bytes of JPEG, PNG or
similar files, or base64 text when the model is served. They are rotated by their EXIF orientation,
and boxes refer to the rotated image. Bytes that are not an image are an error that names the row.

## Intended use and limits

Detection of the classes above in images like those it was trained on. Scores are not calibrated
probabilities; choose the threshold on your own data. Objects of other classes are not reported.
A person must check the detections where an error can cause harm.

## Licence

The code in this bundle is licensed under Apache-2.0. The weights were trained on the data sets
named below, whose terms may restrict their use.

## Origin

{origin}
"""


def model_card(
    name: str,
    classes: Sequence[str],
    config: Config,
    metrics: Mapping[str, float],
    origin: Mapping[str, str],
) -> str:
    """Return the card as Markdown."""
    rows = [f"| {key} | {value:.4f} |" for key, value in sorted(metrics.items())]
    return _TEMPLATE.format(
        name=name,
        backbone=config.model.backbone,
        neck=config.model.neck,
        size=config.model.image_size,
        assigner=config.assign.name,
        classes="\n".join(f"{number}. {label}" for number, label in enumerate(classes)),
        metrics="\n".join(["| metric | value |", "|---|---|", *rows]) if rows else "Not evaluated.",
        score_threshold=config.registry.score_threshold,
        origin="\n".join(f"- {key}: {value}" for key, value in origin.items()) or "- unknown",
    )
