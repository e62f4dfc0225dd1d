"""Read PASCAL VOC of any year, and own data in its layout: one XML file per image.

``Annotations``, ``JPEGImages`` and ``ImageSets/Main`` are VOC's own folders. The layouts of
annotation tools are read too: under other names, with subfolders, or images and XML in one folder.
"""

from pipeline.data.sources.voc.source import voc_source

__all__ = ["voc_source"]
