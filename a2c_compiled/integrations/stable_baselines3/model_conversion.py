"""A model of Stable-Baselines3 as a loss and a policy of this library, over the same parameters."""

from typing import NamedTuple, Optional, Union

import torch
from gymnasium import spaces
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import MlpExtractor
from torch import nn

from a2c_compiled.distributions import AddStateIndependentNormalScale, Distribution, Normal
from a2c_compiled.estimators import GAE
from a2c_compiled.integrations.stable_baselines3.observations import preprocessing, raw
from a2c_compiled.integrations.stable_baselines3.policy_networks import Clipped, Floating, Network, PredictPolicy
from a2c_compiled.losses import A2CLoss
from a2c_compiled.networks.for_spaces import choices_for

# What a subclass may not compute in another way: the networks below are put together as the originals of these do it.
_COMPUTATIONS = (
    "forward",
    "extract_features",
    "evaluate_actions",
    "get_distribution",
    "predict_values",
    "_get_action_dist_from_latent",
    "_predict",
)
_SMALLEST_SCALE = torch.finfo(torch.float32).tiny  # none in effect, as in Stable-Baselines3


class FromSB3(NamedTuple):
    """What :func:`from_sb3` makes of a model."""

    policy: PredictPolicy
    loss: A2CLoss


def from_sb3(model: Union[A2C, PPO, ActorCriticPolicy]) -> FromSB3:
    """An exportable policy and a loss over the parameters of an SB3 model: what is learnt here is learnt there, and the other way round.

    >>> policy, loss = from_sb3(model)
    >>> export.export_onnx(policy, {"observation": torch.from_numpy(observations)}, "policy.onnx", dynamic_axes=("N",))

    The **policy** takes what the environment gives: where the model was trained in ``VecNormalize``, the statistics of observations are
    constants of it, as they are now; images may have their channels first or last; actions of a Box are clipped to it. The result has
    the dtype and shape that ``model.predict(observation, deterministic=True)`` returns for a batch. What other wrappers do
    (``VecFrameStack``) is left to the caller.

    The **loss** takes what the model sees (normalised observations, channels first; rewards as its ``VecNormalize`` makes them) and
    actions before clipping, under ``[T, N]``, those of a Box as ``[T, N, dim]``. It has the model's ``gamma``, ``gae_lambda``, ``ent_coef``
    and ``vf_coef``, or A2C's defaults for a policy alone, and on a rollout whose advantages are given it is SB3's A2C loss, gradients
    included. Where it computes them:

    - a truncated step bootstraps inside the estimator, so rewards must not have the terminal value added, as SB3's buffer has;
    - ``normalize_advantage`` is ``average_gae``: divided by the standard deviation or 1e-4 if that is larger, where SB3 adds 1e-8, over
      the whole rollout and not a minibatch.

    For PPO it is A2C's objective with PPO's coefficients: there is no ratio of probabilities to clip in it. A features extractor that
    actor and critic share is run for each of them.

    Args:
        model: an A2C, a PPO, or its policy. Spaces of actions: Box, Discrete, MultiDiscrete, MultiBinary; of observations: Box, images
            included, Discrete, MultiDiscrete, MultiBinary. Features extractors may be any module of a tensor to a tensor ``[N, features]``.

    Raises:
        TypeError: the model is of another kind, or its policy computes otherwise (recurrent, masked, custom ``forward``).
        ValueError: Dict observations, or state-dependent exploration (``use_sde``).
    """
    policy = _checked_policy(model)
    space = policy.observation_space
    preprocess = preprocessing(space, policy.normalize_images)
    distribution = _distribution(policy)
    hidden, shape = policy.mlp_extractor, list(space.shape or ())
    actor = Network(shape, preprocess, policy.pi_features_extractor, hidden.policy_net, _actor_head(policy))
    critic = Network(shape, preprocess, policy.vf_features_extractor, hidden.value_net, policy.value_net)
    algorithm = None if isinstance(model, ActorCriticPolicy) else model
    env = None if algorithm is None else algorithm.get_vec_normalize_env()
    greedy = PredictPolicy(raw(space, env), actor, distribution, _bounds(policy.action_space)).to(policy.device)
    return FromSB3(greedy, _loss(algorithm, actor, critic, distribution))


def _checked_policy(model: Union[A2C, PPO, ActorCriticPolicy]) -> ActorCriticPolicy:
    if not isinstance(model, (A2C, PPO, ActorCriticPolicy)):
        raise TypeError(f"model: expected an A2C, a PPO or an ActorCriticPolicy, got {type(model).__name__}")
    policy = model if isinstance(model, ActorCriticPolicy) else model.policy
    if not isinstance(policy, ActorCriticPolicy):
        raise TypeError(f"model: expected an ActorCriticPolicy, got {type(policy).__name__}")
    own = [name for name in _COMPUTATIONS if getattr(type(policy), name) is not getattr(ActorCriticPolicy, name)]
    if own:
        raise TypeError(
            f"model: expected a policy that computes as ActorCriticPolicy does, got {type(policy).__name__} with its own"
            f" {', '.join(own)} (recurrent policies and policies with masks are not supported)"
        )
    if not isinstance(policy.mlp_extractor, MlpExtractor):
        raise TypeError(f"model: expected an MlpExtractor, got {type(policy.mlp_extractor).__name__}")
    if policy.use_sde:
        raise ValueError(
            "model: expected use_sde=False, got True (noise that depends on the state is no distribution of this library)"
        )
    return policy


def _distribution(policy: ActorCriticPolicy) -> Distribution:
    space = policy.action_space
    if isinstance(space, spaces.Box):
        return Normal(policy.log_std.numel(), scale_mapping="exp", scale_lb=_SMALLEST_SCALE)
    choices = choices_for(space)
    if choices is None:
        raise ValueError(f"model: expected actions from a Box, a Discrete, a MultiDiscrete or a MultiBinary, got {space}")
    return choices


def _actor_head(policy: ActorCriticPolicy) -> nn.Module:
    if not isinstance(policy.action_space, spaces.Box):
        return policy.action_net
    scale = AddStateIndependentNormalScale(policy.log_std.numel())
    scale.state_independent_scale = policy.log_std
    return nn.Sequential(policy.action_net, scale)


def _bounds(space: spaces.Space) -> nn.Module:
    if isinstance(space, spaces.Box):
        return Clipped(space)
    return Floating() if isinstance(space, spaces.MultiBinary) else nn.Identity()


def _loss(algorithm: Optional[Union[A2C, PPO]], actor: nn.Module, critic: nn.Module, distribution: Distribution) -> A2CLoss:
    if algorithm is None:
        return A2CLoss(actor, critic, distribution, GAE(0.99, 1.0), 0.0, 0.5, "l2")
    estimator = GAE(algorithm.gamma, algorithm.gae_lambda, average_gae=algorithm.normalize_advantage)
    return A2CLoss(actor, critic, distribution, estimator, algorithm.ent_coef, algorithm.vf_coef, "l2")
