"""Checks of the finished site: no external request, no formula that was not converted, every public name in ``objects.inv``."""

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, Iterable, Iterator, Optional

# Elements and attributes with which a browser loads something by itself. A link (`a`) loads nothing until the reader follows it.
_LOADS = {
    "script": ("src",),
    "img": ("src", "srcset"),
    "iframe": ("src",),
    "source": ("src", "srcset"),
    "video": ("src", "poster"),
    "audio": ("src",),
    "embed": ("src",),
    "object": ("data",),
    "link": ("href",),
    "image": ("href", "xlink:href"),
    "use": ("href", "xlink:href"),
}
_EXTERNAL = re.compile(r"^\s*(https?:)?//", re.IGNORECASE)
_IN_CSS = re.compile(r"(?:url\(|@import)\s*['\"]?\s*((?:https?:)?//[^'\")\s]+)", re.IGNORECASE)


class _Requests(HTMLParser):
    """Collects the external addresses that a page loads."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, Optional[str]]]) -> None:
        for name, value in attrs:
            if name in _LOADS.get(tag, ()) and value and _EXTERNAL.match(value):
                self.found.append(value)
            if name == "style" and value:
                self.found += _IN_CSS.findall(value)


def external_requests(site: Path) -> Iterator[tuple[str, str]]:
    """Returns each file of the site that makes an external request, with the address."""
    for path in sorted(site.rglob("*")):
        if path.suffix == ".html":
            parser = _Requests()
            parser.feed(path.read_text())
            for address in parser.found:
                yield path.name, address
        elif path.suffix in (".css", ".svg"):
            for address in _IN_CSS.findall(path.read_text()):
                yield path.name, address


def broken_formulas(site: Path) -> Iterator[tuple[str, str]]:
    """Returns each page with a formula that still contains LaTeX, with the formula."""
    for path in sorted(site.rglob("*.html")):
        for formula in re.findall(r"<math\b.*?</math>", path.read_text(), re.DOTALL):
            if re.search(r"\\|>&(?:amp;)?<", formula):
                yield path.name, formula


def missing_names(inventory: Iterable[str], names: Iterable[str]) -> list[str]:
    """Returns the names that the inventory lacks."""
    return sorted(set(names) - set(inventory))


def _check(app: Any, exception: Optional[Exception]) -> None:
    if exception is not None or app.builder.name != "html":
        return
    from public_names import public_names
    from sphinx.util import logging
    from sphinx.util.inventory import InventoryFile

    logger = logging.getLogger(__name__)

    inventory = InventoryFile.loads((app.outdir / "objects.inv").read_bytes(), uri="").data
    found = {name for kind, entries in inventory.items() if kind.startswith("py:") for name in entries}
    for page, address in external_requests(Path(app.outdir)):
        logger.warning("%s: expected no external request, got %s", page, address)
    for page, formula in broken_formulas(Path(app.outdir)):
        logger.warning("%s: expected a formula without LaTeX, got %s", page, formula)
    for name in missing_names(found, (name for name, _ in public_names())):
        logger.warning("%s: expected an entry in the reference, got none", name)


def setup(app: Any) -> dict[str, bool]:
    """Connects the checks to the end of a build."""
    app.connect("build-finished", _check)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
