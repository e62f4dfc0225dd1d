"""Recipe, environment and command line, merged into one `Config`."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic_settings import (
    BaseSettings,
    CliSettingsSource,
    EnvSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from pipeline.config.tree import Config
from pipeline.errors import UserError


class _Settings(BaseSettings, Config):
    """The same tree as a source of environment and command-line values; never built itself."""

    model_config = SettingsConfigDict(
        extra="forbid",
        env_prefix="MG_",
        env_nested_delimiter="__",
        env_parse_none_str="null",
        cli_parse_none_str="null",
        cli_avoid_json=True,
        protected_namespaces=(),
    )


def load_config(
    parser: argparse.ArgumentParser, argv: Sequence[str] | None = None
) -> tuple[Config, argparse.Namespace]:
    """Parse a job's command line: its own options and one option per config field.

    The parser gets ``--config`` and every ``--section.field``. Returns the validated config and
    the parsed job options. Raises UserError on a wrong value or unknown key, in whichever source.
    """
    parser.add_argument("--config", type=Path, metavar="FILE", help="recipe (YAML) to start from")
    cli = CliSettingsSource[argparse.ArgumentParser](
        _Settings, root_parser=parser, cli_parse_none_str="null", cli_avoid_json=True
    )
    parser.usage = "%(prog)s [--config FILE] [options] [--SECTION.FIELD VALUE ...]"
    options = parser.parse_args(argv)
    given = {key: value for key, value in vars(options).items() if "." in key}
    command_line = cli(parsed_args=given)()
    tree: dict[str, Any] = read_recipe(options.config) if options.config else {}
    for source in (_environment(), command_line):
        tree = _merged(tree, source)
    return Config.from_dict(tree), options


def _merged(base: Mapping[str, Any], top: Mapping[str, Any]) -> dict[str, Any]:
    tree = dict(base)
    for key, value in top.items():
        both = isinstance(value, Mapping) and isinstance(tree.get(key), Mapping)
        tree[key] = _merged(tree[key], value) if both else value
    return tree


def _environment() -> dict[str, Any]:
    for name in os.environ:
        section = name.removeprefix("MG_").split("__")[0].lower()
        if name.startswith("MG_") and section not in Config.model_fields:
            raise UserError(
                f"environment variable {name}: no section {section!r}; "
                f"known: {', '.join(Config.model_fields)}"
            )
    try:
        return EnvSettingsSource(_Settings, env_parse_none_str="null")()
    except SettingsError as error:
        raise UserError(f"environment: {error}") from None


def read_recipe(path: Path) -> dict[str, Any]:
    """A recipe's nested dict, unvalidated. Raises UserError if it is no YAML mapping."""
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"--config {path}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        where = " ".join(str(error).split())
        raise UserError(f"--config {path}: not valid YAML: {where}") from None
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise UserError(f"--config {path}: expected sections such as 'train:', got {tree!r}")
    return tree
