"""Ranks, their collectives, and the Ray cluster that they run on."""
