"""The spool: records on disk between a training and MLflow."""
