"""The only part of training that knows Ray Train."""
