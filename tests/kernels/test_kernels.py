"""Every backend of the linear scan equals the float64 loop, on any strides."""

import importlib
import warnings

import pytest
import torch
from cases import contiguous, interleaved, operands, transposed
from loops import loop_over
from oracle import linear_scan
from tolerances import assert_close
from torch import Tensor

from a2c_compiled.kernels import cpu_scan, scan_forms, torch_scan

# Shapes on both sides of every threshold between loops, lanes and tiles.
SHAPES = [
    ((1,), 0),
    ((7,), 0),
    ((5, 3), 0),
    ((5, 3), 1),
    ((33, 8), 0),
    ((200, 40), 0),
    ((40, 200), 1),
    ((3, 65), 1),
    ((4, 64), 1),
    ((17, 129), 1),
    ((3, 70, 5), 1),
    ((2, 3, 100, 4), 2),
    ((2, 3, 4, 5), 0),
    ((130, 1), 0),
    ((1, 130), 1),
    ((0, 3), 0),
    ((3, 0), 0),
]


def in_cpp(x, decay, dim, reverse):
    form = scan_forms.LINEAR_SCAN if reverse else scan_forms.LINEAR_SCAN_TRANSPOSED
    return cpu_scan.run(form, (), (x, decay), (), dim)[0]


BACKENDS = [pytest.param(in_cpp, id="cpp"), pytest.param(torch_scan.linear_scan, id="torch")]


def expanded(tensor: Tensor) -> Tensor:
    return tensor[..., :1].expand(tensor.shape)


@pytest.mark.parametrize("scan", BACKENDS)
@pytest.mark.parametrize("reverse", [True, False], ids=["reverse", "forward"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@loop_over("decay_strides", [contiguous, transposed, interleaved, expanded])
@loop_over("x_strides", [contiguous, transposed, interleaved])
@loop_over(("shape", "dim"), SHAPES)
def test_backend_equals_the_loop(scan, reverse, dtype, decay_strides, x_strides, shape, dim):
    generator = torch.Generator().manual_seed(0)
    x = x_strides(torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype))
    decay = torch.rand(shape, generator=generator, dtype=torch.float64) * (torch.rand(shape, generator=generator) > 0.1)
    decay = decay_strides(decay.to(dtype))
    y = scan(x, decay, dim - len(shape), reverse)
    expected = linear_scan(x.double(), decay.double(), dim, reverse)
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 8e-3, torch.float16: 1e-3}[dtype]
    torch.testing.assert_close(y.double(), expected, rtol=tolerance, atol=tolerance)
    assert y.dtype == dtype


@pytest.mark.parametrize("scan", BACKENDS)
@pytest.mark.parametrize(("shape", "dim"), [((6, 3), 0), ((3, 6), 1), ((70, 20), 0), ((20, 70), 1), ((70,), 0)], ids=str)
def test_a_zero_decay_stops_nan_and_infinity(scan, shape, dim):
    x, decay = torch.ones(shape), torch.full(shape, 0.5)
    cut, length = shape[dim] - 3, shape[dim]
    decay.select(dim, cut).fill_(0.0)
    x.narrow(dim, cut + 1, length - cut - 1).fill_(torch.nan)
    decay.narrow(dim, cut + 1, length - cut - 1).fill_(torch.inf)
    before = scan(x, decay, dim - len(shape), True).narrow(dim, 0, cut + 1)
    alone = scan(x.narrow(dim, 0, cut + 1), decay.narrow(dim, 0, cut + 1), dim - len(shape), True)
    torch.testing.assert_close(before, alone)


def test_the_extension_is_built():
    assert cpu_scan.is_available()


@pytest.mark.parametrize("build", ["_cpu", "_cpu_avx2", "_cpu_avx512"])
def test_every_build_that_this_processor_can_run_gives_the_same_results(build, monkeypatch):
    wanted = {"_cpu": "", "_cpu_avx2": "AVX2 AVX512", "_cpu_avx512": "AVX512"}[build]
    if wanted and torch.backends.cpu.get_cpu_capability() not in wanted.split():
        pytest.skip(f"this processor cannot run {build}")
    extension = importlib.import_module(f"a2c_compiled.kernels.{build}")
    for form in (scan_forms.GAE, scan_forms.VTRACE_BACKWARD, scan_forms.TD_LAMBDA):
        for dtype in (torch.float64, torch.float32):
            for shape, dim in (((9, 37), 0), ((37, 5), 1), ((20, 70), 1), ((3, 200), 1)):
                tensors = list(operands(form, shape, dtype).values())
                first_value, first_flag = len(form.coefficients), len(form.coefficients) + len(form.values)
                groups = tensors[:first_value], tensors[first_value:first_flag], tensors[first_flag:]
                expected = cpu_scan.run(form, *groups, dim)
                with monkeypatch.context() as patch:
                    patch.setattr(cpu_scan, "_extension", extension)
                    results = cpu_scan.run(form, *groups, dim)
                for result, value in zip(results, expected, strict=True):
                    assert_close(result, value)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_is_read_and_rounded_as_torch_does(dtype):
    every_number = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(dtype)
    numbers = torch.where(every_number.isfinite(), every_number, torch.zeros((), dtype=dtype))
    y = in_cpp(every_number.view(-1, 16), torch.zeros(2**12, 16, dtype=dtype), 0, True).flatten()
    torch.testing.assert_close(y, every_number, rtol=0, atol=0, equal_nan=True)
    # Sums of two numbers of every magnitude: results that are denormal, halfway between two numbers, or too large.
    x = torch.stack([numbers, numbers[torch.randperm(2**16, generator=torch.Generator().manual_seed(0))]])
    sums = in_cpp(x, torch.ones_like(x), 0, True)[0]
    torch.testing.assert_close(sums, (x[0].float() + x[1].float()).to(dtype), rtol=0, atol=0)


def test_without_the_extension_the_operator_runs_plain_torch_and_warns_once(monkeypatch):
    x, decay = torch.randn(5, 3), torch.rand(5, 3)
    expected = torch.ops.a2c_compiled.linear_scan(x, decay, -2)
    monkeypatch.setattr(cpu_scan, "_extension", None)
    cpu_scan.warn_once.cache_clear()
    with pytest.warns(RuntimeWarning, match="not built"):
        y = torch.ops.a2c_compiled.linear_scan(x, decay, -2)
    torch.testing.assert_close(y, expected)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        torch.ops.a2c_compiled.linear_scan(x, decay, -2)
    cpu_scan.warn_once.cache_clear()


def test_without_a_compiler_for_triton_the_operator_of_a_gpu_runs_plain_torch_and_warns_once(monkeypatch):
    triton_scan = pytest.importorskip("a2c_compiled.kernels.triton_scan")

    class Driver:
        @property
        def active(self):
            raise RuntimeError("Failed to find C compiler. Please specify via CC environment variable.")

    monkeypatch.setattr(triton_scan, "driver", Driver())
    triton_scan.is_available.cache_clear()
    operator = torch.ops.a2c_compiled.linear_scan.default
    x, decay = torch.randn(5, 3), torch.rand(5, 3)
    gpu = torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA)  # the implementation for GPUs, on CPU tensors
    with pytest.warns(RuntimeWarning, match="Triton needs a C compiler .* it raised RuntimeError: Failed to find C compiler"):
        y = operator.redispatch(gpu, x, decay, -2)
    torch.testing.assert_close(y, operator(x, decay, -2))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        operator.redispatch(gpu, x, decay, -2)
    triton_scan.is_available.cache_clear()


def test_the_extension_raises_for_malformed_operands():
    with pytest.raises(ValueError, match="bad form"):
        cpu_scan._extension.run()
    with pytest.raises(ValueError, match="number of operands"):
        cpu_scan._extension.run(0, 0, 0, torch.zeros(3))
    with pytest.raises(ValueError, match="bad dtype"):
        cpu_scan._extension.run(0, 4, 0, *[torch.zeros(3)] * 3)
    with pytest.raises(ValueError, match="bad shape or dim"):
        cpu_scan._extension.run(0, 0, 1, *[torch.zeros(3)] * 3)
    with pytest.raises(ValueError, match="number of dimensions"):
        cpu_scan._extension.run(0, 0, 0, torch.zeros(3, 3), *[torch.zeros(3)] * 2)
