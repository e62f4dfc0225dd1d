"""Start a training from existing weights: published ones, registered ones, or those of a run."""

from pipeline.pretrained.freezing import explain_freezing, stages_to_freeze
from pipeline.pretrained.read import read_weights
from pipeline.pretrained.start import check_start, start_from
from pipeline.pretrained.transfer import TransferReport, transfer
from pipeline.pretrained.weights import Weights

__all__ = [
    "TransferReport",
    "Weights",
    "check_start",
    "explain_freezing",
    "read_weights",
    "stages_to_freeze",
    "start_from",
    "transfer",
]
