"""Docstrings: every public definition has one, and every exported name says what a caller has to know."""

import ast
import enum
import importlib
import inspect
import re
import textwrap
import types
from typing import Any, Callable, Iterator, NamedTuple, Optional

import pytest
from project.test_architecture import MODULES, where
from torch import Tensor

PACKAGE = "a2c_compiled"
# The formula of these is the mathematics that the library exists for; they also name the paper or the library that defines it.
MATHEMATICS = ("a2c_compiled.functional", "a2c_compiled.estimators", "a2c_compiled.losses", "a2c_compiled.distributions")
BASES = ("AdvantageNorm", "Distribution", "ValueEstimator")

SHAPE = re.compile(r"\[[^\]]*\]|\bshapes?\b|\bscalar|\b0-d\b|\bzero-dimensional\b|\bone-element\b")
DTYPE = re.compile(r"\b(dtypes?|bool|booleans?|int(32|64|eger|egers)?|float(16|32|64|ing)?|uint8|number|numbers)\b")
FORMULA = re.compile(r"\.\. math::|:math:|``[^`]*=[^`]*``|:(func|class|meth):")
SOURCE = re.compile(r"\bSource: ")
# A docstring may leave subjects to another that it names: "Shapes, dtypes and errors: see :func:`reward2go`."
REFERENCE = re.compile(
    r"((?:(?:arguments|formula|source|shapes|dtypes|errors)(?:, | and )?)+): see :\w+:`~?([\w.]+)`", re.IGNORECASE
)


class Exported(NamedTuple):
    """A function, class or method that an ``__all__`` makes public, under the name a caller uses."""

    name: str
    value: Any
    owner: Optional[type]  # the class of a method


def exported() -> dict[str, Exported]:
    """Every name in an ``__all__``, and the public methods and properties that its classes define in this package."""
    found: dict[str, Exported] = {}
    for name in MODULES:
        if not re.search(r"^__all__", MODULES[name].path.read_text(), re.MULTILINE):
            continue
        module = importlib.import_module(name)
        for public in module.__all__:
            value = getattr(module, public)
            if not isinstance(value, (type, types.FunctionType)):
                continue  # a module, or the name of a type
            found[f"{name}.{public}"] = Exported(f"{name}.{public}", value, None)
            if inspect.isclass(value):
                for attribute, member in vars(value).items():
                    if not attribute.startswith("_") and is_defined_here(member):
                        found[f"{name}.{public}.{attribute}"] = Exported(f"{name}.{public}.{attribute}", member, value)
    return found


def function_of(member: Any) -> Optional[Callable[..., Any]]:
    """The function in a method, property or class method; None for anything else."""
    if isinstance(member, property):
        member = member.fget
    member = getattr(member, "__func__", member)
    return inspect.unwrap(member) if callable(member) and not inspect.isclass(member) else None


def is_defined_here(member: Any) -> bool:
    function = function_of(member)
    return isinstance(function, types.FunctionType) and function.__module__.startswith(PACKAGE)


def text_of(entry: Exported) -> str:
    """The docstring of ``entry``. A method keeps the contract of those that it overrides: theirs follow."""
    if entry.owner is None:
        return entry.value.__doc__ or ""
    name = entry.name.rpartition(".")[2]
    members = [
        vars(owner)[name] for owner in entry.owner.__mro__ if owner.__module__.startswith(PACKAGE) and name in vars(owner)
    ]
    return "\n".join(member.__doc__ for member in members if member.__doc__)


def left_to_others(entry: Exported, text: str) -> set[str]:
    """The subjects that ``text`` leaves to a docstring that it names, which has to exist."""
    subjects = set()
    for listed, target in REFERENCE.findall(" ".join(text.split())):
        assert exists(target, entry), f"{entry.name} refers to {target}, which does not exist"
        subjects |= set(re.findall(r"\w+", listed.lower()))
    return subjects


def exists(target: str, entry: Exported) -> bool:
    """Whether ``target`` is the full name of something in the package, or that of a method beside ``entry``."""
    if "." not in target:
        return hasattr(entry.owner or entry.value, target) or f"{entry.name.rpartition('.')[0]}.{target}" in exported()
    parts = target.split(".")
    for end in range(len(parts), 0, -1):
        if ".".join(parts[:end]) in MODULES:
            value = importlib.import_module(".".join(parts[:end]))
            for part in parts[end:]:
                value = getattr(value, part, None)
            return value is not None
    return False


def takes_tensors(function: Callable[..., Any]) -> bool:
    """Whether an annotation of a parameter or of the result mentions a tensor or an array."""
    annotations = " ".join(map(str, getattr(function, "__annotations__", {}).values()))
    return re.search(r"\bTensor\b|ndarray", annotations) is not None


def errors_raised(function: Callable[..., Any], depth: int = 2) -> set[str]:
    """Names of the errors of wrong input that ``function`` raises itself or, ``depth`` calls deep, in functions of this package."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    except (OSError, TypeError):
        return set()
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and isinstance(node.exc.func, ast.Name):
            found.add(node.exc.func.id)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and depth:
            called = getattr(function, "__globals__", {}).get(node.func.id)
            if isinstance(called, types.FunctionType) and called.__module__.startswith(PACKAGE):
                found |= errors_raised(called, depth - 1)
    return {error for error in found if error not in ("NotImplementedError", "AssertionError", "StopIteration")}


def missing(entry: Exported) -> list[str]:
    """What the docstring of ``entry`` leaves out."""
    text = text_of(entry)
    if not text.strip():
        return ["a docstring"]
    elsewhere = left_to_others(entry, text)
    is_record = inspect.isclass(entry.value) and issubclass(entry.value, tuple)
    is_class = inspect.isclass(entry.value)
    function = entry.value.__init__ if is_class and not is_record else function_of(entry.value)
    if is_class and not is_defined_here(function):
        function = None
    lacks = []
    if takes_tensors(entry.value if is_record else function):
        lacks += ["shapes"] if "shapes" not in elsewhere and not SHAPE.search(text) else []
        lacks += ["dtypes"] if "dtypes" not in elsewhere and not DTYPE.search(text) else []
    if isinstance(function, types.FunctionType):
        if "arguments" not in elsewhere:
            lacks += [f"the argument {name}" for name in parameters_without_a_word(function, text)]
        if "errors" not in elsewhere:
            lacks += [f"the error {error}" for error in sorted(errors_raised(function)) if not re.search(rf"\b{error}\b", text)]
    if entry.owner is None and entry.name.startswith(MATHEMATICS) and not is_plain_class(entry.value):
        lacks += ["the formula"] if "formula" not in elsewhere and not FORMULA.search(text) else []
        lacks += ["the source"] if "source" not in elsewhere and not SOURCE.search(text) else []
    return lacks


def parameters_without_a_word(function: Callable[..., Any], text: str) -> list[str]:
    """Parameters that a docstring with a list of arguments does not name."""
    if "Args:" not in text:
        return []
    names = [name for name in inspect.signature(function).parameters if name not in ("self", "cls", "args", "kwargs")]
    return [name for name in names if not name.startswith("_") and not re.search(rf"\b{name}\b", text)]


def is_plain_class(value: Any) -> bool:
    """Whether ``value`` is a record, an error, a choice or a base class: it has no formula of its own."""
    return inspect.isclass(value) and (issubclass(value, (tuple, Exception, enum.Enum)) or value.__name__ in BASES)


@pytest.mark.parametrize("entry", [pytest.param(entry, id=name) for name, entry in exported().items()])
def test_an_exported_name_says_what_a_caller_has_to_know(entry):
    assert missing(entry) == []


def definitions() -> Iterator[tuple[str, bool]]:
    """Place and name of every public module, class, function and method, and whether it has a docstring."""

    def below(node: ast.AST, prefix: str) -> Iterator[tuple[int, str, bool]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)) and not child.name.startswith("_"):
                overloads = any("setter" in ast.unparse(one) or "overload" in ast.unparse(one) for one in child.decorator_list)
                yield child.lineno, f"{prefix}{child.name}", overloads or ast.get_docstring(child) is not None
                if isinstance(child, ast.ClassDef):
                    yield from below(child, f"{prefix}{child.name}.")

    for module in MODULES.values():
        tree = ast.parse(module.path.read_text())
        yield f"{where(module, 1)} the module", ast.get_docstring(tree) is not None or not tree.body
        for line, name, documented in below(tree, ""):
            yield f"{where(module, line)} {name}", documented


def test_every_public_definition_has_a_docstring():
    assert [place for place, documented in definitions() if not documented] == []


def lacks_of(function: Callable[..., Any]) -> list[str]:
    return missing(Exported("a2c_compiled.functional.planted", function, None))


def test_a_function_without_shapes_is_found():
    def planted(reward: Tensor) -> Tensor:
        """The sum of all rewards, ``y = sum(reward)``, a float32 number. Source: Sutton and Barto, 2018, eq. 3.7."""
        return reward.sum()

    assert lacks_of(planted) == ["shapes"]
    planted.__doc__ = "The sum of all rewards."
    assert lacks_of(planted) == ["shapes", "dtypes", "the formula", "the source"]
    planted.__doc__ = "Shapes, dtypes, formula and source: see :func:`a2c_compiled.functional.reward2go`."
    assert lacks_of(planted) == []
    planted.__doc__ = "Shapes and dtypes: see :func:`a2c_compiled.functional.no_such_function`."
    with pytest.raises(AssertionError, match="no_such_function, which does not exist"):
        lacks_of(planted)
    planted.__doc__ = None
    assert lacks_of(planted) == ["a docstring"]


def test_a_function_that_does_not_name_its_arguments_and_errors_is_found():
    def planted(gamma: float, time_dim: int) -> float:
        """The horizon, ``h = 1 / (1 - gamma)``.

        Args:
            gamma: discount.

        Source: Sutton and Barto, 2018.
        """
        if gamma == 1:
            raise ValueError(f"gamma: expected less than 1, got {gamma}, {time_dim}")
        return 1 / (1 - gamma)

    assert lacks_of(planted) == ["the argument time_dim", "the error ValueError"]
