"""The eager fast path gives the results of the usual path, and refuses everything that it cannot compute."""

import itertools

import numpy as np
import pytest
import torch
from torch.autograd import forward_ad
from torch.utils._python_dispatch import TorchDispatchMode

from a2c_compiled import functional as F
from a2c_compiled.kernels import cpu_scan, scan_forms
from a2c_compiled.ops import direct

pytestmark = pytest.mark.skipif(not cpu_scan.is_available(), reason="the C++ kernels were not built")

FUNCTIONS = {
    scan_forms.LINEAR_SCAN: F.reverse_scan,
    scan_forms.GAE: F.generalized_advantage_estimate,
    scan_forms.TD_LAMBDA: F.td_lambda_return_estimate,
    scan_forms.VTRACE: F.vtrace_advantage_estimate,
    scan_forms.ELIGIBILITY_TRACE: F.eligibility_trace,
    scan_forms.REWARD2GO: lambda gamma, reward, done, dim, **packed: F.reward2go(reward, done, gamma, dim, **packed),
}
LAYOUTS = {
    "contiguous": lambda tensor: tensor,
    "transposed": lambda tensor: tensor.transpose(0, 1).contiguous().transpose(0, 1),
    "strided": lambda tensor: torch.stack([tensor, tensor], -1)[..., 0],
    "broadcast": lambda tensor: tensor[:1].expand_as(tensor),
}


def make_inputs(form, shape=(3, 7, 2), dtype=torch.float32, layout=lambda tensor: tensor):
    coefficients = [0.9 - 0.1 * i for i in range(len(form.coefficients))]
    values = [layout(torch.randn(shape, dtype=dtype)) for _ in form.values]
    return [*coefficients, *values, *[layout(torch.rand(shape) < 0.3) for _ in form.flags]]


def usual_path(form, dim, inputs, monkeypatch, **packed):
    with monkeypatch.context() as patch:
        patch.setattr(cpu_scan, "call", lambda *_: None)
        if form is scan_forms.VTRACE:
            gamma, rho, c, pg_rho, lmbda, *steps = inputs
            outputs = F.vtrace_advantage_estimate(gamma, *steps, rho, c, dim, packed.get("cu_seqlens"), pg_rho, lmbda)
        elif form is scan_forms.TD_LAMBDA:
            outputs = F.td_lambda_return_estimate(*inputs, None, dim, **packed)
        else:
            outputs = FUNCTIONS[form](*inputs, dim, **packed)
    return (outputs,) if isinstance(outputs, torch.Tensor) else tuple(outputs)


@pytest.mark.parametrize("form", FUNCTIONS, ids=lambda form: form.name)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_fast_path_gives_the_results_and_strides_of_the_usual_path(form, dtype, layout, monkeypatch):
    for dim, coefficients in itertools.product((-2, 1, 0, -1), ("numbers", "zero_dimensional", "per_step")):
        inputs = make_inputs(form, dtype=dtype, layout=LAYOUTS[layout])
        if coefficients != "numbers":
            shape = () if coefficients == "zero_dimensional" else (3, 7, 2)
            inputs[: len(form.coefficients)] = torch.rand(len(form.coefficients), *shape, dtype=dtype).unbind(0)
        outputs = direct(form, dim, *inputs)
        expected = usual_path(form, dim, inputs, monkeypatch)
        for one, other in zip(outputs, expected, strict=True):
            assert torch.equal(one, other)
            assert one.stride() == other.stride()


@pytest.mark.parametrize("form", [form for form in FUNCTIONS if form.flags], ids=lambda form: form.name)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_fast_path_of_packed_sequences_gives_the_results_and_strides_of_the_usual_path(form, layout, monkeypatch):
    starts = (
        torch.tensor([0, 2, 2, 5, 7]),
        torch.tensor([0, 1, 9, 3, 9], dtype=torch.int32)[::2],
        torch.tensor([-(2**63), 1, 2**62]),
    )
    for dim, cu_seqlens in itertools.product((-2, 1, 0, -1), starts):
        inputs = make_inputs(form, layout=LAYOUTS[layout])
        before = [one.clone() for one in inputs[-len(form.flags) :]]
        outputs = direct(form, dim, *inputs, cu_seqlens=cu_seqlens)
        expected = usual_path(form, dim, inputs, monkeypatch, cu_seqlens=cu_seqlens)
        for one, other in zip(outputs, expected, strict=True):
            assert torch.equal(one, other)
            assert one.stride() == other.stride()
        assert all(map(torch.equal, inputs[-len(form.flags) :], before))


@pytest.mark.parametrize(
    "cu_seqlens",
    [
        [0, 7],
        torch.tensor([0.0, 7.0]),
        torch.tensor([0, 7], dtype=torch.uint8),
        torch.tensor([[0, 7]]),
        torch.tensor([0, 7], device="meta"),
        torch.nn.Parameter(torch.tensor([0, 7]), requires_grad=False),
        torch.zeros(0, dtype=torch.int64),
    ],
    ids=["list", "floating", "bytes", "two dimensions", "another device", "subclass", "empty"],
)
def test_the_fast_path_refuses_starts_of_sequences(cu_seqlens):
    assert direct(scan_forms.GAE, -2, *make_inputs(scan_forms.GAE), cu_seqlens=cu_seqlens) is None


def test_the_fast_path_refuses_packed_sequences_of_a_form_without_flags():
    assert direct(scan_forms.LINEAR_SCAN, -2, *make_inputs(scan_forms.LINEAR_SCAN), cu_seqlens=torch.tensor([0, 7])) is None


def _with(position, change):
    def changed(inputs):
        return [*inputs[:position], change(inputs[position]), *inputs[position + 1 :]]

    return changed


REFUSED = {
    "another shape": _with(2, lambda value: value[..., :1]),
    "another dtype": _with(3, lambda value: value.double()),
    "half precision": lambda inputs: [one.half() if getattr(one, "is_floating_point", bool)() else one for one in inputs],
    "integers": lambda inputs: [one.long() if isinstance(one, torch.Tensor) else one for one in inputs],
    "flags that are not bool": _with(5, lambda flag: flag.to(torch.uint8)),
    "a gradient": _with(4, lambda value: value.requires_grad_()),
    "a gradient to a coefficient": _with(0, lambda gamma: torch.tensor(gamma, requires_grad=True)),
    "a coefficient per step of another dtype": _with(0, lambda _: torch.ones(3, 7, 2, dtype=torch.float64)),
    "a coefficient in half precision": _with(0, lambda _: torch.tensor(0.5, dtype=torch.bfloat16)),
    "a coefficient to broadcast": _with(0, lambda gamma: torch.full((2,), gamma)),
    "a coefficient that is not a number": _with(0, str),
    "a subclass": _with(2, torch.nn.Parameter),
    "not a tensor": _with(2, lambda value: value.numpy()),
    "none": _with(2, lambda value: None),
    "another device": _with(2, lambda value: value.to("meta")),
    "a sparse tensor": _with(2, lambda value: value.to_sparse()),
    "zeros without memory": _with(2, lambda value: torch._efficientzerotensor(value.shape)),
    "a negated view": _with(2, torch._neg_view),
    "too many elements": lambda inputs: [
        one[:1].expand(2**17, 7, 2) if isinstance(one, torch.Tensor) else one for one in inputs
    ],
    "no elements": lambda inputs: [one[:0] if isinstance(one, torch.Tensor) else one for one in inputs],
    "no dimensions": lambda inputs: [one[0, 0, 0] if isinstance(one, torch.Tensor) else one for one in inputs],
    "too many dimensions": lambda inputs: [one[(None,) * 14] if isinstance(one, torch.Tensor) else one for one in inputs],
}


@pytest.mark.parametrize("name", REFUSED)
def test_the_fast_path_refuses(name):
    assert direct(scan_forms.GAE, -2, *REFUSED[name](make_inputs(scan_forms.GAE))) is None


@pytest.mark.parametrize("dim", [3, -4, 1.0, True, None, np.int64(1), 2**70])
def test_the_fast_path_refuses_a_wrong_dimension(dim):
    assert direct(scan_forms.GAE, dim, *make_inputs(scan_forms.GAE)) is None


def test_the_fast_path_accepts_tensors_that_require_grad_under_no_grad():
    inputs = make_inputs(scan_forms.GAE)
    expected = direct(scan_forms.GAE, -2, *inputs)
    inputs[4].requires_grad_()
    with torch.no_grad():
        assert torch.equal(direct(scan_forms.GAE, -2, *inputs)[0], expected[0])


def adds_1_if_refused(inputs):
    """Returns a function that adds 1 to its argument if the fast path refuses ``inputs``."""
    return lambda x: x + (direct(scan_forms.GAE, -2, *inputs) is None)


def test_the_fast_path_refuses_under_a_dispatch_mode_and_in_forward_mode():
    inputs = make_inputs(scan_forms.GAE)

    class Watching(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            return function(*args, **(kwargs or {}))

    with Watching():
        assert direct(scan_forms.GAE, -2, *inputs) is None
    with forward_ad.dual_level():
        assert direct(scan_forms.GAE, -2, *inputs) is None


def test_the_fast_path_refuses_inside_vmap():
    assert torch.equal(torch.func.vmap(adds_1_if_refused(make_inputs(scan_forms.GAE)))(torch.zeros(2)), torch.ones(2))


@pytest.mark.slow
def test_the_fast_path_refuses_while_dynamo_traces():
    traced = torch.compile(adds_1_if_refused(make_inputs(scan_forms.GAE)), backend="eager", fullgraph=True)
    assert torch.equal(traced(torch.zeros(2)), torch.ones(2))


@pytest.mark.parametrize("name", ["a gradient", "half precision", "a coefficient in half precision"])
def test_the_function_computes_what_the_fast_path_refuses(name):
    inputs = REFUSED[name](make_inputs(scan_forms.GAE))
    advantage, _ = F.generalized_advantage_estimate(*inputs)
    wide = [one.double() if getattr(one, "is_floating_point", bool)() else one for one in inputs]
    torch.testing.assert_close(advantage, F.generalized_advantage_estimate(*wide)[0].to(advantage.dtype), rtol=2e-3, atol=2e-3)


def test_the_extension_raises_for_malformed_calls():
    for arguments in ((), (99, 1, 0, None, torch.zeros(3)), (0, 1, 0, None, torch.zeros(3))):
        with pytest.raises(ValueError, match="call: bad"):
            cpu_scan._extension.call(*arguments)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_zero_dimensional_coefficient_may_have_the_other_dtype(dtype):
    inputs = make_inputs(scan_forms.GAE, dtype=dtype)
    other = torch.float32 if dtype == torch.float64 else torch.float64
    as_tensors = [torch.tensor(number, dtype=other) for number in inputs[:2]]
    rounded = [tensor.item() for tensor in as_tensors]
    for output, expected in zip(
        direct(scan_forms.GAE, -2, *as_tensors, *inputs[2:]), direct(scan_forms.GAE, -2, *rounded, *inputs[2:]), strict=True
    ):
        assert torch.equal(output, expected)
