"""A wrapper for distributions of torch.distributions."""

from typing import Any, Callable, Optional

import torch
from torch import Tensor

from a2c_compiled._hyperparameters import positive_int
from a2c_compiled._kinds import check_tensor, described, flag, integer
from a2c_compiled.distributions.base import Distribution


class TorchDistribution(Distribution):
    """Wraps a ``torch.distributions`` class, or an object with the same methods, for eager and compiled mode.

    :meth:`log_prob`, :meth:`entropy`, :meth:`mode`, :meth:`rsample` and :meth:`sample` return what the wrapped distribution
    ``factory(params)`` returns: ``log_prob(params, a) = factory(params).log_prob(a)``.

    * ``params``: ``[*B, num_params]``, floating dtype; the factory defines the layout.
    * action, log-probability and entropy: the shapes and dtypes that the wrapped distribution returns.

    The wrapped distribution draws its own random numbers. :meth:`noise`, :meth:`sample_from` and :meth:`sample_and_log_prob` therefore
    raise NotImplementedError, and an exported policy cannot sample. TorchScript cannot compile this class. Use another distribution of
    this package to export a policy that samples, or for TorchScript.

    Args:
        factory: function from ``params`` to a distribution, for example ``lambda params: Independent(Normal(*params.chunk(2, -1)), 1)``.
            Its ``log_prob`` must return ``[*B]``: use ``Independent`` for vectors. Under ``torch.compile``, pass ``validate_args=False``,
            because torch's validation reads the data and cannot be traced.
        num_params: size of the last dimension of ``params``. None: neither this size nor the dtype of ``params`` is checked.
        has_entropy: whether the distribution implements ``entropy``. False: :meth:`entropy_estimate` estimates the entropy from samples.

    Raises:
        ValueError: ``num_params`` is less than 1.
        TypeError: ``factory`` is not callable, or ``num_params`` is not an integer.

    Source: torch.distributions.Distribution.
    """

    def __init__(self, factory: Callable[[Tensor], Any], num_params: Optional[int] = None, has_entropy: bool = True) -> None:
        super().__init__()
        if not callable(factory):
            raise TypeError(f"factory: expected a callable from params to a distribution, got {described(factory)}")
        self.factory = factory
        self.num_params = -1 if num_params is None else positive_int("num_params", num_params)
        self.has_entropy = flag("has_entropy", has_entropy)

    def distribution(self, params: Tensor) -> Any:
        """Builds the wrapped distribution, ``factory(params)``.

        Args:
            params: ``[*B, num_params]``, floating dtype.

        Raises:
            ValueError: ``num_params`` was given and the last dimension of ``params`` differs.
            TypeError: ``num_params`` was given and the dtype of ``params`` is not floating.
        """
        check_tensor("params", params)
        if self.num_params >= 0:
            self.check_params(params)
        return self.factory(params)

    def log_prob(self, params: Tensor, action: Tensor) -> Tensor:
        """Returns ``log_prob(action)`` of the wrapped distribution, usually ``[*B]``."""
        check_tensor("action", action)
        return self.distribution(params).log_prob(action)

    def entropy(self, params: Tensor) -> Tensor:
        """Returns ``entropy()`` of the wrapped distribution. Raises NotImplementedError if the distribution does not implement it."""
        try:
            return self.distribution(params).entropy()
        except NotImplementedError as error:
            raise NotImplementedError(
                "entropy: the wrapped distribution does not implement it; pass has_entropy=False"
            ) from error

    def mode(self, params: Tensor) -> Tensor:
        """Returns ``mode`` of the wrapped distribution."""
        return self.distribution(params).mode

    def action_of_ones(self, params: Tensor) -> Tensor:
        """Returns the mode for parameters of 1, or a sample if the wrapped distribution does not implement ``mode``."""
        check_tensor("params", params)
        distribution = self.distribution(params.new_ones([params.size(-1)]))
        try:
            return distribution.mode
        except NotImplementedError:
            return distribution.sample()

    def rsample(self, params: Tensor, noise: Optional[Tensor] = None) -> Tensor:
        """Returns ``rsample()`` of the wrapped distribution. Raises ValueError unless ``noise`` is None."""
        _check_no_noise(noise)
        return self.distribution(params).rsample()

    def sample(self, params: Tensor, noise: Optional[Tensor] = None) -> Tensor:
        """Returns ``sample()`` of the wrapped distribution. Raises ValueError unless ``noise`` is None."""
        _check_no_noise(noise)
        return self.distribution(params).sample()

    def entropy_estimate(self, params: Tensor, num_samples: int, noise: Optional[Tensor] = None) -> Tensor:
        """Computes the entropy, or estimates it from ``num_samples`` samples.

        The samples have a gradient if the wrapped distribution has ``rsample``. Without a closed form, raises ValueError if ``noise`` is
        not None or ``num_samples`` is less than 1.
        """
        if self.has_entropy:
            return self.entropy(params)
        _check_no_noise(noise)
        distribution, num_samples = self.distribution(params), integer("num_samples", num_samples)
        if num_samples < 1:
            raise ValueError(f"num_samples: expected at least one sample, got {num_samples}")
        draw = distribution.rsample if distribution.has_rsample else distribution.sample
        return -distribution.log_prob(draw(torch.Size([num_samples]))).mean(0)

    def __prepare_scriptable__(self) -> "TorchDistribution":
        """Raises TypeError, because TorchScript cannot read torch.distributions. ``torch.jit.script`` calls this method."""
        raise TypeError(
            "distribution: expected another class of a2c_compiled.distributions, because TorchScript cannot read torch.distributions,"
            " got TorchDistribution"
        )


def _check_no_noise(noise: Optional[Tensor]) -> None:
    """Raises ValueError unless ``noise`` is None."""
    if noise is not None:
        raise ValueError("noise: expected None, since torch.distributions draw their own random numbers, got a tensor")
