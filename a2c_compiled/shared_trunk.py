"""Networks that begin with the same layers, the trunk: how to build them, and how to compute the trunk once for both.

The trunk of two networks is the sequence of modules with which both begin. It is found where both networks are plain ``nn.Sequential``.
"""

import copy
from typing import TYPE_CHECKING, Any, List, Optional, Tuple

import torch
from torch import Tensor, nn

from a2c_compiled._kinds import check_observation, described
from a2c_compiled._torch_internals import call_is_plain


class ActorCritic(nn.Module):
    """An actor and a critic over one trunk. :class:`~a2c_compiled.A2CLoss` takes it in place of the two networks.

    >>> network = ActorCritic(trunk, actor_head, critic_head)
    >>> loss = A2CLoss(network, distribution=distribution)

    The loss, and a policy that runs both networks, then compute the trunk once for each observation. The loss holds ``actor_network`` and
    ``critic_network`` of this module, not the module itself.

    Args:
        trunk: maps an observation to features ``[*B, ...]``, floating.
        actor_head: maps features to the distribution parameters, floating, ``[*B, num_params]``.
        critic_head: maps features to the values, floating, ``[*B, 1]`` or ``[*B]``.

    Attributes:
        actor_network: ``nn.Sequential(trunk, actor_head)``.
        critic_network: ``nn.Sequential(trunk, critic_head)``.

    Raises:
        TypeError: an argument is not a module.
    """

    def __init__(self, trunk: nn.Module, actor_head: nn.Module, critic_head: nn.Module) -> None:
        super().__init__()
        for name, module in (("trunk", trunk), ("actor_head", actor_head), ("critic_head", critic_head)):
            if not isinstance(module, nn.Module):
                raise TypeError(f"{name}: expected a module, got {described(module)}")
        self.trunk = trunk
        self.actor_head = actor_head
        self.critic_head = critic_head

    @property
    @torch.jit.unused
    def actor_network(self) -> nn.Sequential:
        """The actor: trunk and actor head in a sequence."""
        return self._network(self.actor_head)

    @property
    @torch.jit.unused
    def critic_network(self) -> nn.Sequential:
        """The critic: trunk and critic head in a sequence. Its trunk is the actor's."""
        return self._network(self.critic_head)

    @torch.jit.unused
    def _network(self, head: nn.Module) -> nn.Sequential:
        network = nn.Sequential(self.trunk, head)
        network.trunk_is_declared = True  # type: ignore[assignment]
        return network

    def forward(self, observation: Tensor) -> Tuple[Tensor, Tensor]:
        """Computes the distribution parameters, ``[*B, num_params]``, and the values, ``[*B, 1]`` or ``[*B]``, both floating.

        Args:
            observation: ``[*B, ...]``, what the trunk accepts: a tensor or a tuple of tensors. TorchScript accepts only a tensor.

        Raises:
            TypeError: ``observation`` is neither a tensor nor a tuple of tensors.
        """
        if not torch.jit.is_scripting():
            check_observation("observation", observation)
        features = self.trunk(observation)
        return self.actor_head(features), self.critic_head(features)


def trunk_length(first: nn.Module, second: nn.Module) -> int:
    """Returns the number of leading modules that both networks share and that can run once for both.

    The number is 0 if a network is not an ``nn.Sequential``, or if it has hooks, a ``forward`` of its own or ``compile()``. The first
    module with one of these ends the trunk, because its hooks may expect one call for each network. The trunk of :class:`ActorCritic` may
    have them.
    """
    if type(first) is not nn.Sequential or type(second) is not nn.Sequential:
        return 0
    is_declared = "trunk_is_declared" in first.__dict__ and "trunk_is_declared" in second.__dict__
    length = 0
    for layer, other in zip(first._modules.values(), second._modules.values(), strict=False):
        if layer is not other or not (is_declared or call_is_plain(layer)):
            break
        length += 1
    # run_layers does not call the hooks of the sequences, so sequences with hooks have no trunk.
    return length if length == 0 or (call_is_plain(first) and call_is_plain(second)) else 0


def run_layers(network: nn.Module, x: Any, start: int = 0, stop: Optional[int] = None) -> Any:
    """Runs the layers ``start`` to ``stop - 1`` of ``network``, an ``nn.Sequential``; ``stop=None``: to the last one.

    ``x``: what the first of these layers accepts. Returns what the last one returns; ``x`` if there are none.
    """
    layers: List[Any] = list(network._modules.values())
    for layer in layers[start:stop]:
        x = layer(x)
    return x


class ActorAndCritic(nn.Module):
    """Base class of modules that call an actor and a critic on the same observations. It computes the common trunk once.

    >>> features = self.features(observation)
    >>> params, values = self.actor_output(observation, features), self.critic_output(observation, features)
    """

    if TYPE_CHECKING:  # TorchScript would take annotations as the types of the attributes
        actor_network: Any
        critic_network: Any
        scripted_trunk: int  # the length of the trunk, only in the copy that TorchScript compiles

    def features(self, observation: Tensor) -> Optional[Tensor]:
        """Returns the output of the trunk, ``[*B, ...]``, or None if the networks have none. ``observation``: ``[*B, ...]``."""
        if torch.jit.is_scripting():
            features: Optional[Tensor] = None
            if hasattr(self, "scripted_trunk"):
                x = observation
                for i, layer in enumerate(self.actor_network):
                    if i < self.scripted_trunk:
                        x = layer(x)
                features = x
            return features
        length = self._trunk_length()
        return run_layers(self.actor_network, observation, stop=length) if length > 0 else None

    def actor_output(self, observation: Tensor, features: Optional[Tensor]) -> Tensor:
        """Returns the output of the actor, ``[*B, num_params]``. ``features``: the result of :meth:`features` for ``observation``."""
        if features is None:
            return self.actor_network(observation)
        if torch.jit.is_scripting():
            x = features
            if hasattr(self, "scripted_trunk"):
                for i, layer in enumerate(self.actor_network):
                    if i >= self.scripted_trunk:
                        x = layer(x)
            return x
        return run_layers(self.actor_network, features, self._trunk_length())

    def critic_output(self, observation: Tensor, features: Optional[Tensor]) -> Tensor:
        """Returns the output of the critic, ``[*B, 1]`` or ``[*B]``. ``features``: the result of :meth:`features` for ``observation``."""
        if features is None:
            return self.critic_network(observation)
        if torch.jit.is_scripting():
            x = features
            if hasattr(self, "scripted_trunk"):
                for i, layer in enumerate(self.critic_network):
                    if i >= self.scripted_trunk:
                        x = layer(x)
            return x
        return run_layers(self.critic_network, features, self._trunk_length())

    @torch.jit.unused
    def _trunk_length(self) -> int:
        """Returns the number of layers in the trunk."""
        return trunk_length(self.actor_network, self.critic_network)

    def __prepare_scriptable__(self) -> Any:
        """Returns what TorchScript compiles: this module, or with a trunk, a copy with the attribute ``scripted_trunk``, its length."""
        length = self._trunk_length()
        if length == 0:
            return self
        prepared = copy.copy(self)
        prepared.scripted_trunk = length
        return prepared
