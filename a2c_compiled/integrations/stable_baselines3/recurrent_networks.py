"""The networks and the policy of sb3-contrib's recurrent models, with their LSTMs as :class:`~a2c_compiled.recurrent.Recurrent` layers."""

from typing import Any, List, Sequence, Tuple

from torch import Tensor, nn

from a2c_compiled._export_names import RecurrentAction
from a2c_compiled.integrations.stable_baselines3.policy_networks import ModelPolicy, Network
from a2c_compiled.recurrent import Recurrent, RecurrentObservation, run_step


class Detached(nn.Module):
    """Stops the gradient, as SB3 does where the critic reads the actor's LSTM."""

    def forward(self, x: Tensor) -> Tensor:
        """Returns ``x`` without gradient."""
        return x.detach()


class OverTime(nn.Module):
    """Features, recurrent layers and head of a policy, over the steps of a rollout."""

    def __init__(self, features: Network, layers: Sequence[Recurrent], head: nn.Module) -> None:
        super().__init__()
        self.features = features
        self.layers = nn.ModuleList(layers)
        self.head = head

    def forward(self, observation: RecurrentObservation) -> Tensor:
        """Maps ``x`` ``[T, N, *shape]`` and ``hidden`` ``[T, N, H]``, floating, and ``start`` ``[T, N]``, bool, to ``[T, N, outputs]``."""
        x, hidden, start = observation
        x = self.features(x)
        for layer in self.layers:
            x = layer((x, hidden, start))
        return self.head(x)


class RecurrentPredictPolicy(ModelPolicy):
    """Maps observations and hidden states to the actions of ``model.predict(observation, state, episode_start, deterministic=True)``.

    Attributes:
        is_traced: always True, because TorchScript cannot compile recurrent layers; ``export_torchscript`` then traces this module.
    """

    is_traced = True

    def forward(self, observation: Tensor, hidden: Tensor) -> RecurrentAction:
        """Returns the actions for a batch of observations, and the next hidden state.

        Args:
            observation: ``[N, ...]``: observations of the environment.
            hidden: ``[N, H]``, float32: for each LSTM layer of the actor, SB3's hidden state and cell state. 0 at the first step of an
                episode. ``H`` may include the layers of the critic; their states are returned unchanged.

        Returns:
            ``action``: ``[N]`` or ``[N, *event]``, in the dtype of ``model.predict``. ``next_hidden``: ``[N, H]``, float32.
        """
        (params,), after = run_step([self.actor_network], self.raw(observation), hidden)
        return RecurrentAction(self.bounds(self.distribution.mode(params)), after)


def lstm_layers(policy: Any) -> Tuple[List[Recurrent], List[Recurrent], nn.Module]:
    """Returns the recurrent layers of actor and critic, and the module before the critic's MLP.

    This module is the identity, :class:`Detached`, or SB3's linear layer if the critic has no LSTM.

    The layers share the parameters of the LSTMs of ``policy``, a ``RecurrentActorCriticPolicy``. The states of the actor come first.

    Raises:
        ValueError: an LSTM is bidirectional, or has a projection or dropout.
    """
    actor = _layers_of(policy.lstm_actor, 0)
    if policy.lstm_critic is not None:
        return actor, _layers_of(policy.lstm_critic, actor[-1].offset + actor[-1].state_size), nn.Identity()
    if policy.shared_lstm:
        return actor, actor, Detached()
    return actor, [], policy.critic


def _layers_of(lstm: nn.LSTM, offset: int) -> List[Recurrent]:
    """Returns a layer for each layer of ``lstm``. Their states begin at ``offset``."""
    for name in ("bidirectional", "proj_size", "dropout"):
        if getattr(lstm, name):
            raise ValueError(f"model: expected an LSTM with {name}={type(getattr(lstm, name))()}, got {getattr(lstm, name)}")
    layers: List[Recurrent] = []
    for i in range(lstm.num_layers):
        size = lstm.hidden_size
        cell = nn.LSTMCell(lstm.input_size if i == 0 else size, size, lstm.bias, device="meta")
        for name in ("weight_ih", "weight_hh", *(("bias_ih", "bias_hh") if lstm.bias else ())):
            setattr(cell, name, getattr(lstm, f"{name}_l{i}"))
        layers.append(Recurrent(cell, offset=offset + 2 * size * i))
    return layers
