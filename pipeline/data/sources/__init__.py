"""Readers of labelled images: VOC, COCO, YOLO, generated shapes; folders and archives."""
