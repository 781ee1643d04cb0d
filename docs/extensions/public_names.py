"""Names in references: each public name has an entry under every module that exports it, and a reference finds its object."""

import importlib
import inspect
import pkgutil
import re
import typing
from typing import Any, Iterator, Optional

from docutils import nodes
from numpy.typing import ArrayLike
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util.nodes import make_refnode
from sphinx.util.typing import stringify_annotation

import a2c_compiled


def public_names() -> Iterator[tuple[str, Any]]:
    """Returns every name of an ``__all__`` in the package, with its module, and its value."""
    yield from _names_of("a2c_compiled")
    for module in pkgutil.walk_packages(a2c_compiled.__path__, "a2c_compiled."):
        if module.name != "a2c_compiled.cli" and not module.name.startswith("a2c_compiled.benchmarks."):
            yield from _names_of(module.name)


def _names_of(module_name: str) -> Iterator[tuple[str, Any]]:
    module = importlib.import_module(module_name)
    for name in getattr(module, "__all__", ()):
        yield f"{module_name}.{name}", getattr(module, name)


def value_of(name: str) -> Any:
    """Returns the object of a dotted name; None if there is none."""
    try:
        return pkgutil.resolve_name(name)
    except (ImportError, AttributeError, ValueError):
        return None


def _entry_of(objects: dict[str, Any], name: str, value: Any) -> Optional[str]:
    """Returns the name of the entry for ``value``, whose last part is that of ``name``; None if there is none."""
    last = f".{name.rpartition('.')[2]}"
    return next((other for other in objects if other.endswith(last) and value_of(other) is value), None)


def add_further_names(_app: Sphinx, env: BuildEnvironment) -> None:
    """Makes a name that several modules export refer to the one entry of its object."""
    objects = env.domains.python_domain.objects
    for name, value in public_names():
        entry = _entry_of(objects, name, value) if name not in objects else None
        if entry is not None:
            objects[name] = objects[entry]._replace(aliased=True)


def find_object(app: Sphinx, env: BuildEnvironment, node: pending_xref, content: nodes.Element) -> Optional[nodes.Element]:
    """Finds the entry of the object that a docstring refers to by an imported, inherited or private name.

    A name of another project gets its public form, which the inventories have: ``torch.nn.Module`` for ``torch.nn.modules.module.Module``.
    """
    if node.get("refdomain") != "py":
        return None
    target, module = node["reftarget"], node.get("py:module")
    owner = f"{module}.{node['py:class']}" if node.get("py:class") else None
    # A docstring may use the names of the class, of the module that exports it, and of the module that defines it.
    scopes = [owner, module, getattr(value_of(owner), "__module__", None) if owner else None]
    for name in [f"{scope}.{target}" for scope in scopes if scope] + [target, f"typing.{target}"]:
        value = value_of(name)
        if value is not None and not (node["reftype"] == "class" and inspect.isfunction(value)):
            objects = env.domains.python_domain.objects
            entry = _entry_of(objects, target, value)
            if entry is not None:
                found = objects[entry]
                return make_refnode(app.builder, node["refdoc"], found.docname, found.node_id, content, entry)
            if str(getattr(value, "__module__", "")).startswith("a2c_compiled"):
                return content  # an internal object: it exists, but the reference has no entry for it
            node["reftarget"] = public_form(name, value)
            return None
    return None


def public_form(name: str, value: Any) -> str:
    """Returns the shortest name of ``value`` among the packages on the way to it."""
    last = name.rpartition(".")[2]
    if getattr(typing, last, None) is value:
        return f"typing.{last}"
    if isinstance(value, type):
        name = value.__qualname__ if value.__module__ == "builtins" else f"{value.__module__}.{value.__qualname__}"
    *packages, last = name.split(".")
    for end in range(1, len(packages)):
        shorter = ".".join([*packages[:end], last])
        if value_of(shorter) is value:
            return shorter
    return name


def skip_fields(_app: Sphinx, _what: str, _name: str, member: Any, _skip: bool, _options: Any) -> Optional[bool]:
    """Leaves out the fields of named tuples, which the docstring of the class describes."""
    return True if type(member).__name__ == "_tuplegetter" else None


def before_napoleon(_app: Sphinx, what: str, _name: str, _value: Any, _options: Any, lines: list[str]) -> None:
    """Changes what napoleon and docutils would take for types.

    In the first line of an attribute's docstring, this is the text before a colon: an empty comment before it is then the first line. In
    a list of arguments or attributes, it is the first of several names with one text.
    """
    if what in ("attribute", "data", "property"):
        lines[:0] = ["..", ""]
    for index, line in enumerate(lines):
        names = _SEVERAL_NAMES.match(line)
        if names is not None:
            lines[index] = names[0].replace(", ", ",") + line[names.end() :]


_SEVERAL_NAMES = re.compile(r"\s+[a-z_]\w*(?:, [a-z_]\w*)+(?=: )")
_ARRAY_LIKE = stringify_annotation(ArrayLike, "smart"), "~numpy.typing.ArrayLike"


def name_arrays(
    _app: Sphinx, _what: str, _name: str, _value: Any, _options: Any, signature: Optional[str], returned: Optional[str]
) -> tuple[Optional[str], Optional[str]]:
    """Writes ``ArrayLike`` in signatures, where autodoc writes what it stands for."""
    return signature and signature.replace(*_ARRAY_LIKE), returned


def setup(app: Sphinx) -> dict[str, bool]:
    """Connects the functions above."""
    app.connect("env-updated", add_further_names)
    app.connect("missing-reference", find_object, priority=400)  # before intersphinx
    app.connect("autodoc-skip-member", skip_fields)
    app.connect("autodoc-process-docstring", before_napoleon, priority=400)
    app.connect("autodoc-process-signature", name_arrays)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
