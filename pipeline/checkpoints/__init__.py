"""Checkpoints: their format, a store that lists them, a manager that saves and restores."""
