"""Search over any fields of a training: each trial is a complete `fit`, itself distributed."""

from pipeline.sweep.sweep import IncompleteSweep, SweepResult, sweep

__all__ = ["IncompleteSweep", "SweepResult", "sweep"]
