"""How far a result may be from the float64 oracle, relative to the largest magnitude expected: the one table."""

import torch

RELATIVE = {
    torch.float64: 1e-10,
    torch.float32: 1e-5,
    # The result's own rounding, half a unit in the last place, and little else: half precision is accumulated in float32.
    torch.float16: 2**-11 * 1.1,
    torch.bfloat16: 2**-8 * 1.1,
}


def assert_close(actual, expected, dtype=None, what="result", roundings=1):
    """``actual`` is of ``expected``'s shape and within the tolerance of ``dtype`` (default: its own); NaN fails.

    ``roundings``: how often a half-precision result was rounded on its way.
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
