"""The Triton kernels, form by form, against the float64 loops: on a GPU where there is one, else in Triton's interpreter."""

import itertools
import math

import oracle
import pytest
import torch
from tolerances import assert_close
from torch import Tensor

pytest.importorskip("triton")

from a2c_compiled._precision import working_dtype
from a2c_compiled.kernels import scan_forms, triton_scan
from a2c_compiled.kernels.scan_forms import Form
from a2c_compiled.kernels.triton import compiled_kernel, tuning

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

# The interpreter of triton 3.6 makes numbers of arrays in a way that newer versions of numpy warn about.
pytestmark = [pytest.mark.filterwarnings("ignore:Conversion of an array with ndim > 0:DeprecationWarning")]
if DEVICE == "cuda":
    pytestmark.append(pytest.mark.gpu)

# One tile and many, one chunk and many, one split and many, wherever the shape below is long enough.
BLOCKS = {
    "one tile": tuning.Blocks(rows=4, steps=32, chunks=1, num_warps=1, vector=4),
    "tiles": tuning.Blocks(rows=2, steps=4, chunks=1, num_warps=1, vector=2),
    "chunks": tuning.Blocks(rows=4, steps=2, chunks=4, num_warps=1, vector=1),
    "splits": tuning.Blocks(rows=4, steps=2, chunks=2, num_warps=1, vector=2, splits=3),
}
SHAPES = [
    ((19, 3), -2),
    ((3, 20), -1),
    ((2, 7, 3), -2),
    ((5, 11, 1), -2),
    ((1, 4), -2),
    ((1, 13), -1),
    ((13,), -1),
    ((2, 3, 6, 2), -3),
]


class Case:
    """Operands of a form in its dtype, and what the oracle makes of the very same numbers."""

    def __init__(self, form: Form, shape, dim, dtype=torch.float32, per_step=False, layouts=(lambda tensor: tensor,)) -> None:
        self.form, self.dim, self.dtype = form, dim, dtype
        generator = torch.Generator().manual_seed(math.prod(shape) + dim)
        wide = working_dtype(torch.empty(0, dtype=dtype))

        def coefficient(number: float) -> Tensor:
            if not per_step:
                return torch.tensor(number, dtype=wide)
            # Half of them expanded: one entry per step, for all rows.
            sizes = [size if i == len(shape) + dim or number > 0.9 else 1 for i, size in enumerate(shape)]
            return (torch.rand(sizes, generator=generator) * 0.5 + number / 2).to(wide).expand(shape)

        numbers = {"gamma": 0.95, "lmbda": 0.9, "rho_thresh": 1.1, "c_thresh": 1.0, "pg_rho_thresh": 1.4}
        terminated = torch.rand(shape, generator=generator) < 0.15
        flags = {"terminated": terminated, "done": terminated | (torch.rand(shape, generator=generator) < 0.15)}
        values = {name: torch.randn(shape, generator=generator).to(dtype) for name in form.values}
        if "decay" in values:
            values["decay"] = values["decay"].abs().clamp_max(1.2).masked_fill(flags["done"], 0.0)
        self.coefficients = {name: coefficient(numbers[name]) for name in form.coefficients}
        layout = itertools.cycle(layouts)
        self.values = {name: next(layout)(value) for name, value in values.items()}
        self.flags = {name: next(layout)(flags[name]) for name in form.flags}
        if "value_target" in form.values:
            self.values["value_target"] = self.forward(self.inputs())[1].to(dtype)

    def inputs(self) -> dict[str, Tensor]:
        names = [name for name in self.values if not name.startswith("grad_") and name != "value_target"]
        return {name: self.values[name].double() for name in names}

    def forward(self, inputs: dict[str, Tensor]) -> tuple[Tensor, ...]:
        c = {name: value.double() for name, value in self.coefficients.items()}
        name = self.form.name.removesuffix("_backward")
        if name.startswith("linear_scan"):
            return (oracle.linear_scan(inputs["x"], inputs["decay"], self.dim, self.form.reverse),)
        if name == "reward2go":
            return (oracle.reward2go(inputs["reward"], self.flags["done"], c["gamma"], self.dim),)
        arguments = {**c, **inputs, **self.flags, "time_dim": self.dim}
        if name == "td_lambda":
            return (oracle.td_lambda_return_estimate(**arguments),)
        if name == "gae":
            return oracle.generalized_advantage_estimate(**arguments)
        return oracle.vtrace_advantage_estimate(**arguments)

    def expected(self) -> tuple[Tensor, ...]:
        if not self.form.name.endswith("_backward"):
            return self.forward(self.inputs())
        shape = next(iter(self.values.values())).shape
        names = [name.removeprefix("grad_") for name in self.form.outputs]
        inputs = self.inputs()
        for name in ("log_pi", "log_mu", "state_value", "next_state_value", "reward"):
            inputs.setdefault(name, torch.zeros(shape, dtype=torch.float64))
        needed = set(forms_by_name[self.form.name.removesuffix("_backward")].values)
        inputs = {name: value.requires_grad_() for name, value in inputs.items() if name in needed}
        grads = [value.double() for name, value in self.values.items() if name.startswith("grad_")]
        return torch.autograd.grad(self.forward(inputs), [inputs[name] for name in names], grads)

    def actual(self) -> tuple[Tensor, ...]:
        # A number stays on the host: so it comes from functions and modules.
        coefficients = [c if c.dim() == 0 else c.to(DEVICE) for c in self.coefficients.values()]
        values = [_moved(value) for value in self.values.values()]
        flags = [_moved(flag) for flag in self.flags.values()]
        return triton_scan.run(self.form, coefficients, values, flags, self.dim)

    def check(self) -> None:
        # The interpreter cuts a bfloat16 off where a GPU rounds it: twice the error.
        for name, actual, expected in zip(self.form.outputs, self.actual(), self.expected(), strict=True):
            assert actual.dtype == self.dtype
            assert_close(actual.cpu(), expected, what=f"{self.form.name}: {name}", roundings=2)


forms_by_name = {form.name: form for form in scan_forms.FORMS}


def _moved(tensor: Tensor) -> Tensor:
    """On the device with strides and all."""
    if DEVICE == "cpu":
        return tensor
    storage = torch.as_strided(tensor, (tensor.untyped_storage().nbytes() // tensor.itemsize,), (1,), 0).to(DEVICE)
    return storage.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())


def padded(tensor: Tensor) -> Tensor:
    """As ``values[..., :-1]`` of one more."""
    return torch.cat([tensor, torch.zeros_like(tensor[..., :1])], -1)[..., :-1]


def transposed(tensor: Tensor) -> Tensor:
    return tensor.transpose(0, -1).contiguous().transpose(0, -1)


def interleaved(tensor: Tensor) -> Tensor:
    return torch.stack([tensor, torch.zeros_like(tensor)], -1)[..., 0]


def permuted(tensor: Tensor) -> Tensor:
    """Dense, with the dimensions after time in an order that does not make them one."""
    return tensor.transpose(-1, -2).contiguous().transpose(-1, -2)


def as_is(tensor: Tensor) -> Tensor:
    return tensor


# Taken in turn by the values and flags of a form.
LAYOUTS = {
    "padded": [padded],
    "transposed": [transposed],
    "mixed": [transposed, padded, as_is, interleaved],
}


every_form = pytest.mark.parametrize("form", scan_forms.FORMS, ids=lambda form: form.name)
every_block = pytest.mark.parametrize("blocks", BLOCKS.values(), ids=BLOCKS.keys())


@every_form
@every_block
@pytest.mark.parametrize(("shape", "dim"), [((19, 3), -2), ((3, 20), -1)], ids=["time leads", "time is contiguous"])
def test_equals_the_oracle(form, blocks, shape, dim):
    with tuning.forced(blocks):
        Case(form, shape, dim).check()


@every_form
@pytest.mark.parametrize(("shape", "dim"), SHAPES[2:], ids=str)
def test_any_shape(form, shape, dim):
    with tuning.forced(BLOCKS["chunks"]):
        Case(form, shape, dim).check()


@every_form
@pytest.mark.parametrize("layouts", LAYOUTS.values(), ids=LAYOUTS.keys())
@pytest.mark.parametrize(("shape", "dim"), [((9, 4), -2), ((4, 9), -1), ((2, 5, 3), -2)], ids=str)
def test_any_strides(form, layouts, shape, dim):
    with tuning.forced(BLOCKS["tiles"]):
        Case(form, shape, dim, layouts=layouts).check()


@every_form
@pytest.mark.parametrize("layouts", [[permuted], [permuted, as_is]], ids=["all", "some"])
def test_dimensions_that_do_not_fold(form, layouts):
    with tuning.forced(BLOCKS["tiles"]):
        Case(form, (2, 3, 3, 2), -3, layouts=layouts).check()


@every_form
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16], ids=str)
def test_any_dtype(form, dtype):
    with tuning.forced(BLOCKS["splits"]):
        Case(form, (19, 2), -2, dtype).check()


@pytest.mark.parametrize("form", [form for form in scan_forms.FORMS if form.coefficients], ids=lambda form: form.name)
@pytest.mark.parametrize(("shape", "dim"), SHAPES[:2], ids=str)
def test_coefficients_per_step(form, shape, dim):
    with tuning.forced(BLOCKS["chunks"]):
        Case(form, shape, dim, per_step=True).check()


@every_form
def test_the_tables_own_blocks(form):
    Case(form, (6, 5), -2).check()


@pytest.mark.parametrize("shape", [(0, 3), (3, 0)], ids=str)
@every_form
def test_empty(form, shape):
    outputs = Case(form, shape, -2).actual()
    assert [tuple(output.shape) for output in outputs] == [shape] * len(form.outputs)


@every_block
@pytest.mark.parametrize("form", [form for form in scan_forms.FORMS if form.reverse], ids=lambda form: form.name)
@pytest.mark.parametrize("dim", [-2, -1], ids=["time leads", "time is contiguous"])
def test_nothing_leaks_through_a_cut(form, blocks, dim):
    """What lies after a terminated step may be anything, NaN included."""
    case = Case(form, (13, 2) if dim == -2 else (2, 13), dim)
    for flag in case.flags.values():
        flag.select(dim, 6).fill_(True)
    if "decay" in case.values:
        case.values["decay"].select(dim, 6).fill_(0.0)
    expected = [tensor.narrow(dim, 0, 7) for tensor in case.expected()]
    for name, value in case.values.items():
        value.narrow(dim, 7, 6).fill_(math.nan)
        if name == "next_state_value":
            value.select(dim, 6).fill_(math.nan)
    with tuning.forced(blocks):
        actual = [tensor.narrow(dim, 0, 7).double().cpu() for tensor in case.actual()]
    for one, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@every_block
@pytest.mark.parametrize("form", [form for form in scan_forms.FORMS if not form.reverse], ids=lambda form: form.name)
@pytest.mark.parametrize("dim", [-2, -1], ids=["time leads", "time is contiguous"])
def test_no_gradient_passes_a_cut(form, blocks, dim):
    """A gradient of NaN before a terminated step stays there."""
    case = Case(form, (13, 2) if dim == -2 else (2, 13), dim)
    for flag in case.flags.values():
        flag.select(dim, 5).fill_(True)
    if "decay" in case.values:
        case.values["decay"].select(dim, 5).fill_(0.0)
    if "value_target" in case.values:
        case.values["value_target"] = case.forward(case.inputs())[1].float()
    expected = [tensor.narrow(dim, 6, 7) for tensor in case.expected()]
    for name, value in case.values.items():
        if name.startswith("grad_") or name == "x":
            value.narrow(dim, 0, 6).fill_(math.nan)
    with tuning.forced(blocks):
        actual = [tensor.narrow(dim, 6, 7).double().cpu() for tensor in case.actual()]
    for one, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_a_kernel_is_launched_again_by_itself_where_triton_has_such(monkeypatch):
    class Kernel:
        def __getitem__(self, grid):
            return None

    kernel = Kernel()
    assert compiled_kernel.launcher_from(None) is None, "as the interpreter returns"
    monkeypatch.setattr(compiled_kernel, "CompiledKernel", Kernel)
    assert compiled_kernel.launcher_from(kernel) is kernel
    for changed in (None, dict):
        monkeypatch.setattr(compiled_kernel, "CompiledKernel", changed)
        compiled_kernel._warn_once.cache_clear()
        with pytest.warns(RuntimeWarning, match="launches are slower"):
            assert compiled_kernel.launcher_from(kernel) is None
        assert compiled_kernel.launcher_from(kernel) is None
    compiled_kernel._warn_once.cache_clear()
