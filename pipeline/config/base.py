"""The base class of the configuration sections, and their shared types."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Probability = Annotated[float, Field(ge=0.0, le=1.0)]


class Section(BaseModel):
    """Base class of all sections: rejects unknown keys and is immutable."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def one_of(value: str, known: Iterable[str]) -> str:
    """Return the value unchanged; raise ValueError listing the known values if it is unknown."""
    if value not in known:
        raise ValueError(f"{value!r} does not exist; choose from: {', '.join(sorted(known))}")
    return value
