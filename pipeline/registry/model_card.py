"""The model card: the data, evaluation, limits, origin and use of a model version.

It is also the description of the version, which the registry limits to some thousand characters.
Therefore the list of classes, which may be long, is at its end.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from pipeline.registry.bundle import BundleContent

_TEMPLATE = """\
# {name}

An object detector: {backbone} backbone, {neck} neck, {size} x {size} px input, {classes} classes,
trained with the `{assigner}` anchor assignment. It returns boxes in pixels of the original image.

## Evaluation

{figures}

{protocol}. Figures are valid for data like the evaluation set, not for other cameras, places or
populations. {intervals}

## Data

{data}
{settings}
## Intended use and limits

Detection of the classes below in images like those it was trained on. {scores}; choose the
threshold on your own data. Objects of other classes are not reported.
A person must check the detections where an error can cause harm.

## Licence

The code in this bundle is licensed under Apache-2.0. The weights were trained on the data sets
named above, whose terms may restrict their use.

## Origin

{origin}

The whole configuration is `artifacts/config.yaml`.

## Use

```python
import mlflow, pathlib

model = mlflow.pyfunc.load_model("models:/{name}@champion")
photos = {{"image": [pathlib.Path("photo.jpg")]}}  # or bytes, base64, arrays (H,W,3) uint8 RGB
table = model.predict(photos, params={{"score_threshold": {score_threshold}}})
# image (number), x1, y1, x2, y2, score, label, class_name
```

## Classes

{per_class}
"""
_SETTINGS = "settings."  # tags about settings of post-processing
_PROTOCOLS = {
    "coco": "COCO's metrics: AP is the mean over IoU 0.50 to 0.95",
    "voc07": "AP as PASCAL VOC 2007 defines it, with 11 points",
    "voc": "AP as PASCAL VOC defines it since 2010, the area under the curve",
}


class DataSummary(NamedTuple):
    """A data set of a training: what it was used for, and its content."""

    use: str
    """``train``, ``val`` or ``test``."""
    name: str
    content_hash: str
    images: int
    objects: int
    lacking: list[str]
    """Classes with objects in the training set that have none in this one."""


def model_card(content: BundleContent, origin: Mapping[str, str]) -> str:
    """Return the card as Markdown. ``origin`` names run, revision and data fingerprints."""
    config = content.config
    scores = "Scores are not calibrated probabilities"
    if content.temperature is not None:
        scores += ", except with the parameter `calibrated`"
    return _TEMPLATE.format(
        name=content.name,
        backbone=config.model.backbone,
        neck=config.model.neck,
        size=config.model.image_size,
        classes=len(content.classes),
        assigner=config.assign.name,
        figures="\n".join(_figures(content)),
        protocol=_PROTOCOLS[config.evaluate.protocol],
        intervals=_about_intervals(content),
        data="\n".join(_data(content)),
        scores=scores,
        score_threshold=config.registry.score_threshold,
        settings=_settings(content),
        origin="\n".join(f"- {key}: {value}" for key, value in origin.items()) or "- unknown",
        per_class="\n".join(_classes(content)),
    )


def _figures(content: BundleContent) -> Iterator[str]:
    if not content.metrics:
        yield "Not evaluated."
        return
    yield "| figure | value | 95% interval |"
    yield "|---|---|---|"
    intervals = content.summary.intervals if content.summary else {}
    for name, value in sorted(content.metrics.items()):
        one = intervals.get(name.removeprefix("test/")) if name.startswith("test/") else None
        bounds = f"{one.low:.4f} to {one.high:.4f}" if one else "–"
        yield f"| {name} | {value:.4f} | {bounds} |"


def _about_intervals(content: BundleContent) -> str:
    selected = ""
    if any(name.startswith("val/") for name in content.metrics):
        selected = "`val` selected these weights, so that its figures are optimistic. "
    if content.summary is None:
        return f"{selected}`python -m jobs.evaluate` gives them intervals.".strip()
    return (
        f"{selected}Intervals show how far a figure varies with the choice of images "
        f"({content.summary.resamples} bootstrap resamples), not with the seed of the training."
    )


def _data(content: BundleContent) -> Iterator[str]:
    if not content.data:
        yield "See the fingerprints below."
        return
    yield "| use | data set | images | objects | content hash |"
    yield "|---|---|---|---|---|"
    for one in content.data:
        yield f"| {one.use} | {one.name} | {one.images} | {one.objects} | {one.content_hash[:16]} |"
    for one in content.data:
        if one.lacking:
            yield ""
            yield (
                f"`{one.use}` has no objects of {', '.join(one.lacking)}: its figures do not cover "
                "these classes."
            )


def _settings(content: BundleContent) -> str:
    """Return the section about settings of post-processing that are not those of the training."""
    if not content.settings:
        return ""
    evaluate = content.config.evaluate
    across = "across classes" if evaluate.class_agnostic else "within classes"
    text = (
        "These were searched after the training, on the set below. On that set, their figures are "
        f"optimistic. NMS at IoU {evaluate.nms_iou:g} {across}, {evaluate.max_detections} "
        "detections at most."
    )
    if content.score_thresholds:
        text += " Unless `score_threshold` is given, each class below has its own."
    found = [
        f"- {key.removeprefix(_SETTINGS)}: {value}"
        for key, value in content.settings.items()
        if key.startswith(_SETTINGS)
    ]
    return "\n".join(["", "## Settings of post-processing", "", text, "", *found, ""])


def _classes(content: BundleContent) -> Iterator[str]:
    if content.summary is None:
        for number, label in enumerate(content.classes):
            threshold = content.score_thresholds.get(label)
            note = "" if threshold is None else f": score threshold {threshold:.3f}"
            yield f"{number}. {label}{note}"
        return
    yield "| label | class | objects in test | test AP | 95% interval |"
    yield "|---|---|---|---|---|"
    for number, label in enumerate(content.classes):
        one = content.summary.classes[label]
        value = f"{one.ap.value:.4f}" if one.ap else "–"
        bounds = f"{one.ap.low:.4f} to {one.ap.high:.4f}" if one.ap else "–"
        yield f"| {number} | {label} | {one.objects} | {value} | {bounds} |"
