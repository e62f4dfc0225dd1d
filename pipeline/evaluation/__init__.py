"""From detections to metrics: COCO's average precision, exact over any number of ranks."""
