"""Training: the driver (`fit`), the function of each worker (`worker`) and their parts."""
