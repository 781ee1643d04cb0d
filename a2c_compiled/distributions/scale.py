"""A learnt scale that does not depend on the state."""

import torch
from torch import Tensor, nn

from a2c_compiled._hyperparameters import positive_int


class AddStateIndependentNormalScale(nn.Module):
    """Puts a learnt raw scale beside the locations that a network returns: ``[*B, dim]`` to ``[*B, 2 * dim]``.

    The last layer of an actor network whose scales do not depend on the observation, for :class:`~a2c_compiled.distributions.Normal` and
    the others that take locations and raw scales side by side. They map the raw scale: ``scale_mapping="exp"`` makes it a log standard
    deviation, as in Stable-Baselines3 and by default in TorchRL's module of this name, whose parameter is called the same.

    Args:
        dim: number of locations.
        init_value: of the raw scale.
    """

    def __init__(self, dim: int, init_value: float = 0.0) -> None:
        super().__init__()
        self.dim = positive_int("dim", dim)
        self.state_independent_scale = nn.Parameter(torch.full([self.dim], float(init_value)))

    def forward(self, loc: Tensor) -> Tensor:
        """Raises ValueError unless ``loc`` is ``[*B, dim]``."""
        if loc.dim() == 0 or loc.size(-1) != self.dim:
            raise ValueError(f"loc: expected shape [..., {self.dim}], got {list(loc.shape)}")
        return torch.cat([loc, self.state_independent_scale.to(loc.dtype).expand_as(loc)], -1)
