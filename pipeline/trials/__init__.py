"""Many trainings side by side in Ray Tune: each trial is a complete `fit`, itself distributed."""
