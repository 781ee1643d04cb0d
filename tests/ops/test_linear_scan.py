"""The linear scan: its definition, its derivatives, and the transforms and graphs that contain it."""

import oracle
import pytest
import torch
from cases import LAYOUTS, VIEWS, assert_equals, evaluate, make_steps, per_step, run_without_the_library
from loops import loop_over
from tolerances import assert_close
from torch.fx.experimental.proxy_tensor import make_fx

from a2c_compiled._exporting import exporting
from a2c_compiled.ops import linear_scan, scripted_scan
from a2c_compiled.ops.linear_scan import linear_scan as scriptable_linear_scan

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
DIRECTIONS = pytest.mark.parametrize("reverse", [True, False], ids=["reverse", "forward"])


def make_arguments(shape, dim=-2, reverse=True, dtype=torch.float64, seed=0):
    """Random arguments. The decay is between -1 and 1, and a quarter of it is zero."""
    decay = per_step(shape, -1.0, 1.0, dtype, seed + 1)
    decay = decay.masked_fill(make_steps(shape, seed=seed + 2).done, 0.0)
    return {"x": make_steps(shape, dtype, seed).reward, "decay": decay, "dim": dim, "reverse": reverse}


def assert_equals_oracle(arguments, function=linear_scan):
    # In half precision, the gradient of the decay is a product of two rounded numbers, and is rounded itself.
    assert_equals(function, oracle.linear_scan, arguments, {"decay": 3})


@DIRECTIONS
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@loop_over(("shape", "time_dim"), LAYOUTS)
def test_equals_the_oracle_in_every_layout_and_dtype(shape, time_dim, dtype, reverse):
    dim = time_dim - len(shape) if time_dim >= 0 else time_dim
    assert_equals_oracle(make_arguments(shape, dim, reverse, dtype))


@DIRECTIONS
@pytest.mark.parametrize("view", VIEWS)
def test_equals_the_oracle_on_views(view, reverse):
    arguments = make_arguments((80, 40), reverse=reverse)
    dense = {**arguments, "x": view(arguments["x"]).clone(), "decay": view(arguments["decay"]).clone()}
    for name in ("x", "decay"):
        assert_equals_oracle({**dense, name: view(arguments[name])})
    assert_equals_oracle({**dense, "x": view(arguments["x"]), "decay": view(arguments["decay"])})


@DIRECTIONS
@pytest.mark.parametrize("shape", [(0,), (0, 3), (5, 0), (40, 0), (2, 0, 3), (0, 5, 3)], ids=str)
@pytest.mark.parametrize("function", [linear_scan, torch.jit.script(scriptable_linear_scan)], ids=["eager", "scripted"])
def test_empty_data_gives_empty_results_and_gradients(function, shape, reverse):
    (result,), gradients = evaluate(function, make_arguments(shape, -1 if len(shape) == 1 else -2, reverse))
    assert result.shape == shape
    assert gradients["x"].shape == gradients["decay"].shape == shape


@DIRECTIONS
@pytest.mark.parametrize("garbage", [torch.nan, torch.inf, -torch.inf], ids=str)
@pytest.mark.parametrize("length", [8, 40])
@pytest.mark.parametrize("function", [linear_scan, torch.jit.script(scriptable_linear_scan)], ids=["eager", "scripted"])
def test_a_zero_decay_stops_nan_and_infinity(function, length, garbage, reverse):
    arguments = make_arguments((length, 3), reverse=reverse)
    cut = length // 2
    arguments["decay"][cut] = 0.0
    before, after = slice(None, cut + 1), slice(cut + 1, None)
    kept, beyond = (before, after) if reverse else (after, before)

    def run(**tensors):
        return function(**tensors)[kept]

    (clean,), clean_gradients = evaluate(run, arguments)
    arguments["x"] = arguments["x"].clone()
    arguments["x"][beyond] = garbage
    (result,), gradients = evaluate(run, arguments)
    # Equal up to rounding: where NaN occurs, TorchScript computes the scan step by step.
    assert_close(result, clean)
    assert_close(gradients["x"][kept], clean_gradients["x"][kept])


@DIRECTIONS
@pytest.mark.parametrize("length", [1, 2, 6, 34])
@pytest.mark.parametrize("order", ["first", "second"])
def test_derivatives_equal_finite_differences(order, length, reverse):
    arguments = make_arguments((length, 2), reverse=reverse)
    arguments["decay"][0] = 0.0
    check = {"first": torch.autograd.gradcheck, "second": torch.autograd.gradgradcheck}[order]
    x, decay = arguments["x"].requires_grad_(), arguments["decay"].requires_grad_()
    assert check(lambda x, decay: linear_scan(x, decay, -2, reverse), (x, decay))


def test_computes_no_gradient_of_an_argument_that_does_not_require_it():
    arguments = make_arguments((5, 3))
    linear_scan(arguments["x"].requires_grad_(), arguments["decay"], -2, True).sum().backward()
    assert arguments["x"].grad is not None
    assert arguments["decay"].grad is None
    assert not linear_scan(arguments["x"].detach(), arguments["decay"], -2, True).requires_grad


# From torch 2.15 on, opcheck copies its arguments with clone and reads the gradients of the copies, which are no leaves.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
@DIRECTIONS
@pytest.mark.parametrize("requires_grad", [False, True], ids=["no_grad", "requires_grad"])
@pytest.mark.parametrize(("shape", "dim"), [((5, 3), -2), ((40, 3), -2), ((2, 3, 5), -1), ((0, 3), -2)], ids=str)
def test_operator_passes_opcheck(shape, dim, requires_grad, reverse):
    arguments = make_arguments(shape, dim, reverse)
    tensors = (arguments["x"].requires_grad_(requires_grad), arguments["decay"].requires_grad_(requires_grad))
    outcome = torch.library.opcheck(torch.ops.a2c_compiled.linear_scan.default, (*tensors, dim))
    assert set(outcome.values()) == {"SUCCESS"}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("length", [5, 40])
@pytest.mark.parametrize(
    "view",
    [
        pytest.param(lambda x: x, id="dense"),
        pytest.param(lambda x: x.transpose(0, 1).contiguous().transpose(0, 1), id="transposed"),
        pytest.param(lambda x: x[::2], id="every_other_step"),
        pytest.param(lambda x: x[:, 1::2], id="every_other_row"),
        pytest.param(lambda x: x[:, :1].expand(-1, 4), id="expanded_rows"),
        pytest.param(lambda x: x[:, :, None].expand(-1, -1, 2).permute(2, 0, 1), id="expanded_and_permuted"),
    ],
)
def test_fake_operator_returns_the_strides_of_the_real_one(view, length, dtype):
    arguments = make_arguments((length, 6), dtype=dtype)
    x, decay = view(arguments["x"]), view(arguments["decay"])
    real = torch.ops.a2c_compiled.linear_scan(x, decay, -2)
    with torch._subclasses.FakeTensorMode() as mode:
        fake = torch.ops.a2c_compiled.linear_scan(mode.from_tensor(x), mode.from_tensor(decay), -2)
    assert (fake.shape, fake.stride(), fake.dtype) == (real.shape, real.stride(), real.dtype)


@DIRECTIONS
@pytest.mark.parametrize("in_dims", [(0, 0), (0, None), (None, 0), (2, 1), (-1, -1), (1, None)], ids=str)
def test_vmap_equals_one_call_for_each(in_dims, reverse):
    arguments = make_arguments((4, 5, 3), reverse=reverse)

    def batched(tensor, in_dim):
        return tensor[0] if in_dim is None else tensor.movedim(0, in_dim)

    tensors = [batched(arguments[k], in_dim) for k, in_dim in zip(("x", "decay"), in_dims, strict=True)]
    result = torch.vmap(lambda x, decay: linear_scan(x, decay, -2, reverse), in_dims)(*tensors)
    for i in range(4):
        x, decay = (arguments[k][0 if in_dim is None else i] for k, in_dim in zip(("x", "decay"), in_dims, strict=True))
        assert_close(result[i], linear_scan(x, decay, -2, reverse))


@DIRECTIONS
def test_nested_vmap_equals_one_call_over_all(reverse):
    arguments = make_arguments((2, 4, 5, 3), reverse=reverse)
    scan = torch.vmap(torch.vmap(lambda x, decay: linear_scan(x, decay, -2, reverse), (0, None)), (0, 0))
    decay = arguments["decay"][:, 0]
    expected = linear_scan(arguments["x"], decay.unsqueeze(1).expand_as(arguments["x"]), -2, reverse)
    assert_close(scan(arguments["x"], decay), expected)


def squared_sum(x, decay, reverse=True):
    return linear_scan(x, decay, -2, reverse).square().sum()


def oracle_gradients(x, decay, reverse):
    x, decay = x.detach().requires_grad_(), decay.detach().requires_grad_()
    return torch.autograd.grad(oracle.linear_scan(x, decay, -2, reverse).square().sum(), (x, decay))


@DIRECTIONS
def test_func_grad_equals_the_oracle(reverse):
    arguments = make_arguments((6, 3), reverse=reverse)
    gradients = torch.func.grad(squared_sum, (0, 1))(arguments["x"], arguments["decay"], reverse)
    for gradient, expected in zip(gradients, oracle_gradients(arguments["x"], arguments["decay"], reverse), strict=True):
        assert_close(gradient, expected)


@DIRECTIONS
@pytest.mark.parametrize("in_dims", [(0, 0), (0, None), (None, 0)], ids=str)
def test_vmap_of_func_grad_equals_the_oracle(in_dims, reverse):
    arguments = make_arguments((4, 6, 3), reverse=reverse)
    x, decay = (arguments[k] if in_dim == 0 else arguments[k][0] for k, in_dim in zip(("x", "decay"), in_dims, strict=True))
    gradients = torch.vmap(torch.func.grad(squared_sum, (0, 1)), (*in_dims, None))(x, decay, reverse)
    for i in range(4):
        one = [t[i] if in_dim == 0 else t for t, in_dim in zip((x, decay), in_dims, strict=True)]
        for gradient, expected in zip(gradients, oracle_gradients(*one, reverse), strict=True):
            assert_close(gradient[i], expected)


def test_func_grad_of_grad_equals_autograd():
    arguments = make_arguments((6, 3))
    x, decay = arguments["x"], arguments["decay"]
    second = torch.func.grad(lambda d: torch.func.grad(squared_sum)(x, d).square().sum())(decay)
    leaf, variable = decay.clone().requires_grad_(), x.clone().requires_grad_()
    first = torch.autograd.grad(oracle.linear_scan(variable, leaf, -2, True).square().sum(), variable, create_graph=True)[0]
    assert_close(second, torch.autograd.grad(first.square().sum(), leaf)[0])


@pytest.mark.slow
@DIRECTIONS
def test_compiles_whole_and_once_for_all_shapes_forward_and_backward(reverse):
    compiled = torch.compile(linear_scan, fullgraph=True, dynamic=True)
    assert_equals_oracle(make_arguments((5, 3), reverse=reverse), compiled)
    with torch._dynamo.config.patch(error_on_recompile=True):
        assert_equals_oracle(make_arguments((8, 2), reverse=reverse), compiled)
        assert_equals_oracle(make_arguments((50, 4), reverse=reverse), compiled)


@pytest.mark.slow
def test_func_grad_of_the_scan_compiles_whole():
    compiled = torch.compile(torch.func.grad(squared_sum, (0, 1)), fullgraph=True, dynamic=True)
    for shape in ((6, 3), (40, 4)):
        x, decay = make_arguments(shape)["x"], make_arguments(shape)["decay"]
        for gradient, expected in zip(compiled(x, decay), oracle_gradients(x, decay, True), strict=True):
            assert_close(gradient, expected)


@pytest.mark.slow
def test_vmap_of_the_scan_compiles_whole():
    arguments = make_arguments((4, 6, 3))
    x, decay = arguments["x"], arguments["decay"][0]
    per_row = torch.vmap(lambda x, decay: linear_scan(x, decay, -2, True), (0, None))
    compiled = torch.compile(per_row, fullgraph=True, dynamic=True, backend="aot_eager")
    assert_close(compiled(x, decay), per_row(x, decay))


class Scan(torch.nn.Module):
    def forward(self, x: torch.Tensor, decay: torch.Tensor) -> torch.Tensor:
        return scriptable_linear_scan(x, decay, -2)


@pytest.mark.slow
def test_exports_as_one_operator_with_dynamic_shapes():
    arguments = make_arguments((5, 3))
    sizes = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    program = torch.export.export(Scan(), (arguments["x"], arguments["decay"]), dynamic_shapes=(sizes, sizes))
    calls = [node.target for node in program.graph.nodes if node.op == "call_function"]
    assert calls.count(torch.ops.a2c_compiled.linear_scan.default) == 1
    for shape in ((5, 3), (40, 7), (2, 2)):
        other = make_arguments(shape)
        result = program.module()(other["x"], other["decay"])
        assert_close(result, oracle.linear_scan(other["x"], other["decay"], -2, True))


@DIRECTIONS
def test_the_gradient_in_an_exported_graph_is_that_of_eager_mode_for_any_size(reverse):
    def gradients(x, decay):
        x, decay = x.requires_grad_(), decay.requires_grad_()
        return torch.autograd.grad(linear_scan(x, decay, -2, reverse).square().sum(), (x, decay))

    x, decay = (make_arguments((4, 3))[name] for name in ("x", "decay"))
    with exporting():
        graph = make_fx(gradients, tracing_mode="symbolic")(x, decay)
    for shape in ((4, 3), (1, 3), (9, 1)):
        x, decay = (make_arguments(shape, seed=1)[name] for name in ("x", "decay"))
        with torch.no_grad():
            actual = graph(x, decay)
        torch.testing.assert_close(actual, gradients(x, decay))


@DIRECTIONS
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("shape", "dim"), [((5, 3), -2), ((3, 5), -1), ((2, 35, 3), -2), ((1, 1), -1), ((2, 299), -1), ((2, 520, 3), -2)], ids=str
)
def test_scripted_equals_the_oracle(shape, dim, dtype, reverse):
    arguments = make_arguments(shape, dim, reverse, dtype)
    assert_equals_oracle(arguments, torch.jit.script(scriptable_linear_scan))


def in_blocks_of_two(x, decay, dim, reverse):
    before_last, none = decay[:-1], torch.zeros_like(decay[:1])
    weight = torch.cat([before_last, none] if reverse else [none, before_last])
    return scripted_scan._in_blocks(x, weight, dim, reverse, 2)


@DIRECTIONS
@pytest.mark.parametrize("function", [scripted_scan.scripted_scan, in_blocks_of_two], ids=["doubling", "blocks"])
@pytest.mark.parametrize("order", ["first", "second"])
def test_derivatives_of_the_scripted_scan_equal_finite_differences(order, function, reverse):
    arguments = make_arguments((7, 2), reverse=reverse)
    arguments["decay"][0] = 0.0
    check = {"first": torch.autograd.gradcheck, "second": torch.autograd.gradgradcheck}[order]
    x, decay = arguments["x"].requires_grad_(), arguments["decay"].requires_grad_()
    assert check(lambda x, decay: function(x, decay, -2, reverse), (x, decay))


@DIRECTIONS
@pytest.mark.parametrize("length", [8, 40, 300])
def test_nan_in_scripted_gradients_stays_where_it_is_in_eager_ones(length, reverse):
    arguments = make_arguments((length, 3), reverse=reverse)
    cut = length // 2
    arguments["decay"][cut] = 0.0
    arguments["decay"][cut + 2 :: 3] = torch.nan  # the gradient of a reverse scan runs forward, from these steps on
    arguments["decay"][: cut - 1 : 3] = torch.nan
    arguments["decay"][cut - 3] = 0.0
    arguments["decay"][cut + 3] = 0.0
    (expected, expected_gradients), (result, gradients) = (
        evaluate(function, arguments) for function in (linear_scan, torch.jit.script(scriptable_linear_scan))
    )
    assert gradients["x"].isfinite().any()
    assert not gradients["x"].isfinite().all()
    for actual, reference in ((result[0], expected[0]), (gradients["x"], expected_gradients["x"])):
        assert torch.equal(actual.isnan(), reference.isnan())
        assert_close(actual.nan_to_num(0.0), reference.nan_to_num(0.0))


def test_errors_of_the_scripted_scan_are_at_most_a_millionth_of_the_scan_over_absolute_values():
    generator = torch.Generator().manual_seed(0)
    for decay_of in (0.99, 1.0):
        x, decay = torch.randn(20_000, 2, generator=generator), torch.full((20_000, 2), decay_of)
        for reverse in (True, False):
            result = torch.jit.script(scriptable_linear_scan)(x, decay, -2, reverse)
            error = (result - linear_scan(x.double(), decay.double(), -2, reverse)).abs()
            assert (error <= 1e-6 * linear_scan(x.double().abs(), decay.double(), -2, reverse)).all()


@pytest.mark.slow
def test_scripted_loads_where_the_library_is_absent(tmp_path):
    arguments = make_arguments((6, 3))
    x, decay = arguments["x"].requires_grad_(), arguments["decay"].requires_grad_()
    expected = linear_scan(x, decay, -2)
    gradients = torch.autograd.grad(expected.square().sum(), (x, decay))
    torch.jit.script(Scan()).save(tmp_path / "scan.pt")
    torch.save({"x": x.detach(), "decay": decay.detach(), "y": expected.detach(), "gradients": gradients}, tmp_path / "data.pt")
    run_without_the_library(
        tmp_path,
        """
        scan, data = torch.jit.load("scan.pt"), torch.load("data.pt")
        x, decay = data["x"].requires_grad_(), data["decay"].requires_grad_()
        y = scan(x, decay)
        torch.testing.assert_close(y, data["y"], rtol=1e-10, atol=1e-10)
        for a, b in zip(torch.autograd.grad(y.square().sum(), (x, decay)), data["gradients"]):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)
        """,
    )
