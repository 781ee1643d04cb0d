"""How a loss asks its critic for values: of both observations, of one sequence that holds both, in chunks."""

import copy
from typing import Any, List, NamedTuple, Optional

import torch
from torch import Tensor, nn

from a2c_compiled._exporting import is_exporting
from a2c_compiled._hyperparameters import CoefficientModule
from a2c_compiled.losses.batch import chunks, concatenate, known, like
from a2c_compiled.losses.held_out import detaching
from a2c_compiled.losses.shifted import shifted_slots, take_steps


class CriticValues(NamedTuple):
    """Values of the observations and of the next ones; with ``shifted`` also which steps they are known of, and the last of these."""

    state_value: Tensor
    next_state_value: Tensor
    kept: Optional[Tensor]
    last: Optional[Tensor]


class CriticModule(CoefficientModule):
    """A module with a critic network, and the ways to call it."""

    critic_network: nn.Module
    target_critic_network: Optional[nn.Module]
    shifted: bool
    shifted_budget: int
    value_chunk_size: int  # 0 is all at once
    num_chunks: int  # 0 is as many as there are
    _held_out: List[str]  # parameters that the critic's loss does not teach

    def critic_values(
        self,
        observation: Tensor,
        next_observation: Tensor,
        reward: Tensor,
        done: Tensor,
        terminated: Tensor,
        time_dim: int,
        with_gradient: bool,
    ) -> CriticValues:
        """Of both observations. ``done`` and ``terminated`` are ``[*B]``, with time at ``time_dim``, counted from the front.

        Raises:
            ValueError: the critic's values do not have the shape of the actions, or the observations do not agree.
        """
        if self.shifted:
            return self.shifted_values(observation, next_observation, done, terminated, time_dim, with_gradient)
        state_value = self.critic(observation, with_gradient)
        if reward.dim() == 0 or state_value.size(0) != reward.size(0):
            raise ValueError(
                f"reward: expected one entry for each of the {state_value.size(0)} leading entries of observation,"
                f" got shape {list(reward.shape)}"
            )
        return CriticValues(state_value, self._next_values(known(next_observation, observation)), None, None)

    def shifted_values(
        self,
        observation: Tensor,
        next_observation: Tensor,
        done: Tensor,
        terminated: Tensor,
        time_dim: int,
        with_gradient: bool,
    ) -> CriticValues:
        """As :meth:`critic_values`, from a sequence of ``T + shifted_budget`` observations."""
        slots = shifted_slots(done, terminated, time_dim, self.shifted_budget)
        both = concatenate(observation, next_observation, time_dim)
        values = like(self.critic(selected(both, slots.source, time_dim), with_gradient), slots.source)
        return CriticValues(
            take_steps(values, slots.observation, time_dim),
            take_steps(values, slots.next_observation, time_dim),
            slots.kept,
            slots.last,
        )

    def critic(self, observation: Tensor, with_gradient: bool) -> Tensor:
        """Values, in chunks where asked for."""
        if with_gradient:
            values = self._values_in_chunks(observation, False)
        else:
            with torch.no_grad():
                values = self._values_in_chunks(observation, False)
        return values

    def _next_values(self, next_observation: Tensor) -> Tensor:
        """In a pass of its own, which no gradient comes back through: together with the observations it would take half as long again."""
        with torch.no_grad():
            return self._values_in_chunks(next_observation, True)

    def _values_in_chunks(self, observation: Tensor, of_target: bool) -> Tensor:
        if not torch.jit.is_scripting():  # noqa: SIM102 - TorchScript skips an `if` with this condition alone
            if is_exporting():  # a graph for any number of entries has no number of chunks
                return self._value(observation, of_target)
        if self.value_chunk_size == 0 and self.num_chunks == 0:
            return self._value(observation, of_target)
        values: List[Tensor] = []
        for chunk in chunks(observation, self.value_chunk_size, self.num_chunks):
            values.append(self._value(chunk, of_target))
        return torch.cat(values)

    def _value(self, observation: Tensor, of_target: bool) -> Tensor:
        if self.target_critic_network is not None:  # noqa: SIM102 - TorchScript would look for the call where there is none
            if of_target:
                return self.target_critic_network(observation)
        if torch.jit.is_scripting():
            return self.critic_network(observation)
        if not self._held_out:
            return self.critic_network(observation)
        parameters = dict(self.critic_network.named_parameters(remove_duplicate=False))
        detached = {name: parameters[name].detach() for name in self._held_out}
        return torch.func.functional_call(self.critic_network, detached, (observation,), tie_weights=False)

    def __prepare_scriptable__(self) -> Any:
        """TorchScript has no ``functional_call``: there the critic that is held out is written out with its ``detach`` calls."""
        if not self._held_out:
            return self
        prepared = copy.copy(self)
        prepared._modules = {**self._modules, "critic_network": detaching(self.critic_network, self._held_out)}
        prepared._held_out = []
        return prepared


def selected(observation: Tensor, index: Tensor, dim: int) -> Tensor:
    """:func:`take_steps`, of tuples part by part."""
    if not torch.jit.is_scripting():  # noqa: SIM102 - TorchScript skips an `if` with this condition alone
        if isinstance(observation, tuple):
            return tuple(selected(part, index, dim) for part in observation)
    return take_steps(observation, index, dim)
