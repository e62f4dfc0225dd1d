"""The plan of a comparison: what is trained, and whether its folder and recipe are fit for it."""

from __future__ import annotations

import json
from collections.abc import Sequence

from pipeline.comparison.arms import Arm
from pipeline.config import Config, SweepConfig
from pipeline.errors import UserError
from pipeline.pretrained import stages_to_freeze
from pipeline.storage.document import Document, DocumentError
from pipeline.storage.folder import Storage
from pipeline.storage.redact import mask, mask_tree
from pipeline.training.fit import absolute_paths, absolute_value
from pipeline.training.run_record import RunRecord
from pipeline.trials.trial import trial_config
from pipeline.trials.trial_records import Params, TrialRecords

PLAN_FILE = "plan.json"


class Plan(Document):
    """``plan.json`` in the folder of a comparison: what its last command compared."""

    arms: list[Arm]
    seeds: list[int]
    folds: int

    def write(self, uri: str) -> None:
        """Store the plan, with secrets masked, in the folder of the comparison. Raises OSError."""
        content = json.dumps(mask_tree(self.model_dump(mode="json")), indent=1)
        Storage(uri).write(PLAN_FILE, content.encode())


def check_numbers(seeds: int, folds: int) -> None:
    """Raise UserError unless both are possible."""
    if seeds < 1:
        raise UserError(f"--seeds {seeds}: give 1 or more")
    if folds < 0 or folds == 1:
        raise UserError(f"--folds {folds}: give 2 or more")


def comparison_config(config: Config, arms: Sequence[Arm], folds: int) -> Config:
    """Return the recipe with absolute paths and one evaluation, at the end. Raises UserError."""
    if config.train.patience:
        raise UserError(
            f"train.patience is {config.train.patience}; a comparison trains every arm to the end "
            "of its schedule, so set it to 0"
        )
    if not config.ray.enabled:
        raise UserError("ray.enabled is false; the trainings of a comparison run in Ray")
    if folds and config.data.val:
        config = config.replace({"data.val": None})
    elif not folds and config.data.val is None:
        raise UserError(
            "data.val is not set; a comparison scores its trainings on it, or give --folds K to "
            "score parts of data.train by trainings on the others"
        )
    longest = max(_most_epochs(config, arm.params) for arm in arms)
    sweep = SweepConfig(
        metric=config.evaluate.deciding_metric,
        concurrency=config.sweep.concurrency,
        retries=config.sweep.retries,
    )
    return absolute_paths(config).replace(
        {
            "data.test": None,
            "evaluate.every": longest,
            "train.keep_checkpoints": 1,
            "sweep": sweep.model_dump(),
        }
    )


def absolute_arm(arm: Arm) -> Arm:
    """Return an arm with absolute paths, under its name."""
    return Arm(arm.name, {field: absolute_value(field, v) for field, v in arm.params.items()})


def _most_epochs(config: Config, params: Params) -> float:
    """Return the epochs of an arm on a set of one image, which are more than on any other."""
    train = config.train
    epochs = params.get("train.epochs", train.epochs)
    steps = params.get("train.min_steps", train.min_steps)
    return float(max(epochs, steps * params.get("train.batch_size", train.batch_size)))


def with_freezing(config: Config, arm: Arm, images: int) -> Arm:
    """Return an arm that freezes what a training on all images would, also on the parts of them."""
    own = trial_config(config, arm.params)
    if own.model.init is None or own.model.freeze_stages is not None:
        return arm
    return Arm(arm.name, {**arm.params, "model.freeze_stages": stages_to_freeze(own, images)})


def check_folder(record: RunRecord, records: TrialRecords, resumed: bool) -> None:
    """Raise UserError if the folder belongs to something else than a comparison."""
    if not resumed and not records.all:
        return
    try:
        Plan.parse(Storage(record.uri).read(PLAN_FILE), f"{mask(record.uri)}/{PLAN_FILE}")
    except FileNotFoundError:
        raise UserError(
            f"{mask(record.uri)} contains another run, which is not a comparison; choose another "
            "--run name"
        ) from None
    except DocumentError as error:
        raise UserError(f"{error}; restore the file or choose another --run name") from None
