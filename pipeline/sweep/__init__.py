"""Search over any fields of a training: each trial is a complete `fit`, itself distributed."""

from pipeline.sweep.sweep import SweepResult, sweep

__all__ = ["SweepResult", "sweep"]
