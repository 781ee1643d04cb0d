"""Compiled for a CPU: activations on matrices, products in oneDNN, gradients of weights and large sums over rows in ATen, tanh as a
rational function, and everything else as it was."""

import copy
import math
import re
import sys

import pytest
import torch
from loss_cases import CHOICES, FEATURES, graphs_compiled, make_loss, make_rollout
from torch import nn
from torch._inductor.utils import run_and_get_code

import a2c_compiled
from a2c_compiled._torch_internals import with_variable_sizes
from a2c_compiled.update import compilation, cpu_fusion_pass

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("compilation")]

PRODUCT, SUM = "torch.ops.a2c_compiled.product", "torch.ops.a2c_compiled.sum_of_rows"
TANH_IN_PRODUCT = re.compile(rf"= {re.escape(PRODUCT)}.*, True\)")
has_onednn = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch has no oneDNN here")
SPECIAL = (0.0, -0.0, math.inf, -math.inf, math.nan, 1e-45, -1e-40, 1.2e-38, 3e38, -3e38, 0.625, -0.625, 44.4, 88.8, -89.0)
RATIONAL = "0.133820385"  # a coefficient


def compiled(function, dynamic=None):
    return torch.compile(function, fullgraph=True, dynamic=dynamic, options=a2c_compiled.compile_options())


@pytest.fixture(scope="module")
def tanh():
    """One graph for all of these tests, for vectors and for what is left over of them."""
    return compiled(torch.tanh, dynamic=True)


def doubled(x):
    return 2 * x


def units_in_the_last_place(actual, exact):
    """How far ``actual`` is from ``exact``, in float32's spacing there."""
    _, exponent = torch.frexp(exact)
    return (actual.double() - exact).abs() / torch.exp2(exponent.clamp_min(-125).double() - 24)


def test_tanh_is_right_to_6_units_in_the_last_place_everywhere_and_never_exceeds_1(tanh):
    """A fifth of a million of all float32 there are, evenly over their bits; and closer where the error is largest."""
    bits = torch.arange(0, 0x7F800000, 9973, dtype=torch.int32)
    near = torch.linspace(0.1, 10.0, 400_001)
    x = torch.cat([bits.view(torch.float32), -bits.view(torch.float32), near, -near])
    actual = tanh(x)
    assert units_in_the_last_place(actual, x.double().tanh()).max() <= 6.1
    assert actual.abs().max() == 1
    assert (actual[x.abs() > 9.03].abs() == 1).all(), "saturated"


def test_tanh_of_zeros_infinities_nan_and_denormals(tanh):
    for x in (torch.tensor(SPECIAL), torch.tensor(SPECIAL * 3)):
        actual, expected = tanh(x), x.tanh()
        torch.testing.assert_close(actual, expected, rtol=4e-7, atol=0, equal_nan=True)
        numbers = ~x.isnan()
        assert torch.equal(actual[numbers].signbit(), expected[numbers].signbit())


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_tanh_of_other_dtypes_is_not_rewritten(dtype):
    x = torch.randn(64, dtype=dtype)
    actual, (code,) = run_and_get_code(compiled(torch.tanh), x)
    assert "tanh" in code
    assert RATIONAL not in code
    torch.testing.assert_close(actual, x.tanh())


def gradients(network, x):
    """Of a network's first output, to its parameters and its input."""
    return torch.autograd.grad(network(x).square().mean(), [*network.parameters(), x])


class Update(nn.Module):
    """Products of all kinds: forward with a bias and without, to the input, to the weights, of whatever shape."""

    def __init__(self, dtype=torch.float32):
        super().__init__()
        torch.manual_seed(0)
        self.network = nn.Sequential(
            nn.Linear(24, 64), nn.Tanh(), nn.Linear(64, 32, bias=False), nn.Tanh(), nn.Linear(32, 3)
        ).to(dtype)

    def forward(self, x):
        return gradients(self.network, x)


@pytest.fixture(params=[True, False])
def avx512(request, monkeypatch):
    """As on a processor with AVX-512, where oneDNN's tanh is fast and a copy for its products pays off, and on one without."""
    monkeypatch.setattr(cpu_fusion_pass, "_HAS_AVX512", request.param)
    return request.param


@has_onednn
def test_large_products_run_in_onednn_with_the_same_results_for_every_size(avx512):
    update = Update()
    with torch._dynamo.config.patch(trace_autograd_ops=True):
        step = compiled(update.forward, dynamic=True)
        for rows in (4096, 3001, 5):
            x = torch.randn(rows, 24, requires_grad=True)
            if rows == 4096:
                actual, (code,) = run_and_get_code(step, x)
            else:
                actual = step(x)
            for ours, theirs in zip(actual, gradients(update.network.double(), x.double()), strict=True):
                largest = theirs.abs().max()
                torch.testing.assert_close(ours.double() / largest, theirs / largest, rtol=0, atol=2e-6)
            update.float()
    assert len(TANH_IN_PRODUCT.findall(code)) == (2 if avx512 else 0), "computed where the products are"
    assert (RATIONAL in code) == (not avx512)
    assert code.count(f"= {PRODUCT}") == (6 if avx512 else 4), (
        "two forward, two to inputs, with AVX-512 two to weights; what has 3 columns is left to MKL"
    )
    assert code.count(f"= {SUM}") == 1, "the gradient of the first bias; that of the last has few columns"


@has_onednn
def test_products_of_other_dtypes_and_small_ones_are_not_rewritten():
    for rows, dtype in ((8192, torch.float64), (32, torch.float32)):
        update = Update(dtype)
        with torch._dynamo.config.patch(trace_autograd_ops=True):
            x = torch.randn(rows, 24, dtype=dtype, requires_grad=True)
            actual, (code,) = run_and_get_code(compiled(update.forward), x)
        assert PRODUCT not in code
        assert SUM not in code
        torch.testing.assert_close(actual, gradients(update.network, x))


@has_onednn
def test_tanh_within_a_product_is_right_to_two_units_in_the_last_place(monkeypatch):
    monkeypatch.setattr(cpu_fusion_pass, "_HAS_AVX512", True)
    x = torch.linspace(-10.0, 10.0, 2**19).reshape(-1, 16)
    function, unit = compiled(lambda x, one: (x @ one).tanh(), dynamic=False), torch.eye(16)
    actual, (code,) = run_and_get_code(function, x, unit)
    assert TANH_IN_PRODUCT.search(code)
    assert units_in_the_last_place(actual, x.double().tanh()).max() <= 2


class Recorded(cpu_fusion_pass.Float32OnCpu):
    """The pass, and the graph that it leaves."""

    def __call__(self, graph):
        super().__call__(graph)
        self.nodes = [node for node in graph.nodes if node.op == "call_function"]

    def uuid(self):
        return None  # inductor's cache would skip the pass

    def shapes(self, *operators):
        """The shapes of the results of ``operators``."""
        return [tuple(node.meta["val"].shape) for node in self.nodes if node.target in operators]


def compiled_with_graph(function, *arguments, dynamic=False):
    """The results of a function that is compiled with the pass, and the graph after the pass."""
    torch._dynamo.reset()
    recorded = Recorded()
    options = {**a2c_compiled.compile_options(), "post_grad_custom_post_pass": recorded}
    with torch._dynamo.config.patch(trace_autograd_ops=True):
        return torch.compile(function, fullgraph=True, dynamic=dynamic, options=options)(*arguments), recorded


aten = torch.ops.aten
ELEMENTWISE = (aten.tanh.default, aten.relu.default, aten.mul.Tensor, aten.where.self, aten.le.Scalar, aten.sub.Tensor)


@pytest.mark.parametrize("rows", [3, 40, 5000])
@pytest.mark.parametrize("inputs", [1, 2, 4, 8, 63, 64, 65])
def test_the_gradient_of_a_weight_with_few_inputs_is_a_transposed_product(monkeypatch, inputs, rows):
    monkeypatch.setattr(cpu_fusion_pass, "_HAS_AVX512", False)
    layer, x = nn.Linear(inputs, 64, bias=False), torch.randn(rows, inputs)
    (actual,), graph = compiled_with_graph(lambda x: torch.autograd.grad(layer(x).square().sum(), [layer.weight]), x)
    (expected,) = torch.autograd.grad(layer.double()(x.double()).square().sum(), [layer.weight])
    torch.testing.assert_close(actual.double(), expected, rtol=1e-5, atol=1e-4 * expected.abs().max().item())
    assert graph.shapes(aten.mm.default)[-1] == ((inputs, 64) if 1 < inputs < 64 else (64, inputs))


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize(
    "activation", [nn.Tanh(), nn.ReLU(), nn.ELU(), nn.SiLU(), nn.GELU(), nn.Sequential(nn.Tanh(), nn.ReLU())]
)
def test_activations_between_products_are_computed_once_on_matrices(activation, dynamic):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 16), activation, nn.Linear(16, 16), activation, nn.Linear(16, 2))
    x = torch.randn(6, 5, 3, requires_grad=True)
    actual, graph = compiled_with_graph(lambda x: gradients(network, x), x, dynamic=dynamic)
    for ours, theirs in zip(actual, gradients(network.double(), x.double()), strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-5, atol=1e-6)
    factors = {
        node for product in graph.nodes if product.target in (aten.mm.default, aten.addmm.default) for node in product.args
    }
    reshaped = [node for node in factors if getattr(node, "target", None) in (aten.reshape.default, aten.view.default)]
    assert len(reshaped) <= 2, "the input, and the gradient of the output"
    assert all(len(shape) < 3 or shape[-1] != 16 for shape in graph.shapes(*ELEMENTWISE)), "no hidden layer is [T, N, 16]"


def test_hidden_layers_that_are_also_used_in_their_own_shape_keep_their_values():
    torch.manual_seed(0)
    first, second, scale = nn.Linear(3, 16), nn.Linear(16, 2), torch.randn(5, 1)

    def function(x):
        hidden = first(x).tanh()
        over_time = hidden.cumsum(0) + hidden[0]
        scaled = second(hidden * scale)  # scale has a value for each of 5: it cannot be combined with a matrix
        converted = second(hidden.double().sinh().float().relu())
        one = (hidden.sum() * 2).reshape(1, 1) @ torch.ones(1, 3)
        return one, second(hidden), over_time, scaled, converted, second(hidden.reshape(-1, 16).relu()), hidden.transpose(0, 1)

    x = torch.randn(6, 5, 3)
    for dynamic in (False, True):
        actual, graph = compiled_with_graph(function, x, dynamic=dynamic)
        for ours, theirs in zip(actual, function(x), strict=True):
            torch.testing.assert_close(ours, theirs)
        assert len(graph.shapes(aten.cumsum.default)) == 1


def test_a_long_chain_of_operations_between_products_compiles():
    """Its length must not reach Python's limit for recursion."""
    first, second = nn.Linear(2, 3), nn.Linear(3, 1)

    def function(x):
        x = first(x)
        for _ in range(sys.getrecursionlimit()):
            x = x + 1
        return second(x)

    x = torch.ones(4, 5, 2)
    actual, graph = compiled_with_graph(function, x)
    torch.testing.assert_close(actual, function(x))
    assert graph.shapes(aten.add.Tensor) == [(20, 3)] * sys.getrecursionlimit()


def added_up(x):
    return x.sum(0)


def test_one_graph_adds_up_any_count_of_numbers_and_long_sums_in_blocks():
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    function = compilation.CompiledFunction(added_up)
    for count in (100, 4_000, 5_000, 3_000_017):
        x = torch.rand(count, generator=torch.Generator().manual_seed(count))
        actual = function(with_variable_sizes(x, (0,)))
        torch.testing.assert_close(actual.double(), x.double().sum(), rtol=1e-6, atol=0)
        assert not hasattr(x, "_dynamo_weak_dynamic_indices"), "the caller's tensor has no mark"
    assert graphs_compiled() == 1


def test_a_callers_own_compiled_function_takes_the_options():
    compile_options = a2c_compiled.compile_options
    assert compile_options() == compile_options(), "equal options, one compiled form"
    function = torch.compile(lambda x: x.tanh() + 1, options=compile_options())
    x = torch.randn(100)
    _, (code,) = run_and_get_code(function, x)
    assert RATIONAL in code


@pytest.fixture
def no_pass(monkeypatch):
    """Inductor without a place for the pass."""
    monkeypatch.setitem(sys.modules, "a2c_compiled.update.cpu_fusion_pass", None)
    compilation._own_pass.cache_clear()
    yield
    compilation._own_pass.cache_clear()


def test_a_step_compiles_without_the_pass(no_pass):
    loss, rollout = make_loss(), make_rollout()
    with pytest.warns(RuntimeWarning, match="cannot load the inductor pass for CPUs"):
        assert a2c_compiled.compile_options() == {}
    steps = [a2c_compiled.TrainStep(copy.deepcopy(loss), "sgd", compile=compile) for compile in (True, False)]
    for step in steps:
        step(rollout)
    for name, tensor in steps[0].state_dict().items():
        torch.testing.assert_close(tensor, steps[1].state_dict()[name])


def test_a_second_copy_of_a_function_is_compiled_for_its_own_first_shape():
    """Torch compiles for all shapes when a function of the same name had another shape before. The graph is then slower."""
    inputs = []

    def noted(graph):
        inputs.extend(node.meta["val"] for node in graph.nodes if node.op == "placeholder")

    for length in (5, 7):
        copy = compilation.CompiledFunction(doubled, post_grad_custom_pre_pass=noted)
        assert torch.equal(copy(torch.ones(length)), torch.full((length,), 2.0))
    assert [tuple(x.shape) for x in inputs] == [(5,), (7,)], "a number of elements is a symbol"


def test_a_step_is_traced_once_and_compiled_to_one_file_of_cpp(monkeypatch):
    """Torch would trace it twice, because the learning rate and the coefficients are float64 tensors without dimensions."""
    traced, inductor = [], compilation.compile_with_inductor
    monkeypatch.setattr(
        compilation,
        "compile_with_inductor",
        lambda *arguments, **options: traced.append(None) or inductor(*arguments, **options),
    )
    step = a2c_compiled.TrainStep(make_loss(), "sgd", compile=True)
    _, (code,) = run_and_get_code(step, make_rollout())
    assert len(traced) == 1
    assert "void inductor_entry_impl(" in code


class Scaled(nn.Module):
    """A linear network whose output is multiplied by a Python number."""

    def __init__(self):
        super().__init__()
        self.layer, self.scale = nn.Linear(FEATURES, CHOICES), 0.5

    def forward(self, x):
        return self.scale * self.layer(x)


def test_a_number_that_changes_between_updates_takes_effect():
    loss, rollout = make_loss(networks=(Scaled(), nn.Linear(FEATURES, 1))), make_rollout()
    steps = [a2c_compiled.TrainStep(copy.deepcopy(loss), "sgd", compile=compile) for compile in (True, False)]
    for scale in (0.5, 0.75, 1.25):
        for step in steps:
            step.loss.actor_network.scale = scale
            step(rollout)
        for name, tensor in steps[0].state_dict().items():
            torch.testing.assert_close(tensor, steps[1].state_dict()[name])
