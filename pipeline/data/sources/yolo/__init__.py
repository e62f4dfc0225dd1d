"""Read YOLO data sets: images, and one text file of labels per image.

The class names and splits are in a YAML (Ultralytics, Roboflow), in ``obj.data`` and ``obj.names``
(darknet, CVAT) or in ``classes.txt`` (labelImg, Label Studio).
"""

from pipeline.data.sources.yolo.label_files import label_path
from pipeline.data.sources.yolo.source import yolo_source

__all__ = ["label_path", "yolo_source"]
