"""Normalisation of values in the critic loss by the running mean and deviation of the value targets."""

from typing import Optional

import torch
from torch import Tensor, nn

from a2c_compiled._hyperparameters import CoefficientModule
from a2c_compiled._kinds import check_optional_mask, check_tensor, described
from a2c_compiled._precision import widen
from a2c_compiled.losses.moving_moments import MovingMoments, overwrite


class PopArt(CoefficientModule):
    r"""Last layer of a critic whose loss is normalised by the running mean and deviation of the value targets (PopArt).

    .. math::
        V(s) &= \sigma\, (w \cdot h(s) + b) + m, \quad \sigma = \max(\text{min\_scale}, \sqrt v) \\
        L_\text{critic} &= \ell\left(\frac{G - m}{\sigma}, \frac{V(s) - m}{\sigma}\right)

    :math:`m` and :math:`v` are the mean and the variance of the value targets :math:`G` so far, see
    :class:`~a2c_compiled.losses.moving_moments.MovingMoments`. When an update changes them to :math:`m'` and :math:`\sigma'`, it also
    corrects the layer, so that the values stay the same:

    .. math:: w \leftarrow \frac{\sigma}{\sigma'} w, \quad b \leftarrow \frac{\sigma b + m - m'}{\sigma'}

    Put the layer at the end of the critic, and pass it to the loss too:

    >>> value_norm = PopArt(nn.Linear(64, 1))
    >>> loss = A2CLoss(actor, nn.Sequential(nn.Linear(4, 64), nn.Tanh(), value_norm), distribution, value_norm=value_norm)

    The critic's outputs are values in the scale of the rewards, as without PopArt. The policy loss is not normalised; see
    :class:`~a2c_compiled.losses.RunningNorm` for the advantages.

    Args:
        layer: a layer with one output and a bias. It becomes a submodule and is not copied.
        rate: weight of the latest rollout in mean and variance, more than 0 and at most 1. None: all value targets so far have the same
            weight.
        min_scale: smallest :math:`\sigma`, positive.
        across_processes: whether to count the value targets of all processes of the default group of ``torch.distributed``. If True, all
            processes must call :meth:`update`. :class:`~a2c_compiled.TrainStep` requires it with a process group, because otherwise each
            process would correct the layer in its own way.

    Raises:
        TypeError: ``layer`` is not an ``nn.Linear``, or another argument has a wrong type.
        ValueError: ``layer`` has no bias or several outputs, or a number is out of range.

    Source: van Hasselt et al., Learning values across many orders of magnitude, 2016.
    """

    def __init__(
        self, layer: nn.Linear, rate: Optional[float] = 0.01, min_scale: float = 1e-4, across_processes: bool = False
    ) -> None:
        super().__init__()
        if not isinstance(layer, nn.Linear):
            raise TypeError(f"layer: expected an nn.Linear, got {described(layer)}")
        if layer.out_features != 1 or layer.bias is None:
            raise ValueError(f"layer: expected one output and a bias, got {layer}")
        self.layer = layer
        self.moments = MovingMoments(rate, min_scale, across_processes)

    def forward(self, features: Tensor) -> Tensor:
        """Computes values.

        Args:
            features: ``[*B, layer.in_features]``, floating: :math:`h(s)`.

        Returns:
            :math:`V(s)`, ``[*B, 1]``, float32 if the layer returns half precision, else the dtype of the layer.

        Raises:
            TypeError: ``features`` is not a tensor.
        """
        check_tensor("features", features)
        normalized = widen(self.layer(features))
        # In float64: if the mean is large, its rounding error in float32 may exceed the deviation.
        return (normalized.double() * self.moments.deviation() + self.moments.mean).to(normalized.dtype)

    def normalize(self, value: Tensor) -> Tensor:
        r"""Returns :math:`(V - m) / \sigma`: shape of ``value``, which is floating; float32 for half precision, else the same dtype.

        Raises TypeError if ``value`` is not a tensor.
        """
        check_tensor("value", value)
        return self.moments.normalize(widen(value))

    def update(self, value_target: Tensor, mask: Optional[Tensor] = None) -> None:
        """Moves mean and variance towards those of ``value_target``, and corrects the layer so that its values stay the same.

        The loss calls this method in training mode, after it has computed value targets. If you pass advantages, call it once per rollout,
        before the loss. Nothing changes if no entry counts or if an entry that counts is NaN or infinite.

        Args:
            value_target: any shape, floating: the returns.
            mask: shape of ``value_target``, bool: entries that count. None: all entries count.

        Raises:
            TypeError: ``value_target`` is not a tensor, or ``mask`` is not a bool tensor.
        """
        check_tensor("value_target", value_target)
        check_optional_mask(mask)
        with torch.no_grad():
            mean, deviation = self.moments.mean.clone(), self.moments.deviation()
            self.moments.update(value_target, mask)
            new_deviation = self.moments.deviation()
            weight, bias = self.layer.weight, self.layer.bias
            overwrite(weight, (weight * (deviation / new_deviation)).to(weight.dtype))
            overwrite(bias, ((bias * deviation + mean - self.moments.mean) / new_deviation).to(bias.dtype))
