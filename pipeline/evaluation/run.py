"""Record an evaluation as its own MLflow run, linked to the model version and the data set."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from pipeline.evaluation.findings import Findings
from pipeline.evaluation.model_evaluation import ModelEvaluation
from pipeline.evaluation.outputs import Subject
from pipeline.registry.experiment import experiment_of
from pipeline.registry.load import find_version
from pipeline.registry.register import MODEL_TAG
from pipeline.storage.redact import mask
from pipeline.tracking import connect
from pipeline.tracking.client import store_errors

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

EXPERIMENT = "evaluations"  # of models without a training run in the store
_DIGEST_LENGTH, _METRICS_PER_CALL = 36, 500


def record_evaluation(
    uri: str, found: ModelEvaluation, findings: Findings, subject: Subject, files: Iterable[str]
) -> str:
    """Create a finished run with the metrics and files of an evaluation. Return its id.

    The run of a registered version is in the experiment of its training. Raises UserError, and
    OutageError if the store does not respond; then the run is marked as failed if it exists.
    """
    from mlflow.entities import Dataset, DatasetInput, InputTag, LoggedModelInput, Metric, Param

    client = connect(uri)
    with store_errors(uri):
        version = _version(client, uri, found.model)
        model_id = version.tags.get(MODEL_TAG) if version else None
        name, digest = found.data.name, found.data.content_hash[:_DIGEST_LENGTH]
        run = client.create_run(
            experiment_of(client, version, EXPERIMENT), tags=_tags(found, subject, version)
        )
        run_id: str = run.info.run_id
        try:
            source = json.dumps({"uri": mask(subject.data)})
            dataset = Dataset(name=name, digest=digest, source_type="shards", source=source)
            client.log_inputs(
                run_id,
                datasets=[DatasetInput(dataset, [InputTag("mlflow.data.context", "test")])],
                models=[LoggedModelInput(model_id)] if model_id else None,
            )
            params = {"model": mask(found.model), "data": mask(subject.data)}
            params |= {key: str(value) for key, value in subject.settings.model_dump().items()}
            client.log_batch(run_id, params=[Param(key, value) for key, value in params.items()])
            now = time.time_ns() // 1_000_000
            metrics = [
                Metric(key, value, now, 0, model_id, name, digest, run_id)
                for key, value in logged_metrics(findings).items()
            ]
            for start in range(0, len(metrics), _METRICS_PER_CALL):
                client.log_batch(run_id, metrics=metrics[start : start + _METRICS_PER_CALL])
            for path in files:
                client.log_artifact(run_id, path, "evaluation")
            client.set_terminated(run_id)
        except BaseException:
            client.set_terminated(run_id, "FAILED")
            raise
    return run_id


def logged_metrics(findings: Findings) -> dict[str, float]:
    """Return the metrics of an evaluation by the names they have in MLflow."""
    metrics = dict(findings.metrics)
    for name, one in findings.intervals.items():
        metrics |= {f"interval/{name}_low": one.low, f"interval/{name}_high": one.high}
    metrics |= {f"error/{name}": kind.ap_cost for name, kind in findings.errors.items()}
    metrics["calibration/error"] = findings.calibration.error
    metrics["calibration/score_iou_correlation"] = findings.calibration.score_iou_correlation
    if findings.curve is not None:
        metrics["best/threshold"] = findings.threshold
        metrics["best/f1"] = float(findings.curve.f1[findings.curve.best])
    if findings.seconds is not None:
        metrics["seconds_per_image"] = findings.seconds
    return {name: value for name, value in metrics.items() if value == value}  # without NaN


def _tags(found: ModelEvaluation, subject: Subject, version: ModelVersion | None) -> dict[str, str]:
    def known() -> Iterator[tuple[str, str]]:
        yield "mlflow.runName", f"evaluate {found.data.name} {found.data.split}"
        yield "evaluation.model", mask(found.model)
        yield "data.test.fingerprint", found.data.content_hash
        if subject.revision:
            yield "mlflow.source.git.commit", subject.revision
        if version is not None:
            yield "evaluation.version", str(version.version)
            yield "evaluation.training_run", str(version.run_id or "")

    return dict(known())


def _version(client: MlflowClient, uri: str, model: str) -> ModelVersion | None:
    if not model.startswith("models:"):
        return None
    name, number = find_version(model, uri)
    return client.get_model_version(name, str(number))
