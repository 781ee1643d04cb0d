"""The tree is as in CONTRIBUTING.md: imports run downwards only, folders and parameter lists are short."""

import ast
import itertools
import re
from graphlib import CycleError, TopologicalSorter
from pathlib import Path, PurePosixPath
from typing import Iterator, NamedTuple

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = "a2c_compiled"
# Source folders and their places in the package, into which export/ and benchmarks/ are linked.
PLACES = {PACKAGE: "", "export": "export/", "benchmarks": "benchmarks/"}

# From top to bottom: a room may import the rooms below it. A room is one module, or a folder with everything in it that is not in another
# room. "_" stands for the private modules at the root of the package.
ROOMS = (
    "cli",
    "demo",
    "benchmarks/gpu",
    "benchmarks/run",
    "benchmarks/subjects",
    "benchmarks/contenders",
    "benchmarks/report",
    "benchmarks/measure",
    "benchmarks/__init__",
    "export/run",
    "export/__init__",
    "export/web_page",
    "export/update_files",
    "export/graphs",
    # Beside the reference cases and metadata that it reads, but above the formats, which write them and which it loads.
    "export/checking/verify",
    "export/formats",
    "export/onnx_model",
    "export/checking",
    "export/tracing",
    "export/on_device",
    "training",
    "rollouts",
    "integrations",
    "__init__",
    "update",
    "losses",
    "estimators",
    "functional",
    "networks",
    "recurrent",
    "shared_trunk",
    "ops",
    "kernels",
    "distributions",
    "environments",
    "_",
)
MOST_FILES = 14
MOST_PARAMETERS = 8
# Functions with more parameters, and the reasons.
LONG_PARAMETER_LISTS = {
    "functional/vtrace:_vtrace": "the definition of an operator, which takes the form's operands one by one",
    "integrations/torchrl/value_functions:_vtrace": "stands in for a function of TorchRL's, with its parameters",
    "export/tracing/backward_operations:_convolution_backward": "stands in for an operator of torch's, with its parameters",
    "export/tracing/backward_operations:_attention_backward": "stands in for an operator of torch's, with its parameters",
}


class Module(NamedTuple):
    """A module of the package: its dotted name, its place below the package without the ending, its file."""

    name: str
    place: str
    path: Path


def modules() -> list[Module]:
    found = []
    for folder, prefix in PLACES.items():
        for path in sorted((ROOT / folder).rglob("*.py")):  # which follows no links
            place = prefix + path.relative_to(ROOT / folder).with_suffix("").as_posix()
            name = ".".join([PACKAGE, *place.removesuffix("__init__").strip("/").split("/")]).strip(".")
            found.append(Module(name, place, path))
    return found


MODULES = {module.name: module for module in modules()}


def where(module: Module, line: int) -> str:
    return f"{module.path.relative_to(ROOT)}:{line}"


def imports(module: Module) -> Iterator[tuple[int, str]]:
    """Line and name of every module of the package that is imported anywhere in a module: in functions and for type checkers too."""
    for node in ast.walk(ast.parse(module.path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            package = node.module or ""
            if node.level:
                parents = module.name.split(".") if module.place.endswith("__init__") else module.name.split(".")[:-1]
                package = ".".join([*parents[: len(parents) - node.level + 1], *([node.module] if node.module else [])])
            within = [f"{package}.{alias.name}" for alias in node.names]
            # From a package: the modules in it that are named, and the package itself for whatever else is.
            names = [name if name in MODULES else package for name in within]
        else:
            continue
        for name in dict.fromkeys(names):
            if name.split(".")[0] == PACKAGE:
                yield node.lineno, name


def room_of(place: str) -> int:
    """The number of the room, from the top."""
    if place.startswith("_") and place != "__init__":
        return ROOMS.index("_")
    candidates = [place, *map(str, PurePosixPath(place).parents)]
    rooms = [candidate for candidate in candidates if candidate in ROOMS]
    assert rooms, f"{place}: expected in a room of ROOMS, from top to bottom"
    return ROOMS.index(rooms[0])


def test_every_module_has_a_room_and_every_room_a_module():
    taken = {room_of(module.place) for module in MODULES.values()}
    assert [room for number, room in enumerate(ROOMS) if number not in taken] == []


def test_imports_run_downwards():
    upwards = []
    for module in MODULES.values():
        for line, name in imports(module):
            assert name in MODULES, f"{where(module, line)}: there is no module {name}"
            room, other = room_of(module.place), room_of(MODULES[name].place)
            if other < room:
                upwards.append(f"{where(module, line)}: {ROOMS[room]} imports {name}, in the room {ROOMS[other]} above it")
    assert upwards == []


def test_imports_have_no_cycle():
    graph = {module.name: {name for _, name in imports(module)} - {module.name} for module in MODULES.values()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        circle = error.args[1][::-1]
        arrows = [
            where(MODULES[name], line)
            for name, imported in itertools.pairwise(circle)
            for line, other in imports(MODULES[name])
            if other == imported
        ]
        pytest.fail(f"{' -> '.join(circle)}: {', '.join(arrows)}")


def test_modules_copied_to_a_device_import_only_their_siblings():
    siblings = {path.stem for path in (ROOT / "export" / "on_device").glob("*.py")}
    for module in MODULES.values():
        if module.place.startswith("export/on_device/"):
            for line, name in imports(module):
                assert name.rpartition(".")[0] == f"{PACKAGE}.export.on_device", f"{where(module, line)}: imports {name}"
                assert name.rpartition(".")[2] in siblings


def test_no_folder_has_too_many_files():
    crowded = []
    for top in PLACES:
        for folder in [ROOT / top, *(path for path in (ROOT / top).rglob("*") if path.is_dir() and not path.is_symlink())]:
            files = [path for path in folder.iterdir() if path.suffix in (".py", ".cpp", ".h")]
            if len(files) > MOST_FILES:
                crowded.append(f"{folder.relative_to(ROOT)}: {len(files)} files")
    assert crowded == []


def private_functions() -> Iterator[tuple[Module, ast.FunctionDef, str, int]]:
    """Every function that is private by its name or by that of a function or class around it: module, node, full name, parameters."""

    def below(module: Module, node: ast.AST, prefix: str, private: bool) -> Iterator[tuple[Module, ast.FunctionDef, str, int]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                name = f"{prefix}{child.name}"
                hidden = private or (child.name.startswith("_") and not child.name.endswith("__"))
                is_function = not isinstance(child, ast.ClassDef)
                if hidden and is_function:
                    taken = child.args
                    parameters = [*taken.posonlyargs, *taken.args, *taken.kwonlyargs]
                    count = sum(parameter.arg not in ("self", "cls") for parameter in parameters)
                    yield module, child, name, count
                yield from below(module, child, f"{name}.", hidden or is_function)
            else:
                yield from below(module, child, prefix, private)

    for module in MODULES.values():
        yield from below(module, ast.parse(module.path.read_text()), "", False)


def test_no_private_function_has_too_many_parameters():
    found = {f"{module.place}:{name}": (count, where(module, node.lineno)) for module, node, name, count in private_functions()}
    long = {key: f"{place} {key}: {count} parameters" for key, (count, place) in found.items() if count > MOST_PARAMETERS}
    assert [text for key, text in long.items() if key not in LONG_PARAMETER_LISTS] == []
    assert [key for key in LONG_PARAMETER_LISTS if key not in long] == [], "functions in LONG_PARAMETER_LISTS that are short"


def test_the_listing_in_contributing_names_every_room_and_only_existing_files():
    listing = (ROOT / "CONTRIBUTING.md").read_text().split("```")[1]
    named = set(re.findall(r"[\w.]+\.(?:py|h|cpp)\b|\w+/", listing))
    rooms = {name for place in ROOMS if (name := PurePosixPath(place).name)[0] != "_"}
    tops = [ROOT / top for top in (*PLACES, "docs")]
    there = {path.name + "/" * path.is_dir() for top in tops for path in [top, *top.rglob("*")]} | {"tests/", "examples/"}
    assert {name for name in named if name not in there} == set()
    assert {room for room in rooms if not {f"{room}/", f"{room}.py"} & named} == set()
