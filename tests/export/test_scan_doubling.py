"""The scan by doubling, which exported programs contain, called in eager mode: it equals the definition of the scan."""

import oracle
import pytest
import torch
from cases import EMPTY_LAYOUTS, LAYOUTS
from export_cases import scan_arguments
from hypothesis import given, settings
from hypothesis import strategies as st
from tolerances import assert_close

from a2c_compiled.export.tracing import scan_doubling

NAN = float("nan")

SCANS = {True: scan_doubling.linear_scan, False: scan_doubling.linear_scan_transposed}
DIRECTIONS = pytest.mark.parametrize("reverse", SCANS, ids=["reverse", "transposed"])


@DIRECTIONS
@pytest.mark.parametrize(("shape", "time_dim"), LAYOUTS)
def test_doubling_equals_the_definition_in_every_layout(shape, time_dim, reverse):
    dim = time_dim - len(shape) if time_dim >= 0 else time_dim
    x, decay = scan_arguments(shape)
    assert_close(SCANS[reverse](x, decay, dim), oracle.linear_scan(x, decay, dim, reverse))


@DIRECTIONS
@settings(deadline=None, max_examples=60)
@given(steps=st.integers(0, 70), rows=st.integers(1, 3), seed=st.integers(0, 1000), ends=st.sampled_from([0.0, 0.3, 1.0]))
def test_doubling_equals_the_definition_at_any_length(reverse, steps, rows, seed, ends):
    generator = torch.Generator().manual_seed(seed)
    x, decay = 2 * torch.rand((2, steps, rows), generator=generator, dtype=torch.float64) - 1
    decay = decay.masked_fill(torch.rand((steps, rows), generator=generator) < ends, 0.0)
    assert_close(SCANS[reverse](x, decay, -2), oracle.linear_scan(x, decay, -2, reverse))


@DIRECTIONS
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_doubling_accumulates_half_precision_in_float32(dtype, reverse):
    x, decay = scan_arguments((500, 3), dtype)
    result = SCANS[reverse](x, decay, -2)
    assert result.dtype == dtype
    assert_close(result, oracle.linear_scan(x, decay, -2, reverse))


@DIRECTIONS
@pytest.mark.parametrize(("shape", "time_dim"), EMPTY_LAYOUTS)
def test_doubling_of_nothing_is_empty(shape, time_dim, reverse):
    x, decay = scan_arguments(shape)
    assert SCANS[reverse](x, decay, time_dim).shape == shape


@DIRECTIONS
@pytest.mark.parametrize("garbage", [NAN, float("inf"), -float("inf")])
@pytest.mark.parametrize("cut", [0, 4, 10])
def test_doubling_lets_no_nan_pass_a_zero_decay(garbage, cut, reverse):
    x, decay = scan_arguments((12, 3))
    decay[cut] = 0.0  # between a step and the next one
    expected = oracle.linear_scan(x, decay, -2, reverse)
    if reverse:
        x[cut + 1 :] = garbage
        decay[cut + 1 :] = NAN
        kept = slice(0, cut + 1)
    else:
        x[: cut + 1] = garbage
        decay[:cut] = NAN
        kept = slice(cut + 1, None)
    assert_close(SCANS[reverse](x, decay, -2)[kept], expected[kept])


@DIRECTIONS
def test_doubling_does_not_change_its_arguments(reverse):
    x, decay = scan_arguments((9, 2))
    before = x.clone(), decay.clone()
    SCANS[reverse](x, decay, -2)
    assert torch.equal(x, before[0])
    assert torch.equal(decay, before[1])


@DIRECTIONS
@pytest.mark.parametrize("length", [1, 2, 3, 4, 5, 8, 9])
def test_doubling_takes_as_many_rounds_as_its_length_needs(length, reverse, monkeypatch):
    rounds = []

    def counting(goes_on, body, carried, others):
        while goes_on(*carried, *others):
            rounds.append(carried[0].item())
            carried = body(*carried, *others)
        return carried

    monkeypatch.setattr(scan_doubling, "while_loop", counting)
    SCANS[reverse](*scan_arguments((length, 2)), -2)
    # At least one round: in AOTInductor a loop of no rounds returns uninitialised memory.
    assert rounds == [2**i for i in range(max(1, (length - 1).bit_length()))]
