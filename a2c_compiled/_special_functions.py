"""Integrals and special functions from basic tensor operations, because ONNX has no operators for them."""

from typing import Tuple

import torch
from torch import Tensor


def gauss_legendre(count: int) -> Tuple[Tensor, Tensor]:
    """Computes the points and weights of Gauss-Legendre quadrature on (0, 1), each ``[count]``, float64.

    With these points and weights, the quadrature of polynomials up to degree ``2 * count - 1`` is exact.

    Source: Golub and Welsch, Calculation of Gauss Quadrature Rules, 1969.
    """
    k = torch.arange(1, count, dtype=torch.float64)
    off_diagonal = k / (4 * k**2 - 1).sqrt()
    points, vectors = torch.linalg.eigh(off_diagonal.diag(1) + off_diagonal.diag(-1))
    return (points + 1) / 2, vectors[0] ** 2


def half_normal_integral(tilt: Tensor, width: Tensor, points: Tensor, weights: Tensor) -> Tensor:
    r"""Computes :math:`\int_0^w e^{-E(s)} ds`, where :math:`E(s) = k s + s^2/2`.

    No terms cancel, for any tilt or width. In float64 with 28 points, the relative error is a few rounding errors.

    Args:
        tilt: :math:`k`, from 0 to 1e15, float32 or float64.
        width: :math:`w \ge 0`, same shape and dtype as ``tilt``.
        points, weights: from :func:`gauss_legendre`.

    Returns:
        Same shape and dtype as ``tilt``.
    """
    width = torch.minimum(width, half_normal_end(tilt))
    return width * ((-_exponent(tilt, width, points)).exp() * weights.to(width.dtype)).sum(-1)


def half_normal_moment(tilt: Tensor, width: Tensor, points: Tensor, weights: Tensor) -> Tensor:
    r"""Computes :math:`\int_0^w E(s) e^{-E(s)} ds`. Arguments and result: as in :func:`half_normal_integral`."""
    width = torch.minimum(width, half_normal_end(tilt))
    exponent = _exponent(tilt, width, points)
    return width * (exponent * (-exponent).exp() * weights.to(width.dtype)).sum(-1)


def _exponent(tilt: Tensor, width: Tensor, points: Tensor) -> Tensor:
    """Computes ``E(s)`` at ``s = width * points``, with the points in a new last dimension."""
    s = width.unsqueeze(-1) * points.to(width.dtype)
    return s * (tilt.unsqueeze(-1) + 0.5 * s)


def half_normal_end(tilt: Tensor) -> Tensor:
    """Computes the ``s`` with ``E(s) = 40`` in :func:`half_normal_integral`. The result has the shape and dtype of ``tilt``.

    The integral beyond ``s`` is below float64's precision. The formula is the positive root of ``s**2 + 2 * tilt * s = 80``.
    """
    return 80.0 / (tilt + (tilt.square() + 80.0).sqrt())


def half_normal_quantile(tilt: Tensor, integral: Tensor, points: Tensor, weights: Tensor) -> Tensor:
    """Inverts :func:`half_normal_integral`: computes the width for a given ``integral``. The gradient of the result is not meaningful.

    Arguments: as in :func:`half_normal_integral`; ``integral`` has the shape and dtype of ``tilt``.
    """
    end = half_normal_end(tilt)
    whole = half_normal_integral(tilt, end, points, weights)
    min_rest = whole * (1e-16 if whole.dtype == torch.float64 else 6e-8)  # about half the spacing of numbers near ``whole``
    rest = torch.maximum(whole - integral, min_rest)
    # The hazard rate is 1 / whole at 0 and grows nearly linearly: the first guess solves hazard * s + growth * s**2 / 2 = log_ratio,
    # the logarithm of whole / rest.
    hazard, log_ratio = 1.0 / whole, (integral / rest).log1p()
    growth = (hazard * (hazard - tilt)).clamp(0.0, 1.0)
    s = torch.minimum(2.0 * log_ratio / (hazard + (hazard.square() + 2.0 * growth * log_ratio).sqrt()), end)
    for _ in range(3):  # Newton's method for the logarithm of the integral beyond s
        below = half_normal_integral(tilt, s, points, weights)
        beyond = torch.maximum(whole - below, min_rest)
        step = beyond * (s * (tilt + 0.5 * s)).exp() * ((integral - below) / rest).clamp_min(-0.99).log1p()
        s = torch.minimum((s + step).clamp_min(0.0), end)
    return s


def stirling_error(x: Tensor) -> Tensor:
    r"""Computes :math:`\log\Gamma(x) - \big((x - \tfrac12)\log x - x + \tfrac12\log 2\pi\big)` for :math:`x \ge 1`.

    This error of Stirling's formula is between 0 and 0.09. The error at :math:`x` minus the error at
    :math:`x + 1` is :math:`(x + \tfrac12)\log(1 + 1/x) - 1`. The code adds eight such differences and
    Stirling's series at :math:`x + 8`. In float64, the result is accurate to 1e-14.

    Args:
        x: any shape, float32 or float64. The result has the same shape and dtype.
    """
    steps = x.unsqueeze(-1) + torch.arange(8, dtype=x.dtype, device=x.device)
    r = 1.0 / (x + 8.0)
    q = r * r
    series = r * (1 / 12 - q * (1 / 360 - q * (1 / 1260 - q * (1 / 1680 - q * (1 / 1188 - q * (691 / 360360))))))
    return ((steps + 0.5) * (1.0 / steps).log1p() - 1.0).sum(-1) + series


def stirling_error_slope(x: Tensor) -> Tensor:
    r"""Computes the derivative of :func:`stirling_error`: :math:`\psi(x) - \log x + \tfrac1{2x}`, where :math:`\psi` is digamma."""
    steps = x.unsqueeze(-1) + torch.arange(8, dtype=x.dtype, device=x.device)
    q = 1.0 / (x + 8.0).square()
    series = -q * (1 / 12 - q * (1 / 120 - q * (1 / 252 - q * (1 / 240 - q * (1 / 132 - q * (691 / 32760))))))
    return ((1.0 / steps).log1p() - 0.5 / steps - 0.5 / (steps + 1.0)).sum(-1) + series
