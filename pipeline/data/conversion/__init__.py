"""Conversion of a source into a shard set."""
