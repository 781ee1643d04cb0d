"""Makes a differentiable function of a fused form: a forward kernel, a backward kernel, and a definition in torch for all other cases.

A form is a recurrence along time with its inputs and outputs, see :mod:`a2c_compiled.kernels.scan_forms`.
"""

from typing import Any, Callable, Optional, Sequence, Tuple

import torch
from torch import Tensor

from a2c_compiled._exporting import is_exporting
from a2c_compiled._torch_internals import dispatch_is_plain
from a2c_compiled.kernels.scan_forms import Form, masked
from a2c_compiled.ops.registration import on_device, register
from a2c_compiled.ops.transforms import batch_first, fresh_views, vmap_out_dims


def fused_scan(form: Form, backward_form: Form, definition: Callable[..., Any]) -> Callable[..., Any]:
    """Returns a differentiable function that computes ``definition`` with kernels, with and without a mask.

    The kernel of ``form`` computes the outputs. The kernel of ``backward_form`` computes the gradients of the values. No kernel computes
    gradients of coefficients or gradients of gradients; autograd differentiates ``definition`` for these. Under ``torch.export`` the
    function runs ``definition``.

    Names connect the two forms. The operand ``grad_<name>`` of the backward form is the gradient of the output ``name``; any other operand
    is an input or an output of ``form``.

    Args:
        form: the forward form. Shapes and dtypes: see :class:`a2c_compiled.kernels.scan_forms.Form`.
        backward_form: the backward form. Its outputs are the gradients of the values of ``form``, each named ``grad_<value>``. It may leave
            out an input of ``form`` as an operand if no gradient depends on it.
        definition: computes the outputs of ``form`` in differentiable torch operations, from the arguments of the result.

    Returns:
        A function of ``(coefficients..., values..., flags..., dim, mask=None)``, with ``dim`` negative. With a mask it computes
        :func:`masked(form) <a2c_compiled.kernels.scan_forms.masked>`. Where it runs an operator, it raises TypeError for an operand of
        another dtype, and ValueError for one of another shape, than the form says. Under ``torch.export`` it checks nothing.
    """
    without_mask = _fused_scan(form, backward_form, definition)
    with_mask = _fused_scan(masked(form), masked(backward_form), _masked_definition(form, definition))

    def call(*arguments: Any, mask: Optional[Tensor] = None) -> Any:
        return without_mask(*arguments) if mask is None else with_mask(*arguments[:-1], mask, arguments[-1])

    return call


def _masked_definition(form: Form, definition: Callable[..., Any]) -> Callable[..., Any]:
    """Returns the definition of ``masked(form)``, for the ``definition`` of ``form``."""
    first_value, first_flag = len(form.coefficients), len(form.coefficients) + len(form.values)

    def masked_definition(*arguments: Any) -> Any:
        *tensors, mask, dim = arguments
        excluded = ~mask
        # If only the results were masked, the gradients would be 0 * NaN = NaN.
        coefficients = [c.masked_fill(excluded, 0.0) if c.dim() > 0 else c for c in tensors[:first_value]]
        values = [value.masked_fill(excluded, 0.0) for value in tensors[first_value:first_flag]]
        done, *terminated = (flag | excluded for flag in tensors[first_flag:])
        # roll wraps around. This changes only the last step, where every trace ends anyway.
        results = definition(*coefficients, *values, done | excluded.roll(-1, dim), *terminated, dim)
        if isinstance(results, Tensor):
            return results.masked_fill(excluded, 0.0)
        return tuple(result.masked_fill(excluded, 0.0) for result in results)

    return masked_definition


def _fused_scan(form: Form, backward_form: Form, definition: Callable[..., Any]) -> Callable[..., Any]:
    """Returns what :func:`fused_scan` returns, without the argument ``mask``; ``form`` itself may have one."""
    inputs = (*form.coefficients, *form.values, *form.flags)
    backward_inputs = (*backward_form.coefficients, *backward_form.values, *backward_form.flags)
    num_coefficients = len(form.coefficients)
    num_variables = num_coefficients + len(form.values)
    num_backward_variables = num_coefficients + len(backward_form.values)

    def gradients(tensors: Sequence[Tensor], grad_outputs: Sequence[Tensor], dim: int) -> Tuple[Tensor, ...]:
        """Differentiates ``definition``: returns the gradients of coefficients and values."""
        flags = tensors[num_variables:]
        variables = on_device(tensors[:num_variables], flags[0].device)
        pullback = torch.func.vjp(lambda *variables: definition(*variables, *flags, dim), *variables)[1]
        return pullback(grad_outputs[0] if len(grad_outputs) == 1 else tuple(grad_outputs))

    def backward_definition(*arguments: Any) -> Any:
        """Computes the outputs of ``backward_form`` with :func:`gradients`."""
        operands = dict(zip(backward_inputs, arguments, strict=False))
        grad_outputs = [operands[f"grad_{output}"] for output in form.outputs]
        # No gradient depends on an input that the backward form leaves out, so zeros replace it.
        tensors = [operands[name] if name in operands else torch.zeros_like(grad_outputs[0]) for name in inputs]
        grad_inputs = gradients(tensors, grad_outputs, arguments[-1])
        by_name = {f"grad_{name}": gradient for name, gradient in zip(inputs, grad_inputs, strict=False)}
        outputs = tuple(by_name[name] for name in backward_form.outputs)
        return outputs[0] if len(outputs) == 1 else outputs

    def batched(info: Any, in_dims: Tuple[Any, ...], arguments: Sequence[Any]) -> Tuple[Any, ...]:
        """Returns ``arguments`` with vmap's dimension first in every tensor."""
        return *batch_first(info.batch_size, in_dims, arguments[:-1], num_coefficients), arguments[-1]

    forward_op = register(form, definition)
    backward_op = register(backward_form, backward_definition)

    class Backward(torch.autograd.Function):
        """Computes the gradients of the values. They are differentiable, for gradients of gradients."""

        @staticmethod
        def forward(*arguments: Any) -> Any:
            return backward_op(*arguments)

        @staticmethod
        def setup_context(ctx: Any, inputs: Tuple[Any, ...], output: Any) -> None:
            ctx.save_for_backward(*inputs[:-1])
            ctx.dim = inputs[-1]

        @staticmethod
        def backward(ctx: Any, *grads: Tensor) -> Tuple[Any, ...]:
            tensors = ctx.saved_tensors
            variables, flags = tensors[:num_backward_variables], tensors[num_backward_variables:]
            pullback = torch.func.vjp(lambda *variables: backward_definition(*variables, *flags, ctx.dim), *variables)[1]
            grad_variables = pullback(grads[0] if len(grads) == 1 else grads)
            return *grad_variables, *(None for _ in flags), None  # flags and dim have no gradient

        @staticmethod
        def vmap(info: Any, in_dims: Tuple[Any, ...], *arguments: Any) -> Tuple[Any, Any]:
            return Backward.apply(*batched(info, in_dims, arguments)), vmap_out_dims(len(backward_form.outputs))

    class Fused(torch.autograd.Function):
        """Computes the outputs of ``form``. The class supports torch.func transforms."""

        @staticmethod
        def forward(*arguments: Any) -> Any:
            return forward_op(*arguments)

        @staticmethod
        def setup_context(ctx: Any, arguments: Tuple[Any, ...], output: Any) -> None:
            ctx.dim = arguments[-1]
            available = dict(zip(inputs, arguments, strict=False))  # by name; `arguments` also has dim
            available.update(zip(form.outputs, output if isinstance(output, tuple) else (output,), strict=True))
            ctx.needs_coefficient_gradients = any(ctx.needs_input_grad[:num_coefficients])
            needed = inputs if ctx.needs_coefficient_gradients else [name for name in backward_inputs if name in available]
            ctx.save_for_backward(*(available[name] for name in needed))

        @staticmethod
        def backward(ctx: Any, *grads: Tensor) -> Tuple[Any, ...]:
            no_gradients = (None,) * (len(form.flags) + 1)  # for flags and dim
            tensors = ctx.saved_tensors
            if ctx.needs_coefficient_gradients:
                return *gradients(tensors, grads, ctx.dim), *no_gradients
            saved = iter(tensors)
            grad_outputs = {f"grad_{output}": grad for output, grad in zip(form.outputs, grads, strict=True)}
            # Autograd enables gradients here if the caller wants to differentiate this backward (create_graph=True). Dynamo cannot trace
            # an autograd.Function inside the backward of another one, and a compiled graph has no second derivative.
            create_graph = torch.is_grad_enabled() and not torch.compiler.is_dynamo_compiling()
            backward = Backward.apply if create_graph else backward_op
            results = backward(
                *[grad_outputs[name] if name in grad_outputs else next(saved) for name in backward_inputs], ctx.dim
            )
            by_name = dict(zip(backward_form.outputs, (results,) if isinstance(results, Tensor) else results, strict=True))
            grad_values = [by_name[f"grad_{value}"] for value in form.values]
            return *(None for _ in form.coefficients), *grad_values, *no_gradients

        @staticmethod
        def vmap(info: Any, in_dims: Tuple[Any, ...], *arguments: Any) -> Tuple[Any, Any]:
            return Fused.apply(*batched(info, in_dims, arguments)), vmap_out_dims(len(form.outputs))

    class Eager(torch.autograd.Function):
        """Computes what ``Fused`` computes, faster: with a separate ``setup_context``, PyTorch inspects the signature at every call."""

        @staticmethod
        def forward(ctx: Any, *arguments: Any) -> Any:
            output = forward_op(*arguments)
            Fused.setup_context(ctx, arguments, output)
            return output

        backward = Fused.backward

    def call(*arguments: Any) -> Any:
        """Runs ``definition``, the forward operator, ``Fused`` or ``Eager``: the fastest that the current mode and gradients allow."""
        compiling = torch.compiler.is_dynamo_compiling()
        if compiling or not dispatch_is_plain():
            if is_exporting():
                return definition(*arguments)
            if compiling:
                arguments = (*fresh_views(arguments[:-1]), arguments[-1])
            elif not torch.jit.is_tracing():
                return Fused.apply(*arguments)  # a functorch transform may be active, which needs setup_context and vmap
        if not torch.is_grad_enabled() or not any(tensor.requires_grad for tensor in arguments[:num_variables]):
            return forward_op(*arguments)  # applying an autograd.Function takes longer than a small scan
        return Fused.apply(*arguments) if compiling else Eager.apply(*arguments)

    return call
