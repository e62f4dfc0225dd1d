"""Checkpoints: their format, the store that lists them, the manager that saves and restores."""
