"""Selects the minibatches of several epochs: which steps or environments of a rollout each update learns from."""

from typing import Any, Dict, List, Optional, Tuple

import torch
from torch import Tensor

from a2c_compiled._kinds import check_tensor, check_tensors, described
from a2c_compiled.estimators import ValueEstimator
from a2c_compiled.losses import A2CLoss
from a2c_compiled.losses.batch import time_and_agent_dims
from a2c_compiled.update.minibatches import environment_dim
from a2c_compiled.update.rollout import Rollout, as_loss_arguments, mapped

BY = ("steps", "environments")
"""What a minibatch is a selection of."""


def check_epochs(
    loss: A2CLoss,
    by: str,
    minibatches: int,
    generator: Optional[torch.Generator],
    advantage: Optional[Tensor],
    value_target: Optional[Tensor],
) -> None:
    """Raises ValueError or TypeError if :meth:`a2c_compiled.TrainStep.epochs` does not accept these arguments and options."""
    if by not in BY:
        raise ValueError(f"by: expected one of {', '.join(map(repr, BY))}, got {by!r}")
    if by == "steps" and loss.has_recurrent_network:
        raise ValueError("by: expected 'environments' for a recurrent network, whose steps depend on each other, got 'steps'")
    if minibatches != 1:
        raise ValueError(f"minibatches: expected 1 for epochs, which split the rollout themselves, got {minibatches}")
    if generator is not None and not isinstance(generator, torch.Generator):
        raise TypeError(f"generator: expected a torch.Generator or None, got {described(generator)}")
    check_tensors(("advantage", "value_target"), (advantage, value_target), 0)
    if advantage is None and value_target is not None:
        raise ValueError("value_target: expected None without advantage, got a tensor")


def with_given(rollout: Rollout, advantage: Tensor, value_target: Optional[Tensor]) -> Dict[str, Any]:
    """Returns the arguments of the loss that a given advantage needs."""
    own = as_loss_arguments(rollout._asdict())
    names = ("observation", "action", "sample_log_prob", "state_value", "mask")
    return {name: own[name] for name in names} | {"advantage": advantage, "value_target": value_target}


def rows_of(by: str, arguments: Dict[str, Any], estimator: ValueEstimator, reward: Tensor) -> Tuple[Dict[str, Any], int]:
    """Returns the arguments of the loss, and the dimension along which :func:`selected` selects.

    Args:
        by: ``"environments"``, or ``"steps"``, which joins the dimensions of steps and environments.
        arguments: tensors, tuples of tensors and None, by name, with the advantage.
        estimator: the value estimator, which knows the dimensions of time and agents.
        reward: the reward of the rollout, of which only the shape is used.

    Raises:
        ValueError: a tensor has no dimension of environments, or another size than the advantage; or, by steps, the first two dimensions
            are not those of steps and environments.
    """
    advantage = arguments["advantage"]
    dim = environment_dim(estimator, reward, advantage)
    last = dim
    if by == "steps":
        time, _ = time_and_agent_dims(estimator, reward, advantage)
        if {time, dim} != {0, 1}:
            raise ValueError(
                f"by: expected 'environments' unless steps and environments are the first two dimensions, got 'steps' with time {time}"
                f" and environments {dim}"
            )
        dim, last = 0, 1
    expected = list(advantage.shape[dim : last + 1])
    for name, entry in arguments.items():
        for part in entry if isinstance(entry, tuple) else (entry,):
            if part is not None and list(part.shape[dim : last + 1]) != expected:
                raise ValueError(
                    f"{name}: expected {expected} in the dimensions {dim} to {last}, as in the advantage, got {list(part.shape)}"
                )
    return {name: mapped(lambda tensor: tensor.flatten(dim, last), entry) for name, entry in arguments.items()}, dim


def learning_rates(lr: Tensor, num_updates: int, like: Tensor) -> List[Tensor]:
    """Returns the learning rate of each update, 0-d, with dtype and device of ``like``.

    Raises TypeError unless ``lr`` is a tensor, ValueError unless its shape is ``[num_updates]``.
    """
    check_tensor("lr", lr)
    if list(lr.shape) != [num_updates]:
        raise ValueError(f"lr: expected [{num_updates}], one learning rate for each update, got shape {list(lr.shape)}")
    return list(lr.to(like).unbind())


def shuffled(
    count: int, size: int, epochs: int, generator: Optional[torch.Generator], device: torch.device
) -> Tuple[List[Tensor], List[Optional[Tensor]]]:
    """Draws the minibatches of ``epochs`` passes over ``count`` rows: ``epochs * ceil(count / size)`` minibatches.

    Returns:
        For each minibatch, its rows, ``[size]``, int64, and which of them count, ``[size]``, bool; None if all do. If ``size`` does not
        divide ``count``, rows that do not count fill up the last minibatch of each epoch. All minibatches then have one size, so that one
        compiled graph serves all.
    """
    own_device = "cpu" if generator is None else generator.device
    order = torch.stack([torch.randperm(count, generator=generator, device=own_device) for _ in range(epochs)]).to(device)
    missing = -count % size
    indices = torch.cat([order, order[:, :missing]], 1).reshape(-1, size).unbind()
    if missing == 0:
        return list(indices), [None] * len(indices)
    counted = (torch.arange(count + missing, device=device) < count).expand(epochs, -1)
    return list(indices), list(counted.reshape(-1, size).unbind())


def selected(arguments: Dict[str, Any], dim: int, indices: Tensor, counted: Optional[Tensor]) -> Dict[str, Any]:
    """Returns the rows ``indices``, ``[size]``, of the arguments along ``dim``. The mask excludes the rows where ``counted`` is False."""
    rows = {name: mapped(lambda tensor: tensor.index_select(dim, indices), entry) for name, entry in arguments.items()}
    if counted is not None:
        mask = rows["mask"]
        like = rows["advantage"] if mask is None else mask
        shape = [1] * like.dim()
        shape[dim] = counted.numel()
        steps = counted.reshape(shape).expand_as(like)
        rows["mask"] = steps if mask is None else mask & steps
    return rows
