"""Registration of the forms as operators, and the choice of a backend by device."""

import importlib.util
from typing import Any, Callable, List, Sequence, Tuple

import torch
from torch import Tensor

from a2c_compiled._torch_internals import nothing_watches
from a2c_compiled.kernels import cpu_scan
from a2c_compiled.kernels.scan_forms import Form

_library = torch.library.Library("a2c_compiled", "DEF")  # lives as long as the module: its end would unregister the operators


def register(form: Form, plain: Callable[..., Any]) -> Callable[..., Any]:
    """``torch.ops.a2c_compiled.<name of form>(coefficients..., values..., flags..., dim)``: one node in any captured graph.

    What is returned calls the operator, or the CPU's kernel itself where nobody would see the operator in between.

    ``plain`` computes the same from the same arguments in torch, for devices without a kernel. The operator has no gradient of
    its own: ``torch.func`` transforms accept only that of a :class:`torch.autograd.Function`, which goes around it.
    """
    first_value = len(form.coefficients)
    first_flag = first_value + len(form.values)
    single = len(form.outputs) == 1

    def result(outputs: Tuple[Tensor, ...]) -> Any:
        return outputs[0] if single else outputs

    def fake(*arguments: Any) -> Any:
        return result(form.empty_outputs(arguments[first_value:first_flag], arguments[first_flag:-1]))

    def in_torch(*arguments: Any) -> Any:
        outputs = form.empty_outputs(arguments[first_value:first_flag], arguments[first_flag:-1])
        coefficients = on_device(arguments[:first_value], outputs[0].device)
        with torch.no_grad():  # nothing is to be recorded inside an operator
            computed = plain(*coefficients, *arguments[first_value:])
            for output, tensor in zip(outputs, (computed,) if single else computed, strict=True):
                output.copy_(tensor)
        return result(outputs)

    def on_cpu(*arguments: Any) -> Any:
        if not cpu_scan.is_available():
            cpu_scan.warn_once()
            return in_torch(*arguments)
        if arguments[first_value].dim() > cpu_scan.MOST_DIMENSIONS:
            return in_torch(*arguments)
        coefficients, values = arguments[:first_value], arguments[first_value:first_flag]
        return result(cpu_scan.run(form, coefficients, values, arguments[first_flag:-1], arguments[-1]))

    def on_gpu(*arguments: Any) -> Any:
        from a2c_compiled.kernels import triton_scan  # imports triton, which a CPU does without

        coefficients, values = arguments[:first_value], arguments[first_value:first_flag]
        return result(triton_scan.run(form, coefficients, values, arguments[first_flag:-1], arguments[-1]))

    tensors = ", ".join(f"Tensor {operand}" for operand in (*form.coefficients, *form.values, *form.flags))
    results = "Tensor" if single else f"({', '.join('Tensor' for _ in form.outputs)})"
    _library.define(f"{form.name}({tensors}, int dim) -> {results}", tags=(torch.Tag.pt2_compliant_tag,))
    _library.impl(form.name, torch.library.fallthrough_kernel, "Autograd")
    _library.impl(form.name, in_torch, "CompositeExplicitAutograd")
    _library.impl(form.name, on_cpu, "CPU")
    if importlib.util.find_spec("triton") is not None:
        _library.impl(form.name, on_gpu, "CUDA")
    torch.library.register_fake(f"a2c_compiled::{form.name}", fake, lib=_library)
    operator = getattr(torch.ops.a2c_compiled, form.name).default

    def call(*arguments: Any) -> Any:
        # The dispatcher takes half as long as all the rest of a small scan: it is passed by where it would have nothing to do,
        # with no mode or transform at work, no subclass such as a fake tensor, no view whose numbers are negated as they are read.
        if (
            arguments[-2].is_cpu
            and not torch.compiler.is_dynamo_compiling()
            and nothing_watches()
            and set(map(type, arguments)) == _PLAIN
            and not any(map(Tensor.is_neg, arguments[first_value:first_flag]))
        ):
            return on_cpu(*arguments)
        return operator(*arguments)

    return call


_PLAIN = {Tensor, int}


def on_device(coefficients: Sequence[Tensor], device: torch.device) -> List[Tensor]:
    """Numbers in host memory, which kernels take as they are, for operations that want all tensors in one place.

    Added to zero, not copied: for a copy from its memory the host would wait.
    """
    return [one if one.device == device else torch.zeros_like(one, device=device) + one for one in coefficients]
