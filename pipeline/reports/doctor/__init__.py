"""Find in a shard set what will hurt a training, before it starts."""
