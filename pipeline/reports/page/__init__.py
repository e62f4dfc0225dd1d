"""What the HTML pages of reports share: style, layout, macros, and how templates are rendered."""

from pipeline.reports.page.render import render_template

__all__ = ["render_template"]
