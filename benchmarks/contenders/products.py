"""The matrix products, convolutions and tanh of an update alone: what remains of the update if everything else takes no time.

The operations are those of an eager update, with the shapes and strides of its tensors. Each runs in ATen or oneDNN, and tanh also as a
compiled update computes it, whichever is fastest.
"""

import functools
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Tuple

import torch
from torch import Tensor
from torch.utils.flop_counter import flop_registry

from a2c_compiled import Rollout, TrainStep, compile_options
from a2c_compiled._torch_internals import dispatch_mode, onednn_product
from a2c_compiled.benchmarks.measure.harness import Contender
from a2c_compiled.benchmarks.measure.timing import time_interleaved

aten = torch.ops.aten
_DispatchMode: Any = dispatch_mode()
_MATRICES, _TANH = (aten.mm.default, aten.addmm.default), aten.tanh.default


class _Operation(NamedTuple):
    """A recorded operation.

    Attributes:
        function: operator of ATen.
        arguments: its arguments.
        result: its result.
        tanh: whether the result of the operation is ``tanh`` of what ``function`` returns.
    """

    function: Any
    arguments: Tuple[Any, ...]
    result: Any
    tanh: bool = False

    def run(self) -> Any:
        """Runs the operation in ATen."""
        result = self.function(*self.arguments)
        return result.tanh() if self.tanh else result

    def in_float64(self) -> Any:
        """Runs the operation in float64."""
        arguments = tuple(argument.double() if isinstance(argument, Tensor) else argument for argument in self.arguments)
        return self._replace(arguments=arguments).run()

    @property
    def flops(self) -> int:
        """Number of additions and multiplications; those of tanh do not count."""
        if self.function is _TANH:
            return 0
        return int(flop_registry[self.function.overloadpacket](*self.arguments, out_val=self.result))


class _Recorder(_DispatchMode):
    """Context that records products, convolutions and tanh. A tanh of a product becomes a part of the product."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: List[_Operation] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        if function is _TANH and (index := self._product_of(args[0])) is not None:
            self.operations[index] = self.operations[index]._replace(tanh=True)
        elif function is _TANH or function.overloadpacket in flop_registry:
            self.operations.append(_Operation(function, args, result))
        return result

    def _product_of(self, x: Tensor) -> Optional[int]:
        """Returns the index of the product whose result is ``x`` in another shape."""
        for index, operation in enumerate(self.operations):
            if operation.function in _MATRICES and operation.result.data_ptr() == x.data_ptr():
                return index
        return None


def products(step: TrainStep, rollout: Rollout) -> Contender:
    """Returns the contender that runs the products of an update alone.

    Args:
        step: a training step in eager mode, on a CPU. It is called once.
        rollout: the data.
    """
    with _Recorder() as recorder:
        step(rollout)
    with torch.no_grad():
        operations = recorder.operations
        calls = [_fastest(operation) for operation in operations]
        expected = [_first(operation.in_float64()) for operation in operations]

    @torch.no_grad()
    def run() -> List[Any]:
        return [call() for call in calls]

    flops = sum(operation.flops for operation in operations)
    return Contender(run, lambda results: [_first(result) for result in results], expected, flops)


def _first(result: Any) -> Tensor:
    """Returns one tensor of the result of an operation: the gradients of a convolution are several, of which some are None."""
    return result if isinstance(result, Tensor) else next(part for part in result if part is not None)


def _fastest(operation: _Operation) -> Callable[[], Any]:
    """Returns the call that runs ``operation`` fastest."""
    calls = _calls(operation)
    if operation.tanh:
        without_tanh = _calls(operation._replace(tanh=False))
        calls |= {f"{name}, compiled tanh": functools.partial(_then_tanh, product) for name, product in without_tanh.items()}
    times = time_interleaved(calls, samples=15, sample_seconds=1e-3)
    return calls[min(times, key=lambda name: times[name].median)]


def _calls(operation: _Operation) -> Dict[str, Callable[[], Any]]:
    """Returns calls that run ``operation`` in ATen and in oneDNN, by name."""
    calls = {"ATen": operation.run, **_in_onednn(operation)}
    if operation.function is aten.mm.default:
        left, right = operation.arguments
        calls["ATen, transposed"] = lambda: torch.mm(right.t(), left.t()).t()
    return calls


@functools.cache
def _compiled_tanh() -> Callable[[Tensor], Tensor]:
    """Returns tanh as a compiled training step computes it."""
    return torch.compile(torch.tanh, dynamic=True, options=compile_options())


def _then_tanh(product: Callable[[], Any]) -> Tensor:
    return _compiled_tanh()(product())


def _in_onednn(operation: _Operation) -> Dict[str, Callable[[], Any]]:
    """Returns calls that run a product in oneDNN, by name: as it is, and with the transposed operands."""
    if operation.function not in _MATRICES or onednn_product is None:
        return {}
    bias, left, right = (None, *operation.arguments)[-3:]
    if left.dtype != torch.float32:
        return {}
    activation, run = "tanh" if operation.tanh else "none", onednn_product
    calls = {"oneDNN": lambda: run(left, right.t(), bias, activation, [], "")}
    # oneDNN is faster if the inner dimension is contiguous. An update can write its tensors in this layout from the beginning.
    rows = left.contiguous()
    calls["oneDNN, rows"] = lambda: run(rows, right.t(), bias, activation, [], "")
    if bias is None:
        columns = right.t().contiguous()
        calls["oneDNN, columns"] = lambda: run(columns, left, None, activation, [], "").t()
    return calls
