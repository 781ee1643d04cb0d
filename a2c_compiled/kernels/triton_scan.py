"""The GPU backend: plans the launches of the Triton kernel from shapes and strides, and runs them.

A form is a recurrence along time with its inputs and outputs, see :mod:`a2c_compiled.kernels.scan_forms`. A launch starts many programs,
each for a block of rows (sequences). If few rows would leave the GPU idle, the plan cuts time into splits, which different programs scan.
Splits need two launches: REDUCE computes the aggregates of the splits, RESUME the outputs. The aggregate of a split is the pair
(decay, offset) that maps the value entering the split to the value leaving it, ``offset + decay * value``.
"""

import functools
import math
import warnings
from dataclasses import dataclass
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple

import torch
import triton  # type: ignore[import-untyped]
import triton.language as tl  # type: ignore[import-untyped]
from torch import Tensor
from triton.runtime import driver  # type: ignore[import-untyped]

from a2c_compiled._precision import working_dtype
from a2c_compiled.kernels.scan_forms import Form
from a2c_compiled.kernels.triton import tuning
from a2c_compiled.kernels.triton.compiled_kernel import Launcher, launcher_from
from a2c_compiled.kernels.triton.forms import DEVICE_FORMS
from a2c_compiled.kernels.triton.kernel import NUMBER, PER_STEP, REDUCE, RESUME, SCALAR, WHOLE, scan_kernel


@dataclass(eq=False)
class Launch:
    """One launch of :func:`scan_kernel`.

    Call it with ``tensors``, the five tuples that :func:`prepare` returns, and ``aligned``, whether the address of every tensor in these
    tuples is a multiple of 16 bytes.
    """

    grid: Tuple[int, int, int]
    # The arguments of the kernel that follow the tensors, in order.
    arguments: Tuple[Any, ...]
    options: Dict[str, Any]
    # The kernel compiled for tensors that are aligned to 16 bytes. The first launch with such tensors sets it.
    compiled: Optional[Launcher] = None

    def __call__(self, tensors: Tuple[Any, ...], aligned: bool) -> None:
        if aligned and self.compiled is not None:
            # Triton's own launch analyses every argument again, which takes longer than the rest of this module.
            self.compiled[self.grid](*tensors, *self.arguments)
            return
        compiled = scan_kernel[self.grid](*tensors, *self.arguments, **self.options)
        if aligned:
            self.compiled = launcher_from(compiled)


class _Plan(NamedTuple):
    """One launch of a form for one set of shapes and strides, or two (REDUCE, then RESUME) if time is split."""

    launches: Tuple[Launch, ...]
    # The shape of each of the two tensors with the aggregates (decays, offsets): [splits - 1, batches * rows]. None: time is not split.
    aggregates: Optional[Tuple[int, int]]
    # Indices, into (values, flags, coefficients) in this order, of the operands whose strides are not one (batch, time, row) triple.
    # `prepare` copies these operands.
    to_copy: Tuple[int, ...]


@functools.cache
def is_available() -> bool:
    """Returns whether Triton can start kernels on this machine. If not, warns once per process, with Triton's message.

    Some versions of Triton build their launcher with a C compiler and the headers of Python and CUDA's driver at the first use.
    """
    try:
        driver.active.get_current_target()
    # RuntimeError: no compiler. CalledProcessError: no headers. AssertionError: no driver.
    except Exception as raised:
        first_line = (str(raised).strip().splitlines() or [""])[0]
        warnings.warn(
            "a2c_compiled: Triton cannot start kernels here, so scans on the GPU run in plain torch, which is slower;"
            f" Triton needs a C compiler (gcc or clang) and Python's headers; it raised {type(raised).__name__}: {first_line}",
            RuntimeWarning,
            stacklevel=2,
        )
        return False
    return True


def run(
    form: Form, coefficients: Sequence[Tensor], values: Sequence[Tensor], flags: Sequence[Tensor], dim: int
) -> Tuple[Tensor, ...]:
    """Computes ``form`` with the Triton kernel. Returns its outputs, with the strides of :meth:`Form.empty_outputs`.

    Shapes and dtypes: see :class:`a2c_compiled.kernels.scan_forms.Form`.

    Args:
        form: the recurrence to compute, one of :data:`~a2c_compiled.kernels.scan_forms.FORMS`.
        coefficients, values, flags: tensors on one device, in the order of the form, not checked. Zero-dimensional
            coefficients may be on the CPU.
        dim: the dimension of time, negative.
    """
    outputs = form.empty_outputs(values, flags)
    if outputs[0].numel() == 0:
        return outputs
    if values[0].is_cuda and values[0].device.index != torch.cuda.current_device():
        with torch.cuda.device(values[0].device):
            _launch_all(form, coefficients, values, flags, outputs, dim)
    else:
        _launch_all(form, coefficients, values, flags, outputs, dim)
    return outputs


def _launch_all(
    form: Form,
    coefficients: Sequence[Tensor],
    values: Sequence[Tensor],
    flags: Sequence[Tensor],
    outputs: Sequence[Tensor],
    dim: int,
) -> None:
    """Prepares and runs the launches of a form, on the current device. Writes ``outputs``."""
    prepared = prepare(form, coefficients, values, flags, outputs, dim)
    if prepared is None:  # no triple of strides describes the outputs: compute on contiguous copies
        coefficients, values, flags = ([tensor.contiguous() for tensor in group] for group in (coefficients, values, flags))
        for output, result in zip(outputs, run(form, coefficients, values, flags, dim), strict=True):
            output.copy_(result)
        return
    launches, tensors = prepared
    addresses = 0  # the bitwise or of all addresses is a multiple of 16 only if each address is
    for group in tensors:
        for tensor in group:
            if isinstance(tensor, Tensor):
                addresses |= tensor.data_ptr()
    for launch in launches:
        launch(tensors, addresses % 16 == 0)


def prepare(
    form: Form,
    coefficients: Sequence[Tensor],
    values: Sequence[Tensor],
    flags: Sequence[Tensor],
    outputs: Sequence[Tensor],
    dim: int,
) -> Optional[Tuple[Tuple[Launch, ...], Tuple[Tuple[Any, ...], ...]]]:
    """Returns the launches of a form, one or two, and the tensors to call each launch with.

    The tensors are five tuples: coefficients (some are numbers), values, flags, outputs, aggregates. Returns None if one
    (batch, time, row) triple of strides cannot describe the outputs.
    """
    reference = outputs[0]
    dtype = working_dtype(reference)
    arguments: List[Any] = []
    modes: List[int] = []
    for coefficient in coefficients:
        if coefficient.dim() == 0 and coefficient.is_cpu and dtype != torch.float64:
            modes.append(NUMBER.value)
            arguments.append(coefficient.item())
            continue
        if coefficient.device != reference.device:
            # Triton passes a Python number as float32, so float64 needs a tensor. torch.full fills on the device; a copy from the CPU
            # would synchronise.
            coefficient = torch.full([], coefficient.item(), dtype=dtype, device=reference.device)
        modes.append(PER_STEP.value if coefficient.dim() else SCALAR.value)
        arguments.append(coefficient)

    operands = [*values, *flags, *arguments]
    plan = _plan(
        form,
        tuple(reference.shape),
        dim,
        reference.dtype,
        reference.device,
        tuple(modes),
        (reference.stride(), *[operand.stride() if isinstance(operand, Tensor) else None for operand in operands]),
        tuning.override,
    )
    if plan is None:
        return None
    for i in plan.to_copy:
        operands[i] = torch.empty_like(reference, dtype=operands[i].dtype).copy_(operands[i])
    first_flag, first_coefficient = len(values), len(values) + len(flags)
    aggregates: Tuple[Tensor, ...] = ()
    if plan.aggregates is not None:
        aggregates = (
            torch.empty(plan.aggregates, dtype=dtype, device=reference.device),
            torch.empty(plan.aggregates, dtype=dtype, device=reference.device),
        )
    return plan.launches, (
        tuple(operands[first_coefficient:]),
        tuple(operands[:first_flag]),
        tuple(operands[first_flag:first_coefficient]),
        tuple(outputs),
        aggregates,
    )


@functools.lru_cache(maxsize=1024)
def _plan(
    form: Form,
    shape: Tuple[int, ...],
    dim: int,
    dtype: torch.dtype,
    device: torch.device,
    modes: Tuple[int, ...],
    layouts: Tuple[Optional[Tuple[int, ...]], ...],
    override: Optional[tuning.Blocks],
) -> Optional[_Plan]:
    """Returns the plan for these shapes and strides. Returns None if one triple of strides cannot describe the outputs.

    Other arguments: the shape, dtype and device of the outputs; ``modes``: MODES of :func:`scan_kernel`.

    Args:
        layouts: the strides of the outputs, then of each value, flag and coefficient. None for a coefficient passed as a number.
        override: tile sizes to use instead of those that :func:`tuning.choose_blocks` returns. None: no override.
    """
    time = len(shape) + dim
    outer, length, inner = math.prod(shape[:time]), shape[time], math.prod(shape[time + 1 :])
    # Merge the dimensions before time into one, and the dimensions after time into one. If only one of these two has more than one
    # element, this one is the rows. If both have, the dimensions after time are the rows and the dimensions before time the batches.
    batches, rows = (1, outer) if inner == 1 else (outer, inner)

    def triple_of(strides: Optional[Tuple[int, ...]]) -> Optional[Tuple[int, int, int]]:
        """Returns the (batch, time, row) triple that describes ``strides``, or None if no triple does."""
        if not strides:  # a number or a zero-dimensional tensor
            return 0, 0, 0
        before = _merged_stride(shape[:time], strides[:time])
        after = _merged_stride(shape[time + 1 :], strides[time + 1 :])
        if before is None or after is None:
            return None
        return (0, strides[time], before) if inner == 1 else (before, strides[time], after)

    output = triple_of(layouts[0])
    if output is None:
        return None
    triples = [triple_of(layout) for layout in layouts[1:]]
    to_copy = tuple(i for i, triple in enumerate(triples) if triple is None)
    strides = (output, *(output if triple is None else triple for triple in triples))  # copies have the strides of the outputs
    # The triples of the tensors with one entry per step. A number has the layout None, a zero-dimensional tensor ().
    data = [output, *(stride for stride, layout in zip(strides[1:], layouts[1:], strict=True) if layout)]
    # Whether one triple describes all these tensors. If so, the kernel receives one triple instead of one per operand.
    shared = all(stride == output for stride in data)

    rows_contiguous = output[2] == 1
    blocks = override or tuning.choose_blocks(
        rows_contiguous, batches, rows, length, dtype.itemsize, len(form.values) + len(form.outputs), *_processors(device)
    )
    # `axis` is the index, in a triple, of the contiguous dimension: 1 (time) or 2 (rows). `vector` is the number of adjacent elements
    # along this dimension that a thread can load at once from every tensor, or 0 if a tensor is not contiguous along this dimension.
    vector = 0
    axis = 2 if rows_contiguous else 1
    # A tile of one element gets no hints: Triton's analysis of them ends the process or raises an error.
    if all(stride[axis] == 1 for stride in data) and blocks.rows * blocks.steps * blocks.chunks > 1:
        # `vector` must divide the strides along the other two axes: then each group of `vector` elements is aligned in every row and step.
        others = [stride[i] for stride in data for i in range(3) if i != axis]
        vector = math.gcd(blocks.vector, rows if rows_contiguous else length, *others)

    tiles = triton.cdiv(length, blocks.chunks * blocks.steps)
    tiles_per_split = triton.cdiv(tiles, blocks.splits)
    splits = triton.cdiv(tiles, tiles_per_split)
    extents = [sum((size - 1) * step for size, step in zip((batches, length, rows), stride, strict=True)) for stride in data]
    unrolled = rows_contiguous or blocks.vector == 1
    layout = (
        shared,
        vector,
        rows_contiguous,
        bool(form.unmasked_name),
        unrolled and max(extents) < 2**31,
        rows % blocks.rows == 0 and splits * tiles_per_split * blocks.chunks * blocks.steps == length,
        batches == 1,
        unrolled,
    )
    device_form = DEVICE_FORMS[form.unmasked_name or form.name]

    def launch(split_programs: int, launch_mode: tl.constexpr) -> Launch:
        """Returns the launch in which ``split_programs`` programs per block of rows handle the time splits."""
        arguments = (
            strides[:1] if shared else strides,
            rows,
            length,
            tiles_per_split,
            splits,
            device_form.decay,
            device_form.source,
            device_form.outputs,
            device_form.needs_next and launch_mode.value != REDUCE.value,
            form.reverse,
            launch_mode.value,
            modes,
            layout,
            tl.float64 if dtype == torch.float64 else tl.float32,
            blocks.rows,
            blocks.steps,
            blocks.chunks,
            triton.next_power_of_2(splits),
            tiles == 1 and blocks.chunks == 1,
        )
        grid = (batches * triton.cdiv(rows, blocks.rows), split_programs, 1)
        # Fused multiply-adds are Triton's default. Passing it keeps launches independent of TRITON_DEFAULT_FP_FUSION.
        return Launch(grid, arguments, {"num_warps": blocks.num_warps, "enable_fp_fusion": True})

    if splits == 1:
        return _Plan((launch(1, WHOLE),), None, to_copy)
    return _Plan((launch(splits - 1, REDUCE), launch(splits, RESUME)), (splits - 1, batches * rows), to_copy)


def _processors(device: torch.device) -> Tuple[int, ...]:
    """Returns (number of multiprocessors, warp size), or an empty tuple for the CPU, on which Triton's interpreter runs."""
    if device.type != "cuda":
        return ()
    properties = torch.cuda.get_device_properties(device)
    return properties.multi_processor_count, properties.warp_size


def _merged_stride(sizes: Sequence[int], strides: Sequence[int]) -> Optional[int]:
    """Returns the stride of these dimensions merged into one, or None if they cannot be merged without a copy."""
    merged, extent = 0, 1
    for size, stride in zip(reversed(sizes), reversed(strides), strict=True):
        if size == 1:
            continue
        if extent == 1:
            merged = stride
        elif stride != merged * extent:
            return None
        extent *= size
    return merged
