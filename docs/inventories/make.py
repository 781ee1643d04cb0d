"""Writes the inventories of other projects: the names that the site refers to, and their pages.

``python docs/inventories/make.py`` builds the site without inventories, collects the names that are not found, and writes
``<project>.inv`` here. It needs no network: the pages follow from the projects' rules for addresses. The files have version 1 of Sphinx's
format, which is text.
"""

import re
import sys
import tempfile
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx

HERE = Path(__file__).parent

# For each project, the page of a name by the first pattern that matches it.
PAGES = {
    "python": (
        (r"(typing|pathlib|os|enum|argparse|collections\.abc|io|types)\..*", r"library/\1.html"),
        (r"\w*(Error|Exception|Interrupt|Warning)", "library/exceptions.html"),
        (r"(int|float|bool|str|list|dict|tuple|set|object|type|bytes)", "library/stdtypes.html"),
    ),
    "torch": (
        (r"torch\.Tensor", "tensors.html"),
        (r"torch\.(device|dtype)", "tensor_attributes.html"),
        (r"torch\.distributed\..*", "distributed.html"),
        (r"torch\.distributions\..*", "distributions.html"),
        (r"(torch\..*)", r"generated/\1.html"),
    ),
    "gymnasium": (
        (r"gymnasium\.Env", "api/env/"),
        (r"gymnasium\.Wrapper", "api/wrappers/"),
        (r"gymnasium\.vector\..*", "api/vector/"),
        (r"gymnasium\.(spaces\..*|Space)", "api/spaces/"),
    ),
    "numpy": (
        (r"numpy\.typing\..*", "reference/typing.html"),
        (r"(numpy\..*)", r"reference/generated/\1.html"),
    ),
}


def missing_names() -> dict[str, str]:
    """The names that a build without inventories does not find, with the kinds of the references."""
    found: dict[str, str] = {}

    def collect(_app: Sphinx, _domain: Any, node: Any) -> bool:
        found[node["reftarget"]] = node["reftype"]
        return True  # no warning

    with tempfile.TemporaryDirectory() as folder:
        pages, no_inventories = HERE.parent, {"intersphinx_mapping": {}}
        app = Sphinx(pages, pages, f"{folder}/site", f"{folder}/doctrees", "dummy", no_inventories, status=None, warning=None)
        app.connect("warn-missing-reference", collect)
        app.build()
    return found


def main() -> int:
    """Writes the inventories. Returns 1 if a name belongs to no project."""
    missing = missing_names()
    for project, patterns in PAGES.items():
        lines = ["# Sphinx inventory version 1", f"# Project: {project}", "# Version: stable"]
        for name in sorted(missing):
            page = next((re.sub(pattern, page, name) for pattern, page in patterns if re.fullmatch(pattern, name)), None)
            if page is not None:
                lines.append(f"{name} {missing[name]} {page}")
                missing.pop(name)
        (HERE / f"{project}.inv").write_text("\n".join(lines) + "\n")
    for name, kind in sorted(missing.items()):
        print(f"{kind} {name}: expected a name of {', '.join(PAGES)}", file=sys.stderr)
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
