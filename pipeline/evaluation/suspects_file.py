"""The labels that may be wrong as a COCO file, which labelling tools import."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.data import Sample
from pipeline.metrics import MatchTable
from pipeline.metrics.suspects import Suspect


def suspects_as_coco(
    table: MatchTable,
    suspects: Sequence[Suspect],
    samples: Mapping[str, Sample],
    classes: Sequence[str],
    category_ids: Sequence[int] | None = None,
) -> dict[str, Any]:
    """Return the suspects as COCO annotations of their images, by image id in ``samples``.

    ``category_id`` is the class that the detector sees, or that of an object that nothing finds.
    Beyond COCO's fields an annotation has ``kind``, ``strength`` and ``labelled_as``, the class in
    the data or null. Categories have the ids of the source, else they count from 1.
    """
    ids = list(category_ids) if category_ids else list(range(1, len(classes) + 1))
    numbers = {
        number: index + 1 for index, number in enumerate(sorted({s.image for s in suspects}))
    }
    images = []
    for number, identifier in numbers.items():
        sample = samples[str(table.image_ids[number])]
        size = {"width": sample.width, "height": sample.height}
        images.append({"id": identifier, "file_name": sample.file_name, **size})
    annotations = []
    for index, suspect in enumerate(suspects):
        x1, y1, x2, y2 = (round(value, 2) for value in suspect.box)
        labelled = table.object_label[suspect.object] if suspect.object >= 0 else None
        annotations.append(
            {
                "id": index + 1,
                "image_id": numbers[suspect.image],
                "category_id": ids[suspect.label],
                "bbox": [x1, y1, round(x2 - x1, 2), round(y2 - y1, 2)],
                "area": round((x2 - x1) * (y2 - y1), 2),
                "iscrowd": 0,
                "kind": suspect.kind,
                "strength": round(suspect.strength, 4),
                "labelled_as": None if labelled is None else classes[labelled],
            }
        )
    categories = [{"id": id, "name": name} for id, name in zip(ids, classes, strict=True)]
    return {"images": images, "annotations": annotations, "categories": categories}
