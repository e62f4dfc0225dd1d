"""What carries the model: configuration, data, training, evaluation, tracking, registry, sweeps."""
