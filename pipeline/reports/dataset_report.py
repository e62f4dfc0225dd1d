"""Describe a shard set as text, or as one HTML page with images."""

from __future__ import annotations

import base64
import html
import io
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from pipeline.data.shards.manifest import Manifest, read_problems
from pipeline.data.shards.reader import ShardSet, parse_sample
from pipeline.data.shards.sample import Sample
from pipeline.data.transforms.decode import ImageError, decode_image
from pipeline.progress import counted
from pipeline.reports.pictures import Boxes, draw_detections

# Edges of the histogram of box sides. A side is the square root of the area, in pixels.
SIDE_EDGES = (0, 8, 16, 32, 64, 96, 128, 256, 512)
MAX_BAR_CHARACTERS = 40
MAX_LISTED_PROBLEMS = 20
IMAGE_SIDE = 320

STYLE = """body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:70rem;padding:0 1rem}
table{border-collapse:collapse}td,th{padding:.15rem .8rem .15rem 0;text-align:left}
td.n{text-align:right}i{display:inline-block;height:.8em;background:#4878a8}
figure{display:inline-block;margin:.3rem;vertical-align:top}figcaption{font-size:12px}
@media(prefers-color-scheme:dark){body{background:#181818;color:#ddd}}"""


@dataclass
class Description:
    """Counts over all samples of a set."""

    uri: str
    manifest: Manifest
    boxes: Counter[str] = field(default_factory=Counter)
    images: Counter[str] = field(default_factory=Counter)
    sides: list[int] = field(default_factory=lambda: [0] * len(SIDE_EDGES))
    empty: int = 0
    difficult: int = 0
    crowd: int = 0
    sizes: list[tuple[int, int]] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)
    conversion_problems: list[str] = field(default_factory=list)

    def add(self, sample: Sample) -> None:
        """Count one sample."""
        names = [self.manifest.classes[label] for label in sample.labels]
        self.boxes.update(names)
        self.images.update(set(names))
        self.empty += not names
        self.difficult += sum(sample.difficult)
        self.crowd += sum(sample.crowd)
        self.sizes.append((sample.width, sample.height))
        for x1, y1, x2, y2 in sample.boxes:
            side = ((x2 - x1) * (y2 - y1)) ** 0.5
            self.sides[int(np.searchsorted(SIDE_EDGES, side, side="right")) - 1] += 1

    def facts(self) -> dict[str, str]:
        """Return the lines beside the tables, by their names."""
        manifest = self.manifest
        mib = [shard.bytes / 2**20 for shard in manifest.shards]
        shard_sizes = f"{sum(mib):.1f} MiB in {counted(len(mib), 'shard')}"
        if len(mib) > 1:
            shard_sizes += f" of {min(mib):.1f} to {max(mib):.1f}"
        facts = {
            "set": f"{manifest.name} {manifest.split}, from {manifest.source}",
            "samples": f"{manifest.samples}; without objects {self.empty}",
            "boxes": f"{sum(self.boxes.values())}; difficult {self.difficult}, crowd {self.crowd}",
            "size": shard_sizes,
            "content": manifest.content_hash,
        }
        if self.sizes:
            width, height = np.array(self.sizes).T
            facts["pictures"] = (
                f"width {width.min()} to {width.max()} (median {np.median(width):.0f}), "
                f"height {height.min()} to {height.max()} (median {np.median(height):.0f}) pixels"
            )
        return facts

    def histogram(self) -> list[tuple[str, int]]:
        """Return rows of (range of box sides in pixels, number of boxes)."""
        ends = [*(str(edge) for edge in SIDE_EDGES[1:]), ""]
        return [
            (f"{a}-{b}" if b else f"{a} and more", n)
            for a, b, n in zip(SIDE_EDGES, ends, self.sides, strict=True)
        ]

    def problems(self) -> list[str]:
        """Return lines on samples that are unreadable now, and on problems of the conversion."""
        return [
            *(f"unreadable: {line}" for line in self.unreadable),
            *self.conversion_problems,
        ]


def describe(uri: str) -> tuple[ShardSet, Description]:
    """Read the JSON of every sample. Raises UserError if there is no usable shard set."""
    shards = ShardSet(uri)
    description = Description(uri, shards.manifest)
    description.conversion_problems += map(str, read_problems(uri))
    for index in range(len(shards)):
        raw = shards.read_json(index)
        try:
            description.add(parse_sample(raw, len(shards.manifest.classes)))
        except ImageError as error:
            description.unreadable.append(f"{raw.location}: {error}")
    return shards, description


def format_text(description: Description) -> str:
    """Return the description as text for a terminal."""
    classes = description.manifest.classes
    width = max(len(name) for name in [*classes, "class"])
    lines = [
        description.uri,
        *(f"  {name:<9}{value}" for name, value in description.facts().items()),
    ]
    lines += ["", f"{'class':<{width}}  {'boxes':>9}  {'images':>9}"]
    lines += [
        f"{c:<{width}}  {description.boxes[c]:>9}  {description.images[c]:>9}" for c in classes
    ]
    longest = max(description.sides) or 1
    lines += ["", "side of a box, pixels"]
    lines += [
        f"  {a:<13}{n:>9}  {'#' * -(-MAX_BAR_CHARACTERS * n // longest)}"
        for a, n in description.histogram()
    ]
    problems = description.problems()
    lines += [
        "",
        f"problems: {len(problems) or 'none'}",
        *(f"  {p}" for p in problems[:MAX_LISTED_PROBLEMS]),
    ]
    if len(problems) > MAX_LISTED_PROBLEMS:
        lines.append(f"  ... and {len(problems) - MAX_LISTED_PROBLEMS} more")
    return "\n".join(lines)


def format_html(shards: ShardSet, description: Description, pictures: int = 24) -> str:
    """Return one HTML page that loads nothing from elsewhere; names in the data are escaped."""
    facts = _table([(name, value) for name, value in description.facts().items()])
    largest = max(description.boxes.values(), default=0) or 1
    classes = _table(
        [
            (c, description.boxes[c], description.images[c], _bar(description.boxes[c] / largest))
            for c in description.manifest.classes
        ],
        ("class", "boxes", "images", ""),
    )
    longest = max(description.sides) or 1
    sides = _table(
        [(a, n, _bar(n / longest)) for a, n in description.histogram()],
        ("side, pixels", "boxes", ""),
    )
    problems = (
        "".join(f"<li>{html.escape(p)}</li>" for p in description.problems()) or "<li>none</li>"
    )
    title = html.escape(f"{description.manifest.name} {description.manifest.split}")
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        "<meta http-equiv='Content-Security-Policy' "
        "content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\">"
        f"<title>{title}</title><style>{STYLE}</style><h1>{title}</h1>{facts}"
        f"<h2>Classes</h2>{classes}<h2>Box sizes</h2>{sides}"
        f"<h2>Problems</h2><ul>{problems}</ul><h2>Samples</h2>{_pictures(shards, pictures)}"
    )


def _pictures(shards: ShardSet, count: int) -> str:
    """Return figures of samples, spread evenly over the set, with their boxes."""
    out = []
    for index in np.linspace(0, len(shards) - 1, min(count, len(shards))).astype(int).tolist():
        raw = shards.read(index)
        try:
            sample = parse_sample(raw, len(shards.manifest.classes))
            picture = _draw_sample(decode_image(raw.image, upright=False), sample, shards.manifest)
        except ImageError:
            continue  # listed among the problems
        data = io.BytesIO()
        Image.fromarray(picture).save(data, "JPEG", quality=85)
        source = base64.b64encode(data.getvalue()).decode()
        name = html.escape(sample.file_name)
        out.append(
            f'<figure><img src="data:image/jpeg;base64,{source}" alt="{name}">'
            f"<figcaption>{name}</figcaption></figure>"
        )
    return "".join(out)


def _draw_sample(image: np.ndarray, sample: Sample, manifest: Manifest) -> np.ndarray:
    factor = IMAGE_SIDE / max(image.shape[:2])
    size = max(1, round(image.shape[1] * factor)), max(1, round(image.shape[0] * factor))
    small = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR))
    boxes = np.array(sample.boxes, np.float64).reshape(-1, 4) * factor
    return draw_detections(small, Boxes(boxes, np.array(sample.labels, np.int64)), manifest.classes)


class _Html(str):
    """Text that already is HTML."""


def _bar(share: float) -> _Html:
    return _Html(f'<i style="width:{15 * share:.2f}rem"></i>')


def _table(rows: list[tuple[Any, ...]], head: tuple[str, ...] = ()) -> str:
    def cell(value: Any) -> str:
        if isinstance(value, int):
            return f'<td class="n">{value}</td>'
        return f"<td>{value if isinstance(value, _Html) else html.escape(str(value))}</td>"

    top = "<tr>" + "".join(f"<th>{html.escape(name)}</th>" for name in head) + "</tr>"
    body = "".join(f"<tr>{''.join(map(cell, row))}</tr>" for row in rows)
    return f"<table>{top if head else ''}{body}</table>"
