"""The looks of the pictures of a finished shard set, to find them again in another split."""

from __future__ import annotations

from pipeline.data.decode import ImageError, decode_image
from pipeline.data.duplicates import Looks, look
from pipeline.data.sample import Sample, SampleError
from pipeline.data.shards import ShardSet
from pipeline.data.tasks import Progress


def looks_of_set(uri: str) -> Looks:
    """Decode all pictures of a set; unreadable ones are left out. Raises UserError."""
    shards = ShardSet(uri)
    looks = Looks(f"{shards.manifest.name} {shards.manifest.split}")
    progress = Progress(f"looking at {uri}", len(shards))
    for index in range(len(shards)):
        raw = shards.read(index)
        try:
            name = Sample.from_json(raw.json).file_name
            hashed = look(decode_image(raw.image))
        except (ImageError, SampleError):
            continue
        looks.names.append(name)
        looks.hashes.append(hashed)
        progress.tick()
    return looks
