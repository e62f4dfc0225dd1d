"""Training with Ray Train: launch, checks before it, timeouts and preemption."""
