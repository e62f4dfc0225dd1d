"""From detections to figures: COCO's average precision, exact over any number of ranks."""
