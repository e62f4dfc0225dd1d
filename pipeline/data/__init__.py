"""Shard sets: converted from any source, read in an order that does not depend on the cluster."""

from pipeline.data.conversion.convert import convert
from pipeline.data.loading.batch import Batch, EvalBatch
from pipeline.data.loading.loader import (
    EvalLoader,
    TrainLoader,
    build_eval_loader,
    build_train_loader,
    check_batches,
)
from pipeline.data.loading.webdataset_pipeline import as_webdataset
from pipeline.data.shards.manifest import Manifest, load_manifest, require_classes
from pipeline.data.shards.sample import Sample

__all__ = [
    "Batch",
    "EvalBatch",
    "EvalLoader",
    "Manifest",
    "Sample",
    "TrainLoader",
    "as_webdataset",
    "build_eval_loader",
    "build_train_loader",
    "check_batches",
    "convert",
    "load_manifest",
    "require_classes",
]
