"""The error of eager mode in place of an error of torch.compile.

An error that is raised while a function is traced becomes an error of torch.compile: with another type, tens of lines, and symbols in place
of sizes. An error of an operator in the compiled graph has no names. Running the function again on fake tensors gives the error itself.
"""

from contextlib import contextmanager
from typing import Any, Callable, Iterator, Optional, Sequence, Tuple, Type

import torch
from torch import nn

from a2c_compiled._torch_internals import fake_tensors, tracing_errors

_OF_OPERATORS = "Dynamo failed to run FX node"
"""A part of every error that an operator has raised. From torch 2.15 on, the class is that of other errors too."""


def eager_error(function: Callable[..., Any], arguments: Sequence[Any], error: Exception) -> Optional[Exception]:
    """Returns the error that ``function(*arguments)`` raises in eager mode, or None if the run finds no error.

    The function runs on fake tensors, which have shapes and dtypes, but no values. Tensors, random generators, and attributes of
    modules stay unchanged.

    Args:
        function: the function that was compiled.
        arguments: its arguments.
        error: the error of the call of the compiled function.
    """
    errors = tracing_errors()
    # Other errors of a compiled graph depend on values or on other processes.
    of_graph = type(error) is RuntimeError and "type" in str(error)
    if not (of_graph or isinstance(error, errors.of_compile)):
        return None
    without_result: Tuple[Type[Exception], ...] = (ImportError, *errors.of_fake_tensors, *errors.of_compile)
    try:
        with _attributes_restored(arguments), torch.random.fork_rng(devices=[]), fake_tensors():
            function(*arguments)
    except without_result:
        return None  # torch has no fake tensors, or the function needs the values of tensors
    except Exception as found:
        # Fake tensors may raise RuntimeError where real ones do not. If an operator has raised the first error, it is that one again.
        of_operator = of_graph or isinstance(error, errors.of_operators) or _OF_OPERATORS in str(error)
        return found if of_operator or type(found) is not RuntimeError else None
    return None


@contextmanager
def _attributes_restored(arguments: Sequence[Any]) -> Iterator[None]:
    """Restores the attributes of the arguments, of their submodules, and of the owners of methods, with the lists and dicts in them.

    A module may keep a result in an attribute. After a run on fake tensors, this would be a fake tensor.
    """
    dicts = [vars(owner) for owner in _owners(arguments)]
    dicts += [value for attributes in dicts for value in attributes.values() if type(value) is dict]
    lists = [value for attributes in dicts for value in attributes.values() if type(value) is list]
    saved_dicts, saved_lists = [dict(entries) for entries in dicts], [list(entries) for entries in lists]
    try:
        yield
    finally:
        for entries, saved in zip(dicts, saved_dicts, strict=True):
            for name in entries.keys() - saved.keys():
                del entries[name]
            entries.update(saved)
        for items, saved_items in zip(lists, saved_lists, strict=True):
            items[:] = saved_items


def _owners(arguments: Sequence[Any]) -> Iterator[Any]:
    """Returns the objects whose attributes a function of ``arguments`` may change: modules, and the objects that methods belong to."""
    for argument in arguments:
        owner = getattr(argument, "__self__", argument)
        for part in (owner, *getattr(owner, "__dict__", {}).values()):
            if isinstance(part, nn.Module):
                yield from part.modules()
            elif hasattr(part, "__dict__") and not isinstance(part, (type, torch.Tensor)):
                yield part
