"""Read WebDataset shards that were made elsewhere: an image with JSON, VOC XML or YOLO text."""
