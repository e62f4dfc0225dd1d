"""``meta.json`` of a checkpoint: everything about it that can be read without loading tensors."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field

from pipeline.config import DetectorSpec, deciding_metric
from pipeline.storage.document import Document, DocumentError

UNSCORED = -1.0  # ranks below every evaluated checkpoint


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class EarlyStoppingState(_Part):
    """State of early stopping after the evaluations up to a checkpoint."""

    best: float | None = Field(description="best score so far; None before the first evaluation")
    evaluations_since_best: int = Field(ge=0)


class DataFingerprints(_Part):
    """Content hashes of the shard sets of a training."""

    train: str
    val: str | None = Field(default=None, description="None without data.val")


class BadSamplesState(_Part):
    """Unreadable samples of a training up to a checkpoint, over all ranks."""

    samples_read: int = Field(description="all samples read, also the readable ones")
    occurrences: int = Field(description="how often one was unreadable")
    problems: dict[str, int] = Field(description="the first of them, and how often each occurred")


class FileDigest(_Part):
    """Size and checksum of a file of a checkpoint."""

    bytes: int
    sha256: str


class CheckpointMeta(Document):
    """The readable half of a checkpoint.

    The last four fields are filled in when the checkpoint is written.
    """

    # 2 had metrics as keys of the top level, 3 no bad samples; 4 no anchors, temperature, records.
    FORMAT_VERSION: ClassVar[int] = 5

    step: int = Field(description="steps done")
    epoch: float = Field(description="passes over the training set")
    world_size: int = Field(description="ranks that trained the last step")
    device: str | None = Field(default=None, description="kind of device, cpu or cuda, if recorded")
    precision: str | None = Field(
        default=None, description="fp32, bf16 or fp16: `train.precision` on this device"
    )
    classes: list[str] = Field(description="class names in the order of the labels")
    spec: DetectorSpec
    config: dict[str, Any] = Field(
        description="the configuration, without URIs of services and secrets"
    )
    data: DataFingerprints
    metrics: dict[str, float] | None = Field(
        default=None, description="results on data.val; None until the step is evaluated"
    )
    temperature: float | None = Field(
        default=None,
        description="calibrates the scores, fitted on data.val; None until the step is evaluated "
        "and before format 5",
    )
    early_stopping: EarlyStoppingState | None = Field(
        default=None, description="None in format 2 where state.pt alone had it"
    )
    bad_samples: BadSamplesState | None = Field(
        default=None, description="None before format 4, which counted them for each rank alone"
    )
    records: list[str] = Field(
        default=[],
        description="points and tags up to here that were neither sent nor on a disk: lines of the "
        "spool",
    )
    saved: float = Field(default=0.0, description="seconds since 1970")
    weights_sha256: str = Field(default="", description="of the raw weights")
    ema_sha256: str = Field(default="", description="of the averaged weights")
    files: dict[str, FileDigest] = Field(default_factory=dict)

    @property
    def score(self) -> float:
        """Return the score that ranks checkpoints."""
        return (self.metrics or {}).get(self.deciding_metric, UNSCORED)

    @property
    def deciding_metric(self) -> str:
        """Return the name of the metric that is the score."""
        return deciding_metric(self.config.get("evaluate", {}).get("protocol", "coco"))

    @classmethod
    def upgrade(cls, content: dict[str, Any], version: int) -> dict[str, Any]:
        """Return the content of formats 2 to 4 as format 5 has it."""
        if version > 2:
            return content
        try:
            return _from_format_2(content)
        except (AttributeError, KeyError, TypeError) as error:
            raise DocumentError(f"not a checkpoint of format 2: {error}") from None


def _from_format_2(old: dict[str, Any]) -> dict[str, Any]:
    same = ("step", "epoch", "world_size", "classes", "spec", "config", "saved", "files")
    hashes = ("weights_sha256", "ema_sha256")
    new = {key: old[key] for key in (*same, *hashes) if key in old}
    new["data"] = {"train": old["data"], "val": old.get("data_val")}
    metrics = {key: value for key, value in old.items() if "/" in key}
    patience = old.get("patience")  # written together with the metrics
    new["metrics"] = metrics if metrics or patience else None
    if patience:
        new["early_stopping"] = {
            "best": patience["best"],
            "evaluations_since_best": patience["waited"],
        }
    return new
