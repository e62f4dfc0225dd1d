"""What a comparison has found, as one document that the terminal, files and the page show.

Scores are those of ``metric`` on the images that no training of a cell has seen; intervals cover
95 % and extend over images and seeds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from pydantic import Field

from pipeline.storage.document import Document
from pipeline.trials.trial_records import Params


@dataclass(frozen=True)
class ArmResult:
    """A row of the table: an arm and its figures, which are means over its seeds.

    Figures that are not known are None. With folds, the out-of-fold predictions of a seed are
    scored as one set.
    """

    name: str
    params: Params
    seeds: list[int]  # those of which every training was scored
    scores: list[float]  # of the deciding metric, one per seed
    ap: float | None
    ap50: float | None
    ap75: float | None
    low: float | None  # of the interval of the deciding metric
    high: float | None
    spread: float | None  # standard deviation over seeds; None with one
    seconds_per_step: float | None  # of training; the median
    health: dict[str, float]  # of the assignment at the end of the trainings
    trials: list[str]  # names of all its trainings
    failed: list[str]  # names of those that failed or could not be scored


@dataclass(frozen=True)
class Pair:
    """By how much one arm scores higher than another, over images and seeds."""

    candidate: str
    reference: str
    gain: float
    low: float
    high: float
    distinguishable: bool  # from noise: the interval does not contain 0


class Comparison(Document):
    """``comparison.json`` in the folder of a comparison and in its MLflow run."""

    FORMAT_VERSION: ClassVar[int] = 1

    run: str = Field(description="name of the comparison")
    metric: Literal["ap", "ap50"] = Field(description="that decides, by the protocol")
    protocol: str
    data: str = Field(description="name of the shard set whose images are scored")
    images: int = Field(description="number of images that are scored")
    epochs: float = Field(description="of each training, unless arms differ in it")
    seeds: list[int]
    folds: int = Field(description="number of parts of a cross-validation; 0: none")
    table: list[ArmResult] = Field(description="best first; arms without a score last")
    pairs: list[Pair] = Field(
        description="of all arms with a score, the better one as candidate; all intervals "
        "contain the true differences at once with 95 %"
    )
    spread: float | None = Field(description="standard deviation over seeds, pooled over arms")
    sentences: list[str] = Field(description="what the comparison shows, in words")
    seconds: float = Field(description="duration of the command that wrote this")
