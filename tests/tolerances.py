"""The largest error allowed between a result and the float64 oracle, relative to the largest magnitude of the oracle."""

import torch

RELATIVE = {
    torch.float64: 1e-10,
    torch.float32: 1e-5,
    # The rounding of the result, half a unit in the last place, and 10 % more. Sums of half precision are computed in float32.
    torch.float16: 2**-11 * 1.1,
    torch.bfloat16: 2**-8 * 1.1,
}


def assert_close(actual, expected, dtype=None, what="result", roundings=1):
    """Asserts that ``actual`` has the shape of ``expected`` and differs by no more than the tolerance. NaN fails.

    Args:
        dtype: the dtype whose tolerance holds. Default: the dtype of ``actual``.
        roundings: how often a half-precision result is rounded during the computation.
    """
    tolerance = RELATIVE[dtype or actual.dtype]
    if actual.dtype in (torch.float16, torch.bfloat16):
        tolerance *= roundings
    assert actual.shape == expected.shape, f"{what}: shape {list(actual.shape)}, expected {list(expected.shape)}"
    actual, expected = actual.detach().double(), expected.detach().double()
    if expected.numel() == 0:
        return
    assert expected.isfinite().all(), f"{what}: the oracle itself is not finite"
    error = (actual - expected).abs().max() / expected.abs().max().clamp_min(1e-30)
    assert error <= tolerance, f"{what}: off by {error:.2e} of the largest magnitude, {tolerance:.1e} allowed"
