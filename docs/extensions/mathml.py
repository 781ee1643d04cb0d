"""Renders mathematics as MathML when the site is built. Browsers draw it without a script and without a network."""

from typing import Any

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.application import Sphinx


def _mathml(latex: str, display: str) -> str:
    return convert(latex, display=display).replace(r"\_", "_")  # latex2mathml keeps the backslash in \text


def _inline(writer: Any, node: nodes.Element) -> None:
    writer.body.append(f'<span class="math">{_mathml(node.astext(), "inline")}</span>')
    raise nodes.SkipNode


def _block(writer: Any, node: nodes.Element) -> None:
    latex = node.astext()
    if "\\begin" not in latex and ("&" in latex or "\\\\" in latex):  # several lines, aligned at &
        latex = rf"\begin{{align*}}{latex}\end{{align*}}"
    writer.body.append(writer.starttag(node, "div", CLASS="math"))
    writer.body.append(_mathml(latex, "block"))
    writer.body.append("</div>\n")
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, bool]:
    """Makes this the renderer of ``html_math_renderer = "mathml"``, which it also selects."""
    app.add_html_math_renderer("mathml", (_inline, None), (_block, None))
    app.config.html_math_renderer = "mathml"
    return {"parallel_read_safe": True, "parallel_write_safe": True}
