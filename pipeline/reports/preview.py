"""Draw a sheet of the augmented images and boxes that training sees."""

from __future__ import annotations

import math

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from pipeline.config import Config
from pipeline.data import build_train_loader
from pipeline.data.loading.sample_order import epoch_end
from pipeline.reports.pictures import Boxes, draw_detections

GAP, CAPTION_HEIGHT = 6, 18
IGNORED_COLOUR = (150, 150, 150)


def preview(uri: str, config: Config, images: int, epoch: int = 0) -> tuple[np.ndarray, list[str]]:
    """Return the first images of an epoch as one sheet (H,W,3), and the unreadable samples.

    The images are augmented as in training with this configuration; crowd regions are grey. Raises
    UserError.
    """
    config = config.replace(
        {
            "train.batch_size": images,
            "train.epochs": max(config.train.epochs, epoch + 1),
            "train.min_steps": math.ceil(config.train.min_steps * config.train.batch_size / images),
            "data.loader_workers": 0,
            "data.max_bad_fraction": 1.0,
        }
    )
    loader = build_train_loader(uri, config, rank=0, world_size=1)
    # The batch at the end of the previous epoch may begin with that epoch's last samples.
    first = 0 if epoch == 0 else epoch_end(epoch - 1, loader.manifest.samples, images)
    loader.start_step = min(first, loader.total_steps - 1)
    batch = next(iter(loader))
    cells = []
    for row, image_id in enumerate(batch.image_ids):
        real = batch.labels[row] >= 0
        found = Boxes(batch.boxes[row][real].numpy(), batch.labels[row][real].numpy())
        pixels = np.ascontiguousarray(batch.images[row].permute(1, 2, 0).numpy())
        for x1, y1, x2, y2 in batch.ignore_boxes[row].round().int().tolist():
            pixels[y1:y2, x1:x2] = IGNORED_COLOUR
        caption = image_id if batch.valid[row] else f"unreadable: {image_id}"
        cells.append(_add_caption(draw_detections(pixels, found, loader.manifest.classes), caption))
    return _grid(cells), batch.problems


def _add_caption(image: np.ndarray, text: str) -> np.ndarray:
    height, width = image.shape[:2]
    cell = Image.new("RGB", (width + GAP, height + CAPTION_HEIGHT + GAP), "white")
    cell.paste(Image.fromarray(image), (0, CAPTION_HEIGHT))
    font = ImageFont.load_default(size=12)
    ImageDraw.Draw(cell).text((2, 2), text[: width // 7], fill="black", font=font)
    return np.asarray(cell)


def _grid(cells: list[np.ndarray]) -> np.ndarray:
    columns = math.ceil(math.sqrt(len(cells)))
    cells = cells + [np.full_like(cells[0], 255)] * (-len(cells) % columns)
    rows = [np.concatenate(cells[k : k + columns], 1) for k in range(0, len(cells), columns)]
    return np.concatenate(rows, 0)
