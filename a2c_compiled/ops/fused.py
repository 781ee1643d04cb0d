"""A fused form as a differentiable function: one kernel forward, one backward, and its definition for everything beyond."""

from typing import Any, Callable, Sequence, Tuple

import torch
from torch import Tensor

from a2c_compiled._exporting import is_exporting
from a2c_compiled._torch_internals import nothing_watches
from a2c_compiled.kernels.scan_forms import Form
from a2c_compiled.ops.registration import on_device, register
from a2c_compiled.ops.transforms import batch_first, seen_by_dynamo


def fused_scan(form: Form, backward_form: Form, definition: Callable[..., Any]) -> Callable[..., Any]:
    """``definition``, computed by the kernel of ``form`` and differentiated by that of ``backward_form``.

    The backward's operands are found by name: the gradient of an output is ``grad_<name>``, any other is an input or output of the
    forward. What no kernel does, gradients to coefficients and of gradients, comes from differentiating ``definition``.

    Args:
        form: its function takes ``(coefficients..., values..., flags..., dim)``.
        backward_form: its outputs are gradients of ``form``'s values, each named ``grad_<value>``; a value that it does not take is
            one on which they do not depend.
        definition: the same function in differentiable torch operations.
    """
    inputs = (*form.coefficients, *form.values, *form.flags)
    backward_inputs = (*backward_form.coefficients, *backward_form.values, *backward_form.flags)
    num_coefficients = len(form.coefficients)
    num_variables = num_coefficients + len(form.values)
    num_backward_variables = num_coefficients + len(backward_form.values)

    def gradients(tensors: Sequence[Tensor], grad_outputs: Sequence[Tensor], dim: int) -> Tuple[Tensor, ...]:
        """Of ``definition``, to coefficients and values."""
        flags = tensors[num_variables:]
        variables = on_device(tensors[:num_variables], flags[0].device)
        pullback = torch.func.vjp(lambda *variables: definition(*variables, *flags, dim), *variables)[1]
        return pullback(grad_outputs[0] if len(grad_outputs) == 1 else tuple(grad_outputs))

    def backward_definition(*arguments: Any) -> Any:
        given = dict(zip(backward_inputs, arguments, strict=False))
        grad_outputs = [given[f"grad_{output}"] for output in form.outputs]
        tensors = [given[name] if name in given else torch.zeros_like(grad_outputs[0]) for name in inputs]
        found = gradients(tensors, grad_outputs, arguments[-1])
        by_name = {f"grad_{name}": gradient for name, gradient in zip(inputs, found, strict=False)}
        outputs = tuple(by_name[name] for name in backward_form.outputs)
        return outputs[0] if len(outputs) == 1 else outputs

    def batched(info: Any, in_dims: Tuple[Any, ...], arguments: Sequence[Any]) -> Tuple[Any, ...]:
        return *batch_first(info.batch_size, in_dims, arguments[:-1], num_coefficients), arguments[-1]

    forward_op = register(form, definition)
    backward_op = register(backward_form, backward_definition)

    class Backward(torch.autograd.Function):
        """The gradients to the values, differentiable in turn."""

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
            return *pullback(grads[0] if len(grads) == 1 else grads), *(None for _ in flags), None

        @staticmethod
        def vmap(info: Any, in_dims: Tuple[Any, ...], *arguments: Any) -> Tuple[Any, Any]:
            return Backward.apply(*batched(info, in_dims, arguments)), _first(backward_form)

    class Fused(torch.autograd.Function):
        """The outputs of the form."""

        @staticmethod
        def forward(*arguments: Any) -> Any:
            return forward_op(*arguments)

        @staticmethod
        def setup_context(ctx: Any, inputs_: Tuple[Any, ...], output: Any) -> None:
            ctx.dim = inputs_[-1]
            available = dict(zip(inputs, inputs_, strict=False))
            available.update(zip(form.outputs, output if isinstance(output, tuple) else (output,), strict=True))
            ctx.of_coefficients = any(ctx.needs_input_grad[:num_coefficients])
            needed = inputs if ctx.of_coefficients else [name for name in backward_inputs if name in available]
            ctx.save_for_backward(*(available[name] for name in needed))

        @staticmethod
        def backward(ctx: Any, *grads: Tensor) -> Tuple[Any, ...]:
            not_differentiable = (None,) * (len(form.flags) + 1)
            tensors = ctx.saved_tensors
            if ctx.of_coefficients:
                return *gradients(tensors, grads, ctx.dim), *not_differentiable
            saved = iter(tensors)
            given = {f"grad_{output}": grad for output, grad in zip(form.outputs, grads, strict=True)}
            # Gradients are enabled here where these gradients are to be differentiated. Dynamo traces no autograd.Function
            # inside the backward of another, and a compiled graph has no second derivative.
            again = torch.is_grad_enabled() and not torch.compiler.is_dynamo_compiling()
            backward = Backward.apply if again else backward_op
            found = backward(*[given[name] if name in given else next(saved) for name in backward_inputs], ctx.dim)
            by_name = dict(zip(backward_form.outputs, (found,) if isinstance(found, Tensor) else found, strict=True))
            of_values = [by_name[f"grad_{value}"] for value in form.values]
            return *(None for _ in form.coefficients), *of_values, *not_differentiable

        @staticmethod
        def vmap(info: Any, in_dims: Tuple[Any, ...], *arguments: Any) -> Tuple[Any, Any]:
            return Fused.apply(*batched(info, in_dims, arguments)), _first(form)

    class Eager(torch.autograd.Function):
        """As Fused, without what a separate setup_context costs at every call: PyTorch looks up the signature of forward anew."""

        @staticmethod
        def forward(ctx: Any, *arguments: Any) -> Any:
            output = forward_op(*arguments)
            Fused.setup_context(ctx, arguments, output)
            return output

        backward = Fused.backward

    def call(*arguments: Any) -> Any:
        compiling = torch.compiler.is_dynamo_compiling()
        if compiling or not nothing_watches():
            if is_exporting():
                return definition(*arguments)
            if compiling:
                arguments = (*seen_by_dynamo(arguments[:-1]), arguments[-1])
            elif not torch.jit.is_tracing():
                return Fused.apply(*arguments)  # a transform may be among what watches
        if not torch.is_grad_enabled() or not any(tensor.requires_grad for tensor in arguments[:num_variables]):
            return forward_op(*arguments)  # an autograd.Function costs more than a small scan does
        return Fused.apply(*arguments) if compiling else Eager.apply(*arguments)

    return call


def _first(form: Form) -> Any:
    return 0 if len(form.outputs) == 1 else (0,) * len(form.outputs)
