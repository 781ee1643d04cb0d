"""What stands in the way of an export, said in terms of the module that was to be exported."""

import re
from contextlib import contextmanager
from typing import Any, Callable, Iterator, List, Optional, Tuple

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from a2c_compiled.export.call import Call, InputsByName
from a2c_compiled.export.errors import ExportError

_SPECIALIZED = re.compile(r"You marked (\w+) as dynamic but your code specialized it to be a constant \((\d+)\)")
_LINE_OF_CODE = re.compile(r'File "([^"]+)", line (\d+), in (\w+)\n\s+(.+)')


@contextmanager
def explained(call: Call, target: str) -> Iterator[None]:
    """What goes wrong in the block, as an ExportError."""
    try:
        yield
    except Exception as error:
        operation, reason = _reason(error)
        where = "" if operation is None else _where(call, operation)
        raise ExportError(
            f"{type(call.module).__name__} cannot be exported to {target}: {operation or ''}{where}{reason}", operation
        ) from error


def _reason(error: Exception) -> Tuple[Optional[str], str]:
    """The operation, if one is at fault, and the rest of the sentence."""
    if isinstance(error, ExportError):
        return error.operation, str(error).removeprefix(error.operation or "")
    chain = _chain(error)
    text = "\n".join(str(link) for link in chain)
    specialized = _SPECIALIZED.search(text)
    if specialized:
        axis, size = specialized.groups()
        return None, (
            f"its code is right for {axis} = {size} alone, the example's; a loop over that dimension, a recurrent layer or a size that is"
            f" read as a number fixes it. Give {axis} a fixed size in dynamic_axes, or write that part in whole tensors"
        )
    if "data-dependent" in text:
        return None, f"its code branches on values of tensors{_line(text)}. Write it with torch.where, or export to TorchScript"
    missing = re.search(r"No ONNX function found for <OpOverload\(op='(\w+\.\w+)'", text)
    if missing:
        return missing[1], " has no translation to ONNX. Write it in other operations, or export to TorchScript or .pt2"
    summary = (str(chain[-1]).strip() or type(chain[-1]).__name__).splitlines()[0]
    return None, f"{summary}{_line(text)}"


def _chain(error: BaseException) -> List[BaseException]:
    """An error and what caused it, down to the first."""
    chain = [error]
    while (cause := chain[-1].__cause__) is not None:
        chain.append(cause)
    return chain


def _line(text: str) -> str:
    """Where in the user's code, as far as torch says."""
    lines = [found for found in _LINE_OF_CODE.findall(text) if "/torch/" not in found[0]]
    if not lines:
        return ""
    file, number, _, code = lines[-1]
    return f' ("{code.strip()}", {file.rpartition("/")[2]}:{number})'


def _where(call: Call, operation: str) -> str:
    """`` (in <module>, <class>)`` of the innermost modules that use an operation, or nothing where none is seen to."""
    found = _Places(operation.rpartition(".")[2].removeprefix("_").removesuffix("_backward"))
    source = call.module.source if isinstance(call.module, InputsByName) else call.module
    hooks = []
    for name, module in source.named_modules():
        hooks.append(module.register_forward_pre_hook(found.entering(name, module)))
        hooks.append(module.register_forward_hook(found.leaving))
    try:
        with found, torch.no_grad():
            call.module(**call.inputs)
    except Exception:
        return ""  # the explanation is not worth an error of its own
    finally:
        for hook in hooks:
            hook.remove()
    return f" (in {', '.join(found.places)})" if found.places else ""


class _Places(TorchDispatchMode):
    """Notes the module in which an operation is called."""

    def __init__(self, operation: str) -> None:
        super().__init__()
        self.operation = operation
        self.places: List[str] = []
        self._inside: List[str] = []

    def entering(self, name: str, module: nn.Module) -> Callable[..., None]:
        place = f"{name}, {type(module).__name__}" if name else type(module).__name__
        return lambda *_: self._inside.append(place)

    def leaving(self, *_: Any) -> None:
        self._inside.pop()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self.operation in str(func) and self._inside and self._inside[-1] not in self.places:
            self.places.append(self._inside[-1])
        return func(*args, **(kwargs or {}))
