"""Sources of labelled images: VOC, COCO, YOLO, WebDataset and generated shapes."""
