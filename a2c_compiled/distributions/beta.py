"""The beta distribution of actions in a box."""

import math
from typing import Optional, Sequence, Tuple, Union

import torch
from torch import Tensor
from torch.nn import functional

from a2c_compiled._hyperparameters import positive_int
from a2c_compiled._kinds import check_tensor
from a2c_compiled._precision import widen
from a2c_compiled._special_functions import stirling_error, stirling_error_slope
from a2c_compiled._torch_internals import standard_gamma
from a2c_compiled.distributions.base import Distribution, box, check_real_action, draw, join_noise_kinds


class Beta(Distribution):
    r"""A vector of independent beta variables, scaled to the box ``(low, high)``: bounded actions without tanh.

    .. math::
        \log p = \sum_i (\alpha_i - 1)\log y_i + (\beta_i - 1)\log(1 - y_i) - \log B(\alpha_i, \beta_i) - \log(h_i - l_i), \qquad
        y = \tfrac{a - l}{h - l}

    * ``params``: ``[*B, 2 * dim]``, floating dtype; ``dim`` raw values of :math:`\alpha`, then ``dim`` of :math:`\beta`. Each
      concentration is :math:`1 + \operatorname{softplus}(\text{raw})`. Above 1, the density has one peak and is 0 at the bounds.
    * action: ``[*B, dim]``, floating dtype, in ``[low, high]``. :meth:`log_prob` treats an action at a bound as if its distance from
      that bound were 1e-6 of the width (1e-15 for float64), so the log-density is finite.
    * noise: ``[*B, 32 * dim]``, normal and uniform.

    A sample is :math:`g_1 / (g_1 + g_2)`, where the two gamma variables have the shapes :math:`\alpha` and :math:`\beta`.
    :meth:`sample_from` makes eight candidates for each gamma variable from the noise and uses the first that Marsaglia and Tsang's test
    accepts. If the test rejects all eight (with a probability below 1e-10), it uses a rejected one. :meth:`sample_from` has no gradient.
    :meth:`rsample` has torch's gradient of a gamma variable.

    The distribution is ``torch.distributions.Beta`` after an affine transform to the box, except at the bounds.

    Args:
        dim: length of the action.
        low, high: bounds: a number, or a sequence of ``dim`` numbers. The bounds stay in float64 when the module changes dtype.

    Raises:
        ValueError: ``dim`` is less than 1, or the bounds are not finite, not ``low < high``, or not of length ``dim``.
        TypeError: ``dim`` is not an integer.

    Source: Chou, Maturana and Scherer, Improving Stochastic Policy Gradients in Continuous Control using the Beta Distribution, 2017;
    Marsaglia and Tsang, A Simple Method for Generating Gamma Variables, 2000.
    """

    has_entropy = True
    low: Tensor
    width: Tensor

    def __init__(self, dim: int, low: Union[float, Sequence[float]] = -1.0, high: Union[float, Sequence[float]] = 1.0) -> None:
        super().__init__()
        self.dim = positive_int("dim", dim)
        self.num_params = 2 * self.dim
        self.noise_kind = join_noise_kinds([("normal", 16 * self.dim), ("uniform", 16 * self.dim)])
        lower, upper = box(low, high, self.dim)
        self.register_buffer("low", lower, persistent=False)
        self.register_buffer("width", upper - lower, persistent=False)

    def concentrations(self, params: Tensor) -> Tuple[Tensor, Tensor]:
        r"""Computes :math:`\alpha` and :math:`\beta` from ``params``. Both are at least 1.

        Each result: ``[*B, dim]``, float64 for float64 ``params``, otherwise float32.
        """
        excess = self._excess(params)
        return excess[..., 0, :] + 1.0, excess[..., 1, :] + 1.0

    def log_prob(self, params: Tensor, action: Tensor) -> Tensor:
        """Computes the log-density of ``action``.

        ``action``: ``[*B, dim]``, floating dtype, in ``[low, high]``. Result: ``[*B]``, dtype of ``params``.
        """
        check_real_action(action, params, self.dim)
        a, b = self.concentrations(params)
        low, width = self.low.to(a.dtype), self.width.to(a.dtype)
        margin = 1e-15 if a.dtype == torch.float64 else 1e-6
        x = action.to(a.dtype)
        log_y, log_rest = ((x - low) / width).clamp_min(margin).log(), ((low + width - x) / width).clamp_min(margin).log()
        # The code subtracts, from both logarithms, the logarithms at the mean of y. For large concentrations a * log_y and the normaliser
        # are large and nearly cancel; after the subtraction, they are small before they are added.
        log_mean, log_mean_rest = -(b / a).log1p(), -(a / b).log1p()
        data = a * (log_y - log_mean) + b * (log_rest - log_mean_rest) - log_y - log_rest
        error = stirling_error(torch.stack([a, b, a + b]))
        normaliser = (
            0.5 * (log_mean + log_mean_rest + (a + b).log()) - 0.5 * math.log(2.0 * math.pi) + error[2] - error[0] - error[1]
        )
        return (data + normaliser - width.log()).sum(-1).to(params.dtype)

    def entropy(self, params: Tensor) -> Tensor:
        r"""Computes the sum over i of :math:`\log B(\alpha_i, \beta_i)
        - (\alpha_i - 1)\psi(\alpha_i) - (\beta_i - 1)\psi(\beta_i) + (s_i - 2)\psi(s_i) + \log(h_i - l_i)`,
        where :math:`s = \alpha + \beta`. The leading terms of Stirling's formula cancel; the code leaves them out.
        The result is ``[*B]``, dtype of ``params``."""
        a, b = self.concentrations(params)
        stacked = torch.stack([a, b, a + b])
        error, slope, log = stirling_error(stacked), stirling_error_slope(stacked), stacked.log()
        leading = (
            0.5 * (log[0] + log[1]) - 1.5 * log[2] + 0.5 * (1.0 + math.log(2.0 * math.pi)) - 0.5 / a - 0.5 / b + 1.0 / (a + b)
        )
        rest = error[0] + error[1] - error[2] - (a - 1.0) * slope[0] - (b - 1.0) * slope[1] + (a + b - 2.0) * slope[2]
        return (leading + rest + self.width.to(a.dtype).log()).sum(-1).to(params.dtype)

    def mode(self, params: Tensor) -> Tensor:
        r"""Returns the action with the largest density, :math:`l + (h - l)(\alpha - 1) / (\alpha + \beta - 2)`.

        The result is ``[*B, dim]``, dtype of ``params``.
        """
        excess = self._excess(params) + 1e-30  # if both excesses are 0, the density is uniform and the result is the middle
        return self._stretch(excess[..., 0, :] / excess.sum(-2)).to(params.dtype)

    def action_bounds(self, params: Tensor) -> Optional[Tuple[Tensor, Tensor]]:
        """Returns the bounds of the box, ``[dim]`` each, dtype of ``params``. Their rounding may exceed ``high``."""
        self.check_params(params)
        y = widen(params.new_zeros(self.dim))
        return self._stretch(y).to(params.dtype), self._stretch(y + 1.0).to(params.dtype)

    def noise(self, params: Tensor) -> Tensor:
        """Draws 8 standard normal numbers for each of the ``2 * dim`` gamma variables, then as many uniform numbers.

        Result: ``[*B, 32 * dim]``, float64 for float64 ``params``, otherwise float32.
        """
        self.check_params(params)
        wide = widen(params)
        shape = list(wide.shape[:-1]) + [16 * self.dim]
        template = torch.empty(shape, dtype=wide.dtype, device=wide.device)
        return torch.cat([draw("normal", template), draw("uniform", template)], -1)

    def sample_from(self, params: Tensor, noise: Tensor) -> Tensor:
        """Computes the action from the first accepted candidate of each gamma variable, without gradient.

        Result: ``[*B, dim]``, dtype of ``params``.
        """
        check_tensor("noise", noise)
        check_tensor("params", params)
        excess = self._excess(params.detach())
        # The dimensions of the noise: normal or uniform, alpha or beta, entry of the action, candidate.
        normal, uniform = noise.unflatten(-1, [2, 2, self.dim, 8]).unbind(-4)
        # Marsaglia and Tsang: d is the shape parameter minus 1/3. A candidate is d * v.
        d = (excess + 2.0 / 3.0).unsqueeze(-1)
        v = (1.0 + normal / (9.0 * d).sqrt()) ** 3
        positive = v.clamp_min(1e-30)  # the logarithm of a v that is not positive would be NaN or infinite
        accepted = (v > 0) & (uniform.log() < 0.5 * normal.square() + d * (1.0 - v + positive.log()))
        # The rank is largest for the first candidate. Without it, argmax could return any of several accepted candidates.
        rank = torch.arange(8, 0, -1, device=noise.device)
        chosen = (accepted * rank).argmax(-1, keepdim=True)
        gamma = (d * positive.gather(-1, chosen)).squeeze(-1)
        return self._stretch(gamma[..., 0, :] / gamma.sum(-2)).to(params.dtype)

    def rsample(self, params: Tensor, noise: Optional[Tensor] = None) -> Tensor:
        """Samples an action that is differentiable in ``params``, with random numbers that torch draws.

        Args:
            params: ``[*B, 2 * dim]``, floating dtype.
            noise: must be None, because a sample computed from noise has no gradient.

        Raises:
            ValueError: ``noise`` is not None, or the shape of ``params`` is wrong.
            TypeError: the dtype of ``params`` is not floating.
        """
        if noise is not None:
            raise ValueError("noise: expected None, since Beta's rsample draws its own random numbers, got a tensor")
        gamma = standard_gamma(self._excess(params) + 1.0)
        return self._stretch(gamma[..., 0, :] / gamma.sum(-2)).to(params.dtype)

    def _excess(self, params: Tensor) -> Tensor:
        """Computes both concentrations minus 1: ``[*B, 2, dim]``, float64 for float64 ``params``, otherwise float32."""
        self.check_params(params)
        return functional.softplus(widen(params)).unflatten(-1, [2, self.dim])

    def _stretch(self, y: Tensor) -> Tensor:
        """Maps ``y``, from 0 to 1, to an action in the box."""
        return self.low.to(y.dtype) + self.width.to(y.dtype) * y
