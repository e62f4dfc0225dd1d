"""Sources of labelled images: VOC, COCO, YOLO and generated shapes, in folders and archives."""
