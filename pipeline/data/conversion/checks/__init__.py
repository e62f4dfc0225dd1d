"""Checks of labelled objects: each one against its image, and all of a source together."""
