"""Merge recipe, environment and command line into one `Config`."""

from __future__ import annotations

import argparse
import difflib
import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError, create_model
from pydantic_settings import (
    BaseSettings,
    CliSettingsSource,
    EnvSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from pipeline.config.tree import Config, explain, shorten
from pipeline.errors import UserError
from pipeline.safe_yaml import load_yaml

# Shown first in --help, in this order.
COMMON_FIELDS = (
    *("data.train", "data.val", "data.test"),
    *("model.backbone", "model.neck", "model.image_size", "model.init", "assign.name"),
    *("train.epochs", "train.batch_size", "train.lr", "train.seed"),
    *("ray.enabled", "ray.workers", "ray.gpu", "ray.storage"),
    *("tracking.uri", "tracking.experiment", "registry.name"),
)
_REPLACED = {"class_weights"}  # fields whose value is a mapping that is not merged with another
# Defaults as --help shows them. The description of a field without one says what that means.
_DEFAULTS = {
    "null": "",
    "()": "",
    "{}": "",
    "True": " (default: true)",
    "False": " (default: false)",
}
_PLACEHOLDERS = {"str": "TEXT", "int": "N", "float": "X", "bool": "true|false"}


class _Settings(BaseSettings, Config):
    """The same tree as a source of environment and command-line values; never instantiated."""

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
    parser: argparse.ArgumentParser,
    argv: Sequence[str] | None = None,
    recipes: Path | None = None,
    sections: Collection[str] = tuple(Config.model_fields),
) -> tuple[Config, argparse.Namespace]:
    """Parse a job's command line: its own options and one option per configuration field.

    Adds ``--config`` and every ``--section.field`` of the ``sections`` to the parser. ``recipes``
    is the folder of the included recipes, which ``--config`` accepts by name. Returns the validated
    configuration and the parsed options of the job, with the recipe's path as ``config``. Raises
    UserError on a wrong value or an unknown key in any source.
    """
    names = recipe_names(recipes) if recipes else []
    included = f", or an included one: {', '.join(_briefly(names))}" if names else ""
    parser.add_argument(
        "--config", type=Path, metavar="FILE", help=f"recipe (YAML) to start from{included}"
    )
    cli = CliSettingsSource[argparse.ArgumentParser](
        _settings_of(sections), root_parser=parser, cli_parse_none_str="null", cli_avoid_json=True
    )
    parser.usage = "%(prog)s [--config FILE] [options] [--SECTION.FIELD VALUE ...]"
    _arrange_help(parser)
    options = parser.parse_args(argv)
    if options.config and recipes:
        options.config = _find_recipe(options.config, recipes, names)
    given = {key: value for key, value in vars(options).items() if "." in key}
    command_line = cli(parsed_args=given)()
    recipe = read_recipe(options.config) if options.config else {}
    environment = _environment()
    tree = _merged(_merged(recipe, environment), command_line)
    try:
        return Config.model_validate(tree), options
    except ValidationError as error:

        def source_of(field: str) -> str | None:
            if _has(command_line, field):
                return None  # the user has just typed it
            if _has(environment, field):
                return f"MG_{field.upper().replace('.', '__')}"
            return str(options.config) if _has(recipe, field) else None

        raise UserError(explain(error, source_of)) from None


def _settings_of(sections: Collection[str]) -> type[BaseSettings]:
    """Return the settings of some sections, so that other names are free for a job's options."""
    if set(sections) == set(Config.model_fields):
        return _Settings
    fields: dict[str, Any] = {
        name: (Config.model_fields[name].annotation, Config.model_fields[name]) for name in sections
    }
    base = type("_Base", (BaseSettings,), {"model_config": _Settings.model_config})
    return create_model("_SomeSettings", __base__=base, **fields)


def recipe_names(folder: Path) -> list[str]:
    """Return the recipes below a folder by name, such as ``bccd`` and ``sweeps/smoke``."""
    paths = (path.relative_to(folder).with_suffix("") for path in folder.glob("**/*.yaml"))
    return sorted((path.as_posix() for path in paths), key=lambda name: (name.count("/"), name))


def _briefly(names: Sequence[str]) -> list[str]:
    """Return the names with those of a sub-folder as one entry, such as ``paper/...``."""
    return list(dict.fromkeys(f"{n.split('/')[0]}/..." if "/" in n else n for n in names))


def _find_recipe(path: Path, folder: Path, names: Sequence[str]) -> Path:
    """Return the recipe file for a path, or for the name of an included recipe.

    A directory of that name, such as a data set, does not hide the recipe.
    """
    if path.exists() and not (path.is_dir() and path.as_posix() in names):
        return path
    included = folder / f"{path}.yaml"
    if path.suffix in (".yaml", ".yml"):
        hint = path.stem
    elif path.as_posix() in names:
        return included
    else:
        hint = path.as_posix()
    near = difflib.get_close_matches(hint, names, n=1)
    known = f"did you mean {near[0]}?" if near else f"included: {', '.join(_briefly(names))}"
    raise UserError(f"--config {path}: No such file or included recipe; {known}")


def _arrange_help(parser: argparse.ArgumentParser) -> None:
    """Move the common fields to a group of their own, first in --help, and tidy the rest."""
    common = parser.add_argument_group("common settings", "The other settings follow, by section.")
    groups = parser._action_groups
    groups.remove(common)
    # After the positional arguments and the job's own options.
    groups.insert(2, common)
    fields = {a.dest: (group, a) for group in groups[3:] for a in group._group_actions}
    for name in COMMON_FIELDS:
        if name not in fields:
            continue
        group, action = fields[name]
        group._group_actions.remove(action)
        common._group_actions.append(action)
    for _, action in fields.values():
        action.metavar = _placeholder(str(action.metavar or ""))
        text = action.help or ""
        for before, after in _DEFAULTS.items():
            text = text.replace(f" (default: {before})", after)
        action.help = text


def _placeholder(metavar: str) -> str:
    """Return a placeholder for a value in --help, from the type that pydantic names."""
    kinds = metavar.strip("{}").split(",")
    if metavar.startswith("tuple"):
        return "[X,X,...]" if metavar.startswith("tuple[float") else "[N,N,...]"
    if metavar.startswith("dict"):
        return "JSON"
    if "tuple[int" in metavar:
        return "N|[N,N]"
    if kinds[0] in _PLACEHOLDERS:
        return _PLACEHOLDERS[kinds[0]]
    return "|".join(kind for kind in kinds if kind != "null")


def _merged(base: Mapping[str, Any], top: Mapping[str, Any]) -> dict[str, Any]:
    tree = dict(base)
    for key, value in top.items():
        both = isinstance(value, Mapping) and isinstance(tree.get(key), Mapping)
        tree[key] = _merged(tree[key], value) if both and key not in _REPLACED else value
    return tree


def _has(tree: Mapping[str, Any], field: str) -> bool:
    """Return whether a nested dict has a dotted field, or a whole section."""
    section, _, key = field.partition(".")
    values = tree.get(section)
    return section in tree and (not key or not isinstance(values, Mapping) or key in values)


def _environment() -> dict[str, Any]:
    for name in os.environ:
        section = name.removeprefix("MG_").split("__")[0].lower()
        if name.startswith("MG_") and section not in Config.model_fields:
            raise UserError(
                f"environment variable {name}: unknown section {section!r}; "
                f"known: {', '.join(Config.model_fields)}"
            )
    try:
        return EnvSettingsSource(_Settings, env_parse_none_str="null")()
    except SettingsError as error:
        raise UserError(f"environment: {error}") from None


def read_recipe(path: Path) -> dict[str, Any]:
    """Read a recipe as a nested dict, not validated. Raises UserError unless it is a mapping."""
    try:
        tree = load_yaml(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"--config {path}: {error.strerror}") from None
    except ValueError as error:
        raise UserError(f"--config {path}: not valid YAML: {error}") from None
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise UserError(f"--config {path}: expected sections such as 'train:', got {shorten(tree)}")
    return tree
