"""The annotation file of COCO: its JSON, its categories and its objects."""
