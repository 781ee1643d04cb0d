"""NaN and infinity reach the same steps in every backend as in a plain loop, and no others.

A decay of zero stops them. A product of decays that underflows does not: the plain loop never computes such a product. Each case is one row
(sequence) of random numbers, zeros, denormal numbers, NaN and infinity.
"""

import functools

import pytest
import torch
from export_cases import load_onnx
from torch import Tensor, nn

from a2c_compiled import export
from a2c_compiled.export.tracing import scan_doubling
from a2c_compiled.kernels import cpu_scan, torch_scan
from a2c_compiled.kernels.scan_forms import LINEAR_SCAN, LINEAR_SCAN_TRANSPOSED
from a2c_compiled.ops.linear_scan import linear_scan as scriptable_linear_scan

ROWS = 2000
DIRECTIONS = pytest.mark.parametrize("reverse", [True, False], ids=["reverse", "forward"])
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)


def odd_numbers(shape, generator, dtype=torch.float32, zeros=0.05, not_finite=0.02, infinite=True) -> Tensor:
    """Random numbers of magnitudes down to the smallest denormal ones. In a fifth of the rows, most numbers are zero."""
    numbers = torch.randn(shape, generator=generator, dtype=torch.float64)
    exponents = torch.rand(shape, generator=generator, dtype=torch.float64) * -46
    numbers = torch.where(torch.rand(shape, generator=generator) < 0.1, numbers * 10.0**exponents, numbers)
    mostly_zero = torch.rand(shape[-1], generator=generator) < 0.2
    probability = torch.where(mostly_zero, 0.9, zeros)
    numbers = torch.where(torch.rand(shape, generator=generator) < probability, 0.0, numbers)
    for value in (torch.nan, torch.inf, -torch.inf) if infinite else (torch.nan,):
        probability = not_finite * torch.rand(shape[-1], generator=generator)
        numbers = torch.where(torch.rand(shape, generator=generator) < probability, value, numbers)
    return numbers.to(dtype)


def plain_loop(x: Tensor, decay: Tensor, reverse: bool) -> Tensor:
    """Computes the linear scan of ``[T, N]`` in the dtype of ``x``, one step after the other. A zero decay selects ``x``."""
    y = list(x)
    for t in range(len(x) - 2, -1, -1) if reverse else range(1, len(x)):
        a, neighbour = (decay[t], y[t + 1]) if reverse else (decay[t - 1], y[t - 1])
        y[t] = torch.where(a == 0, x[t], x[t] + a * neighbour)
    return torch.stack(y)


def assert_same_kinds(actual: Tensor, expected: Tensor, kinds=("nan", "posinf", "neginf")) -> None:
    """Asserts that NaN and infinity are at the same steps, and that the other numbers are close."""
    for kind in kinds:
        test = getattr(torch, f"is{kind}")
        wrong = (test(actual) != test(expected)).nonzero()
        assert not len(wrong), f"{kind} in {len(wrong)} results that should be other numbers, or the reverse; first {wrong[0]}"
    both = actual.isfinite() & expected.isfinite()
    torch.testing.assert_close(actual[both], expected[both], rtol=1e-3, atol=1e-4)


def in_cpp(x: Tensor, decay: Tensor, reverse: bool) -> Tensor:
    return cpu_scan.run(LINEAR_SCAN if reverse else LINEAR_SCAN_TRANSPOSED, (), (x, decay), (), -2)[0]


def in_cpp_along_rows(x: Tensor, decay: Tensor, reverse: bool, rows: int) -> Tensor:
    """Scans ``rows`` rows per call, with contiguous time. Fewer than eight long rows are scanned in parts."""
    form = LINEAR_SCAN if reverse else LINEAR_SCAN_TRANSPOSED
    pairs = zip(x.T.contiguous().split(rows), decay.T.contiguous().split(rows), strict=True)
    return torch.cat([cpu_scan.run(form, (), pair, (), -1)[0] for pair in pairs]).T


def in_torch(x: Tensor, decay: Tensor, reverse: bool) -> Tensor:
    return torch_scan.linear_scan(x, decay, -2, reverse)


def in_exported_graphs(x: Tensor, decay: Tensor, reverse: bool) -> Tensor:
    return (scan_doubling.linear_scan if reverse else scan_doubling.linear_scan_transposed)(x, decay, -2)


_scripted = torch.jit.script(scriptable_linear_scan)


def in_torchscript(x: Tensor, decay: Tensor, reverse: bool) -> Tensor:
    return _scripted(x, decay, -2, reverse)


class _Scan(nn.Module):
    def __init__(self, reverse: bool) -> None:
        super().__init__()
        self.reverse = reverse

    def forward(self, x: Tensor, decay: Tensor) -> Tensor:
        return scriptable_linear_scan(x, decay, -2, self.reverse)


@pytest.fixture(scope="module")
def in_onnx(tmp_path_factory):
    def run_of(reverse: bool, dtype: torch.dtype):
        path = tmp_path_factory.mktemp("scan") / "scan.onnx"
        return load_onnx(export.export_onnx(_Scan(reverse), 2 * [torch.zeros(3, 2, dtype=dtype)], path))

    runs = functools.cache(run_of)
    return lambda x, decay, reverse: runs(reverse, x.dtype)({"x": x, "decay": decay})["output"]


def in_triton(x: Tensor, decay: Tensor, reverse: bool, time_contiguous: bool, **sizes) -> Tensor:
    triton_scan = pytest.importorskip("a2c_compiled.kernels.triton_scan")
    from a2c_compiled.kernels.triton import tuning

    form, device = LINEAR_SCAN if reverse else LINEAR_SCAN_TRANSPOSED, "cuda" if torch.cuda.is_available() else "cpu"
    values, dim = [x.to(device), decay.to(device)], -2
    if time_contiguous:
        values, dim = [value.T.contiguous() for value in values], -1
    with tuning.forced(tuning.Blocks(**{"rows": 1024, "num_warps": 1, "vector": 1, **sizes})):
        y = triton_scan.run(form, (), values, (), dim)[0].cpu()
    return y.T if time_contiguous else y


EXACT = {
    "C++, side by side": in_cpp,
    "C++, rows": functools.partial(in_cpp_along_rows, rows=100),
    "C++, parts of a row": functools.partial(in_cpp_along_rows, rows=3),
    "TorchScript": in_torchscript,
}
TRITON = {
    f"Triton, {name}{', time is contiguous' if time_contiguous else ''}": functools.partial(
        in_triton, time_contiguous=time_contiguous, **sizes
    )
    for time_contiguous in (False, True)
    for name, sizes in {
        "tiles": {"steps": 8, "chunks": 1},
        "splits": {"steps": 4, "chunks": 2, "splits": 3},
    }.items()
}
# An infinite product of decays is taken for one that overflowed, so these give NaN after an infinite decay, where a loop may give infinity.
DOUBLING = {"torch": in_torch, "exported graphs": in_exported_graphs}


@functools.cache
def data(length: int, dtype: torch.dtype):
    """Three pairs of values and decays, ``[length, ROWS]``, and whether their decays are finite and at most 1."""
    generator = torch.Generator().manual_seed(length)
    pairs = []
    for scale, decays_are_finite in ((1.0, True), (0.1, True), (0.5, False)):
        x = odd_numbers((length, ROWS), generator, dtype)
        decay = odd_numbers((length, ROWS), generator, dtype, not_finite=0.0 if decays_are_finite else 0.02) * scale
        pairs.append((x, decay.clamp(-1, 1) if decays_are_finite else decay, decays_are_finite))
    return pairs


@functools.cache
def expected_of(length: int, dtype: torch.dtype, reverse: bool):
    """The results of the plain loop for each pair of ``data``."""
    return [plain_loop(x, decay, reverse) for x, decay, _ in data(length, dtype)]


@DTYPES
@DIRECTIONS
@pytest.mark.parametrize("length", [5, 70, 300])
@pytest.mark.parametrize("scan", [*EXACT.values(), *DOUBLING.values()], ids=[*EXACT, *DOUBLING])
def test_backends_agree_with_the_loop(scan, length, reverse, dtype):
    cases = zip(data(length, dtype), expected_of(length, dtype, reverse), strict=True)
    for (x, decay, decays_are_finite), expected in cases:
        exact = scan in EXACT.values() or decays_are_finite
        y = scan(x, decay, reverse)
        assert torch.equal(y.isfinite(), expected.isfinite())
        assert_same_kinds(y, expected, ("nan", "posinf", "neginf") if exact else ())


def assert_agrees_row_by_row(scan, length, reverse, dtype) -> None:
    """Scans each row alone, so that a row whose results are finite is computed in the fast way, and another one step by step."""
    generator = torch.Generator().manual_seed(length)
    x, decay = (odd_numbers((length, 100), generator, dtype, not_finite=0.4 / length) for _ in range(2))
    decay = decay.clamp(-1, 1)
    expected = plain_loop(x, decay, reverse)
    assert 10 < expected.isfinite().all(0).sum() < 90
    rows = zip(x.split(1, 1), decay.split(1, 1), strict=True)
    assert_same_kinds(torch.cat([scan(*row, reverse) for row in rows], 1), expected)


@DTYPES
@DIRECTIONS
@pytest.mark.parametrize("length", [70, 300])
def test_torchscript_agrees_with_the_loop_row_by_row(length, reverse, dtype):
    assert_agrees_row_by_row(in_torchscript, length, reverse, dtype)


@pytest.mark.slow
@DTYPES
@DIRECTIONS
def test_onnx_agrees_with_the_loop_row_by_row(in_onnx, reverse, dtype):
    assert_agrees_row_by_row(in_onnx, 70, reverse, dtype)


@pytest.mark.slow
@DIRECTIONS
@pytest.mark.parametrize("scan", TRITON.values(), ids=TRITON)
def test_triton_agrees_with_the_loop(scan, reverse):
    generator = torch.Generator().manual_seed(0)
    x, decay = (odd_numbers((21, 1024), generator) * scale for scale in (1.0, 0.1))
    assert_same_kinds(scan(x, decay, reverse), plain_loop(x, decay, reverse))


@DIRECTIONS
@pytest.mark.parametrize(
    "scan",
    [
        *(pytest.param(scan, id=name) for name, scan in {**EXACT, **DOUBLING}.items()),
        *(pytest.param(scan, id=name, marks=pytest.mark.slow) for name, scan in TRITON.items()),
    ],
)
def test_a_product_that_overflows_changes_no_zero(scan, reverse):
    length = 16 if scan in TRITON.values() else 80  # the interpreter is slow
    x, decay = torch.zeros(length, 2), torch.full((length, 2), 1e10)
    x[length // 4, 0] = 1.0
    decay[length // 2] = 0.0
    assert_same_kinds(scan(x, decay, reverse), plain_loop(x, decay, reverse))
