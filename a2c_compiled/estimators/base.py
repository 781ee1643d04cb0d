"""What all value estimators share."""

from typing import Optional, Union

from torch import Tensor

from a2c_compiled._coefficients import UNIT, CoefficientModule
from a2c_compiled.functional import ValueEstimate


class ValueEstimator(CoefficientModule):
    """A function of :mod:`a2c_compiled.functional` with its hyperparameters.

    Called as ``advantage, value_target = estimator(state_value, next_state_value, reward, done, terminated)``; one that sets
    ``needs_log_prob`` takes ``log_pi`` and ``log_mu`` after these. Shapes, dtypes and errors are the function's.

    Args:
        gamma: discount, from 0 to 1; a number or a tensor that broadcasts to the data.
        differentiable: let gradients pass from the results to values, rewards and log-probabilities.
        time_dim: the dimension of time.

    Raises:
        ValueError: a coefficient is out of range.
        TypeError: a coefficient is neither a number nor a tensor.
    """

    __constants__ = ["needs_log_prob"]  # unlike a Final annotation, inherited by subclasses in TorchScript

    needs_log_prob: bool = False
    gamma: Tensor

    def __init__(self, gamma: Union[float, Tensor], differentiable: bool, time_dim: int) -> None:
        super().__init__()
        self.register_coefficient("gamma", gamma, UNIT)
        self.differentiable = differentiable
        self.time_dim = time_dim

    def source(self, tensor: Tensor) -> Tensor:
        """``tensor`` as the results may see it: without its gradient, unless ``differentiable``."""
        return tensor if self.differentiable else tensor.detach()

    def forward(
        self,
        state_value: Tensor,
        next_state_value: Tensor,
        reward: Tensor,
        done: Tensor,
        terminated: Optional[Tensor] = None,
    ) -> ValueEstimate:
        """Advantage and value target, both of the shape of ``reward``."""
        raise NotImplementedError
