"""Every Triton kernel equals the float64 loops. Runs on a GPU if there is one, else in Triton's interpreter on the CPU."""

import itertools
import math

import oracle
import pytest
import torch
from cases import contiguous, interleaved, padded, transposed
from tolerances import assert_close
from torch import Tensor

pytest.importorskip("triton")

from a2c_compiled._precision import working_dtype
from a2c_compiled.kernels import scan_forms, triton_scan
from a2c_compiled.kernels.scan_forms import Form
from a2c_compiled.kernels.triton import compiled_kernel, tuning

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

# The interpreter of triton 3.6 converts arrays to numbers in a way that newer versions of numpy warn about.
pytestmark = [pytest.mark.filterwarnings("ignore:Conversion of an array with ndim > 0:DeprecationWarning")]
if DEVICE == "cuda":
    pytestmark.append(pytest.mark.gpu)

# One tile and several, one chunk and several, one split and several, if the shape is large enough.
BLOCKS = {
    "one tile": tuning.Blocks(rows=4, steps=32, chunks=1, num_warps=1, vector=4),
    "tiles": tuning.Blocks(rows=2, steps=4, chunks=1, num_warps=1, vector=2),
    "chunks": tuning.Blocks(rows=4, steps=2, chunks=4, num_warps=1, vector=1),
    "splits": tuning.Blocks(rows=4, steps=2, chunks=2, num_warps=1, vector=2, splits=3),
}


class Case:
    """Operands of a form, and the oracle's results for the same numbers."""

    def __init__(self, form: Form, shape, dim, dtype=torch.float32, per_step=False, layouts=(lambda tensor: tensor,)) -> None:
        self.form, self.dim, self.dtype = form, dim, dtype
        generator = torch.Generator().manual_seed(math.prod(shape) + dim)
        wide = working_dtype(torch.empty(0, dtype=dtype))

        def coefficient(number: float) -> Tensor:
            if not per_step:
                return torch.tensor(number, dtype=wide)
            # Half of the coefficients have one entry per step, expanded over all rows.
            sizes = [size if i == len(shape) + dim or number > 0.9 else 1 for i, size in enumerate(shape)]
            return (torch.rand(sizes, generator=generator) * 0.5 + number / 2).to(wide).expand(shape)

        numbers = {"gamma": 0.95, "lmbda": 0.9, "rho_thresh": 1.1, "c_thresh": 1.0, "pg_rho_thresh": 1.4}
        terminated = torch.rand(shape, generator=generator) < 0.15
        # Some steps are terminated but not done: they end the trace too.
        flags = {"terminated": terminated, "done": torch.rand(shape, generator=generator) < 0.2}
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
        if name == "eligibility_trace":
            return (oracle.eligibility_trace(**c, **inputs, done=self.flags["done"], time_dim=self.dim),)
        terminated = self.flags["terminated"]
        ends = {"done": self.flags["done"] | terminated, "terminated": terminated}
        arguments = {**c, **inputs, **ends, "time_dim": self.dim}
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
        for name in ("log_pi", "log_mu", "state_value", "next_state_value", "reward", "x"):
            inputs.setdefault(name, torch.zeros(shape, dtype=torch.float64))
        needed = set(forms_by_name[self.form.name.removesuffix("_backward")].values)
        inputs = {name: value.requires_grad_() for name, value in inputs.items() if name in needed}
        grads = [value.double() for name, value in self.values.items() if name.startswith("grad_")]
        return torch.autograd.grad(self.forward(inputs), [inputs[name] for name in names], grads)

    def actual(self) -> tuple[Tensor, ...]:
        # A number stays on the CPU, because functions and modules pass it so.
        coefficients = [c if c.dim() == 0 else c.to(DEVICE) for c in self.coefficients.values()]
        values = [_moved(value) for value in self.values.values()]
        flags = [_moved(flag) for flag in self.flags.values()]
        return triton_scan.run(self.form, coefficients, values, flags, self.dim)

    def check(self) -> None:
        # The interpreter truncates to bfloat16, where a GPU rounds: twice the error.
        for name, actual, expected in zip(self.form.outputs, self.actual(), self.expected(), strict=True):
            assert actual.dtype == self.dtype
            assert_close(actual.cpu(), expected, what=f"{self.form.name}: {name}", roundings=2)


forms_by_name = {form.name: form for form in scan_forms.FORMS}


def _moved(tensor: Tensor) -> Tensor:
    """Returns ``tensor`` on the device, with the same strides."""
    if DEVICE == "cpu":
        return tensor
    storage = torch.as_strided(tensor, (tensor.untyped_storage().nbytes() // tensor.itemsize,), (1,), 0).to(DEVICE)
    return storage.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())


def permuted(tensor: Tensor) -> Tensor:
    """A dense tensor whose last two dimensions are swapped in memory, so that they cannot be folded into one."""
    return tensor.transpose(-1, -2).contiguous().transpose(-1, -2)


# The values and flags of a form take the layouts of a list in turn.
LAYOUTS = {
    "padded": [padded],
    "transposed": [transposed],
    "mixed": [transposed, padded, contiguous, interleaved],
}


every_form = pytest.mark.parametrize("form", scan_forms.FORMS, ids=lambda form: form.name)

# Two forms, one in each direction of time, run every combination of shapes with blocks, strides or dtypes. Every other form runs some
# combinations, in which each shape, block, kind of strides and dtype occurs.
IN_ALL_COMBINATIONS = (scan_forms.GAE, scan_forms.GAE_BACKWARD)


def combinations(every, some, quick=()):
    """Parameters (form, *combination) from a table of combinations by name, of which most forms take ``some``."""
    return [
        pytest.param(form, *combination, id=f"{form.name}-{name}", marks=() if name in quick else pytest.mark.slow)
        for form in scan_forms.FORMS
        for name, combination in every.items()
        if form in IN_ALL_COMBINATIONS or name in some
    ]


TIME_DIMS = {"time leads": -2, "time is contiguous": -1}
BLOCKS_AND_DIMS = {
    f"{block}, {time}": (BLOCKS[block], dim) for block, (time, dim) in itertools.product(BLOCKS, TIME_DIMS.items())
}
# Each of the blocks with one of the time dimensions, and with the other one.
SOME_BLOCKS = [list(BLOCKS_AND_DIMS)[i] for i in (0, 3, 4, 7)]
OTHER_BLOCKS = [name for name in BLOCKS_AND_DIMS if name not in SOME_BLOCKS]


@pytest.mark.parametrize(("form", "blocks", "dim"), combinations(BLOCKS_AND_DIMS, SOME_BLOCKS, quick=SOME_BLOCKS[-1:]))
def test_equals_the_oracle(form, blocks, dim):
    with tuning.forced(blocks):
        Case(form, (19, 3) if dim == -2 else (3, 20), dim).check()


SHAPES = [((2, 7, 3), -2), ((5, 11, 1), -2), ((1, 4), -2), ((1, 13), -1), ((13,), -1), ((2, 3, 6, 2), -3)]
SHAPES_BY_NAME = {str(shape): (shape, dim) for shape, dim in SHAPES}


@pytest.mark.parametrize(("form", "shape", "dim"), combinations(SHAPES_BY_NAME, ["(2, 3, 6, 2)", "(1, 4)", "(1, 13)"]))
def test_equals_the_oracle_in_every_shape(form, shape, dim):
    with tuning.forced(BLOCKS["chunks"]):
        Case(form, shape, dim).check()


STRIDES = {
    f"{name}, {shape}": (layouts, shape, dim)
    for name, layouts in LAYOUTS.items()
    for shape, dim in (((9, 4), -2), ((4, 9), -1), ((2, 5, 3), -2))
}


@pytest.mark.parametrize(
    ("form", "layouts", "shape", "dim"),
    combinations(STRIDES, ["padded, (9, 4)", "transposed, (4, 9)", "mixed, (2, 5, 3)"]),
)
def test_equals_the_oracle_with_every_kind_of_strides(form, layouts, shape, dim):
    with tuning.forced(BLOCKS["tiles"]):
        Case(form, shape, dim, layouts=layouts).check()


# In the other tests, tiles go beyond the data.
@pytest.mark.parametrize("name", ["chunks", "splits"])
@pytest.mark.parametrize(
    "form",
    [scan_forms.GAE, scan_forms.TD_LAMBDA_BACKWARD, scan_forms.VTRACE, scan_forms.VTRACE_BACKWARD],
    ids=lambda form: form.name,
)
def test_equals_the_oracle_if_tiles_divide_the_data(form, name):
    for shape, dim in (((24, 4), -2), ((4, 24), -1)):
        with tuning.forced(BLOCKS[name]):
            Case(form, shape, dim).check()


NOT_FOLDED = {"all": ([permuted],), "some": ([permuted, contiguous],)}


@pytest.mark.parametrize(("form", "layouts"), combinations(NOT_FOLDED, ["some"]))
def test_equals_the_oracle_if_dimensions_do_not_fold(form, layouts):
    with tuning.forced(BLOCKS["tiles"]):
        Case(form, (2, 3, 3, 2), -3, layouts=layouts).check()


DTYPES = {str(dtype): (dtype,) for dtype in (torch.float64, torch.float16, torch.bfloat16)}


@pytest.mark.parametrize(("form", "dtype"), combinations(DTYPES, ["torch.float64", "torch.bfloat16"]))
def test_equals_the_oracle_in_every_dtype(form, dtype):
    with tuning.forced(BLOCKS["splits"]):
        Case(form, (13, 2), -2, dtype).check()


@pytest.mark.slow
@pytest.mark.parametrize("form", [form for form in scan_forms.FORMS if form.coefficients], ids=lambda form: form.name)
@pytest.mark.parametrize(("shape", "dim"), [((19, 3), -2), ((3, 20), -1)], ids=str)
def test_equals_the_oracle_with_coefficients_per_step(form, shape, dim):
    with tuning.forced(BLOCKS["chunks"]):
        Case(form, shape, dim, per_step=True).check()


@every_form
def test_equals_the_oracle_with_the_blocks_of_the_tuning_table(form):
    Case(form, (6, 5), -2).check()


@pytest.mark.parametrize("shape", [(0, 3), (3, 0)], ids=str)
@every_form
def test_empty_data_gives_empty_results(form, shape):
    outputs = Case(form, shape, -2).actual()
    assert [tuple(output.shape) for output in outputs] == [shape] * len(form.outputs)


def assert_nan_stops_at_a_cut(form, blocks, dim, cut, nan_steps, kept):
    """Asserts that NaN in some operands does not change the results in the steps ``kept`` = (first, number).

    Args:
        cut: the step that is terminated, or whose decay is 0.
        nan_steps: by operand, the steps (first, number) that are NaN.
    """
    case = Case(form, (13, 2) if dim == -2 else (2, 13), dim)
    for flag in case.flags.values():
        flag.select(dim, cut).fill_(True)
    if "decay" in case.values:
        case.values["decay"].select(dim, cut).fill_(0.0)
    if "value_target" in case.values:
        case.values["value_target"] = case.forward(case.inputs())[1].float()
    expected = [tensor.narrow(dim, *kept) for tensor in case.expected()]
    for name, steps in nan_steps.items():
        case.values[name].narrow(dim, *steps).fill_(math.nan)
    with tuning.forced(blocks):
        actual = [tensor.narrow(dim, *kept).double().cpu() for tensor in case.actual()]
    for one, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("form", "blocks", "dim"), combinations(BLOCKS_AND_DIMS, OTHER_BLOCKS))
def test_nan_does_not_pass_a_terminated_step(form, blocks, dim):
    """In results, NaN of later steps does not reach earlier steps. In gradients, which run forward, it is the other way round."""
    if form.reverse:
        nan_steps = {name: (6, 7) if name == "next_state_value" else (7, 6) for name in form.values}
        assert_nan_stops_at_a_cut(form, blocks, dim, 6, nan_steps, kept=(0, 7))
    else:
        nan_steps = {name: (0, 6) for name in form.values if name.startswith("grad_") or name == "x"}
        assert_nan_stops_at_a_cut(form, blocks, dim, 5, nan_steps, kept=(6, 7))


def test_gradient_of_vtrace_passes_a_clip_whose_threshold_equals_the_ratio():
    """On-policy data has a ratio of 1, and the usual thresholds are 1."""
    case = Case(scan_forms.VTRACE_BACKWARD, (6, 5), -2)
    case.values["log_mu"] = case.values["log_pi"].clone()
    case.coefficients |= {name: torch.tensor(1.0) for name in case.coefficients if name.endswith("_thresh")}
    case.values["value_target"] = case.forward(case.inputs())[1].float()
    case.check()


def test_a_compiled_kernel_launches_itself_if_triton_supports_it(monkeypatch):
    class Kernel:
        def __getitem__(self, grid):
            return None

    kernel = Kernel()
    assert compiled_kernel.launcher_from(None) is None, "the interpreter returns None"
    monkeypatch.setattr(compiled_kernel, "CompiledKernel", Kernel)
    assert compiled_kernel.launcher_from(kernel) is kernel
    for changed in (None, dict):
        monkeypatch.setattr(compiled_kernel, "CompiledKernel", changed)
        compiled_kernel._warn_once.cache_clear()
        with pytest.warns(RuntimeWarning, match="launches are slower"):
            assert compiled_kernel.launcher_from(kernel) is None
        assert compiled_kernel.launcher_from(kernel) is None
    compiled_kernel._warn_once.cache_clear()
