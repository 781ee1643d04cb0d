"""Prepares the steps of a rollout for the formulas: checks, ends of episodes and sequences, and steps that a mask excludes.

The formulas read only the result: tensors that are 0 at excluded steps, and flags that end every trace there. TorchScript compiles this
file.
"""

from typing import Any, Dict, NamedTuple, Optional

import torch
from torch import Tensor

from a2c_compiled._kinds import flag
from a2c_compiled.functional.arguments import Coefficient, check_steps, coefficient, operand, time_dimension
from a2c_compiled.functional.packed import sequence_ends


class PreparedSteps(NamedTuple):
    """The inputs of a formula, from :func:`prepare_steps`.

    Fields:
        reward: ``[*B, T, *F]``, floating.
        values: tensors with the shape and dtype of ``reward``, by argument name.
        done: ``[*B, T, *F]``, bool: the caller's flag, in the order ``order``. Excluded steps keep their flag.
        trace_cut: ``[*B, T, *F]``, bool: True where the trace must not continue to the next step: at an end of an episode or of a packed
            sequence, at excluded steps, and at the step directly before each of them.
        bootstrap_cut: ``[*B, T, *F]``, bool: True where the return does not bootstrap.
        dim: the time dimension as a negative index.
        mask: ``[*B, T, *F]``, bool: False at excluded steps, in the order of the caller. None: no step is excluded.
        order: ``[*B, T, *F]``, int64: for each place along ``dim``, the caller's index of the step that was moved there. Included steps
            come first. None: the steps keep the caller's order.
        place: ``[*B, T, *F]``, int64: for each step in the caller's order, its index along ``dim`` after the move (the inverse of
            ``order``). None if ``order`` is None.
        kernel_mask: ``[*B, T, *F]``, bool: the mask, if the kernel applies it. The other fields are then as without a mask.
    """

    reward: Tensor
    values: Dict[str, Tensor]
    done: Tensor
    trace_cut: Tensor
    bootstrap_cut: Tensor
    dim: int
    mask: Optional[Tensor]
    order: Optional[Tensor]
    place: Optional[Tensor]
    kernel_mask: Optional[Tensor] = None


def prepare_steps(
    reward: Tensor,
    done: Tensor,
    terminated: Optional[Tensor],
    values: Dict[str, Tensor],
    time_dim: int,
    cu_seqlens: Optional[Tensor],
    mask: Optional[Tensor],
    skip_masked: bool,
    name: str = "reward",
    kernel_masks: bool = False,
) -> PreparedSteps:
    """Checks the arguments and returns the inputs of a formula.

    Excluded steps change neither the results at included steps nor any gradient, whatever values they hold. At a gap:

    * ``skip_masked=False``: a trace ends before an excluded step, as at a truncation. The step before bootstraps from its own next value.
    * ``skip_masked=True``: the included steps are moved to the front, so that a trace passes from each included step to the next one.

    Args:
        name: what error messages call ``reward``.
        kernel_masks: whether the caller passes ``kernel_mask`` to a kernel. TorchScript has no kernels.

    Other arguments, shapes, dtypes and errors: see :func:`a2c_compiled.functional.generalized_advantage_estimate`.
    """
    check_steps(reward, {"done": done}, values, terminated, mask, name)
    if not torch.jit.is_scripting():
        skip_masked = flag("skip_masked", skip_masked)
    dim = time_dimension(reward, time_dim)
    bootstrap_cut = done if terminated is None else terminated
    ends = None if cu_seqlens is None else sequence_ends(cu_seqlens, done, dim)
    in_kernel = kernel_masks and not skip_masked and not torch.jit.is_scripting()
    if mask is None or in_kernel:
        trace_cut = done if ends is None else done | ends
        return PreparedSteps(reward, values, done, trace_cut, bootstrap_cut, dim, None, None, None, mask)
    # Excluded entries become 0 before the formula runs. If only the result were masked, the gradient would be 0 * NaN = NaN.
    excluded = ~mask
    reward = reward.masked_fill(excluded, 0.0)
    values = {name: value.masked_fill(excluded, 0.0) for name, value in values.items()}
    order: Optional[Tensor] = None
    place: Optional[Tensor] = None
    if skip_masked:
        order, place = _order_and_place(mask, dim)
        if ends is not None:
            # number: the index of each step's sequence. After the move, a step ends its sequence if the next step has another number.
            last = ends.expand_as(done).to(torch.int64)
            number = (last.cumsum(dim) - last).gather(dim, order)
            ends = number != number.roll(-1, dim)
        reward, done = reward.gather(dim, order), done.gather(dim, order)
        bootstrap_cut, excluded = bootstrap_cut.gather(dim, order), excluded.gather(dim, order)
        values = {name: value.gather(dim, order) for name, value in values.items()}
    # roll wraps around. This changes only the last step, where every trace ends anyway.
    trace_cut = done | excluded | excluded.roll(-1, dim)
    if ends is not None:
        trace_cut = trace_cut | ends
    return PreparedSteps(reward, values, done, trace_cut, bootstrap_cut, dim, mask, order, place)


def kernel_applies(mask: Optional[Tensor], skip_masked: Any) -> bool:
    """Returns whether a kernel computes the formula from the caller's tensors alone: it reads a mask, if traces end there."""
    return type(skip_masked) is bool and (mask is None or not skip_masked)


def _order_and_place(mask: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Returns ``order`` and ``place`` of :class:`PreparedSteps` for a mask.

    Included steps come first, then excluded steps. Both groups keep their order in time.
    """
    included = mask.to(torch.int64)
    excluded = 1 - included
    place = torch.where(mask, included.cumsum(dim) - 1, included.sum(dim, keepdim=True) + excluded.cumsum(dim) - 1)
    steps = torch.ones_like(included).cumsum(dim) - 1
    order = torch.zeros_like(place).scatter(dim, place, steps)  # the inverse permutation of place
    return order, place


def moved_coefficient(name: str, value: Coefficient, steps: PreparedSteps) -> Tensor:
    """Returns ``value`` as :func:`~a2c_compiled.functional.arguments.coefficient` does, in the order of ``steps``, 0 at excluded steps."""
    return _moved(coefficient(name, value, steps.reward), steps)


def moved_operand(name: str, value: Coefficient, steps: PreparedSteps) -> Tensor:
    """Returns ``value`` as :func:`~a2c_compiled.functional.arguments.operand` does, in the order of ``steps``, 0 at excluded steps."""
    return _moved(operand(name, value, steps.reward), steps)


def _moved(tensor: Tensor, steps: PreparedSteps) -> Tensor:
    mask = steps.mask
    if mask is None or tensor.dim() == 0:
        return tensor
    return moved(tensor.expand_as(mask).masked_fill(~mask, 0.0), steps.order, steps.dim)


def moved(tensor: Tensor, order: Optional[Tensor], dim: int) -> Tensor:
    """Returns ``tensor`` in the ``order`` of :class:`PreparedSteps`; unchanged if it has one element or ``order`` is None."""
    if order is None or tensor.numel() == 1:
        return tensor
    return tensor.expand_as(order).gather(dim, order)


def in_callers_order(result: Tensor, steps: PreparedSteps) -> Tensor:
    """Returns the ``result`` of a formula in the order of the caller, with 0 at excluded steps."""
    place = steps.place
    if place is not None:
        result = result.gather(steps.dim, place)
    return zero_where_excluded(result, steps.mask)


def zero_where_excluded(result: Tensor, mask: Optional[Tensor]) -> Tensor:
    """Returns ``result`` with 0 where ``mask`` is False. A mask of None excludes nothing."""
    return result if mask is None else result.masked_fill(~mask, 0.0)


def masked_product(a: Tensor, b: Tensor, cut: Tensor) -> Tensor:
    """Returns ``a * b``, and 0 where ``cut``. NaN and infinity there reach neither the result nor a gradient.

    The code masks the factors. A mask of the product would leave NaN in the gradients, because each is a product with the other factor.
    A number ``a`` without gradient needs no mask.
    """
    if a.dim() == 0 and not a.requires_grad:
        return (a * b).masked_fill(cut, 0.0) if b.dim() == 0 else a * b.masked_fill(cut, 0.0)
    return a.masked_fill(cut, 0.0) * b.masked_fill(cut, 0.0)
