"""Shard sets: manifest, index, tar members, reading, writing, caching, verifying."""
