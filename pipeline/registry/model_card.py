"""The model card: what a model version is, what it was measured to do, and how to use it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pipeline.config import Config

_LINES = """\
# {name}

An object detector: {backbone} backbone, {neck} neck, {size} x {size} px input, trained with the
`{assigner}` anchor assignment. It answers with boxes in pixels of the original image.

## Classes

{classes}

## Evaluation

{metrics}

COCO figures (AP is the mean over IoU 0.50 to 0.95). They hold for data like that of the evaluation
set and say nothing about other cameras, places or populations.

## Use

```python
import mlflow, pandas as pd

model = mlflow.pyfunc.load_model("models:/{name}@champion")
images = pd.DataFrame({{"image": [open("photo.jpg", "rb").read()]}})
table = model.predict(images, params={{"score_threshold": {score_threshold}}})
# image (row number), x1, y1, x2, y2, score, label, class_name
```

Parameters: `score_threshold`, `nms_iou`, `max_detections`. Images are the bytes of JPEG, PNG and
the like, or base64 text when the model is served; they are turned as their EXIF orientation says,
and the boxes are in the turned image. Bytes that are no image are refused with the row's number.

## Intended use and limits

For finding the classes above in images like those it was trained on. Scores are not calibrated
probabilities; choose the threshold on your own data. Objects of other classes are not reported.
Have a person check the answers wherever an error can harm someone.

## Licence

The code in this bundle is under Apache-2.0. The weights were learned from the data sets named
below; their terms may restrict how the weights are used.

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
    """The card as Markdown."""
    figures = [f"| {key} | {value:.4f} |" for key, value in sorted(metrics.items())]
    return _LINES.format(
        name=name,
        backbone=config.model.backbone,
        neck=config.model.neck,
        size=config.model.image_size,
        assigner=config.assign.name,
        classes="\n".join(f"{number}. {label}" for number, label in enumerate(classes)),
        metrics="\n".join(["| figure | value |", "|---|---|", *figures])
        if figures
        else "Not evaluated.",
        score_threshold=config.registry.score_threshold,
        origin="\n".join(f"- {key}: {value}" for key, value in origin.items()) or "- unknown",
    )
