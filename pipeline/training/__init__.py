"""Training: one worker function (`worker`), what it is made of, and the driver (`fit`)."""
