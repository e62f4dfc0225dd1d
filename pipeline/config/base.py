"""What all sections share."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Probability = Annotated[float, Field(ge=0.0, le=1.0)]


class Section(BaseModel):
    """Base of all sections: no unknown keys, no change after construction."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def one_of(value: str, known: Iterable[str]) -> str:
    """The value itself; raises ValueError listing the known ones if it is none of them."""
    if value not in known:
        raise ValueError(f"{value!r} does not exist; choose from: {', '.join(sorted(known))}")
    return value
