"""Explains why an export failed: the operation, the part of the user's module, and a remedy."""

import re
import sysconfig
import traceback
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Callable, Iterator, List, Optional, Tuple

import torch
from torch import SymInt, nn

import a2c_compiled
from a2c_compiled._torch_internals import dispatch_mode, is_fixed, symbolic_tracing
from a2c_compiled.export.tracing.call import Call, InputsByName, tensors_in
from a2c_compiled.export.tracing.errors import ExportError

# Parts of torch's messages, from which the explanations take their facts.
_SPECIALIZED = re.compile(r"You marked (\w+) as dynamic but your code specialized it to be a constant \((\d+)\)")
_RESTRICTED = re.compile(r"Not all values of (\w+) = (\S+) in the specified range satisfy the generated guard (.+?)\.?\n")
_NOT_TRANSLATED = re.compile(r"No ONNX function found for <OpOverload\(op='(\w+\.\w+)'")
_LINE_OF_CODE = re.compile(r'File "([^"]+)", line (\d+), in \w+\n\s+(.+)')
_LIBRARY_FOLDERS = (f"{Path(torch.__file__).parent}/", f"{Path(a2c_compiled.__file__).parent}/")
_RECURRENT = (
    "make a recurrent network's state part of the observation, and use nn.GRUCell or nn.LSTMCell instead of nn.GRU or nn.LSTM"
)
# Other ways to compute what an operation without translation to ONNX computes, by a part of the name of the operation.
_REPLACEMENTS = {
    "adaptive_max_pool": "Use nn.MaxPool2d with a fixed kernel_size, or amax for the maximum of an image",
    "grid_sampler": "Freeze the layers before it and its grid with requires_grad_(False)",
    "_aa_backward": "Use antialias=False, or freeze the layers before it with requires_grad_(False)",
    "linalg_": "Replace a parametrization such as orthogonal by a plain weight: torch.nn.utils.parametrize.remove_parametrizations",
}


@contextmanager
def explained(call: Call, target: str) -> Iterator[None]:
    """Turns an error in the block into an ExportError that explains it."""
    tracker = _CallTracker(call.source)
    try:
        with tracker:
            yield
    except Exception as error:
        operation, reason = _explanation(error, call, tracker)
        raise ExportError(f"{type(call.module).__name__} cannot be exported to {target}: {reason}", operation) from error


def _explanation(error: Exception, call: Call, tracker: "_CallTracker") -> Tuple[Optional[str], str]:
    """Returns the operation that caused the error, None if the operation is unknown, and the explanation."""
    if isinstance(error, ExportError):
        operation = error.operation
        if operation is None:
            return None, str(error)
        return operation, _with_callers(call, operation, str(error).removeprefix(operation))
    chain = _chain(error)
    text = "\n".join(str(link) for link in chain)
    # The user cannot choose the dynamic axes of a training step, nor export it to TorchScript, so the remedies differ.
    of_training_step = isinstance(call.module, InputsByName)
    missing = _NOT_TRANSLATED.search(text)
    if missing:
        other_formats = ".pt2" if of_training_step else "TorchScript or .pt2"
        known = [way for part, way in _REPLACEMENTS.items() if part in missing[1]]
        reason = f" has no translation to ONNX. {known[0] if known else 'Write it in other operations'}, or export to {other_formats}"
        return missing[1], _with_callers(call, missing[1], reason)
    specialized = _SPECIALIZED.search(text)
    if specialized:
        axis, size = specialized.groups()
        of_features = None if of_training_step else _names_features(call, axis)
        if of_features is not None:
            return None, of_features
        remedy = (
            f"Write that part as operations on whole tensors; {_RECURRENT}"
            if of_training_step
            else (f"Give {axis} a fixed size in dynamic_axes, or write that part as operations on whole tensors")
        )
        return None, (
            f"its code only works for {axis} = {size}, the example's size{_in(tracker.fixed_in)}; a loop over that dimension, a"
            f" recurrent layer or a size that is read as a Python number fixes it. {remedy}"
        )
    if "to have an entirely functional graph" in text:
        places = [_place(name, module) for name, module in call.source.named_modules() if _computes_weight(name)]
        remedy = (
            "Replace the parametrization by a plain weight: torch.nn.utils.parametrize.remove_parametrizations"
            if places
            else "Write that part without writing to parts of tensors"
        )
        what = f"a gradient writes to a part of a tensor{_in(' or '.join(places))}, which an ONNX graph cannot do"
        return None, f"{what}. {remedy}, or export to .pt2"
    if "data-dependent" in text:
        remedy = "Write it with torch.where" + ("" if of_training_step else ", or export to TorchScript")
        return None, f"its code branches on values of tensors{_in(tracker.place, _line(chain, text))}. {remedy}"
    restricted = _RESTRICTED.search(f"{text}\n")
    if restricted:
        axis, size, guard = restricted.groups()
        return (
            None,
            f"its code only works for some sizes of {axis}{_in(tracker.fixed_in)}, namely where {guard.replace(size, axis)}",
        )
    summary = (str(chain[-1]).strip() or type(chain[-1]).__name__).splitlines()[0]
    remedy = (
        f". If the module must work for any number of steps, {_RECURRENT}" if isinstance(tracker.module, nn.RNNBase) else ""
    )
    return None, f"{summary}{_in(tracker.place, _line(chain, text))}{remedy}"


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
    lines = [line for line in [*_LINE_OF_CODE.findall(text), *frames] if _is_user_code(line[0])]
    if not lines:
        return ""
    file, number, code = lines[-1]
    return f'"{code.strip()}", {Path(file).name}:{number}'


def _is_user_code(file: str) -> bool:
    """Returns whether a file belongs neither to Python's standard library nor to torch or this package, and is a real file."""
    standard = file.startswith(sysconfig.get_paths()["stdlib"]) and "site-packages" not in file
    return not standard and not file.startswith((*_LIBRARY_FOLDERS, "<"))


def _computes_weight(name: str) -> bool:
    """Returns whether the submodule at this path is a parametrization, which computes a weight."""
    return ".parametrizations." in name and name.rpartition(".")[2].isdigit()


def _place(name: str, module: nn.Module) -> str:
    """Returns the path and class of a submodule, or only the class of the outermost module, whose path is empty."""
    return f"{name}, {type(module).__name__}" if name else type(module).__name__


def _names_features(call: Call, axis: str) -> Optional[str]:
    """Returns the explanation if ``axis`` is the last dimension of an input, which holds the features; None if it is not."""
    for name, axes in call.axes.items():
        shape = list(call.inputs[name].shape)
        if len(axes) == len(shape) and axes[-1] == axis:
            remedy = f"Pass dynamic_axes={tuple(axes[1:])}" if len(shape) > 1 else f"Pass an example of shape {[1, *shape]}"
            return (
                f"its code only works for {shape[-1]} in the last dimension of {name}, which dynamic_axes {tuple(axes)} makes variable"
                f" too. {remedy}"
            )
    return None


class _CallTracker:
    """Records which submodule runs, for messages about the submodule that raised an error or fixed a dimension that may vary.

    Attributes:
        fixed_in: path and class of the first submodule that fixed the size of such a dimension, or an empty string.
    """

    def __init__(self, source: nn.Module) -> None:
        self.fixed_in = ""
        self._source = source
        self._inside: List[Tuple[str, nn.Module, List[Any]]] = []
        self._hooks: List[Any] = []

    def __enter__(self) -> "_CallTracker":
        for name, module in self._source.named_modules():
            self._hooks.append(module.register_forward_pre_hook(self._entering(name)))
            self._hooks.append(module.register_forward_hook(self._leaving))
        return self

    def __exit__(self, *_: Any) -> None:
        for hook in self._hooks:
            hook.remove()

    @property
    def module(self) -> Optional[nn.Module]:
        """The innermost submodule that runs, or in which an error was raised; None outside of all submodules."""
        return self._inside[-1][1] if self._inside else None

    @property
    def place(self) -> str:
        """Name and class of :attr:`module`, or an empty string."""
        return _place(*self._inside[-1][:2]) if self._inside else ""

    def _entering(self, name: str) -> Callable[[nn.Module, Tuple[Any, ...]], None]:
        """Returns the hook that runs before the submodule at path ``name``: stores the submodule and its input's varying sizes."""

        def hook(module: nn.Module, args: Tuple[Any, ...]) -> None:
            sizes = [size for tensor in tensors_in(args) for size in tensor.shape]
            varying = [size for size in sizes if isinstance(size, SymInt) and not is_fixed(size)]
            self._inside.append((name, module, varying))

        return hook

    def _leaving(self, *_: Any) -> None:
        """The hook after a submodule: if a size that varied before the call is fixed now, the submodule has fixed it."""
        name, module, varying = self._inside.pop()
        if not self.fixed_in and any(map(is_fixed, varying)):
            self.fixed_in = _place(name, module)


def _with_callers(call: Call, operation: str, reason: str) -> str:
    """Returns the message about an operation, with the innermost modules that call the operation."""
    callers: List[nn.Module] = []
    try:
        with (
            _CallTracker(call.source) as tracker,
            _CallerRecorder(operation, tracker, callers),
            symbolic_tracing().enable_python_dispatcher(),  # as in tracing, which splits the same functions into the same operations
            torch.no_grad(),
        ):
            call.eager(call.inputs)
    except Exception:
        return f"{operation}{reason}"  # a second error would hide the first one, so the message omits the modules
    places = [_place(name, module) for name, module in call.source.named_modules() if module in callers]
    return f"{operation}{_in(' and '.join(places))}{reason}"


_DispatchMode: Any = dispatch_mode()


class _CallerRecorder(_DispatchMode):
    """Records the modules that call an operation. For a backward operation, records the modules that call its forward operation."""

    def __init__(self, operation: str, tracker: _CallTracker, callers: List[nn.Module]) -> None:
        super().__init__()
        self._tracker, self._callers = tracker, callers
        # For example "convolution" for "aten.convolution_backward".
        self._name = operation.lower().split(".", 1)[-1].removeprefix("_").removesuffix("_backward")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self._name in str(func).lower() and self._tracker.module is not None:
            self._callers.append(self._tracker.module)
        return func(*args, **(kwargs or {}))
