"""The page that ``make web`` built, in the site: the directive ``live-page`` of ``docs/web_page.md`` shows it.

The site has the files that a browser loads, in ``web/``. Where ``make web`` has not run, the directive says how to see the page.
"""

import shutil
from pathlib import Path
from typing import Optional

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from a2c_compiled.export.web_page import SETTINGS, downloads, has_onnxruntime

BUILT = Path(__file__).parents[2] / "build" / "web"
PLACE = "web"
FRAME = f"""<iframe src="{PLACE}/index.html" title="A page in which a policy learns" loading="lazy" class="live-page"></iframe>
<p><a href="{PLACE}/index.html">The page alone</a></p>"""


def is_built(folder: Path = BUILT) -> bool:
    """Returns whether ``make web`` has run."""
    return (folder / SETTINGS).is_file() and has_onnxruntime(folder)


class LivePage(SphinxDirective):
    """Shows the page, or says how to build it."""

    def run(self) -> list[nodes.Node]:
        """Returns the nodes of the directive."""
        if is_built():
            return [nodes.raw("", FRAME, format="html")]
        return [
            nodes.note(
                "", nodes.paragraph("", "This site was built without the page: make web builds it, then run make docs again.")
            )
        ]


def copy_page(outdir: Path, folder: Path = BUILT) -> None:
    """Copies what a browser loads into the site. Without a page, removes that of an earlier build."""
    shutil.rmtree(outdir / PLACE, ignore_errors=True)
    if not is_built(folder):
        print("the site has no page in which a policy learns: make web builds it, then run make docs again")
        return
    for name, file in downloads(folder).items():
        (outdir / PLACE / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, outdir / PLACE / name)


def _copy(app: Sphinx, exception: Optional[Exception]) -> None:
    if exception is None and app.builder.name == "html":
        copy_page(Path(app.outdir))


def setup(app: Sphinx) -> dict[str, bool]:
    """Connects the functions above. The checks of the finished site come later."""
    app.add_directive("live-page", LivePage)
    app.connect("build-finished", _copy, priority=400)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
