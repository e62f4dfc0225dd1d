"""Set the anchors in a recipe, and leave everything else in it as it is, comments included."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from model.anchor_shapes import AnchorShapes
from pipeline.errors import UserError
from pipeline.safe_yaml import YamlError, load_yaml
from pipeline.storage.durable import open_durably

_BLOCK = re.compile(r"model\s*:\s*(#.*)?")
_FLOW = re.compile(r"(model\s*:\s*\{)(\s*)(.*)")


def anchor_values(shapes: AnchorShapes) -> dict[str, str]:
    """Return the values of the fields of the section ``model`` as YAML."""

    def listed(values: tuple[float, ...]) -> str:
        return f"[{', '.join(map(_number, values))}]"

    return {
        "anchor_base": _number(shapes.base),
        "anchor_scales": listed(shapes.scales),
        "anchor_ratios": listed(shapes.ratios),
    }


def anchor_lines(shapes: AnchorShapes) -> list[str]:
    """Return the lines of a recipe that set the anchors."""
    return ["model:", *(f"  {name}: {value}" for name, value in anchor_values(shapes).items())]


def set_anchors(text: str, shapes: AnchorShapes) -> str:
    """Return the text of a recipe with these anchors.

    Raises ValueError if the text is written in a way that cannot be edited line by line.
    """
    new = _edited(text, anchor_values(shapes))
    expected = _tree(text)
    expected["model"] = {
        **(expected.get("model") or {}),
        **_tree("\n".join(anchor_lines(shapes)))["model"],
    }
    try:
        edited = _tree(new)
    except YamlError as error:
        raise ValueError(f"the recipe cannot be edited: {error}") from None
    if edited != expected:
        raise ValueError("the section model is not written in plain lines")
    return new


def write_anchors(path: Path, shapes: AnchorShapes) -> None:
    """Set the anchors in the recipe at ``path``. Raises UserError, and leaves it as it is then."""
    try:
        target = path.resolve()
        text = target.read_bytes().decode("utf-8")
        new = set_anchors(text, shapes)
        with open_durably(target, target.stat().st_mode & 0o777) as file:
            file.write(new.encode())
    except OSError as error:
        raise UserError(f"--config {path}: cannot be written: {error.strerror}") from None
    except ValueError as error:
        lines = "; ".join(line.strip() for line in anchor_lines(shapes)[1:])
        raise UserError(
            f"--config {path}: {error}; it is unchanged. Write below model: {lines}"
        ) from None


def _tree(text: str) -> dict[str, Any]:
    tree = load_yaml(text)
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise ValueError("expected sections such as 'model:'")
    return tree


def _edited(text: str, values: dict[str, str]) -> str:
    end = "\r\n" if "\r\n" in text else "\n"
    lines = text.splitlines()
    for number, line in enumerate(lines):
        if flow := _FLOW.fullmatch(line):
            pairs = ", ".join(f"{name}: {value}" for name, value in values.items())
            comma = "" if flow[3].startswith("}") else ", "
            lines[number] = f"{flow[1]}{flow[2]}{pairs}{comma}{flow[3]}"
            break
        if _BLOCK.fullmatch(line):
            lines[number + 1 :] = _edited_section(lines[number + 1 :], dict(values))
            break
    else:
        if "model" in _tree(text):
            raise ValueError("the section model is not written in plain lines")
        lines += ["model:", *(f"  {name}: {value}" for name, value in values.items())]
    return end.join(lines) + end


def _edited_section(lines: list[str], values: dict[str, str]) -> list[str]:
    """Return the lines after ``model:`` with the values in place of former ones, or before all."""
    indent = "  "
    for number, line in enumerate(lines):
        if line.strip() and not line.startswith((" ", "#")):
            break  # the next section
        field = re.fullmatch(r"( +)(\w+)\s*:(?:\s.*)?", line)
        if field and number == _first_field(lines):
            indent = field[1]
        if field and field[1] == indent and field[2] in values:
            comment = re.search(r"\s+#.*$", line)
            value = values.pop(field[2])
            lines[number] = f"{indent}{field[2]}: {value}{comment[0] if comment else ''}"
    return [*(f"{indent}{name}: {value}" for name, value in values.items()), *lines]


def _first_field(lines: list[str]) -> int:
    return next((n for n, line in enumerate(lines) if line.strip() and line.strip()[0] != "#"), -1)


def _number(value: float) -> str:
    return repr(int(value)) if value == int(value) else repr(value)
