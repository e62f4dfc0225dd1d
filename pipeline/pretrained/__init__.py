"""Starting a training from weights that exist: published, registered, or of another run."""

from pipeline.pretrained.read import Weights, read_weights
from pipeline.pretrained.start import check_start, start_from
from pipeline.pretrained.transfer import TransferReport, transfer

__all__ = ["TransferReport", "Weights", "check_start", "read_weights", "start_from", "transfer"]
