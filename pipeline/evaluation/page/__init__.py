"""The HTML page of an evaluation: figures, charts and pictures in one file."""

from pipeline.evaluation.page.render import render_page

__all__ = ["render_page"]
