"""The networks of the loss and their calls.

The critic evaluates observations and next observations in two passes, or in one pass over a sequence that holds both (``shifted``). Each
pass can be split into chunks.
"""

import copy
from typing import Any, List, NamedTuple, Optional, Tuple, Type, TypeVar

import torch
from torch import Tensor, nn

from a2c_compiled._exporting import is_exporting
from a2c_compiled._hyperparameters import CoefficientModule, positive_int
from a2c_compiled._kinds import described, flag
from a2c_compiled._precision import widen
from a2c_compiled.distributions import Distribution
from a2c_compiled.functional.arguments import check_steps
from a2c_compiled.losses.batch import Batch, experience, laid_out, match_dims, replace_uncounted
from a2c_compiled.losses.critic_inputs import (
    chunks,
    concatenate,
    following,
    holds_last_alone,
    last_step,
    replace_nan,
    take_observations,
)
from a2c_compiled.losses.detached_parameters import detach_parameters
from a2c_compiled.losses.parameter_names import parameter_names_by_location
from a2c_compiled.losses.shifted import shifted_slots, take_steps
from a2c_compiled.networks.batch_apply import explained
from a2c_compiled.recurrent import is_recurrent
from a2c_compiled.shared_trunk import ActorAndCritic, ActorCritic, trunk_length

ModuleKind = TypeVar("ModuleKind", bound=nn.Module)


class PolicyOutputs(NamedTuple):
    """The outputs of the actor network for a batch.

    Fields:
        params: ``[*B, num_params]``, floating: parameters of the action distribution.
        log_prob: ``[*B]``, dtype of ``params``: log-probability of the actions of the batch.
        features: ``[*B, ...]``, floating: output of the trunk of actor and critic. None if they have no common trunk.
    """

    params: Tensor
    log_prob: Tensor
    features: Optional[Tensor]


class CriticValues(NamedTuple):
    """Values of the observations and of the next observations, and the flags and the mask to use with these values.

    With ``shifted``, ``mask`` excludes the steps after the last step that has a next value.
    """

    state_value: Tensor
    next_state_value: Tensor
    done: Tensor
    terminated: Optional[Tensor]
    mask: Optional[Tensor]


class LossNetworks(CoefficientModule, ActorAndCritic):
    """Holds actor network, critic network and action distribution, and calls them for :class:`~a2c_compiled.A2CLoss`.

    Arguments and errors: see :class:`a2c_compiled.A2CLoss`.
    """

    def __init__(
        self,
        actor_network: Optional[nn.Module],
        critic_network: Optional[nn.Module],
        distribution: Optional[Distribution],
        target_critic_network: Optional[nn.Module],
        separate_losses: bool,
        shifted: bool,
        shifted_budget: int,
        value_chunk_size: Optional[int],
        num_chunks: Optional[int],
    ) -> None:
        super().__init__()
        if isinstance(actor_network, ActorCritic):
            if critic_network is not None:
                raise ValueError(
                    "critic_network: expected None with an ActorCritic, which has the critic (pass distribution=..., estimators and"
                    f" coefficients by name), got {type(critic_network).__name__}"
                )
            critic_network, actor_network = actor_network.critic_network, actor_network.actor_network
        self.actor_network: nn.Module = checked("actor_network", actor_network, nn.Module)
        self.critic_network: nn.Module = checked("critic_network", critic_network, nn.Module)
        self.distribution: Distribution = checked("distribution", distribution, Distribution)
        if value_chunk_size is not None and num_chunks is not None:
            raise ValueError(f"num_chunks: expected None when value_chunk_size is given, got {num_chunks}")
        if shifted and target_critic_network is not None:
            raise ValueError(
                "shifted: expected False with a target_critic_network (shifted evaluates both observations by one network), got True"
            )
        # 0 means that the option is not set.
        self.value_chunk_size = 0 if value_chunk_size is None else positive_int("value_chunk_size", value_chunk_size)
        self.num_chunks = 0 if num_chunks is None else positive_int("num_chunks", num_chunks)
        if is_recurrent(self.critic_network) and (self.value_chunk_size or self.num_chunks):
            raise ValueError(
                "value_chunk_size, num_chunks: expected None for a critic with memory (its steps depend on each other),"
                f" got {value_chunk_size} and {num_chunks}"
            )
        self.has_recurrent_network = is_recurrent(self.actor_network) or is_recurrent(self.critic_network)
        self.shifted = flag("shifted", shifted)
        self.shifted_budget = positive_int("shifted_budget", shifted_budget)
        self.target_critic_network = None
        actor_parameters = {id(parameter) for parameter in self.actor_network.parameters()}
        if target_critic_network is not None:
            target = checked("target_critic_network", target_critic_network, nn.Module)
            trained = actor_parameters | {id(parameter) for parameter in self.critic_network.parameters()}
            if any(id(parameter) in trained for parameter in target.parameters()):
                raise ValueError(
                    "target_critic_network: expected a network that shares no parameters with actor_network and critic_network"
                    " (use copy.deepcopy(critic_network)), got shared parameters"
                )
            self.target_critic_network = target.requires_grad_(False)
        self.separate_losses = flag("separate_losses", separate_losses)
        shared = {name for name, parameter in self.critic_network.named_parameters() if id(parameter) in actor_parameters}
        # Names of the parameters that the critic reads detached, so that the critic loss has no gradient for these parameters.
        self._detached_names: List[str] = [
            location
            for location, name in parameter_names_by_location(self.critic_network).items()
            if separate_losses and name in shared
        ]
        trunk = trunk_length(self.actor_network, self.critic_network)
        head = list(self.critic_network._modules.values())[trunk:]
        head_parameters = {id(parameter) for layer in head if layer is not None for parameter in layer.parameters()}
        self._detaches_in_head = separate_losses and not actor_parameters.isdisjoint(head_parameters)

    @torch.jit.unused
    def device(self) -> torch.device:
        """Returns the device of the actor network, or the CPU if the network has no parameters."""
        return next((parameter.device for parameter in self.actor_network.parameters()), torch.device("cpu"))

    def policy(self, observation: Tensor, action: Tensor, mask: Optional[Tensor]) -> PolicyOutputs:
        """Runs the actor network and computes the log-probability of ``action``, see :class:`PolicyOutputs`.

        At the steps that ``mask`` excludes, neither ``action`` nor the network's output is read: the parameters become 1.
        """
        if torch.jit.is_scripting():
            features = self.features(observation)
            output = self.actor_output(observation, features)
        else:
            features, output = explained("actor_network", self.actor_network, self._actor, observation)
        params = widen(output)
        if mask is not None:
            possible = self.distribution.action_of_ones(params)
            # With another shape, log_prob raises an error. It must not receive an action that the replacement has broadcast.
            if list(action.shape) == list(params.shape[:-1]) + list(possible.shape):
                action = replace_uncounted("action", action, mask, possible)
            params = replace_uncounted("params", params, mask, params.new_ones([]))
        return PolicyOutputs(params, self.distribution.log_prob(params, action), features)

    @torch.jit.unused
    def _actor(self, observation: Any) -> Tuple[Optional[Tensor], Tensor]:
        """Returns the output of the trunk, None without a trunk, and of the actor."""
        features = self.features(observation)
        return features, self.actor_output(observation, features)

    def values(self, batch: Batch, time_dim: int, with_gradient: bool) -> CriticValues:
        """Computes the values of the observations and next observations of ``batch``; ``time_dim`` is the batch's dimension of time.

        ``with_gradient``: whether the values of the observations have a gradient. With ``shifted``, one pass computes all values, and
        ``with_gradient`` applies to all values.
        """
        reward, next_observation, done = experience(batch)
        dim = time_dim % max(reward.dim() + batch.extra_dims, 1)
        has_last_alone = holds_last_alone(batch.observation, next_observation, dim)
        if has_last_alone:
            self._check_follows(batch)
            next_observation = replace_nan(next_observation, last_step(batch.observation, dim))
            if self.shifted or self.target_critic_network is not None:
                next_observation, has_last_alone = following(batch.observation, next_observation, dim), False
        if self.shifted:
            return self._shifted_values(batch, reward, next_observation, done, time_dim, with_gradient)
        state_value = self.critic(batch.observation, batch.features, with_gradient)
        if batch.agent < 0 and (reward.dim() == 0 or state_value.size(0) != reward.size(0)):
            raise ValueError(
                f"reward: expected one entry for each of the {state_value.size(0)} leading entries of observation,"
                f" got shape {list(laid_out(reward, batch.extra_dims).shape)}"
            )
        if has_last_alone:
            next_state_value = following(state_value.detach(), self._next_values(next_observation), dim)
        else:
            next_state_value = self._next_values(replace_nan(next_observation, batch.observation))
        return CriticValues(state_value, next_state_value, done, batch.terminated, batch.mask)

    def _check_follows(self, batch: Batch) -> None:
        """Raises ValueError if the next observation of a step can differ from the observation of the following step."""
        reason = ""
        if self.has_recurrent_network:
            reason = "recurrent networks"
        elif batch.agent >= 0:
            reason = "a value estimator of several agents"
        elif batch.cu_seqlens is not None:
            reason = "cu_seqlens"
        elif batch.steps_to_next_obs is not None:
            reason = "steps_to_next_obs"
        if reason != "":
            raise ValueError(
                f"next_observation: expected one for every step with {reason}, got the observation after the last step alone"
            )

    def _shifted_values(
        self, batch: Batch, reward: Tensor, next_observation: Tensor, done: Tensor, time_dim: int, with_gradient: bool
    ) -> CriticValues:
        """Computes the values in one pass over ``T + shifted_budget`` observations.

        The mask excludes the steps without a next value, so the trace ends before them.
        """
        if batch.steps_to_next_obs is not None:
            raise ValueError(
                "steps_to_next_obs: expected None with shifted (it uses the observation of the next step), got a tensor"
            )
        check_steps(reward, {"done": done}, {}, batch.terminated)
        terminated = batch.terminated
        if terminated is None:
            terminated = done
        dim = time_dim % max(reward.dim() + batch.extra_dims, 1)
        slots = shifted_slots(done, terminated, batch.mask, batch.cu_seqlens, dim, self.shifted_budget)
        features = batch.features
        if features is None:
            both = concatenate(batch.observation, next_observation, dim)
            values = self.critic(take_observations(both, slots.source, dim), None, with_gradient)
        else:  # the actor has computed the features of all steps
            with torch.no_grad():
                next_features = self.features(replace_nan(next_observation, batch.observation))
            assert next_features is not None
            in_slots = take_observations(torch.cat([features, next_features], dim), slots.source, dim)
            values = self.critic(batch.observation, in_slots, with_gradient)
        values = match_dims(values, slots.source)
        return CriticValues(
            take_steps(values, slots.observation, dim),
            take_steps(values, slots.next_observation, dim),
            done,
            terminated,
            slots.kept,
        )

    def critic(self, observation: Tensor, features: Optional[Tensor], with_gradient: bool) -> Tensor:
        """Runs the critic network, in chunks if ``value_chunk_size`` or ``num_chunks`` is set.

        ``features``: output of the trunk that the critic shares with the actor. None: the critic runs on ``observation``.
        """
        if with_gradient:
            values = self._values_in_chunks(observation, features, False)
        else:
            with torch.no_grad():
                values = self._values_in_chunks(observation, features, False)
        return values

    def _next_values(self, next_observation: Tensor) -> Tensor:
        """Runs the critic, or the target critic, on the next observations without gradient.

        This is a separate pass because the next values need no gradient. One pass with gradient over both observations would also run
        backward over the next observations.
        """
        with torch.no_grad():
            return self._values_in_chunks(next_observation, None, True)

    def _values_in_chunks(self, observation: Tensor, features: Optional[Tensor], of_target: bool) -> Tensor:
        """Runs :meth:`_value` on each chunk of ``features``, or of ``observation`` if they are None, and concatenates the values."""
        if not torch.jit.is_scripting():  # noqa: SIM102 - TorchScript skips an `if` with this condition alone
            if is_exporting():  # the number of chunks would depend on the size, which is dynamic in an exported graph
                return self._value(observation, features, of_target)
        if self.value_chunk_size == 0 and self.num_chunks == 0:
            return self._value(observation, features, of_target)
        values: List[Tensor] = []
        if features is None:
            for chunk in chunks(observation, self.value_chunk_size, self.num_chunks):
                values.append(self._value(chunk, None, of_target))
        else:
            for chunk in chunks(features, self.value_chunk_size, self.num_chunks):
                values.append(self._value(observation, chunk, of_target))
        return torch.cat(values)

    def _value(self, observation: Tensor, features: Optional[Tensor], of_target: bool) -> Tensor:
        """Runs the target critic if ``of_target`` and there is one, otherwise the critic, which reads shared parameters detached."""
        if features is not None:
            return self.critic_output(observation, features.detach() if self.separate_losses else features)
        if self.target_critic_network is not None:  # noqa: SIM102 - TorchScript would compile the call although the network is None
            if of_target:
                return self.target_critic_network(observation)
        if torch.jit.is_scripting():
            return self.critic_network(observation)
        # torch.jit.trace records no functional_call without gradient. Other exports run without gradient, but record it for later use.
        traces_numbers = torch.jit.is_tracing() and not torch.is_grad_enabled()
        if not self._detached_names or traces_numbers:
            argument = "next_observation" if of_target else "observation"
            return explained("critic_network", self.critic_network, self.critic_network, observation, argument)
        parameters = dict(self.critic_network.named_parameters(remove_duplicate=False))
        detached = {name: parameters[name].detach() for name in self._detached_names}
        return torch.func.functional_call(self.critic_network, detached, (observation,), tie_weights=False)

    @torch.jit.unused
    def _trunk_length(self) -> int:
        """Returns the number of layers in the trunk. 0 if the critic's head also reads parameters detached: the critic then runs whole."""
        return 0 if self._detaches_in_head else trunk_length(self.actor_network, self.critic_network)

    def __prepare_scriptable__(self) -> Any:
        """Returns the module that TorchScript compiles instead of this one.

        TorchScript has no ``functional_call``. If the critic reads parameters detached, and not all of them in the trunk, the returned
        module has a traced critic that contains the ``detach`` calls.
        """
        prepared = ActorAndCritic.__prepare_scriptable__(self)
        if not self._detached_names or prepared is not self:
            return prepared
        prepared = copy.copy(self)
        prepared._modules = {**self._modules, "critic_network": detach_parameters(self.critic_network, self._detached_names)}
        prepared._detached_names = []
        return prepared


def checked(name: str, module: Any, kind: Type[ModuleKind]) -> ModuleKind:
    """Returns ``module``. Raises TypeError if it is not an instance of ``kind``."""
    if not isinstance(module, kind):
        example = ", such as distributions.Categorical(2)" if kind is Distribution else ""
        got = described(module) if isinstance(module, type) else type(module).__name__
        raise TypeError(f"{name}: expected a module of type {kind.__name__}{example}, got {got}")
    return module
