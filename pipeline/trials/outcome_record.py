"""The outcome of a trial as it is stored in its folder: a record, and two tables beside it."""

from __future__ import annotations

import hashlib
from typing import ClassVar

from pydantic import Field

from pipeline.checkpoints.meta import FileDigest
from pipeline.checkpoints.store import SavedCheckpoint
from pipeline.errors import OutageError, UserError
from pipeline.evaluation.postprocessing.matcher import SettingsMatcher
from pipeline.evaluation.postprocessing.raw import RawPredictions
from pipeline.evaluation.postprocessing.settings import BestSettings
from pipeline.evaluation.table_files import Table, decode, encode
from pipeline.metrics import MatchTable
from pipeline.storage.document import Document, DocumentError
from pipeline.storage.folder import Storage, join
from pipeline.storage.redact import error_line

OUTCOME, MATCHES, PREDICTIONS = "outcome.json", "matches.safetensors", "predictions.safetensors"


class TrialOutcome(Document):
    """``outcome.json`` in the folder of a trial. It is written after the tables."""

    FORMAT_VERSION: ClassVar[int] = 1

    checkpoint: str = Field(description="name of the selected checkpoint")
    step: int = Field(description="of the selected checkpoint")
    epoch: float = Field(description="of the selected checkpoint")
    weights_sha256: str = Field(description="of the averaged weights, which were scored")
    data: str = Field(description="content hash of data.val")
    metric: str = Field(description="the metric that ranks checkpoints, ap or ap50")
    metrics: dict[str, float] = Field(
        description="of the checkpoint on data.val, as its training scored it: ap, ap50, ..."
    )
    per_class: dict[str, dict[str, float]] = Field(
        description="ap and ap50 by class, for those with objects"
    )
    low: float = Field(description="lower bound of the 95% interval of the metric, over images")
    high: float = Field(description="its upper bound")
    seconds_per_step: float | None = Field(
        description="median of the training; None if it was not logged"
    )
    health: dict[str, float] = Field(description="last figures of the assignment in the training")
    postprocessing: BestSettings = Field(description="the best settings of post-processing")
    files: dict[str, FileDigest] = Field({}, description="the tables beside this file")


def load_matches(storage: str, name: str) -> MatchTable:
    """Return what matches what with the trial's own settings, its images in the order of their ids.

    Raises UserError if it is missing or damaged, OutageError if the store does not respond.
    """
    return _load(MatchTable, storage, name, MATCHES)


def load_predictions(storage: str, name: str) -> RawPredictions:
    """Return the predictions of a trial before NMS. Raises as `load_matches`."""
    return _load(RawPredictions, storage, name, PREDICTIONS)


def store_outcome(
    storage: str, name: str, outcome: TrialOutcome, raw: RawPredictions, matches: MatchTable
) -> TrialOutcome:
    """Store an outcome and its tables; return it with their checksums. Raises OSError."""
    files = Storage(join(storage, name))
    tables = {PREDICTIONS: encode(raw), MATCHES: encode(matches)}
    complete = outcome.model_copy(
        update={"files": {file: _digest(data) for file, data in tables.items()}}
    )
    files.delete(OUTCOME)  # it does not belong to the tables that are written now
    for file, data in tables.items():
        files.write(file, data)
    files.write(OUTCOME, complete.encode())
    return complete


def stored_outcome(
    storage: str, name: str, selected: SavedCheckpoint | None, data: str
) -> TrialOutcome | None:
    """Return the stored outcome of a trial; None if it is missing, damaged or out of date.

    It is out of date if the ``selected`` checkpoint or the content hash of ``data.val`` is another
    one. Matches that are damaged or missing are made again from the predictions. Without a selected
    checkpoint, predictions may be damaged or missing, since they cannot be made again. Raises
    OSError.
    """
    files = Storage(join(storage, name))
    outcome = _read(files)
    if outcome is None or outcome.data != data:
        return None
    if selected is not None and selected.meta.ema_sha256 != outcome.weights_sha256:
        return None
    sizes = {file.name: file.size for file in files.files()}
    predicted = outcome.files[PREDICTIONS]
    if selected is not None and sizes.get(PREDICTIONS) != predicted.bytes:
        return None
    try:
        load_matches(storage, name)
    except UserError:
        try:
            raw = load_predictions(storage, name)
        except UserError:
            return None
        own = outcome.postprocessing.before.settings
        matches = SettingsMatcher(raw, [(own.nms_iou, own.class_agnostic)]).match(own)
        return store_outcome(storage, name, outcome, raw, matches)
    return outcome


def _read(files: Storage) -> TrialOutcome | None:
    try:
        return TrialOutcome.parse(files.read(OUTCOME), OUTCOME)
    except (FileNotFoundError, DocumentError):
        return None


def _load(kind: type[Table], storage: str, name: str, file: str) -> Table:
    files = Storage(join(storage, name))
    outcome = _read(files)
    if outcome is None:
        raise UserError(f"{files} has no outcome of a trial; run its sweep or comparison again")
    try:
        data = files.read(file)
    except OutageError:
        raise
    except OSError as error:
        raise UserError(f"{files}/{file} cannot be read: {error_line(error)}") from None
    if _digest(data) != outcome.files[file]:
        raise UserError(f"{files}/{file} is damaged; run the sweep or comparison again")
    return decode(kind, data)


def _digest(data: bytes) -> FileDigest:
    return FileDigest(bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
