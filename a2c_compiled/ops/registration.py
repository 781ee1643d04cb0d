"""Registers a form as an operator. The device of the tensors selects the backend.

A form is a recurrence along time with its inputs and outputs, see :mod:`a2c_compiled.kernels.scan_forms`.
"""

import importlib.util
from typing import Any, Callable, List, Sequence, Tuple

import torch
from torch import Tensor

from a2c_compiled._torch_internals import dispatch_is_plain
from a2c_compiled.kernels import cpu_scan
from a2c_compiled.kernels.scan_forms import Form
from a2c_compiled.ops.transforms import batch_first, vmap_out_dims

# The library must exist as long as the module: deleting the library unregisters the operators.
_library = torch.library.Library("a2c_compiled", "DEF")


def register(form: Form, definition: Callable[..., Any]) -> Callable[..., Any]:
    """Registers ``torch.ops.a2c_compiled.<form.name>(coefficients..., values..., flags..., dim)`` and returns a function that calls it.

    The operator is one node in any captured graph. On the CPU the operator runs the C++ kernel and on a GPU the Triton kernel. The
    operator runs ``definition`` if the kernel of the device is not installed or Triton cannot start kernels, on other devices, and on the
    CPU for tensors of more than 16 dimensions. The operator raises TypeError for an operand of another dtype, and ValueError for one of
    another shape, than :class:`~a2c_compiled.kernels.scan_forms.Form` says. The fake implementation of the operator returns empty outputs.
    Under vmap, the operator runs once for the whole batch. The operator has no registered gradient: ``torch.func`` transforms only accept
    the gradient of a :class:`torch.autograd.Function`, so the callers wrap the operator in such a function.

    Args:
        form: the names and order of the operator's arguments. Shapes and dtypes: see :class:`a2c_compiled.kernels.scan_forms.Form`.
        definition: computes the operator's outputs from the operator's arguments with torch operations.

    Returns:
        A function with the operator's arguments. It calls the CPU kernel directly when no dispatch mode, functorch transform or tracer is
        active and all tensors are plain CPU tensors. Otherwise it calls the operator.
    """
    first_value = len(form.coefficients)
    first_flag = first_value + len(form.values)
    single = len(form.outputs) == 1

    def result(outputs: Tuple[Tensor, ...]) -> Any:
        return outputs[0] if single else outputs

    dtypes = {
        dtype: (
            *[torch.promote_types(dtype, torch.float32)] * first_value,
            *[dtype] * len(form.values),
            *[torch.bool] * len(form.flags),
        )
        for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16)
    }

    def check_dtypes(arguments: Tuple[Any, ...]) -> None:
        """Raises TypeError unless the operands have the dtypes of the form. A kernel would read other numbers."""
        actual = tuple([operand.dtype for operand in arguments[:-1]])
        expected = dtypes.get(actual[first_value])
        if actual != expected:
            raise TypeError(
                f"{form.name}: expected {_named(form, expected or dtypes[torch.float32])}, got {_named(form, actual)}"
            )

    def check_shapes(arguments: Tuple[Any, ...]) -> None:
        """Raises ValueError unless the operands have one shape. A kernel would read outside of a smaller one."""
        shape = arguments[first_value].shape
        for index, operand in enumerate(arguments[:-1]):
            if operand.shape != shape and (index >= first_value or operand.dim() > 0):
                shapes = _named(form, [list(operand.shape) for operand in arguments[:-1]])
                raise ValueError(
                    f"{form.name}: expected operands of one shape, and coefficients of no or this shape, got {shapes}"
                )

    def check(arguments: Tuple[Any, ...]) -> None:
        """Raises the errors of :func:`check_dtypes` and :func:`check_shapes`."""
        check_dtypes(arguments)
        check_shapes(arguments)

    def fake(*arguments: Any) -> Any:
        """Returns empty outputs, for fake tensors."""
        check_dtypes(arguments)
        return result(form.empty_outputs(arguments[first_value:first_flag], arguments[first_flag:-1]))

    def in_torch(*arguments: Any) -> Any:
        """Runs ``definition``. The outputs have the strides of :meth:`Form.empty_outputs`, as the outputs of the kernels do."""
        check(arguments)
        outputs = form.empty_outputs(arguments[first_value:first_flag], arguments[first_flag:-1])
        coefficients = on_device(arguments[:first_value], outputs[0].device)
        with torch.no_grad():  # autograd records the autograd.Function around the operator, not the operations inside it
            computed = definition(*coefficients, *arguments[first_value:])
            for output, tensor in zip(outputs, (computed,) if single else computed, strict=True):
                output.copy_(tensor)
        return result(outputs)

    def on_cpu(*arguments: Any) -> Any:
        """Runs the C++ kernel, or ``definition`` if the kernel was not built or the tensors have too many dimensions."""
        if not cpu_scan.is_available():
            cpu_scan.warn_once()
            return in_torch(*arguments)
        check_dtypes(arguments)  # first, because `call` also accepts numbers, and coefficients of another dtype
        if form.flags:  # the outputs of `call` have the strides of Form.empty_outputs only if there is a flag
            outputs = cpu_scan.call(form, arguments[-1], None, *arguments[:-1])  # takes half the time of the code below
            if outputs is not None:
                return result(outputs)
        if arguments[first_value].dim() > cpu_scan.MAX_DIMENSIONS:
            return in_torch(*arguments)
        check_shapes(arguments)
        coefficients, values = arguments[:first_value], arguments[first_value:first_flag]
        return result(cpu_scan.run(form, coefficients, values, arguments[first_flag:-1], arguments[-1]))

    def on_gpu(*arguments: Any) -> Any:
        """Runs the Triton kernel, or ``definition`` if Triton cannot start kernels on this machine."""
        from a2c_compiled.kernels import triton_scan  # not at the top of the file: the CPU needs no triton, which this imports

        if not triton_scan.is_available():
            return in_torch(*arguments)
        check(arguments)
        coefficients, values = arguments[:first_value], arguments[first_value:first_flag]
        return result(triton_scan.run(form, coefficients, values, arguments[first_flag:-1], arguments[-1]))

    def batched(info: Any, in_dims: Tuple[Any, ...], *arguments: Any) -> Tuple[Any, Any]:
        """The rule for vmap, which applies where Dynamo has replaced the autograd.Function by the operator."""
        tensors = batch_first(info.batch_size, in_dims, arguments[:-1], first_value)
        return operator(*tensors, arguments[-1]), vmap_out_dims(len(form.outputs))

    tensors = ", ".join(f"Tensor {operand}" for operand in (*form.coefficients, *form.values, *form.flags))
    results = "Tensor" if single else f"({', '.join('Tensor' for _ in form.outputs)})"
    _library.define(f"{form.name}({tensors}, int dim) -> {results}", tags=(torch.Tag.pt2_compliant_tag,))
    _library.impl(form.name, torch.library.fallthrough_kernel, "Autograd")
    _library.impl(form.name, in_torch, "CompositeExplicitAutograd")
    _library.impl(form.name, on_cpu, "CPU")
    if importlib.util.find_spec("triton") is not None:
        _library.impl(form.name, on_gpu, "CUDA")
    torch.library.register_fake(f"a2c_compiled::{form.name}", fake, lib=_library)
    torch.library.register_vmap(f"a2c_compiled::{form.name}", batched, lib=_library)
    operator = getattr(torch.ops.a2c_compiled, form.name).default

    def call(*arguments: Any) -> Any:
        # For a small scan, the dispatcher takes half as long as everything else. Skip the dispatcher if it would only call the kernel: no
        # dispatch mode, functorch transform or tracer is active, no tensor is of a subclass such as FakeTensor, and no value is a negated
        # view.
        if (
            arguments[-2].is_cpu
            and not torch.compiler.is_dynamo_compiling()
            and dispatch_is_plain()
            and set(map(type, arguments)) == _PLAIN_TYPES
            and not any(map(Tensor.is_neg, arguments[first_value:first_flag]))
        ):
            return on_cpu(*arguments)
        return operator(*arguments)

    return call


_PLAIN_TYPES = {Tensor, int}  # the tensors, and dim


def _named(form: Form, facts: Sequence[Any]) -> str:
    """Returns a text that names the operands of ``form`` with a fact of each."""
    names = (*form.coefficients, *form.values, *form.flags)
    return ", ".join(f"{name} {fact}" for name, fact in zip(names, facts, strict=True))


def on_device(coefficients: Sequence[Tensor], device: torch.device) -> List[Tensor]:
    """Returns ``coefficients`` on ``device``. Kernels accept zero-dimensional CPU coefficients; torch operations on a GPU may not.

    To move a coefficient, the function adds it to a zero on the device. A copy from the CPU would synchronise.
    """
    return [
        coefficient if coefficient.device == device else torch.zeros_like(coefficient, device=device) + coefficient
        for coefficient in coefficients
    ]
