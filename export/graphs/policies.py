"""Policies as modules from tensors to tensors. In shapes, ``*event`` is the shape of one action."""

from typing import Any, Dict, NamedTuple, Optional, Sequence

import torch
from torch import Tensor, nn

from a2c_compiled._export_names import GreedyAction, RecurrentAction, SampledAction
from a2c_compiled._kinds import described
from a2c_compiled._parameters import parameter_names_by_location
from a2c_compiled._precision import widen
from a2c_compiled.distributions import Distribution
from a2c_compiled.export.tracing.call import InputsByName
from a2c_compiled.export.tracing.errors import ExportError
from a2c_compiled.losses import A2CLoss
from a2c_compiled.losses.batch import match_dims
from a2c_compiled.recurrent import is_recurrent, run_step
from a2c_compiled.shared_trunk import ActorAndCritic
from a2c_compiled.update.rollout import mapped


class RecurrentSampledAction(NamedTuple):
    """Outputs of :class:`RecurrentSampledPolicy`."""

    action: Tensor
    log_prob: Tensor
    state_value: Tensor
    next_hidden: Tensor


class ActingOutputs(NamedTuple):
    """Outputs of :class:`ActingPolicy`. ``next_hidden`` is None without recurrent layers."""

    action: Tensor
    log_prob: Tensor
    state_value: Tensor
    greedy_action: Tensor
    greedy_log_prob: Tensor
    next_hidden: Optional[Tensor]


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


class GreedyPolicy(nn.Module):
    """Returns the greedy action for each observation.

    Args:
        actor_network: maps an observation to the parameters of the distribution.
        distribution: action distribution; its ``mode`` is the greedy action.
        action_dtype: dtype of the actions, such as ``torch.int32`` or ``torch.float32`` for programs that expect choices in this dtype.
            Choices are int64 by default. Real actions must stay floating point.
    """

    def __init__(
        self, actor_network: nn.Module, distribution: Distribution, action_dtype: Optional[torch.dtype] = None
    ) -> None:
        super().__init__()
        self.actor_network = actor_network
        self.distribution = distribution
        self.converted = _Converted(action_dtype)

    def forward(self, observation: Tensor) -> GreedyAction:
        """Computes ``action = distribution.mode(actor_network(observation))``.

        Args:
            observation: ``[N, ...]``, in the dtype that the actor network accepts.

        Returns:
            ``action``: ``[N]`` or ``[N, *event]``, ``action_dtype`` or the dtype of the distribution's actions.
        """
        return GreedyAction(self.converted(self.distribution.mode(self.actor_network(observation))))


class _SamplingPolicy(ActorAndCritic):
    """Holds the networks and the distribution of a policy that samples its actions.

    As in the loss, half-precision parameters of the distribution become float32, and a score is ``log_prob`` of the action that the graph
    returns. The loss therefore computes the same score while the policy is unchanged, so that the importance ratio is 1.
    """

    def __init__(self, actor_network: nn.Module, critic_network: nn.Module, distribution: Distribution) -> None:
        super().__init__()
        self.actor_network = actor_network
        self.critic_network = critic_network
        self.distribution = distribution


class SampledPolicy(_SamplingPolicy):
    """Samples an action for each observation. Also returns the log-probability of the action and the value of the observation.

    The random noise is an input, so the graph returns the same action for the same inputs on every machine. Draw the noise with
    ``distribution.noise``; ``distribution.noise_kind`` names the kind of noise.

    Args:
        actor_network: maps an observation to the parameters of the distribution.
        critic_network: maps an observation to its value.
        distribution: action distribution.
        action_dtype: dtype of the actions, as in :class:`GreedyPolicy`.
    """

    def __init__(
        self,
        actor_network: nn.Module,
        critic_network: nn.Module,
        distribution: Distribution,
        action_dtype: Optional[torch.dtype] = None,
    ) -> None:
        super().__init__(actor_network, critic_network, distribution)
        self.converted = _Converted(action_dtype)

    def forward(self, observation: Tensor, noise: Tensor) -> SampledAction:
        """Computes the action that ``noise`` selects, the log-probability of the action and the value of the observation.

        Args:
            observation: ``[N, ...]``, in the dtype that the networks accept.
            noise: ``[N, ...]``, floating point: one row of noise for each observation.

        Returns:
            ``action``: ``[N]`` or ``[N, *event]``, ``action_dtype`` or the dtype of the distribution's actions. ``log_prob``,
            ``state_value``: ``[N]``, floating point. One value for several agents keeps the shape that the critic gives it.
        """
        features = self.features(observation)
        params = widen(self.actor_output(observation, features))
        action = self.distribution.sample(params, noise)
        log_prob = self.distribution.log_prob(params, action)
        return SampledAction(self.converted(action), log_prob, match_dims(self.critic_output(observation, features), log_prob))


class RecurrentPolicy(nn.Module):
    """Returns the greedy action and the next hidden state for each observation and hidden state.

    For actor networks of :mod:`a2c_compiled.recurrent`. Pass a hidden state of zeros at the first step of an episode.

    Args:
        actor_network: recurrent network that maps observations to the parameters of the distribution.
        distribution: action distribution; its ``mode`` is the greedy action.

    Attributes:
        is_traced: True: ``export_torchscript`` traces this module, because TorchScript cannot compile recurrent layers.
    """

    is_traced = True

    def __init__(self, actor_network: nn.Module, distribution: Distribution) -> None:
        super().__init__()
        self.actor_network = actor_network
        self.distribution = distribution

    def forward(self, observation: Tensor, hidden: Tensor) -> RecurrentAction:
        """Computes the greedy action and the next hidden state.

        Args:
            observation: ``[N, ...]``, in the dtype that the actor network accepts.
            hidden: ``[N, H]``, floating point: hidden state, with ``H = recurrent.hidden_size(actor_network)``.

        Returns:
            ``action``: ``[N]`` or ``[N, *event]``, dtype of the distribution's actions. ``next_hidden``: ``[N, H]``, floating point.

        Raises:
            ValueError: the network runs the same recurrent layer twice, or the states of two layers overlap.
        """
        (params,), after = run_step([self.actor_network], observation, hidden)
        return RecurrentAction(self.distribution.mode(params), after)


class RecurrentSampledPolicy(_SamplingPolicy):
    """Samples an action for each observation and hidden state. Also returns log-probability, state value and the next hidden state.

    For networks of :mod:`a2c_compiled.recurrent`. Pass a hidden state of zeros at the first step of an episode. The random noise is an
    input, as in :class:`SampledPolicy`.

    Args:
        actor_network: recurrent network that maps observations to the parameters of the distribution.
        critic_network: recurrent network that maps observations to their values.
        distribution: action distribution.

    Attributes:
        is_traced: as in :class:`RecurrentPolicy`.
    """

    is_traced = True

    def forward(self, observation: Tensor, hidden: Tensor, noise: Tensor) -> RecurrentSampledAction:
        """Computes the action that ``noise`` selects, its log-probability, the value of the observation and the next hidden state.

        Args:
            observation: ``[N, ...]``, in the dtype that the networks accept.
            hidden: ``[N, H]``, floating point: hidden state of the recurrent layers of both networks.
            noise: ``[N, ...]``, floating point: one row of noise for each observation.

        Returns:
            ``action``: ``[N]`` or ``[N, *event]``, dtype of the distribution's actions. ``log_prob``, ``state_value``: ``[N]``, floating
            point. ``next_hidden``: ``[N, H]``, floating point.

        Raises:
            ValueError: a network runs the same recurrent layer twice, or the states of two layers overlap.
        """
        (params, value), after = run_step([self.actor_network, self.critic_network], observation, hidden)
        params = widen(params)
        action = self.distribution.sample(params, noise)
        log_prob = self.distribution.log_prob(params, action)
        return RecurrentSampledAction(action, log_prob, match_dims(value, log_prob), after)


class _Acting(_SamplingPolicy):
    """Computes :class:`ActingOutputs`. The module that :class:`ActingPolicy` runs with its inputs as parameters."""

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
        return ActingOutputs(action, log_prob, match_dims(value, log_prob), greedy_action, greedy_log_prob, after)


def flattened(observation: Any) -> Any:
    """Returns observations ``[T, N, ...]``, a tensor or a tuple of tensors, as ``[T * N, ...]``."""
    return mapped(lambda tensor: tensor.flatten(0, 1), observation)


@torch.no_grad()
def policy_inputs(loss: A2CLoss, observation: Any) -> Dict[str, Any]:
    """Returns example inputs of a policy of ``loss`` by name: ``observation``, ``noise`` and, with recurrent layers, ``hidden``.

    Args:
        loss: loss with the networks and the distribution of the policy.
        observation: ``[N, ...]``, a tensor or a tuple of tensors. With recurrent layers: ``x``, ``hidden`` and ``start``, see
            :mod:`a2c_compiled.recurrent`; ``start`` is not read.
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
        observation: example, ``[N, ...]``, in the dtype that the networks accept, as in :func:`policy_inputs`.

    Attributes:
        example_inputs: tensors by input name: the parameters, ``observation``, ``noise`` and, with recurrent layers, ``hidden``. An
            observation may be a tuple of tensors.
        dynamic_axes: names of the dimensions that may vary in size, by input name.

    Raises:
        ExportError: the distribution has no ``noise_kind``, so the noise cannot be an input.
    """

    source: _Acting

    def __init__(self, loss: A2CLoss, parameter_names: Sequence[str], observation: Any) -> None:
        if loss.distribution.noise_kind is None:
            raise ExportError(
                f"ActingPolicy cannot be exported: {type(loss.distribution).__name__} draws its own random numbers, but an exported graph"
                " needs them as an input. Use one of a2c_compiled.distributions that has a noise_kind"
            )
        policy = _Acting(loss.actor_network, loss.critic_network, loss.distribution)
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
            layers.
        """
        params = {location: inputs[name] for location, name in self._names_by_location.items()}
        arguments = inputs["observation"], inputs["noise"], inputs.get("hidden")
        outputs = torch.func.functional_call(self.source, params, arguments, tie_weights=False)
        return {name: output for name, output in outputs._asdict().items() if output is not None}
