"""What an earlier call has written: its recipe, the measured time, and finished trainings."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from pipeline.config import Config, RayConfig
from pipeline.errors import UserError
from pipeline.storage.document import Document, DocumentError
from pipeline.storage.durable import write_durably
from pipeline.storage.redact import mask_tree

STATE_FILE = "start.json"
RECIPE_FILE = "recipe.yaml"


class StartState(Document):
    """``start.json`` beside the recipe."""

    source: str = Field("", description="absolute path of the data")
    recipe_sha256: str = Field("", description="of the recipe as this job wrote it")
    measured: dict[str, list[float]] = Field(
        default_factory=dict,
        description="digest of a configuration -> seconds of a step, an evaluated image, in all",
    )
    evaluated: dict[str, dict[str, Any]] = Field(
        default_factory=dict, description="results of their evaluations, likewise"
    )
    trained: dict[str, dict[str, Any]] = Field(
        default_factory=dict, description="results of finished trainings by the name of their run"
    )

    def with_result(
        self, stage: Literal["trained", "evaluated"], run: str, result: Mapping[str, Any]
    ) -> StartState:
        """Return the state with the result of a finished stage of a run, as plain JSON."""
        plain = json.loads(json.dumps(mask_tree(result), default=str))
        return self.model_copy(update={stage: {**getattr(self, stage), run: plain}})


def load_state(out: Path, source: Path) -> StartState:
    """Return the state in a folder, an empty one if there is none.

    Raises UserError, also if it is that of other data than ``source``.
    """
    path, data = out / STATE_FILE, str(source.resolve())
    try:
        state = StartState.parse(path.read_bytes(), str(path))
    except FileNotFoundError:
        return StartState(source=data)
    except DocumentError as error:
        raise UserError(f"{error}; delete the file, or name another --out") from None
    except OSError as error:
        raise UserError(f"{out}: {STATE_FILE}: {error.strerror}") from None
    if state.source not in ("", data):
        raise UserError(f"{out} is of {state.source}; name another --out, or delete that folder")
    return state.model_copy(update={"source": data})


def save(out: Path, state: StartState) -> None:
    """Write the state. Raises UserError."""
    write(out / STATE_FILE, state.encode())


def write(path: Path, data: bytes) -> None:
    """Write a file of the output. Raises UserError."""
    try:
        write_durably(path, data)
    except OSError as error:
        raise UserError(
            f"{path.parent}: cannot be written: {error.strerror}; name another folder with --out"
        ) from None


def digest(config: Config, *content: str, resources: bool = True) -> str:
    """Return a digest of a configuration and of other text, such as the hashes of sets.

    Without ``resources`` it is the same on another machine.
    """
    unstated: dict[str, Any] = {"tracking": {"uri"}}
    if not resources:
        unstated["ray"] = set(RayConfig.model_fields) - {"storage"}
        unstated["data"] = {"loader_workers"}
    text = "\n".join([config.model_dump_json(exclude=unstated), *content])
    return hashlib.sha256(text.encode()).hexdigest()


def keeps_own_recipe(out: Path, state: StartState) -> bool:
    """Return whether the recipe in the folder was changed since this job wrote it."""
    try:
        found = hashlib.sha256((out / RECIPE_FILE).read_bytes()).hexdigest()
    except OSError:
        return False
    return found != state.recipe_sha256
