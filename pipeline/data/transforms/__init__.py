"""Decoding, resizing and augmentation of one sample."""
