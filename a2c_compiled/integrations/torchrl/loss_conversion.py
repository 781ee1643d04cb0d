"""Converts a TorchRL loss to a loss of this library that shares its parameters."""

import copy
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

from tensordict.nn import ProbabilisticTensorDictModule
from tensordict.utils import unravel_key
from torch import nn
from torchrl import objectives
from torchrl.modules.value_norm import PercentileValueNorm, ValueNorm
from torchrl.objectives import value as theirs

from a2c_compiled import estimators as ours
from a2c_compiled.integrations.torchrl.action_distributions import converted_distribution
from a2c_compiled.integrations.torchrl.module_chains import Chain, Key, leaves
from a2c_compiled.integrations.torchrl.shared_networks import holds_same_tensors
from a2c_compiled.losses import A2CLoss, PercentileNorm
from a2c_compiled.shared_trunk import ActorCritic

# Methods that a subclass must not override, because the converted loss computes what the original methods compute.
_COMPUTATIONS = ("forward", "_log_probs", "get_entropy_bonus", "loss_critic", "_reduce_loss")


def from_torchrl(
    loss: objectives.A2CLoss, observation_keys: Optional[Sequence[Key]] = None, size: Optional[int] = None
) -> A2CLoss:
    """Converts a TorchRL ``A2CLoss`` to a loss of this library. Both share their parameters: training one changes the other.

    >>> loss = from_torchrl(torchrl_loss)
    >>> losses = loss(observation, action, reward=reward, next_observation=next_observation, done=done, terminated=terminated)

    The loss takes the tensors of the TensorDict: observations and actions ``[N, T, ...]``, rewards and flags ``[N, T, 1]``. Losses and
    gradients equal TorchRL's. The loss compiles as one graph, trains in :class:`~a2c_compiled.TrainStep`, and can be exported. The
    coefficients are copies: later changes in TorchRL's loss have no effect. If the value estimator has a ``group_key``, pass the entry of
    this key as ``group``.

    Args:
        loss: TorchRL's loss. Its networks are TensorDictModules or sequences of them. The actor ends in one of these distributions:
            Categorical, OneHotCategorical, MaskedCategorical, MaskedOneHotCategorical, Ordinal, OneHotOrdinal, IndependentNormal,
            TanhNormal, TruncatedNormal.
        observation_keys: if the networks read several entries, the keys of these entries. The observation is then a tuple of tensors in
            this order. None: the networks read one entry.
        size: number of actions or dimension of the action. None reads the number from the actor's last layer (``out_features``).

    Returns:
        The loss, in the training mode of ``loss``.

    Raises:
        TypeError: the type of the loss, a network, the distribution or the value estimator is not supported.
        ValueError: an option is not supported, or ``observation_keys`` or ``size`` is needed and missing.
    """
    if not isinstance(loss, objectives.A2CLoss):
        raise TypeError(f"loss: expected a torchrl A2CLoss, got {type(loss).__name__}")
    overridden = [name for name in _COMPUTATIONS if getattr(type(loss), name) is not getattr(objectives.A2CLoss, name)]
    if overridden:
        raise TypeError(
            f"loss: expected a loss with the methods of A2CLoss, got {type(loss).__name__} with its own {', '.join(overridden)}"
        )
    actor, critic, separate = _networks(loss)
    keys = _observation_keys((actor, critic), observation_keys)
    actor_modules, critic_modules = list(leaves(actor)), list(leaves(critic))
    trunk, length, (actor_chain, critic_chain) = _trunk(actor_modules, critic_modules, keys)
    *modules, last = actor_modules
    for module in modules[length:]:
        actor_chain.run(module)
    if not isinstance(last, ProbabilisticTensorDictModule):
        raise TypeError(f"actor_network: expected a ProbabilisticTensorDictModule at its end, got {type(last).__name__}")
    distribution, params = converted_distribution(last, actor_chain, size)
    for module in critic_modules[length:]:
        critic_chain.run(module)
    networks = actor_chain.module(params), critic_chain.module(critic_chain.node(loss.tensor_keys.value))
    network = None if trunk is None else ActorCritic(trunk, *networks)
    converted_loss = A2CLoss(
        networks[0] if network is None else network,
        networks[1] if network is None else None,
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
    """Returns actor and critic with the parameters of the loss, and whether the critic loss does not train their shared parameters."""
    actor, critic = loss.actor_network, loss.critic_network
    if not loss.functional:
        return actor, critic, False
    critic_params = loss.critic_network_params
    separate = any(
        isinstance(tensor, nn.Parameter) and not isinstance(critic_params.get(tuple(name.split("."))), nn.Parameter)
        for name, tensor in critic.named_parameters(remove_duplicate=False)
    )
    if not holds_same_tensors(actor, loss.actor_network_params):
        actor = _with_parameters(actor, loss.actor_network_params)
    if not separate and not holds_same_tensors(critic, critic_params):
        critic = _with_parameters(critic, critic_params)
    return actor, critic, separate


def _with_parameters(module: nn.Module, params: Any) -> nn.Module:
    """Returns a copy of ``module`` that holds the tensors of ``params``."""
    module = copy.deepcopy(module)
    params.to_module(module, preserve_module_state=False)
    return module


def _observation_keys(networks: Sequence[nn.Module], observation_keys: Optional[Sequence[Key]]) -> List[Key]:
    """Returns the keys of the entries that ``networks`` read and do not write, in the order of ``observation_keys``.

    Raises:
        ValueError: ``observation_keys`` has other keys, or is None and ``networks`` read several entries.
    """
    read = _keys_read([list(leaves(network)) for network in networks])
    keys = read if observation_keys is None else [unravel_key(key) for key in observation_keys]
    if observation_keys is None and len(read) != 1:
        raise ValueError(f"observation_keys: expected the keys {read} in an order of your choice, got None")
    if set(keys) != set(read) or len(keys) != len(read):
        raise ValueError(f"observation_keys: expected {read} in any order, got {keys}")
    return keys


def _keys_read(networks: Sequence[Sequence[nn.Module]]) -> List[Key]:
    """Returns the keys of the entries that networks, each a list of its modules, read and do not write."""
    read: List[Key] = []
    for modules in networks:
        written: List[Key] = []
        for module in modules:
            in_keys = [unravel_key(key) for key in _keys(module, "in_keys")]
            read += [key for key in in_keys if key not in (*written, *read)]
            written += [unravel_key(key) for key in _keys(module, "out_keys")]
    return read


def _trunk(
    actor: Sequence[nn.Module], critic: Sequence[nn.Module], keys: Sequence[Key]
) -> Tuple[Optional[nn.Module], int, Tuple[Chain, Chain]]:
    """Returns the trunk of two networks, each a list of its modules, the number of its modules, and the chains for the other modules.

    Both networks begin with the modules of the trunk. The other modules read one entry that the trunk writes, and no other entry.
    Without such a trunk, the result is None, 0 and two chains from the observation.
    """
    pairs = enumerate(zip(actor[:-1], critic[:-1], strict=False))
    length = next((i for i, (one, other) in pairs if one is not other), min(len(actor), len(critic)) - 1)
    read = _keys_read([actor[length:], critic[length:]])
    if (
        length > 0
        and len(read) == 1
        and read[0] not in keys
        and any(True for part in actor[:length] for _ in part.parameters())
    ):
        chain, heads = Chain(keys), (Chain(read), Chain(read))
        for module in actor[:length]:
            chain.run(module)
        for head in heads:
            head.widths[read[0]] = chain.width(read[0])
        return chain.module(chain.node(read[0])), length, heads
    return None, 0, (Chain(keys), Chain(keys))


def _keys(module: Any, name: str) -> List[Key]:
    return list(getattr(module, name))


_Options = Callable[[Any], Dict[str, Any]]


def _td_options(estimator: Any) -> Dict[str, Any]:
    """Returns the options that all TD estimators have."""
    return {"average_rewards": estimator.average_rewards}


def _gae_options(estimator: Any) -> Dict[str, Any]:
    """Returns the options that GAE and MultiAgentGAE have."""
    return {"lmbda": estimator.lmbda, "average_gae": estimator.average_gae, "auto_reset_env": estimator.auto_reset_env}


_ESTIMATORS: Dict[Any, Tuple[Callable[..., ours.ValueEstimator], _Options]] = {
    theirs.TD0Estimator: (ours.TD0Estimator, _td_options),
    theirs.TD1Estimator: (ours.TD1Estimator, _td_options),
    theirs.TDLambdaEstimator: (
        ours.TDLambdaEstimator,
        lambda estimator: {**_td_options(estimator), "lmbda": estimator.lmbda},
    ),
    theirs.GAE: (ours.GAE, _gae_options),
    theirs.MultiAgentGAE: (
        ours.MultiAgentGAE,
        lambda estimator: {**_gae_options(estimator), "agent_dim": estimator.agent_dim},
    ),
    theirs.VTrace: (
        ours.VTrace,
        lambda estimator: {
            "rho_thresh": estimator.rho_thresh,
            "c_thresh": estimator.c_thresh,
            "average_adv": estimator.average_adv,
        },
    ),
}


def _estimator(loss: objectives.A2CLoss) -> ours.ValueEstimator:
    """Converts the value estimator of ``loss``."""
    estimator = loss.value_estimator
    if type(estimator) not in _ESTIMATORS:
        raise TypeError(f"value_estimator: expected an estimator of torchrl.objectives.value, got {type(estimator).__name__}")
    if estimator.value_network is not loss.critic_network:
        raise ValueError(
            "value_estimator: expected the critic network of the loss as value_network, got"
            f" {'None' if estimator.value_network is None else 'another ' + type(estimator.value_network).__name__}"
        )
    if estimator.skip_existing:
        raise ValueError("value_estimator: expected skip_existing=None, since no TensorDict stores values, got True")
    make, read_options = _ESTIMATORS[type(estimator)]
    options = {"gamma": estimator.gamma, "differentiable": estimator.differentiable, **read_options(estimator)}
    time_dim = getattr(estimator, "time_dim", None)
    if time_dim is not None and make is not ours.TD0Estimator:
        options["time_dim"] = time_dim if time_dim >= 0 else time_dim - _dimensions_of_a_step(estimator)
    return make(**options)


def _dimensions_of_a_step(estimator: Any) -> int:
    """Returns the number of dimensions that values have after the batch dimensions of the TensorDict.

    TorchRL counts a negative ``time_dim`` from the end of the batch dimensions; this library counts from the end of the values.
    """
    return 2 if type(estimator) is theirs.MultiAgentGAE else 1


def _advantage_norm(norm: Optional[ValueNorm]) -> Optional[PercentileNorm]:
    """Converts the norm and copies its present percentiles. Afterwards, each of the two norms follows the value targets of its own loss."""
    if norm is None:
        return None
    if type(norm) is not PercentileValueNorm or norm.low.numel() != 1:
        raise ValueError(f"advantage_norm: expected a PercentileValueNorm with one value, or None, got {norm}")
    converted_norm = PercentileNorm(norm.quantiles, norm.rate, norm.min_scale)
    converted_norm.low.copy_(norm.low.squeeze())
    converted_norm.high.copy_(norm.high.squeeze())
    return converted_norm


def _critic_calls(loss: objectives.A2CLoss) -> Dict[str, Any]:
    """Returns the options that select how the critic is called: in one pass, in chunks, or both."""
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
