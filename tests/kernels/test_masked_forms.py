"""Every form with a mask equals the form without one on data in which the excluded steps are 0 and end the trace.

``tests/functional/test_masks.py`` compares the functions with the oracle on the data without the excluded steps.
"""

import itertools

import pytest
import torch
from loops import loop_over
from torch import Tensor

from a2c_compiled.kernels import cpu_scan, scan_forms
from a2c_compiled.kernels.scan_forms import MASKED_FORMS, Form

UNMASKED = {form.name: form for form in scan_forms.FORMS}
# Shapes for each of the C++ loops, and the time dimension.
SHAPES = [
    ((9, 4), -2),
    ((4, 9), -1),
    ((1, 130), -1),
    ((3, 70), -1),
    ((9, 129), -1),
    ((1, 1), -1),
    ((2, 5, 3), -2),
    ((83, 5), -1),
]

every_form = pytest.mark.parametrize("form", MASKED_FORMS, ids=lambda form: form.name)


class Case:
    """Random operands with NaN at the excluded steps, and the results of the form without a mask."""

    def __init__(self, form: Form, shape, dim: int, per_step: bool, dtype: torch.dtype) -> None:
        generator = torch.Generator().manual_seed(0)

        def random(shape) -> Tensor:
            return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

        mask = torch.rand(shape, generator=generator) < 0.7
        excluded = ~mask
        next_excluded = torch.cat([excluded.narrow(dim, 1, shape[dim] - 1), torch.zeros_like(excluded.narrow(dim, 0, 1))], dim)
        values = [random(shape) for _ in form.values]
        coefficients = [random(shape if per_step else ()).abs().clamp_max(1.1) for _ in form.coefficients]
        flags = [torch.rand(shape, generator=generator) < 0.15 for _ in form.flags[:-1]]

        def filled(tensor: Tensor, value: float) -> Tensor:
            return tensor.masked_fill(excluded, value) if tensor.dim() > 0 else tensor

        done, *terminated = (flag | excluded for flag in flags)
        zero = [[filled(tensor, 0.0) for tensor in tensors] for tensors in (coefficients, values)]
        outputs = cpu_scan.run(UNMASKED[form.unmasked_name], *zero, [done | next_excluded, *terminated], dim)
        self.expected = [output.masked_fill(excluded, 0.0) for output in outputs]
        self.operands = [
            *([filled(tensor, torch.nan) for tensor in tensors] for tensors in (coefficients, values)),
            [*flags, mask],
        ]

    def check(self, outputs) -> None:
        torch.testing.assert_close(list(outputs), self.expected)


@every_form
@loop_over("dtype", [torch.float64, torch.float32])
@loop_over("per_step", [False, True])
@loop_over(("shape", "dim"), SHAPES)
def test_cpp_equals_the_form_without_a_mask(form, shape, dim, per_step, dtype):
    case = Case(form, shape, dim, per_step, dtype)
    case.check(cpu_scan.run(form, *case.operands, dim))
    strided = [[torch.stack([x, x], -1)[..., 0] if x.dim() else x for x in operands] for operands in case.operands]
    case.check(cpu_scan.run(form, *strided, dim))


@pytest.mark.parametrize("per_step", [False, True], ids=["numbers", "per step"])
@every_form
def test_plain_torch_equals_the_form_without_a_mask(form, per_step, monkeypatch):
    case = Case(form, (9, 4), -2, per_step, torch.float64)
    if "value_target" in form.values:  # the definition computes it anew
        targets = case.operands[1][form.values.index("value_target")]
        values = dict(zip(form.values, case.operands[1], strict=True))
        vtrace = scan_forms.masked(scan_forms.VTRACE)
        forward = cpu_scan.run(vtrace, case.operands[0], [values[name] for name in vtrace.values], case.operands[2], -2)
        targets.copy_(forward[1])
        case.expected = cpu_scan.run(form, *case.operands, -2)
    monkeypatch.setattr(cpu_scan, "_extension", None)
    monkeypatch.setattr(cpu_scan, "warn_once", lambda: None)
    outputs = getattr(torch.ops.a2c_compiled, form.name)(*itertools.chain(*case.operands), -2)
    torch.testing.assert_close(outputs, tuple(case.expected) if len(form.outputs) > 1 else case.expected[0])


TRITON_CASES = [
    pytest.param(shape, dim, splits, id=f"{shape}-{splits}", marks=() if (shape, splits) == ((4, 9), 3) else pytest.mark.slow)
    for shape, dim in (((9, 4), -2), ((4, 9), -1))
    for splits in (1, 3)
]


@pytest.mark.parametrize(("shape", "dim", "splits"), TRITON_CASES)
@every_form
def test_triton_equals_the_form_without_a_mask(form, shape, dim, splits):
    triton_scan = pytest.importorskip("a2c_compiled.kernels.triton_scan")
    from a2c_compiled.kernels.triton import tuning

    case = Case(form, shape, dim, splits == 3, torch.float64)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    operands = [[x.to(device) if x.dim() else x for x in group] for group in case.operands]
    with tuning.forced(tuning.Blocks(rows=4, steps=2 if splits == 3 else 4, chunks=2, num_warps=1, vector=2, splits=splits)):
        outputs = triton_scan.run(form, *operands, dim)
    case.check(output.cpu() for output in outputs)


@every_form
def test_operator_passes_opcheck(form):
    case = Case(form, (6, 9), -2, False, torch.float32)
    outcome = torch.library.opcheck(getattr(torch.ops.a2c_compiled, form.name).default, (*itertools.chain(*case.operands), -2))
    assert set(outcome.values()) == {"SUCCESS"}
