"""A loss of TorchRL as one of this library, over the same parameters."""

import copy
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

from tensordict.nn import ProbabilisticTensorDictModule
from tensordict.utils import unravel_key
from torch import nn
from torchrl import objectives
from torchrl.modules.value_norm import PercentileValueNorm, ValueNorm
from torchrl.objectives import value as theirs

from a2c_compiled import estimators as ours
from a2c_compiled.integrations.torchrl.action_distributions import converted
from a2c_compiled.integrations.torchrl.module_chains import Chain, Key, leaves
from a2c_compiled.integrations.torchrl.shared_networks import are_own
from a2c_compiled.losses import A2CLoss, PercentileNorm

# What a subclass may not compute in another way.
_COMPUTATIONS = ("forward", "_log_probs", "get_entropy_bonus", "loss_critic", "_reduce_loss")


def from_torchrl(
    loss: objectives.A2CLoss, observation_keys: Optional[Sequence[Key]] = None, size: Optional[int] = None
) -> A2CLoss:
    """A TorchRL ``A2CLoss`` as a loss of this library over the same parameters: what is learnt here is learnt there.

    >>> loss = from_torchrl(torchrl_loss)
    >>> losses = loss(observation, action, reward=reward, next_observation=next_observation, done=done, terminated=terminated)

    It takes tensors as they stand in the TensorDict, ``[N, T, ...]`` with rewards and flags ``[N, T, 1]``, and gives the losses and
    gradients of TorchRL's; it compiles whole, trains in :class:`~a2c_compiled.TrainStep`, and exports. Coefficients are those of now.
    Where the value estimator standardises by a ``group_key``, pass that entry as ``group``.

    Args:
        loss: its networks are chains of TensorDictModules; the actor ends in a (masked, one-hot) categorical or ordinal
            distribution or an IndependentNormal, TanhNormal or TruncatedNormal.
        observation_keys: where the networks read several entries: these, in the order of the tuple of tensors that is the observation.
        size: number of actions or dimension of the action, where the actor's last layer does not say it (``out_features``).

    Raises:
        TypeError: the loss, a network, the distribution or the estimator is of a kind that is not here.
        ValueError: an option has no counterpart, or an argument is missing.
    """
    if not isinstance(loss, objectives.A2CLoss):
        raise TypeError(f"loss: expected a torchrl A2CLoss, got {type(loss).__name__}")
    own = [name for name in _COMPUTATIONS if getattr(type(loss), name) is not getattr(objectives.A2CLoss, name)]
    if own:
        raise TypeError(
            f"loss: expected one that computes as A2CLoss does, got {type(loss).__name__} with its own {', '.join(own)}"
        )
    actor, critic, separate = _networks(loss)
    keys = _observation_keys((actor, critic), observation_keys)
    chain = Chain(keys)
    *modules, last = leaves(actor)
    for module in modules:
        chain.run(module)
    if not isinstance(last, ProbabilisticTensorDictModule):
        raise TypeError(f"actor_network: expected a distribution at its end, got {type(last).__name__}")
    distribution, params = converted(last, chain, size)
    values = Chain(keys)
    for module in leaves(critic):
        values.run(module)
    converted_loss = A2CLoss(
        chain.module(params),
        values.module(values.node(loss.tensor_keys.value)),
        distribution,
        _estimator(loss),
        float(loss.entropy_coeff),
        None if loss.critic_coeff is None else float(loss.critic_coeff),
        loss.loss_critic_type,
        entropy_bonus=bool(loss.entropy_bonus),
        samples_mc_entropy=loss.samples_mc_entropy,
        separate_losses=separate,
        reduction=loss.reduction,
        clip_value=None if loss.clip_value is None else float(loss.clip_value),
        advantage_norm=_advantage_norm(loss.advantage_norm),
        **_critic_calls(loss),
    )
    return converted_loss.train(loss.training)


def _networks(loss: objectives.A2CLoss) -> Tuple[nn.Module, nn.Module, bool]:
    """Actor and critic with the loss's own parameters, and whether those that they share are held out of the critic's loss."""
    actor, critic = loss.actor_network, loss.critic_network
    if not loss.functional:
        return actor, critic, False
    given = loss.critic_network_params
    held_out = any(
        isinstance(tensor, nn.Parameter) and not isinstance(given.get(tuple(name.split("."))), nn.Parameter)
        for name, tensor in critic.named_parameters(remove_duplicate=False)
    )
    if not are_own(actor, loss.actor_network_params):
        actor = _with_parameters(actor, loss.actor_network_params)
    if not held_out and not are_own(critic, given):
        critic = _with_parameters(critic, given)
    return actor, critic, held_out


def _with_parameters(module: nn.Module, params: Any) -> nn.Module:
    module = copy.deepcopy(module)
    params.to_module(module, preserve_module_state=False)
    return module


def _observation_keys(networks: Sequence[nn.Module], given: Optional[Sequence[Key]]) -> List[Key]:
    read: List[Key] = []
    for network in networks:
        written: List[Key] = []
        for module in leaves(network):
            in_keys = [unravel_key(key) for key in _keys(module, "in_keys")]
            read += [key for key in in_keys if key not in (*written, *read)]
            written += [unravel_key(key) for key in _keys(module, "out_keys")]
    keys = read if given is None else [unravel_key(key) for key in given]
    if given is None and len(read) != 1:
        raise ValueError(f"observation_keys: expected the order of {read}, got None")
    if set(keys) != set(read) or len(keys) != len(read):
        raise ValueError(f"observation_keys: expected {read} in any order, got {keys}")
    return keys


def _keys(module: Any, name: str) -> List[Key]:
    return list(getattr(module, name))


_Options = Callable[[Any], Dict[str, Any]]


def _of_td(estimator: Any) -> Dict[str, Any]:
    return {"average_rewards": estimator.average_rewards}


def _of_gae(estimator: Any) -> Dict[str, Any]:
    return {"lmbda": estimator.lmbda, "average_gae": estimator.average_gae, "auto_reset_env": estimator.auto_reset_env}


_ESTIMATORS: Dict[Any, Tuple[Callable[..., ours.ValueEstimator], _Options]] = {
    theirs.TD0Estimator: (ours.TD0Estimator, _of_td),
    theirs.TD1Estimator: (ours.TD1Estimator, _of_td),
    theirs.TDLambdaEstimator: (ours.TDLambdaEstimator, lambda one: {**_of_td(one), "lmbda": one.lmbda}),
    theirs.GAE: (ours.GAE, _of_gae),
    theirs.MultiAgentGAE: (ours.MultiAgentGAE, lambda one: {**_of_gae(one), "agent_dim": one.agent_dim}),
    theirs.VTrace: (
        ours.VTrace,
        lambda one: {"rho_thresh": one.rho_thresh, "c_thresh": one.c_thresh, "average_adv": one.average_adv},
    ),
}


def _estimator(loss: objectives.A2CLoss) -> ours.ValueEstimator:
    estimator = loss.value_estimator
    if type(estimator) not in _ESTIMATORS:
        raise TypeError(f"value_estimator: expected one of torchrl.objectives.value, got {type(estimator).__name__}")
    if estimator.value_network is not loss.critic_network:
        raise ValueError("value_estimator: expected the value network of the loss, got another or none")
    if estimator.skip_existing:
        raise ValueError("value_estimator: expected skip_existing=None, since there is no TensorDict to hold values, got True")
    make, options = _ESTIMATORS[type(estimator)]
    given = {"gamma": estimator.gamma, "differentiable": estimator.differentiable, **options(estimator)}
    time_dim = getattr(estimator, "time_dim", None)
    if time_dim is not None and make is not ours.TD0Estimator:
        given["time_dim"] = time_dim if time_dim >= 0 else time_dim - _dimensions_of_a_step(estimator)
    return make(**given)


def _dimensions_of_a_step(estimator: Any) -> int:
    """What values have beside the dimensions of the TensorDict, from whose end TorchRL counts."""
    return 2 if type(estimator) is theirs.MultiAgentGAE else 1


def _advantage_norm(norm: Optional[ValueNorm]) -> Optional[PercentileNorm]:
    """The same norm at the same place; from there on each follows what its own loss computes."""
    if norm is None:
        return None
    if type(norm) is not PercentileValueNorm or norm.low.numel() != 1:
        raise ValueError(f"advantage_norm: expected a PercentileValueNorm of one value or None, got {norm}")
    converted_norm = PercentileNorm(norm.quantiles, norm.rate, norm.min_scale)
    converted_norm.low.copy_(norm.low.squeeze())
    converted_norm.high.copy_(norm.high.squeeze())
    return converted_norm


def _critic_calls(loss: objectives.A2CLoss) -> Dict[str, Any]:
    estimator = loss.value_estimator
    chunked = estimator.value_chunk_size is not None or estimator.num_chunks is not None
    if chunked and estimator.value_chunk_dim != 0:
        raise ValueError(f"value_chunk_dim: expected 0, got {estimator.value_chunk_dim}")
    return {
        "shifted": estimator.shifted,
        "shifted_budget": estimator.shifted_budget,
        "value_chunk_size": estimator.value_chunk_size,
        "num_chunks": estimator.num_chunks,
    }
