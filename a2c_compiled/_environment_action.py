"""Maps the action of a distribution to the action of an environment: converts the dtype, the shape and the bounds.

Spaces are recognised by their attributes, so that exports need no gymnasium.
"""

import math
import warnings
from typing import Any, List, Optional

import torch
from torch import Tensor, nn

from a2c_compiled._hyperparameters import CoefficientModule
from a2c_compiled._kinds import described

REAL = ("float16", "float32", "float64")


def check_action_space(space: Any) -> None:
    """Raises ValueError for a Box of integers or bools, and for discrete values that do not start at 0. Other spaces are not checked.

    Samples of this library's distributions cannot be actions of these spaces.
    """
    if is_box(space) and space.dtype.name not in REAL:
        instead = "MultiBinary" if space.dtype.kind == "b" else "MultiDiscrete"
        raise ValueError(
            f"action_space: expected a Box of {', '.join(REAL)}, got {space}; wrap the environment so that its action space is a"
            f" {instead}"
        )
    start = getattr(space, "start", 0)
    if start.any() if hasattr(start, "any") else start:
        raise ValueError(f"action_space: expected discrete values that start at 0, got {space}")


def is_box(space: Any) -> bool:
    """Returns whether ``space`` is a Box: the space of arrays between two bounds."""
    return hasattr(space, "low") and hasattr(space, "high")


class EnvironmentAction(CoefficientModule):
    r"""Maps an action of a distribution to the action that an environment takes.

    The action is converted to the dtype of the space, and in a Box then reshaped to the shape of the space and clipped:

    .. math::
        a_\text{environment} = \min(\max(a, \text{low}), \text{high})

    Rollouts record the distribution's action, because the loss computes the log-probability of that action. The environment receives the
    result.

    Actions of other spaces than Box, Discrete, MultiDiscrete and MultiBinary, such as Tuple, remain unchanged.

    Args:
        space: the action space of one environment, of gymnasium or with the same attributes.

    Attributes:
        converts: whether the module converts actions; False for spaces such as Tuple.
        dtype: dtype of the environment's actions.
        low, high: bounds of a Box, in the shape of the space; empty for other spaces.
        clips: whether a bound is finite.
        shape: shape of a Box; empty for other spaces.
        reshapes: whether the shape of the environment's action differs from that of the distribution's action.
        takes_real: whether real actions are accepted.

    Raises:
        TypeError: ``space`` is not a space.
    """

    low: Tensor
    high: Tensor
    shape: List[int]

    def __init__(self, space: Any) -> None:
        super().__init__()
        if not hasattr(space, "contains"):
            raise TypeError(f"action_space: expected a gymnasium space, got {described(space)}")
        box = is_box(space)
        self.converts = box or hasattr(space, "n") or hasattr(space, "nvec")
        if box:
            low, high = (torch.from_numpy(bound.copy()) for bound in (space.low, space.high))
        else:  # empty; in the dtype of the space if the action is converted
            low = torch.from_numpy(space.dtype.type(0).reshape(1)).new_empty(0) if self.converts else torch.empty(0)
            high = low.new_empty(0)
        self.register_buffer("low", low, persistent=False)
        self.register_buffer("high", high, persistent=False)
        self.dtype = low.dtype
        # Stable-Baselines3 returns 0.0 and 1.0 for MultiBinary; the space contains both.
        self.takes_real = self.dtype.is_floating_point or (hasattr(space, "n") and bool(space.shape))
        self.clips = box and bool(low.isfinite().any() or high.isfinite().any())
        self.shape = [int(size) for size in space.shape] if box else []
        self.reshapes = box and len(self.shape) != 1  # a distribution's action is a vector

    def forward(self, action: Tensor) -> Tensor:
        """Returns the environment's actions.

        Args:
            action: ``[*B]``, ``[*B, dim]`` or ``[*B, *space.shape]``. A Box with two or more dimensions needs a batch dimension; a Box of
                shape ``()`` takes ``[N]`` or ``[*B, 1]``.

        Returns:
            ``[*B]`` or ``[*B, *space.shape]``, dtype of the space. In a Box, between its bounds.

        Raises:
            TypeError: the action is real, and the space is Discrete or MultiDiscrete.
        """
        if not self.converts:
            return action
        if action.is_floating_point() and not self.takes_real:
            raise TypeError(f"action: expected {self.dtype}, the dtype of the action space, got {action.dtype}")
        action = action.to(self.dtype)
        if self.reshapes:
            rank = len(self.shape)
            # The sizes are compared from the last one, because the first may vary in an exported graph.
            is_shaped = action.dim() < 2
            if rank > 0:
                is_shaped = (
                    action.dim() > rank and action.size(-1) == self.shape[-1] and list(action.shape[-rank:]) == self.shape
                )
            if not is_shaped:
                action = action.reshape(list(action.shape[:-1]) + self.shape)
        if self.clips:
            action = torch.minimum(torch.maximum(action, self.low), self.high)
        return action

    def of_array(self, action: Any) -> Any:
        """Returns the environment's actions as an array, ``[N]`` or ``[N, *space.shape]``. ``action``: an array, ``[N, ...]``.

        Errors: as in :meth:`forward`. Anything but an array of numbers remains unchanged.
        """
        import numpy as np  # imported here, because exports and losses need only torch

        if not isinstance(action, np.ndarray) or action.dtype.kind not in "biuf":
            return action
        return self(torch.tensor(action)).numpy()

    def can_change(self, distribution: Any, dtype: torch.dtype = torch.float32) -> bool:
        """Returns whether :meth:`forward` can change the dtype, the shape or a value of an action of ``distribution``. True if unknown.

        Args:
            distribution: the action distribution.
            dtype: dtype of the distribution's parameters.
        """
        if not self.converts:
            return False
        action = _action_of_ones(distribution, dtype)
        if action is None or self.reshapes or action.dtype != self.dtype:
            return True
        params = self.low.new_ones(distribution.num_params, dtype=dtype)
        bounds = distribution.action_bounds(params) if self.clips else None
        return self.clips and (bounds is None or bool((bounds[0] < self.low).any() or (bounds[1] > self.high).any()))


def environment_action(space: Any, distribution: Any, network: nn.Module) -> Optional[EnvironmentAction]:
    """Returns the module that maps the actions of a policy to those of an environment; None if ``space`` is None or both are always equal.

    Args:
        space: the action space of the environment; None if there is none.
        distribution: the action distribution.
        network: the actor network. The distribution's parameters have the dtype of its last floating-point parameter, or else float32.

    Warns RuntimeWarning if ``distribution`` has fewer choices than ``space``, whose other actions the policy then never takes.

    Raises:
        TypeError, ValueError: as :class:`EnvironmentAction` and :func:`check_action_space` describe.
        ValueError: ``distribution`` is for another space: it has a single choice and the space is a Box, it has real actions and the space
            is discrete, or it has choices that the space lacks. Or the entries of its action do not divide those of ``space``: it may have
            been made for the batched space of a vector environment. With several agents, the space has the entries of all agents.
    """
    if space is None:
        return None
    check_action_space(space)
    module = EnvironmentAction(space)
    real = [parameter for parameter in network.parameters() if parameter.is_floating_point()]
    head = real[-1] if real else torch.zeros(())
    action = _action_of_ones(distribution, head.dtype)
    if module.converts and action is not None:
        _check_distribution(module, space, distribution, action)
    return module.to(head.device) if module.can_change(distribution, head.dtype) else None


def _check_distribution(module: EnvironmentAction, space: Any, distribution: Any, action: Tensor) -> None:
    """Raises ValueError if ``distribution``, with actions such as ``action``, is for another space; warns if it has fewer choices."""
    got = None
    is_too_small = False
    is_real = action.is_floating_point()
    if math.prod(space.shape) % max(1, action.numel()) != 0:
        got = f"whose action has {action.numel()} entries"
    elif is_box(space) and space.shape and action.dim() == 0 and not is_real:
        got = "whose action is a single choice"
    elif is_real and not module.takes_real:
        got = "whose actions are real numbers"
    else:
        chosen, possible = _choices_of(distribution, action), _choices_in(space)
        if chosen and possible and len(possible) % len(chosen) == 0:
            repeated = chosen * (len(possible) // len(chosen))  # several agents have the same choices
            is_too_small = all(ours <= theirs for ours, theirs in zip(repeated, possible, strict=True))
            if repeated != possible:
                got = f"which chooses among {' and '.join(map(str, chosen))} actions"
    if got is None:
        return
    message = (
        f"distribution: expected one for the actions of one environment, {space}, such as {_fitting(module, space)},"
        f" got {type(distribution).__name__}, {got}"
    )
    if not is_too_small:
        raise ValueError(message)
    warnings.warn(f"{message}: the policy never takes the others", RuntimeWarning, stacklevel=4)


def _choices_of(distribution: Any, action: Tensor) -> List[int]:
    """Returns the number of options of each choice of a Categorical or MultiCategorical. Empty for others, and where a mask selects."""
    if action.is_floating_point():
        return []
    last = getattr(distribution, "last", None)
    if isinstance(last, Tensor) and last.shape == action.shape:
        return [option + 1 for option in last.tolist()]
    n = getattr(distribution, "n", None)
    return [n] if isinstance(n, int) and action.dim() == 0 and distribution.num_params == n else []


def _choices_in(space: Any) -> List[int]:
    """Returns the number of options of each choice of a Discrete or MultiDiscrete space. Empty for other spaces."""
    if hasattr(space, "nvec"):
        return [int(n) for n in space.nvec.flatten()]
    return [int(space.n)] if hasattr(space, "n") and not space.shape else []


def _fitting(module: EnvironmentAction, space: Any) -> str:
    """Returns a distribution for ``space``, as one writes it."""
    if is_box(space):
        is_bounded = bool(module.low.isfinite().all() and module.high.isfinite().all())
        size = math.prod(space.shape)
        return f"Beta({size}, low, high)" if is_bounded else f"Normal({size})"
    if hasattr(space, "nvec"):
        return f"MultiCategorical({_choices_in(space)})"
    return f"Bernoulli({space.n})" if space.shape else f"Categorical({space.n})"


def _action_of_ones(distribution: Any, dtype: torch.dtype) -> Optional[Tensor]:
    """Returns an action of ``distribution`` for parameters of 1 with ``dtype``, ``[*event]``. None if it is unknown."""
    try:
        action: Tensor = distribution.action_of_ones(torch.ones(distribution.num_params, dtype=dtype))
        return action
    except (AttributeError, NotImplementedError, RuntimeError, ValueError):
        return None  # a user's distribution may lack mode or num_params, or raise an error for parameters of 1
