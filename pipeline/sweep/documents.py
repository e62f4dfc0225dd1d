"""What a sweep has found, as documents: its trials, its statement, and both as one report.

The terminal, the files, MLflow and the page show these and compute nothing of their own. Scores are
those of ``sweep.metric`` on ``data.val``; intervals contain 95 %.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from pydantic import Field

from pipeline.comparison.documents import Pair
from pipeline.evaluation.postprocessing.settings import BestSettings
from pipeline.metrics.bootstrap import Interval
from pipeline.storage.document import Document
from pipeline.trials.trial_records import Params, TrialState

DEFAULT = "default"
"""Name of the arm of the recipe without the sweep."""


@dataclass(frozen=True)
class Trial:
    """One row of the table of results."""

    name: str
    params: Params  # searched values by dotted field; those that do not matter are absent
    best: float | None  # best score; None if none was reported
    epochs: float  # epochs trained
    status: TrialState
    run_id: str | None  # of MLflow
    error: str = ""
    # Of the selected checkpoint; None if the trial has no outcome.
    ap: float | None = None
    ap50: float | None = None
    ap75: float | None = None
    low: float | None = None  # 95% interval over images of `metric`
    high: float | None = None
    metric: str = "ap"  # that ranks checkpoints, and has the interval: ap or ap50
    seconds: float | None = None  # of its training steps, without start-up and evaluations
    curve: list[tuple[float, float]] = field(default_factory=list)  # epoch and score
    postprocessing: BestSettings | None = None


class TrialTable(Document):
    """``trials.json``: all trials of a search, best first."""

    trials: list[Trial]


@dataclass(frozen=True)
class Arm:
    """A point, or the default, that was trained on further seeds, which the search has not seen."""

    name: str  # of the trial with this point, or "default"
    params: Params  # of the default: what the recipe has for the searched fields
    seeds: list[int]
    trials: list[str]  # one per seed, in the folder `confirm` of the sweep
    scores: list[float]  # one per seed
    score: Interval  # their mean, with its interval over images and seeds
    ap50: float | None  # mean over seeds
    ap75: float | None


class Statement(Document):
    """``statement.json``: what a sweep shows, and what it does not."""

    FORMAT_VERSION: ClassVar[int] = 1

    metric: str
    mode: Literal["max", "min"]
    images: int | None = Field(None, description="of data.val; None without confirmation")
    arms: list[Arm] = Field([], description="confirmed, the best first; empty without confirmation")
    pairs: list[Pair] = Field([], description="each arm against the default, then the others")
    spread: float | None = Field(
        None, description="standard deviation over seeds, pooled over arms; None with one seed"
    )
    winner: str = Field(description="trial whose point best.yaml has, or 'default'")
    confirmed: bool = Field(description="whether the winner is that of a comparison")
    sentences: list[str] = Field(description="the statement in words, the conclusion first")

    def pair(self, candidate: str, reference: str = DEFAULT) -> Pair | None:
        """Return the comparison of two arms, in this order; None if it was not made."""
        found = (pair for pair in self.pairs if pair.candidate == candidate)
        return next((pair for pair in found if pair.reference == reference), None)

    def arm(self, name: str) -> Arm | None:
        """Return an arm by name; None if it was not confirmed."""
        return next((arm for arm in self.arms if arm.name == name), None)


@dataclass(frozen=True)
class SweepReport:
    """Everything that the page of a sweep shows."""

    sweep: str  # its name
    metric: str
    mode: str
    space: dict[str, dict[str, Any]]  # as in the recipe
    trials: list[Trial]  # best first
    statement: Statement
    recipe: str  # best.yaml
    seconds: float  # of this command
