"""Pages whose text is a Markdown file outside of ``docs/``. The page itself has a heading and a link to the file.

A path such as ``docs/own_loop.md``, in such a file or in a docstring, becomes a link to the page.
"""

import os
import re
from pathlib import Path

from sphinx.application import Sphinx

DOCS = Path(__file__).parents[1]
ROOT = DOCS.parent
PAGE_PATH = re.compile(r"(?<![\[`])(`{1,2})docs/(\w+)\.md\1(?![\]`])")  # not the text of a link
LINKED = re.compile(r"\A(# .+)\n\n\[\S+\]\((\S+)\)\n\Z")


def _file_of(page: Path) -> tuple[str, Path]:
    """Returns the heading of a page and the file that it links to; the page itself if it is an ordinary one."""
    linked = LINKED.match(page.read_text())
    return (linked[1], (page.parent / linked[2]).resolve()) if linked else ("", page)


def _insert(app: Sphinx, name: str, source: list[str]) -> None:
    page = DOCS / f"{name}.md"
    heading, file = _file_of(page)
    if file == page:
        return
    app.env.note_dependency(file)
    pages = {_file_of(other)[1]: other for other in DOCS.rglob("*.md")}

    def link(match: re.Match[str]) -> str:
        target = (file.parent / match[1]).resolve()
        return f"]({os.path.relpath(pages.get(target, target), page.parent)}"

    text = PAGE_PATH.sub(r"[`docs/\2.md`](docs/\2.md)", file.read_text()) if file.parent == ROOT else file.read_text()
    text = re.sub(r"\]\((?!\w+:|#)([^)#\s]+)", link, text)
    source[0] = text if text.startswith("# ") else f"{heading}\n\n{text}"


def _link_pages(app: Sphinx, kind: str, name: str, value: object, options: object, lines: list[str]) -> None:
    lines[:] = [PAGE_PATH.sub(r":doc:`/\2`", line) for line in lines]


def setup(app: Sphinx) -> dict[str, bool]:
    """Connects the functions above."""
    app.connect("source-read", _insert)
    app.connect("autodoc-process-docstring", _link_pages)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
