"""Policies as modules from tensors to tensors. In shapes, ``*event`` is the shape of one action."""

from typing import Any, Dict, NamedTuple, Optional, Sequence, Union

import torch
from torch import Tensor, nn

from a2c_compiled._environment_action import environment_action
from a2c_compiled._export_names import GreedyAction, RecurrentAction, SampledAction, SampledEnvironmentAction
from a2c_compiled._kinds import described
from a2c_compiled._precision import widen
from a2c_compiled.distributions import Distribution
from a2c_compiled.export.tracing.call import InputsByName, named_outputs
from a2c_compiled.export.tracing.errors import ExportError
from a2c_compiled.losses import A2CLoss
from a2c_compiled.losses.batch import match_dims
from a2c_compiled.losses.parameter_names import parameter_names_by_location
from a2c_compiled.recurrent import is_recurrent, run_step
from a2c_compiled.shared_trunk import ActorAndCritic
from a2c_compiled.update.rollout import mapped


class RecurrentSampledAction(NamedTuple):
    """Outputs of :class:`RecurrentSampledPolicy`."""

    action: Tensor
    log_prob: Tensor
    state_value: Tensor
    next_hidden: Tensor


class RecurrentSampledEnvironmentAction(NamedTuple):
    """Outputs of :class:`RecurrentSampledPolicy` with an action space, if the environment's actions can differ from the distribution's."""

    action: Tensor
    log_prob: Tensor
    state_value: Tensor
    next_hidden: Tensor
    environment_action: Tensor


class ActingOutputs(NamedTuple):
    """Outputs of :class:`ActingPolicy`.

    ``next_hidden`` is None without recurrent layers. The last two are None if the environment's actions cannot differ from the
    distribution's.
    """

    action: Tensor
    log_prob: Tensor
    state_value: Tensor
    greedy_action: Tensor
    greedy_log_prob: Tensor
    next_hidden: Optional[Tensor] = None
    environment_action: Optional[Tensor] = None
    greedy_environment_action: Optional[Tensor] = None


class _Converted(nn.Module):
    """Converts actions to the dtype ``action_dtype``; None: leaves them unchanged."""

    def __init__(self, action_dtype: Optional[torch.dtype]) -> None:
        super().__init__()
        if action_dtype is not None and not isinstance(action_dtype, torch.dtype):
            raise TypeError(f"action_dtype: expected a torch.dtype or None, got {described(action_dtype)}")
        self.converts = action_dtype is not None
        self.dtype = action_dtype or torch.int64
        self.is_real = self.dtype.is_floating_point

    def forward(self, action: Tensor) -> Tensor:
        """Returns the converted action. Raises TypeError if the action is real and the dtype is not."""
        if not self.converts:
            return action
        if action.is_floating_point() and not self.is_real:
            raise TypeError(f"action_dtype: expected a floating dtype for actions of {action.dtype}, got {self.dtype}")
        return action.to(self.dtype)


class _EnvironmentAction(nn.Module):
    """Maps actions to those of an environment with ``action_space``, as :class:`~a2c_compiled.environments.EnvironmentAction` does.

    Attributes:
        differs: whether an action of the environment can differ from the distribution's action. False without ``action_space``;
            :meth:`forward` then returns its argument.
    """

    __constants__ = ["differs"]  # TorchScript compiles only the branch that a constant selects

    def __init__(self, action_space: Any, distribution: Distribution, actor_network: nn.Module) -> None:
        super().__init__()
        module = environment_action(action_space, distribution, actor_network)
        self.differs = module is not None
        self.module = module or nn.Identity()

    def forward(self, action: Tensor) -> Tensor:
        """Returns the environment's actions."""
        return self.module(action)


class GreedyPolicy(nn.Module):
    """Returns the greedy action for each observation.

    Args:
        actor_network: maps an observation to the parameters of the distribution.
        distribution: action distribution; its ``mode`` is the greedy action.
        action_dtype: dtype of the actions, such as ``torch.int32`` or ``torch.float32`` for programs that expect discrete actions in this
            dtype. Default: the dtype of the action space, or without one that of the distribution, which is int64 for discrete actions.
        action_space: gymnasium's action space of one environment. The policy returns actions in the space, see
            :class:`~a2c_compiled.environments.EnvironmentAction`. None: actions as the distribution returns them.

    Raises:
        TypeError: ``action_dtype`` is not a dtype, ``action_space`` is not a space, or a call would convert real actions to integers.
        ValueError: ``action_space`` is a Box of integers or bools, or has values that do not start at 0.
    """

    def __init__(
        self,
        actor_network: nn.Module,
        distribution: Distribution,
        action_dtype: Optional[torch.dtype] = None,
        action_space: Any = None,
    ) -> None:
        super().__init__()
        self.actor_network = actor_network
        self.distribution = distribution
        self.environment = _EnvironmentAction(action_space, distribution, actor_network)
        self.converted = _Converted(action_dtype)

    def forward(self, observation: Tensor) -> GreedyAction:
        """Computes ``action = distribution.mode(actor_network(observation))``.

        Args:
            observation: ``[N, ...]``, in the dtype that the actor network accepts: a tensor, or a mapping or tuple of tensors.

        Returns:
            ``action``: ``[N]`` or ``[N, *event]``. Dtype: ``action_dtype`` if given, else that of the action space if given, else that of
            the distribution's actions.
        """
        return GreedyAction(self.converted(self.environment(self.distribution.mode(self.actor_network(observation)))))


class _SamplingPolicy(ActorAndCritic):
    """Holds the networks and the distribution of a policy that samples its actions.

    As in the loss, half-precision parameters of the distribution become float32. ``log_prob`` is computed for the returned action. While
    the parameters are unchanged, the loss computes the same value, so the importance ratio is 1.
    """

    def __init__(
        self, actor_network: nn.Module, critic_network: nn.Module, distribution: Distribution, action_space: Any = None
    ) -> None:
        super().__init__()
        self.actor_network = actor_network
        self.critic_network = critic_network
        self.distribution = distribution
        self.environment = _EnvironmentAction(action_space, distribution, actor_network)


class SampledPolicy(_SamplingPolicy):
    """Samples an action for each observation. Also returns the log-probability of the action and the value of the observation.

    The random noise is an input, so equal inputs give the same action, except for rounding. Draw the noise with
    ``distribution.noise``; ``distribution.noise_kind`` names the kind of noise.

    Args:
        actor_network: maps an observation to the parameters of the distribution.
        critic_network: maps an observation to its value.
        distribution: action distribution.
        action_dtype: dtype of the actions, as in :class:`GreedyPolicy`.
        action_space: gymnasium's action space of one environment. If its actions can differ from those of the distribution, the policy
            also returns ``environment_action``.

    Raises:
        TypeError, ValueError: as for :class:`GreedyPolicy`.
    """

    def __init__(
        self,
        actor_network: nn.Module,
        critic_network: nn.Module,
        distribution: Distribution,
        action_dtype: Optional[torch.dtype] = None,
        action_space: Any = None,
    ) -> None:
        super().__init__(actor_network, critic_network, distribution, action_space)
        self.converted = _Converted(action_dtype)

    def forward(self, observation: Tensor, noise: Tensor) -> Union[SampledAction, SampledEnvironmentAction]:
        """Computes the action that ``noise`` selects, the log-probability of the action and the value of the observation.

        Args:
            observation: ``[N, ...]``, in the dtype that the networks accept.
            noise: ``[N, ...]``, floating point: one row of noise for each observation.

        Returns:
            ``action``: ``[N]`` or ``[N, *event]``, ``action_dtype`` or the dtype of the distribution's actions. ``log_prob``,
            ``state_value``: ``[N]``, floating point. With several agents, ``log_prob`` is ``[N, K]``; a critic with one value for all
            agents returns ``state_value`` ``[N, 1]``.
            ``environment_action``: the action for the environment, see :class:`~a2c_compiled.environments.EnvironmentAction`; shape and
            dtype of the action space, or ``action_dtype``. ``log_prob`` is that of ``action``.
        """
        features = self.features(observation)
        params = widen(self.actor_output(observation, features))
        action = self.distribution.sample(params, noise)
        log_prob = self.distribution.log_prob(params, action)
        value = match_dims(self.critic_output(observation, features), log_prob)
        if self.environment.differs:
            return SampledEnvironmentAction(self.converted(action), log_prob, value, self.converted(self.environment(action)))
        return SampledAction(self.converted(action), log_prob, value)


class RecurrentPolicy(nn.Module):
    """Returns the greedy action and the next hidden state for each observation and hidden state.

    For actor networks of :mod:`a2c_compiled.recurrent`. Pass a hidden state of zeros at the first step of an episode.

    Args:
        actor_network: recurrent network that maps observations to the parameters of the distribution.
        distribution: action distribution; its ``mode`` is the greedy action.
        action_space: as in :class:`GreedyPolicy`.

    Attributes:
        is_traced: always True, because TorchScript cannot compile recurrent layers; ``export_torchscript`` then traces this module.
    """

    is_traced = True

    def __init__(self, actor_network: nn.Module, distribution: Distribution, action_space: Any = None) -> None:
        super().__init__()
        self.actor_network = actor_network
        self.distribution = distribution
        self.environment = _EnvironmentAction(action_space, distribution, actor_network)

    def forward(self, observation: Tensor, hidden: Tensor) -> RecurrentAction:
        """Computes the greedy action and the next hidden state.

        Args:
            observation: ``[N, ...]``, in the dtype that the actor network accepts.
            hidden: ``[N, H]``, floating point: hidden state, with ``H = recurrent.hidden_size(actor_network)``.

        Returns:
            ``action``: ``[N]`` or ``[N, *event]``, dtype of the action space, or else of the distribution's actions. ``next_hidden``:
            ``[N, H]``, floating point.

        Raises:
            ValueError: the network runs the same recurrent layer twice, or the states of two layers overlap.
        """
        (params,), after = run_step([self.actor_network], observation, hidden)
        return RecurrentAction(self.environment(self.distribution.mode(params)), after)


class RecurrentSampledPolicy(_SamplingPolicy):
    """Samples an action for each observation and hidden state. Also returns log-probability, state value and the next hidden state.

    For networks of :mod:`a2c_compiled.recurrent`. Pass a hidden state of zeros at the first step of an episode. The random noise is an
    input, as in :class:`SampledPolicy`.

    Args:
        actor_network: recurrent network that maps observations to the parameters of the distribution.
        critic_network: recurrent network that maps observations to their values.
        distribution: action distribution.
        action_space: as in :class:`SampledPolicy`.

    Attributes:
        is_traced: as in :class:`RecurrentPolicy`.
    """

    is_traced = True

    def forward(
        self, observation: Tensor, hidden: Tensor, noise: Tensor
    ) -> Union[RecurrentSampledAction, RecurrentSampledEnvironmentAction]:
        """Computes the action that ``noise`` selects, its log-probability, the value of the observation and the next hidden state.

        Args:
            observation: ``[N, ...]``, in the dtype that the networks accept.
            hidden: ``[N, H]``, floating point: hidden state of the recurrent layers of both networks.
            noise: ``[N, ...]``, floating point: one row of noise for each observation.

        Returns:
            ``action``: ``[N]`` or ``[N, *event]``, dtype of the distribution's actions. ``log_prob``, ``state_value``: ``[N]``, floating
            point. ``next_hidden``: ``[N, H]``, floating point. ``environment_action``: as in :class:`SampledPolicy`.

        Raises:
            ValueError: a network runs the same recurrent layer twice, or the states of two layers overlap.
        """
        (params, value), after = run_step([self.actor_network, self.critic_network], observation, hidden)
        params = widen(params)
        action = self.distribution.sample(params, noise)
        log_prob = self.distribution.log_prob(params, action)
        value = match_dims(value, log_prob)
        if self.environment.differs:
            return RecurrentSampledEnvironmentAction(action, log_prob, value, after, self.environment(action))
        return RecurrentSampledAction(action, log_prob, value, after)


class _Acting(_SamplingPolicy):
    """Computes :class:`ActingOutputs`. :class:`ActingPolicy` calls this module with the input tensors in place of its parameters."""

    def forward(self, observation: Any, noise: Tensor, hidden: Optional[Tensor] = None) -> ActingOutputs:
        after: Optional[Tensor] = None
        if hidden is None:
            features = self.features(observation)
            params, value = self.actor_output(observation, features), self.critic_output(observation, features)
        else:
            (params, value), after = run_step([self.actor_network, self.critic_network], observation, hidden)
        params = widen(params)
        greedy_action = self.distribution.mode(params)
        greedy_log_prob = self.distribution.log_prob(params, greedy_action)
        action = self.distribution.sample(params, noise)
        log_prob = self.distribution.log_prob(params, action)
        outputs = ActingOutputs(action, log_prob, match_dims(value, log_prob), greedy_action, greedy_log_prob, after)
        if not self.environment.differs:
            return outputs
        return outputs._replace(
            environment_action=self.environment(action), greedy_environment_action=self.environment(greedy_action)
        )


def flattened(observation: Any) -> Any:
    """Returns observations ``[T, N, ...]``, a tensor or a tuple of tensors, as ``[T * N, ...]``."""
    return mapped(lambda tensor: tensor.flatten(0, 1), observation)


@torch.no_grad()
def policy_inputs(loss: A2CLoss, observation: Any) -> Dict[str, Any]:
    """Returns example inputs of a policy of ``loss`` by name: ``observation``, ``noise`` and, with recurrent layers, ``hidden``.

    Args:
        loss: loss with the networks and the distribution of the policy.
        observation: ``[N, ...]``, a tensor or a tuple of tensors. With recurrent layers: ``x`` ``[N, ...]``, ``hidden`` ``[N, H]`` and
            ``start`` ``[N]``, which is not read.

    Returns:
        ``observation`` and ``hidden`` as given, and ``noise``, ``[N, ...]``, as ``distribution.noise`` returns it.
    """
    inputs = {"observation": observation}
    if is_recurrent(loss):
        x, hidden, _ = observation
        inputs = {"observation": x, "hidden": hidden}
        (params,), _ = run_step([loss.actor_network], x, hidden)
    else:
        params = loss.actor_network(observation)
    return {**inputs, "noise": loss.distribution.noise(params)}


class ActingPolicy(InputsByName):
    """The policy of a loss, with parameters as inputs. Returns a sampled action and the greedy action for each observation.

    This policy belongs to an exported training step. Its inputs include the parameters that the training step changes.

    Args:
        loss: loss whose networks and distribution form the policy.
        parameter_names: names of the parameters that become inputs. All other parameters are constants of the graph.
        observation: example, ``[N, ...]``, in the dtype that the networks accept, as in ``policy_inputs``.
        action_space: as in :class:`SampledPolicy`.

    Attributes:
        example_inputs: tensors by input name: the parameters, ``observation``, ``noise`` and, with recurrent layers, ``hidden``. An
            observation may be a tuple of tensors.
        dynamic_axes: names of the dimensions that may vary in size, by input name.

    Raises:
        ExportError: the distribution has no ``noise_kind``, so the noise cannot be an input.
    """

    source: _Acting

    def __init__(self, loss: A2CLoss, parameter_names: Sequence[str], observation: Any, action_space: Any = None) -> None:
        if loss.distribution.noise_kind is None:
            raise ExportError(
                f"ActingPolicy cannot be exported: {type(loss.distribution).__name__} draws its own random numbers, but an exported graph"
                " needs them as an input. Use one of a2c_compiled.distributions that has a noise_kind"
            )
        policy = _Acting(loss.actor_network, loss.critic_network, loss.distribution, action_space)
        parameters = dict(policy.named_parameters())
        params = {name: parameters[name].detach().clone() for name in parameters if name in parameter_names}
        inputs = policy_inputs(loss, observation)
        super().__init__(policy, [*params, *inputs])
        self.example_inputs: Dict[str, Any] = {**params, **inputs}
        self.dynamic_axes = dict.fromkeys(inputs, ("N",))
        locations = parameter_names_by_location(policy)
        self._names_by_location = {location: name for location, name in locations.items() if name in params}

    def forward(self, **inputs: Any) -> Dict[str, Tensor]:
        """Computes the fields of :class:`ActingOutputs`.

        Args:
            inputs: tensors by name. Parameters: shapes and dtypes of ``example_inputs``. ``observation``: ``[N, ...]``, a tensor or a tuple
                of tensors. ``noise``: ``[N, ...]``, floating point. ``hidden``: ``[N, H]``, only with recurrent layers.

        Returns:
            Tensors by name. ``action``, ``greedy_action``: ``[N]`` or ``[N, *event]``, dtype of the distribution's actions.
            ``log_prob``, ``greedy_log_prob``, ``state_value``: ``[N]``, floating point. ``next_hidden``: ``[N, H]``, only with recurrent
            layers. ``environment_action``, ``greedy_environment_action``: as in :class:`SampledPolicy`.
        """
        params = {location: inputs[name] for location, name in self._names_by_location.items()}
        arguments = inputs["observation"], inputs["noise"], inputs.get("hidden")
        outputs = torch.func.functional_call(self.source, params, arguments, tie_weights=False)
        return named_outputs(outputs)
