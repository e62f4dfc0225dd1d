"""The global sample order and the loaders that follow it."""
