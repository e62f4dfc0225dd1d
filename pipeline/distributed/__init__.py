"""Ranks, what they exchange, and the Ray cluster they run on."""
