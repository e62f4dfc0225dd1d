"""What a person or a cluster starts: one short module per job, run as ``python -m jobs.<name>``."""
