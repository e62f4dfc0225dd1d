"""Write a proposal as a recipe with its reasons as comments, and read one that was changed."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.config import Config, read_recipe
from pipeline.errors import UserError
from pipeline.start.propose import Proposal

# URIs that may contain a password; they are given on the command line or in the environment.
NOT_WRITTEN = ("tracking.uri", "tracking.artifacts")
_PLAIN = re.compile(r"[A-Za-z_/][A-Za-z0-9_./-]*")
_SPECIAL = ("true", "false", "null", "yes", "no", "on", "off", "y", "n")


def recipe_text(proposal: Proposal, header: Sequence[str]) -> str:
    """Return the recipe: the lines of the header as comments, then the fields by section.

    The reason of a choice is above its first field.
    """
    comments = {
        next(iter(choice.fields)): f"  # {choice.text}: {choice.why}"
        for choice in proposal.choices
        if choice.fields
    }
    sections: dict[str, list[str]] = defaultdict(list)
    for name, value in proposal.fields.items():
        section, _, field = name.partition(".")
        if is_private(name, value):
            continue
        if name in comments:
            sections[section].append(comments[name])
        if value is not None or getattr(getattr(Config(), section), field) is not None:
            sections[section].append(f"  {field}: {yaml_value(value)}")
    lines = [f"# {line}".rstrip() for line in header]
    for section in Config.model_fields:
        if section in sections:
            lines += [f"{section}:", *sections[section]]
    return "\n".join(lines) + "\n"


def yaml_value(value: Any) -> str:
    """Return a value as YAML on one line."""
    if isinstance(value, str) and _PLAIN.fullmatch(value) and value.lower() not in _SPECIAL:
        return value
    if hasattr(value, "model_dump"):
        value = value.model_dump(mode="json")
    return json.dumps(value, ensure_ascii=False)


def is_private(name: str, value: Any) -> bool:
    """Return whether the recipe lacks a given field because its value may have a password."""
    return name in NOT_WRITTEN or (name == "ray.storage" and "://" in str(value))


def read_own_recipe(recipe: Path, given: Mapping[str, Any]) -> Config:
    """Return the configuration of the recipe that the user has changed, with ``given`` fields.

    Raises UserError if these differ, or if the recipe is not usable.
    """
    try:
        config = Config.from_dict(read_recipe(recipe))
    except UserError as error:
        text = str(error).removeprefix("--config ").removeprefix(f"{recipe}: ")
        raise UserError(
            f"{recipe}: {text}; correct it, or delete it to have it proposed again"
        ) from None
    public = {name: value for name, value in given.items() if not is_private(name, value)}
    for name, value in public.items():
        section, _, field = name.partition(".")
        if (written := getattr(getattr(config, section), field)) != value:
            raise UserError(
                f"{recipe} was changed by you and has {name} {written!r}, not {value!r}; change it "
                "there, or delete the recipe to have it proposed again"
            )
    if config.data.train is None:
        raise UserError(f"{recipe}: data.train is missing; add it, or delete the recipe")
    return config.replace(given)
