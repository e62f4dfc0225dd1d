"""Render a template of a page that loads nothing from elsewhere.

Names of classes, files and models come from outside: templates escape everything except the charts,
which escape their texts.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any


def render_template(template: Path, **values: Any) -> str:
    """Return the page of a template, which may use ``base.html.j2`` and ``macros.html.j2``.

    A name that the template uses and ``values`` lacks raises jinja2.UndefinedError.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader([template.parent, Path(__file__).parent]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template.name).render(**values)
