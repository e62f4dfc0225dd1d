"""``best.yaml``: the recipe that a sweep recommends, with its reasons in the header."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import yaml

from pipeline.config import Config, set_dotted
from pipeline.evaluation.postprocessing.settings import BestSettings
from pipeline.storage.redact import mask, mask_tree
from pipeline.sweep.documents import Statement
from pipeline.trials.trial_records import Params

_WIDTH = 100


@dataclass(frozen=True)
class Reproduced:
    """The training that a recipe repeats."""

    name: str
    params: Params  # with its seed, if that is not the one of the sweep's recipe
    score: float | None  # of the selected checkpoint; None if the training did not finish
    postprocessing: BestSettings | None = None


def best_recipe(config: Config, sweep_name: str, statement: Statement, repeated: Reproduced) -> str:
    """Return the recipe of a sweep with the values of one training, and secrets masked.

    Settings of post-processing are those of the sweep's recipe, unless others are better beyond
    the choice of images.
    """
    tree = config.model_dump(mode="json", exclude_defaults=True, exclude={"sweep": True})
    if config.tracking.uri and mask(config.tracking.uri) != config.tracking.uri:
        del tree["tracking"]["uri"]  # it is then read from the environment, as is
    params: dict[str, Any] = dict(repeated.params)
    comments = [f"From the sweep {sweep_name}.", *statement.sentences]
    if repeated.score is not None:
        seed = params.get("train.seed", config.train.seed)
        comments.append(
            f"On CPU, a training with this recipe and train.seed {seed} gives {statement.metric} "
            f"{repeated.score:.4f}, exactly that of {repeated.name}."
        )
    if repeated.postprocessing is not None and repeated.postprocessing.distinguishable:
        found = repeated.postprocessing
        settings = {f"evaluate.{key}": value for key, value in asdict(found.best.settings).items()}
        params |= {key: value for key, value in settings.items() if value != _value(config, key)}
        comments.append(
            f"Without the settings of post-processing below: they raise {found.metric} on data.val "
            f"by {found.gain.value:.4f} (95% interval {found.gain.low:.4f} to "
            f"{found.gain.high:.4f}), measured on the same images that chose them."
        )
    for field, value in params.items():
        set_dotted(tree, field, value)
    comments.append("Train with: python -m jobs.train --config FILE")
    return _commented(comments) + yaml.safe_dump(mask_tree(tree), sort_keys=False)


def _value(config: Config, field: str) -> Any:
    section, _, name = field.partition(".")
    return getattr(getattr(config, section), name)


def _commented(sentences: Sequence[str]) -> str:
    lines = []
    for sentence in sentences:
        lines += textwrap.wrap(
            mask(sentence),
            _WIDTH,
            initial_indent="# ",
            subsequent_indent="#   ",
            break_on_hyphens=False,
        )
    return "".join(f"{line}\n" for line in lines)
