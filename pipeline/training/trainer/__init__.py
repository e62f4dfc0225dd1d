"""The training step of one rank and its parts."""
