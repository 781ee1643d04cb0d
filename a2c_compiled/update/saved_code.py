"""Files of compiled code: a process that loads one does not compile.

A file is a zip archive of ``about.json``, which is read and checked before anything else, and of pickles and machine code.
"""

import functools
import hashlib
import importlib
import io
import itertools
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
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType, NoneType
from typing import Any, Callable, Dict, Iterable, Iterator, List, NamedTuple, Sequence, Set, Tuple
from unittest import mock

import torch

from a2c_compiled._files import AnyPath, as_path, atomic_file
from a2c_compiled._torch_internals import (
    CompiledGraph,
    compile_without_call,
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
        guards: the guards as text. The pickle has modules and classes by name, so after loading torch expects their present values.
        identities: pickle of a dict: for each expression, the function, class or module that it must have as its value.
        definitions: pickle of a dict: the functions and classes of other modules than this library's and torch's, with their digests, by
            their names.
        libraries: the machine code of the graph, by the digest of its source.
    """

    code: bytes
    guards: str
    identities: bytes
    definitions: bytes
    libraries: Dict[str, bytes]


class LoadedGraph(CompiledGraph):
    """A graph from a file, see :class:`SavedGraph`. It is never dropped.

    Args:
        function: the function that was compiled.
        saved: the graph.

    Raises:
        ValueError: the graph was compiled with other definitions of functions or classes, or with other values of variables.
    """

    def __init__(self, function: FunctionType, saved: SavedGraph) -> None:
        for name, (definition, digest) in pickle.loads(saved.definitions).items():
            if _definition_digest(definition) != digest:
                raise ValueError(
                    f"path: expected compiled code of {name} as it is, got code of another definition; save it again"
                )
        with saving_settings(), _given_libraries(saved.libraries):
            loaded = saving_of_graphs().GraphWithGuards.deserialize(saved.code, function.__globals__)
        super().__init__(function, guards_of(loaded), loaded.fn)
        self._identities = [
            (expression, compile(expression, "<guard>", "eval"), value)
            for expression, value in pickle.loads(saved.identities).items()
        ]
        guards = _text(self.guards)
        saved_guards = saved.guards or guards  # none are known where the graph was just compiled
        for here, there in itertools.zip_longest(guards.splitlines(), saved_guards.splitlines(), fillvalue="fewer conditions"):
            if here != there:
                raise ValueError(
                    f"path: expected compiled code for {_condition(here)}, got code for {_condition(there)}; save it again"
                )
        self.saved = saved._replace(guards=guards)

    def _accepts(self, variables: Dict[str, Any]) -> bool:
        return bool(self.guards.root.check(variables)) and not self._changed_object(variables)

    def refusal(self, arguments: Sequence[Any]) -> str:
        """Returns the first condition that ``arguments`` do not meet, as torch writes it. Empty if the graph accepts them.

        Torch checks all conditions on sizes and strides together.
        """
        variables = self._variables(arguments)
        checked = self.guards.root.check_verbose(variables)
        if checked.result:
            return self._changed_object(variables)
        conditions = checked.verbose_code_parts
        return _condition(conditions[0]) if len(conditions) == 1 else "conditions on sizes and strides"

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
    definitions: Dict[str, Any] = {}
    libraries: Dict[str, bytes] = {}

    def guards_that_torch_saves(guards: Sequence[Any]) -> List[bool]:
        kept = needed_guards(guards)
        for i, guard in enumerate(guards):
            if kept[i] and guard.has_value:
                is_unsavable = _is_unsavable(guard)
                kept[i] = not is_unsavable
                if (is_unsavable or _is_definition(guard.value)) and not _is_constant(guard):
                    identities[guard.orig_guard.name] = _checked_importable(guard.value)
                for definition in _definitions_of(guard):
                    name = f"{definition.__module__}.{definition.__qualname__}"
                    if name not in definitions:
                        definitions[name] = _checked_importable(definition)
        return kept

    def backend_that_saves(graph: Any, inputs: Sequence[Any]) -> Any:
        return saving_of_graphs().GraphCode(backend(graph, inputs))

    try:
        with saving_settings(), _recorded_libraries(libraries):
            compiled = compile_without_call(compile_with(function, guards_that_torch_saves, backend_that_saves), arguments)
        sources = compiled.source_info().inlined_sources
        _check_definitions(sources, definitions.values())
        sources.clear()  # they hold the text of each module once for each function
        code = saving_of_graphs().GraphWithGuards.serialize(compiled).serialized_data
        digests = {name: (definition, _definition_digest(definition)) for name, definition in definitions.items()}
        guards = ""  # unknown until the graph is loaded
        return LoadedGraph(function, SavedGraph(code, guards, _pickled(identities), _pickled(digests), libraries))
    except Exception as error:  # torch raises errors of many types
        reason = " ".join(str(error).split())[:300]
        raise RuntimeError(
            f"save_compiled: expected a graph that can be saved, got {type(error).__name__}: {reason}"
        ) from error


# -- Guards --


def _text(guards: Any) -> str:
    """Returns guards as text that is equal in all processes: without addresses, and without the folders of files in remarks."""
    text = re.sub(r"(___check_\w+\(.*), \d+\)", r"\1)", str(guards))
    return re.sub(r"0x[0-9a-f]+", "", re.sub(r"# [^#\n]*/([^/#\n]+:\d+ in )", r"# \1", text))


def _condition(line: str) -> str:
    """Returns the condition in a line of guards, without its kind and without remarks."""
    return re.sub(r"\s+# .*", "", re.sub(r"^[| +-]*([A-Z_]+: )?", "", line), flags=re.DOTALL).strip()


def _is_unsavable(guard: Any) -> bool:
    """Returns whether torch cannot save a guard: whether the guard compares the identity of an object."""
    types = {guard.guard_type}
    if guard.guard_type not in ("TYPE_MATCH", "BUILTIN_MATCH"):
        types |= set(guard.derived_guard_types)
    return not types.isdisjoint(saving_of_graphs().unsavable_guards)


def _is_constant(guard: Any) -> bool:
    """Returns whether the object of a guard is the same in every process in which the graph may be used."""
    imported = re.match(r"G\['__import_(\w+?)(_dot_|'\])", guard.orig_guard.name)
    if imported:
        return not _may_change(imported[1])
    if re.match(r"G\['_\d+_c\d+'\]", guard.orig_guard.name):  # a name that Dynamo has made, with the address of the object
        return not _may_change(_module_of(guard.value))
    # A method. The digest of its class contains it.
    return guard.orig_guard.name.startswith("dict(type(")


# -- Definitions of functions and classes --


def _is_definition(value: Any) -> bool:
    """Returns whether ``value`` is a function, a class or a module."""
    in_c = isinstance(value, BuiltinFunctionType) and isinstance(value.__self__, (type, ModuleType))
    return in_c or isinstance(value, (FunctionType, type, ModuleType))


def _definitions_of(guard: Any) -> Iterator[Any]:
    """Returns what a module may define in another way: the value of a guard, if it is a function; or its class and the base classes."""
    value = guard.value
    classes = value.__mro__ if isinstance(value, type) else type(value).__mro__
    functions = [value] if isinstance(value, FunctionType) and not _is_constant(guard) else []
    for definition in (*classes, *functions):
        if _may_change(_module_of(definition)):
            yield definition


def _module_of(value: Any) -> str:
    """Returns the name of the module of a function or class, or of a module. Functions of torch in C++ have none: ``builtins``."""
    return value.__name__ if isinstance(value, ModuleType) else getattr(value, "__module__", None) or "builtins"


def _may_change(module: str) -> bool:
    """Returns whether a module may differ although Python, torch and this library have the same sources."""
    return module.partition(".")[0] not in (*sys.stdlib_module_names, "torch", _PACKAGE)


def _checked_importable(value: Any) -> Any:
    """Returns ``value``. Raises ValueError unless it is an object that another process finds by its name."""
    try:
        if pickle.loads(_pickled(value)) == value:
            return value
    except (pickle.PicklingError, AttributeError, TypeError, ImportError):
        pass
    name = getattr(value, "__qualname__", None) or repr(value)
    raise ValueError(f"expected functions and classes that a module defines under their names, got {_module_of(value)}.{name}")


def _definition_digest(value: Any) -> str:
    """Returns the digest of what a function or a class does: code and default values. The place in a file and other values do not count."""
    return _digest(*_parts(value, []))


def _parts(value: Any, seen: List[Any]) -> Iterator[Any]:
    """Returns the parts of the digest of a function, a class, or something that holds functions."""
    if any(value is other for other in seen):
        return
    seen.append(value)
    if isinstance(value, CodeType):
        yield from (value.co_code, value.co_names, value.co_varnames, value.co_freevars, value.co_exceptiontable)
        for constant in value.co_consts:
            # The order of a set differs between processes.
            entries = sorted(map(repr, constant)) if isinstance(constant, frozenset) else [repr(constant)]
            yield from _parts(constant, seen) if isinstance(constant, CodeType) else entries
    elif isinstance(value, FunctionType):
        yield from _parts(value.__code__, seen)
        for default in (*(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).values()):
            yield repr(default) if isinstance(default, (bool, int, float, str, NoneType)) else type(default)
        for cell in value.__closure__ or ():
            yield from _parts(cell.cell_contents, seen)
    elif isinstance(value, (staticmethod, classmethod, MethodType)):
        yield from _parts(value.__func__, seen)
    elif isinstance(value, property):
        yield from (part for function in (value.fget, value.fset) for part in _parts(function, seen))
    elif isinstance(value, type) and _may_change(value.__module__):
        for name in sorted(vars(value)):  # those without functions are left out: pickle adds one to a class
            parts = list(_parts(vars(value)[name], seen))
            yield from [name, *parts] if parts else []


def _check_definitions(sources: Any, definitions: Iterable[Any]) -> None:
    """Raises ValueError unless ``definitions`` contain each function that was compiled, except those of torch, Python and this library."""
    lines: Set[Tuple[str, int]] = set()
    for definition in definitions:
        parts: List[Any] = []
        list(_parts(definition, parts))
        lines |= {(definition.__module__, part.co_firstlineno) for part in parts if isinstance(part, CodeType)}
    for source in sources:
        if _may_change(source.module) and (source.module, source.firstlineno) not in lines:
            place = f"line {source.firstlineno} of {source.module}"
            raise ValueError(
                f"expected functions of classes and modules, got the one in {place}, which is reached in another way"
            )


class _Pickler(pickle.Pickler):
    """Pickles modules by their names."""

    def reducer_override(self, value: Any) -> Any:
        return (importlib.import_module, (value.__name__,)) if isinstance(value, ModuleType) else NotImplemented


def _pickled(value: Any) -> bytes:
    buffer = io.BytesIO()
    _Pickler(buffer).dump(value)
    return buffer.getvalue()


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


def write_graphs(path: AnyPath, graphs: Callable[[], Dict[str, List[SavedGraph]]]) -> None:
    """Writes graphs to a file.

    Args:
        path: the file.
        graphs: returns the graphs by the names of their functions. It is called when the file can be written.

    Raises:
        TypeError: ``path`` is not a path.
        OSError: the file cannot be written.
    """
    path = as_path("path", path)
    if path.is_dir():
        raise IsADirectoryError(f"path: expected a file, got the folder {path}")
    about = {**_this_process(), "features": sorted(_processor_features())}
    with atomic_file(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("about.json", json.dumps(about, indent=1))
        file.writestr("graphs.pickle", pickle.dumps(graphs()))


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
    for name, here in _this_process().items():
        if about[name] != here:
            raise ValueError(f"path: expected compiled code for {name} {here}, got code for {about[name]}; save it again")
    missing = sorted(set(about["features"]) - _processor_features())
    if missing:
        raise ValueError(
            f"path: expected compiled code for this processor, got code for one with {', '.join(missing)}; save it again"
        )


def _this_process() -> Dict[str, Any]:
    """Returns what must be equal in the process that saves code and in the one that loads it."""
    return {
        "format": _FORMAT,
        "torch": str(torch.__version__),
        "python": platform.python_version(),
        "machine": platform.machine(),
        _PACKAGE: source_digest(),
    }


@functools.cache
def source_digest() -> str:
    """Returns the digest of the source of this library. Called before code is compiled, because a newer version may be installed later."""
    root = Path(__file__).parents[1]
    return _digest(*(f"{path.relative_to(root)}\0{path.read_text()}" for path in sorted(root.rglob("*.py"))))


def _processor_features() -> Set[str]:
    """Returns the names of the processor's features. Compiled code may use all of them."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        capabilities: Dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
        return {name for name, value in capabilities.items() if value is True}
    return {name for line in lines if line.startswith(("flags", "Features")) for name in line.partition(":")[2].split()}
