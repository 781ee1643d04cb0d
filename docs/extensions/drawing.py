"""Draws the pictures of the pages, by the scripts in ``pictures/``, before the pages are read."""

import pictures
from sphinx.application import Sphinx


def _draw(app: Sphinx) -> None:
    pictures.draw_all(app.srcdir / "pictures" / "made")


def setup(app: Sphinx) -> dict[str, bool]:
    """Connects the function above."""
    app.connect("builder-inited", _draw)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
