"""The gate of the registry: whether a version has shown that it is better."""
