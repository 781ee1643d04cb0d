"""Any distribution of torch, or in its style."""

from typing import Any, Callable, Optional

import torch
from torch import Tensor

from a2c_compiled._hyperparameters import positive_int
from a2c_compiled.distributions.base import Distribution


class TorchDistribution(Distribution):
    """A ``torch.distributions`` class, or anything with its methods, for eager and compiled mode.

    Args:
        factory: makes the distribution from ``params``, as in ``lambda params: Independent(Normal(*params.chunk(2, -1)), 1)``. Its
            log-probability must be ``[*B]`` (use ``Independent`` for vectors). Under ``torch.compile`` it must pass
            ``validate_args=False``: torch's validation reads data, which cannot be traced.
        num_params: last dimension of ``params``; None leaves it unchecked.
        has_entropy: whether the distribution implements ``entropy``.

    Sampling draws its own random numbers, so there is no ``noise``; TorchScript cannot read it. For both, use the distributions of
    this package.
    """

    def __init__(self, factory: Callable[[Tensor], Any], num_params: Optional[int] = None, has_entropy: bool = True) -> None:
        super().__init__()
        if not callable(factory):
            raise TypeError(f"factory: expected a callable from params to a distribution, got {type(factory)}")
        self.factory = factory
        self.num_params = -1 if num_params is None else positive_int("num_params", num_params)
        self.has_entropy = has_entropy

    def distribution(self, params: Tensor) -> Any:
        """What ``factory`` makes of ``params``."""
        if self.num_params >= 0:
            self.check_params(params)
        return self.factory(params)

    def log_prob(self, params: Tensor, action: Tensor) -> Tensor:
        """As the distribution computes it."""
        return self.distribution(params).log_prob(action)

    def entropy(self, params: Tensor) -> Tensor:
        """As the distribution computes it."""
        try:
            return self.distribution(params).entropy()
        except NotImplementedError as error:
            raise NotImplementedError("entropy: not known to this distribution; say has_entropy=False") from error

    def mode(self, params: Tensor) -> Tensor:
        """As the distribution computes it."""
        return self.distribution(params).mode

    def rsample(self, params: Tensor, noise: Optional[Tensor] = None) -> Tensor:
        """As the distribution computes it; ``noise`` is an error, here and below."""
        _check_no_noise(noise)
        return self.distribution(params).rsample()

    def sample(self, params: Tensor, noise: Optional[Tensor] = None) -> Tensor:
        """As the distribution computes it."""
        _check_no_noise(noise)
        return self.distribution(params).sample()

    def entropy_estimate(self, params: Tensor, num_samples: int, noise: Optional[Tensor] = None) -> Tensor:
        """As in the base class; a distribution without ``rsample`` is sampled without gradient."""
        if self.has_entropy:
            return self.entropy(params)
        _check_no_noise(noise)
        distribution = self.distribution(params)
        if num_samples < 1:
            raise ValueError(f"num_samples: expected at least one sample, got {num_samples}")
        draw = distribution.rsample if distribution.has_rsample else distribution.sample
        return -distribution.log_prob(draw(torch.Size([num_samples]))).mean(0)

    def __prepare_scriptable__(self) -> "TorchDistribution":
        raise TypeError(
            "distribution: TorchScript cannot read torch.distributions; use one of a2c_compiled.distributions in its place"
        )


def _check_no_noise(noise: Optional[Tensor]) -> None:
    if noise is not None:
        raise ValueError("noise: expected None, since torch.distributions draw their own random numbers, got a tensor")
