"""The HTML page of a sweep: statement, table, confirmed points and charts in one file."""

from pipeline.sweep.page.render import PAGE_NAME, render_files, render_page

__all__ = ["PAGE_NAME", "render_files", "render_page"]
