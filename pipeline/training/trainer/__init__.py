"""One rank's training step and what belongs to it."""
