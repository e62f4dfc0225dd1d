"""The queue of records on disk between a training and MLflow."""
