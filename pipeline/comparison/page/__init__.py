"""The HTML page of a comparison: table, plot and differences in one file."""

from pipeline.comparison.page.render import PAGE_NAME, render_files, render_page

__all__ = ["PAGE_NAME", "render_files", "render_page"]
