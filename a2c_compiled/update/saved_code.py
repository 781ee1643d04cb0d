"""Files of compiled code: a process that loads one does not compile.

A file is a zip archive of ``about.json``, which is read and checked before anything else, and of pickles and machine code.
"""

import functools
import hashlib
import importlib
import inspect
import io
import json
import pickle
import platform
import re
import sys
import tempfile
import zipfile
import zlib
from contextlib import contextmanager
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Sequence, Set
from unittest import mock

import torch

from a2c_compiled._files import AnyPath, as_path, atomic_file
from a2c_compiled._torch_internals import (
    CompiledGraph,
    guards_of,
    load_library,
    needed_guards,
    saving_of_graphs,
    saving_settings,
)

_FORMAT = 1
"""Number of the format of the files."""

_PACKAGE = __name__.partition(".")[0]


class SavedGraph(NamedTuple):
    """A compiled graph as data.

    Fields:
        code: torch's pickle of the graph and of its guards.
        identities: pickle of a dict: for each expression, the function, class or module that it must have as its value.
        libraries: the machine code of the graph, by the digest of its source.
        modules: the modules whose functions the graph was made of, without torch and Python's own.
    """

    code: bytes
    identities: bytes
    libraries: Dict[str, bytes]
    modules: List[str]


class LoadedGraph(CompiledGraph):
    """A graph from a file, see :class:`SavedGraph`. It is never dropped.

    Args:
        function: the function that was compiled.
        saved: the graph.
    """

    def __init__(self, function: FunctionType, saved: SavedGraph) -> None:
        with saving_settings(), _given_libraries(saved.libraries):
            loaded = saving_of_graphs().GraphWithGuards.deserialize(saved.code, function.__globals__)
        super().__init__(function, guards_of(loaded), loaded.fn)
        self.saved = saved
        self._identities = [
            (expression, compile(expression, "<guard>", "eval"), value)
            for expression, value in pickle.loads(saved.identities).items()
        ]

    def _accepts(self, variables: Dict[str, Any]) -> bool:
        return bool(self._guards.root.check(variables)) and not self._changed_object(variables)

    def refusal(self, arguments: Sequence[Any]) -> str:
        """Returns the first condition that ``arguments`` do not meet, as torch writes it. Empty if the graph accepts them."""
        variables = self._variables(arguments)
        checked = self._guards.root.check_verbose(variables)
        conditions = ["" if checked.result else checked.verbose_code_parts[0], self._changed_object(variables)]
        return re.sub(r"\s+#.*", "", next(filter(None, conditions), ""), flags=re.DOTALL).strip()

    def _changed_object(self, variables: Dict[str, Any]) -> str:
        """Returns the first expression that is not the object that it was. Empty if there is none."""
        names = {"L": variables, "G": self.run.__globals__}
        for expression, code, value in self._identities:
            try:
                found = eval(code, names)
                # Two lookups of a method in C give two objects, which are equal.
                if found is not value and (type(found) is not type(value) or found != value):
                    return f"{expression} is the same object"
            except (AttributeError, LookupError, TypeError):
                return f"{expression} exists"
        return ""


def saved_graph(
    function: FunctionType, arguments: Sequence[Any], compile_with: Callable[..., Any], backend: Callable[..., Any]
) -> LoadedGraph:
    """Compiles a function for some arguments, without calling it. Returns the graph as loaded from a file.

    Args:
        function: the function.
        arguments: the arguments. The values of tensors are not read.
        compile_with: calls ``torch.compile`` for a function, with the ``guard_filter_fn`` and the backend that follow it.
        backend: the backend for the function.

    Raises:
        RuntimeError: the graph depends on something that a file cannot hold, such as a function that is defined inside another one.
    """
    identities: Dict[str, Any] = {}
    libraries: Dict[str, bytes] = {}

    def guards_that_torch_saves(guards: Sequence[Any]) -> List[bool]:
        kept = needed_guards(guards)
        for i, guard in enumerate(guards):
            if kept[i] and _is_unsavable(guard):
                kept[i] = False
                if not _is_constant(guard):
                    identities[guard.orig_guard.name] = guard.value
        return kept

    def backend_that_saves(graph: Any, inputs: Sequence[Any]) -> Any:
        return saving_of_graphs().GraphCode(backend(graph, inputs))

    try:
        with saving_settings(), _recorded_libraries(libraries):
            compiled = compile_with(function, guards_that_torch_saves, backend_that_saves).aot_compile((tuple(arguments), {}))
        sources = compiled.source_info().inlined_sources
        modules = {source.module for source in sources} | {_module_of(value) for value in identities.values()}
        sources.clear()  # they hold the text of each module once for each function
        code = saving_of_graphs().GraphWithGuards.serialize(compiled).serialized_data
        modules = {_PACKAGE if module.startswith(f"{_PACKAGE}.") else module for module in filter(_may_change, modules)}
        return LoadedGraph(function, SavedGraph(code, _pickled(identities), libraries, sorted(modules)))
    except Exception as error:  # torch raises errors of many types
        raise RuntimeError(
            f"save_compiled: expected a graph that torch can save, got {type(error).__name__}: {error}"
        ) from error


def _is_unsavable(guard: Any) -> bool:
    """Returns whether torch cannot save a guard: whether the guard compares the identity of an object."""
    types = {guard.guard_type}
    if guard.guard_type not in ("TYPE_MATCH", "BUILTIN_MATCH"):
        types |= set(guard.derived_guard_types)
    return not types.isdisjoint(saving_of_graphs().unsavable_guards)


def _is_constant(guard: Any) -> bool:
    """Returns whether the object of a guard is the same in every process with equal sources: a part of Python, of torch or of a class."""
    imported = re.match(r"G\['__import_(\w+?)(_dot_|'\])", guard.orig_guard.name)
    if imported:
        return not _may_change(imported[1])
    if re.match(r"G\['_\d+_c\d+'\]", guard.orig_guard.name):  # a name that Dynamo has made, with the address of the object
        return not _may_change(_module_of(guard.value))
    # A method, which cannot be pickled if a decorator has replaced it.
    return guard.orig_guard.name.startswith("dict(type(") and not _is_importable(guard.value)


def _module_of(value: Any) -> str:
    """Returns the name of the module of a function or class, or of a module. Functions of torch in C++ have none: ``builtins``."""
    return value.__name__ if isinstance(value, ModuleType) else getattr(value, "__module__", None) or "builtins"


def _may_change(module: str) -> bool:
    """Returns whether the source of a module may change while Python and torch have the same versions."""
    return module.partition(".")[0] not in (*sys.stdlib_module_names, "torch")


class _Pickler(pickle.Pickler):
    """Pickles modules by their names."""

    def reducer_override(self, value: Any) -> Any:
        return (importlib.import_module, (value.__name__,)) if isinstance(value, ModuleType) else NotImplemented


def _pickled(value: Any) -> bytes:
    buffer = io.BytesIO()
    _Pickler(buffer).dump(value)
    return buffer.getvalue()


def _is_importable(value: Any) -> bool:
    """Returns whether ``value`` is a function, class or module that another process finds by its name."""
    if not (inspect.isroutine(value) or isinstance(value, (type, ModuleType))):
        return False
    try:
        return bool(pickle.loads(_pickled(value)) == value)
    except (pickle.PicklingError, AttributeError, TypeError, ImportError):
        return False


# -- Machine code --


def _digest(*parts: Any) -> str:
    return hashlib.sha256("\0".join(map(str, parts)).encode()).hexdigest()


@contextmanager
def _replaced_loading(load: Callable[..., Callable[[], Any]]) -> Iterator[None]:
    """Context in which ``load(original, loader, digest)`` loads inductor's machine code.

    ``original()`` is torch's way. ``loader`` is the class that inductor has chosen. ``digest`` is that of the source.
    """
    loader = saving_of_graphs().MachineCode
    original = loader.load_async.__func__

    def load_async(cls: Any, source: str, *arguments: Any, **named: Any) -> Callable[[], Any]:
        digest = _digest(cls.__name__, source, named.get("optimized_code"))
        return load(functools.partial(original, cls, source, *arguments, **named), cls, digest)

    # torch keeps modules that it has loaded, and would not load them again.
    with (
        mock.patch.object(loader, "load_async", classmethod(load_async)),
        mock.patch.object(saving_of_graphs().SourceCode, "modules_no_attr", {}),
    ):
        yield


@contextmanager
def _recorded_libraries(libraries: Dict[str, bytes]) -> Iterator[None]:
    """Context that writes the machine code of each graph that is compiled into ``libraries``."""

    def load(original: Callable[[], Any], cls: Any, digest: str) -> Callable[[], Any]:
        loaded = original()

        def recorded() -> Any:
            module = loaded()
            libraries[digest] = Path(module.__file__).read_bytes()
            return module

        return recorded

    with _replaced_loading(load):
        yield


@contextmanager
def _given_libraries(libraries: Dict[str, bytes]) -> Iterator[None]:
    """Context in which graphs have the machine code in ``libraries``. Other code is compiled."""
    with tempfile.TemporaryDirectory(prefix="a2c_compiled_", ignore_cleanup_errors=True) as folder:

        def load(original: Callable[[], Any], cls: Any, digest: str) -> Callable[[], Any]:
            if digest not in libraries:
                return original()
            path = Path(folder, f"{digest}.so")
            path.write_bytes(libraries[digest])
            return lambda: load_library(cls, path)

        with _replaced_loading(load):
            yield


# -- Files --


def write_graphs(path: AnyPath, graphs: Dict[str, List[SavedGraph]]) -> None:
    """Writes graphs, by the names of their functions, to a file."""
    modules = {_PACKAGE, *(module for saved in graphs.values() for graph in saved for module in graph.modules)}
    about = {
        "format": _FORMAT,
        "torch": str(torch.__version__),
        "python": platform.python_version(),
        "machine": platform.machine(),
        "features": sorted(_processor_features()),
        "sources": {module: _source_digest(module) for module in sorted(modules)},
    }
    with atomic_file(as_path("path", path)) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("about.json", json.dumps(about, indent=1))
        file.writestr("graphs.pickle", pickle.dumps(graphs))


def read_graphs(path: AnyPath) -> Dict[str, List[SavedGraph]]:
    """Reads the file that :func:`write_graphs` has written.

    Raises:
        TypeError: ``path`` is not a path.
        ValueError: the file is of another kind, or was written with another torch, Python, processor or source code.
        OSError: the file cannot be read.
    """
    path = as_path("path", path)
    try:
        with zipfile.ZipFile(path) as file:
            _check_about(json.loads(file.read("about.json")))
            graphs = file.read("graphs.pickle")
    except (zipfile.BadZipFile, zlib.error, EOFError, KeyError, json.JSONDecodeError, UnicodeDecodeError):
        raise ValueError(f"path: expected a file of TrainStep.save_compiled, got {path}") from None
    return pickle.loads(graphs)


def _check_about(about: Any) -> None:
    """Raises ValueError unless code with the description ``about`` may run in this process."""
    if not isinstance(about, dict) or about.get("format") != _FORMAT:
        raise ValueError(f"path: expected compiled code in format {_FORMAT}, got another format; save it again")
    for name, here in (
        ("torch", str(torch.__version__)),
        ("python", platform.python_version()),
        ("machine", platform.machine()),
    ):
        if about[name] != here:
            raise ValueError(f"path: expected compiled code for {name} {here}, got code for {about[name]}; save it again")
    missing = sorted(set(about["features"]) - _processor_features())
    if missing:
        raise ValueError(
            f"path: expected compiled code for this processor, got code for one with {', '.join(missing)}; save it again"
        )
    for module, digest in about["sources"].items():
        if _source_digest(module) != digest:
            raise ValueError(
                f"path: expected compiled code of the module {module} as it is, got code of another source; save it again"
            )


def _processor_features() -> Set[str]:
    """Returns the names of the processor's features. Compiled code may use all of them."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        capabilities: Dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
        return {name for name, value in capabilities.items() if value is True}
    return {name for line in lines if line.startswith(("flags", "Features")) for name in line.partition(":")[2].split()}


def _source_digest(module: str) -> str:
    """Returns the digest of the source of a module; of this library, that of all its modules.

    Raises:
        ValueError: the module cannot be imported, or has no source.
    """
    if module == _PACKAGE:
        root = Path(__file__).parents[1]
        return _digest(*(f"{path.relative_to(root)}\0{path.read_text()}" for path in sorted(root.rglob("*.py"))))
    try:
        return _digest(inspect.getsource(importlib.import_module(module)))
    except (ImportError, OSError, TypeError) as error:
        raise ValueError(f"compiled code: expected the module {module} with its source, got {error}") from None
