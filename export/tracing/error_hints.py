"""Explains why an export failed: the operation, the part of the user's module, and a remedy."""

import re
import sysconfig
import traceback
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Optional, Tuple

import torch
from torch import SymInt, Tensor, nn

import a2c_compiled
from a2c_compiled._torch_internals import dispatch_mode, is_fixed
from a2c_compiled.export.tracing.call import Call, InputsByName
from a2c_compiled.export.tracing.errors import ExportError

_SPECIALIZED = re.compile(r"You marked (\w+) as dynamic but your code specialized it to be a constant \((\d+)\)")
_RESTRICTED = re.compile(r"Not all values of (\w+) = (\S+) in the specified range satisfy the generated guard (.+?)\.?\n")
_NOT_TRANSLATED = re.compile(r"No ONNX function found for <OpOverload\(op='(\w+\.\w+)'")
_LINE_OF_CODE = re.compile(r'File "([^"]+)", line (\d+), in \w+\n\s+(.+)')
_NOT_THE_USERS = (f"{Path(torch.__file__).parent}/", f"{Path(a2c_compiled.__file__).parent}/")
_RECURRENT = (
    "make a recurrent network's state part of the observation, and use nn.GRUCell or nn.LSTMCell instead of nn.GRU or nn.LSTM"
)
# Modules that cause the error, for operations that other modules use without error.
_AT_FAULT: Dict[str, Callable[[nn.Module], bool]] = {
    "aten.convolution_backward": lambda module: getattr(module, "groups", 1) != 1 or getattr(module, "transposed", False),
}


@contextmanager
def explained(call: Call, target: str) -> Iterator[None]:
    """Turns an error in the block into an ExportError that explains it."""
    trail = _Trail(call.source)
    try:
        with trail:
            yield
    except Exception as error:
        operation, reason = _explanation(error, call, trail)
        raise ExportError(f"{type(call.module).__name__} cannot be exported to {target}: {reason}", operation) from error


def _explanation(error: Exception, call: Call, trail: "_Trail") -> Tuple[Optional[str], str]:
    """Returns the operation that caused the error, or None if it is unknown, and the explanation."""
    if isinstance(error, ExportError):
        operation = error.operation
        return operation, str(error) if operation is None else _placed(call, operation, str(error).removeprefix(operation))
    chain = _chain(error)
    text = "\n".join(str(link) for link in chain)
    # The graphs of a training step have fixed dynamic axes and cannot be exported to TorchScript, so they get other remedies.
    of_training_step = isinstance(call.module, InputsByName)
    missing = _NOT_TRANSLATED.search(text)
    if missing:
        elsewhere = ".pt2" if of_training_step else "TorchScript or .pt2"
        reason = f" has no translation to ONNX. Write it in other operations, or export to {elsewhere}"
        return missing[1], _placed(call, missing[1], reason)
    specialized = _SPECIALIZED.search(text)
    if specialized:
        axis, size = specialized.groups()
        remedy = (
            f"Write that part as operations on whole tensors; {_RECURRENT}"
            if of_training_step
            else (f"Give {axis} a fixed size in dynamic_axes, or write that part as operations on whole tensors")
        )
        return None, (
            f"its code only works for {axis} = {size}, the example's size{_in(trail.fixed_in)}; a loop over that dimension, a"
            f" recurrent layer or a size that is read as a Python number fixes it. {remedy}"
        )
    if "data-dependent" in text:
        remedy = "Write it with torch.where" + ("" if of_training_step else ", or export to TorchScript")
        return None, f"its code branches on values of tensors{_in(trail.place, _line(chain, text))}. {remedy}"
    restricted = _RESTRICTED.search(f"{text}\n")
    if restricted:
        axis, size, guard = restricted.groups()
        return (
            None,
            f"its code only works for some sizes of {axis}{_in(trail.fixed_in)}, namely where {guard.replace(size, axis)}",
        )
    summary = (str(chain[-1]).strip() or type(chain[-1]).__name__).splitlines()[0]
    remedy = f". If it has to work for any number of steps, {_RECURRENT}" if isinstance(trail.module, nn.RNNBase) else ""
    return None, f"{summary}{_in(trail.place, _line(chain, text))}{remedy}"


def _chain(error: BaseException) -> List[BaseException]:
    """Returns an error and its causes, down to the first one."""
    chain = [error]
    while (cause := chain[-1].__cause__) is not None:
        chain.append(cause)
    return chain


def _in(*places: str) -> str:
    """Returns `` (in <places>)``, or an empty string if no place is known."""
    known = [place for place in places if place]
    return f" (in {', '.join(known)})" if known else ""


def _line(chain: List[BaseException], text: str) -> str:
    """Returns the line of the user's code that failed, or an empty string if torch does not report it."""
    frames = [(frame.filename, str(frame.lineno), frame.line or "") for frame in traceback.extract_tb(chain[-1].__traceback__)]
    lines = [line for line in [*_LINE_OF_CODE.findall(text), *frames] if _is_users(line[0])]
    if not lines:
        return ""
    file, number, code = lines[-1]
    return f'"{code.strip()}", {Path(file).name}:{number}'


def _is_users(file: str) -> bool:
    standard = file.startswith(sysconfig.get_paths()["stdlib"]) and "site-packages" not in file
    return not standard and not file.startswith((*_NOT_THE_USERS, "<"))


def _place(name: str, module: nn.Module) -> str:
    return f"{name}, {type(module).__name__}" if name else type(module).__name__


class _Trail:
    """Follows the calls of submodules, to know where an error was raised and where a dimension that may vary was fixed."""

    def __init__(self, source: nn.Module) -> None:
        self.fixed_in = ""
        self._source = source
        self._inside: List[Tuple[str, nn.Module, List[Any]]] = []
        self._hooks: List[Any] = []

    def __enter__(self) -> "_Trail":
        for name, module in self._source.named_modules():
            self._hooks.append(module.register_forward_pre_hook(self._entering(name)))
            self._hooks.append(module.register_forward_hook(self._leaving))
        return self

    def __exit__(self, *_: Any) -> None:
        for hook in self._hooks:
            hook.remove()

    @property
    def module(self) -> Optional[nn.Module]:
        """The innermost module in which an error was raised."""
        return self._inside[-1][1] if self._inside else None

    @property
    def place(self) -> str:
        """Name and class of :attr:`module`, or an empty string."""
        return _place(*self._inside[-1][:2]) if self._inside else ""

    def _entering(self, name: str) -> Callable[[nn.Module, Tuple[Any, ...]], None]:
        def hook(module: nn.Module, args: Tuple[Any, ...]) -> None:
            sizes = [size for arg in args if isinstance(arg, Tensor) for size in arg.shape]
            varying = [size for size in sizes if isinstance(size, SymInt) and not is_fixed(size)]
            self._inside.append((name, module, varying))

        return hook

    def _leaving(self, *_: Any) -> None:
        name, module, varying = self._inside.pop()
        if not self.fixed_in and any(map(is_fixed, varying)):
            self.fixed_in = _place(name, module)


def _placed(call: Call, operation: str, reason: str) -> str:
    """Returns the message about an operation, with the innermost modules that use it."""
    users: List[nn.Module] = []
    try:
        with _Trail(call.source) as trail, _UserRecorder(operation, trail, users), torch.no_grad():
            call.module(**call.inputs)
    except Exception:
        return f"{operation}{reason}"  # without the modules, rather than raise another error
    at_fault = _AT_FAULT.get(operation, lambda module: True)
    places = [_place(name, module) for name, module in call.source.named_modules() if module in users and at_fault(module)]
    return f"{operation}{_in(' and '.join(places))}{reason}"


_DispatchMode: Any = dispatch_mode()


class _UserRecorder(_DispatchMode):
    """Records the modules that call an operation. For a backward operation, it records those that call the forward operation."""

    def __init__(self, operation: str, trail: _Trail, users: List[nn.Module]) -> None:
        super().__init__()
        self._trail, self._users = trail, users
        self._name = operation.lower().split(".", 1)[-1].removeprefix("_").removesuffix("_backward")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self._name in str(func).lower() and self._trail.module is not None:
            self._users.append(self._trail.module)
        return func(*args, **(kwargs or {}))
