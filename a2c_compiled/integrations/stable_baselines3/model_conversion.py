"""Converts a Stable-Baselines3 (SB3) model to a policy and a loss of this library that share its parameters."""

import math
import warnings
from typing import Any, List, NamedTuple, Tuple, Union

import torch
from gymnasium import spaces
from stable_baselines3.common.distributions import StateDependentNoiseDistribution
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import MlpExtractor
from torch import nn

try:
    from sb3_contrib import TRPO
    from sb3_contrib.common.maskable.policies import MaskableActorCriticPolicy
    from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy
except ImportError:  # sb3-contrib is optional
    TRPO = MaskableActorCriticPolicy = RecurrentActorCriticPolicy = None

from a2c_compiled._environment_action import EnvironmentAction, check_action_space
from a2c_compiled._kinds import flag
from a2c_compiled.distributions import AddStateIndependentNormalScale, Distribution, Normal
from a2c_compiled.estimators import GAE
from a2c_compiled.integrations.stable_baselines3.masked_networks import (
    CriticHead,
    FeaturesAndMask,
    MaskedActorHead,
    MaskedToModel,
    masked_distribution,
)
from a2c_compiled.integrations.stable_baselines3.observations import environment_to_model, preprocessing, wrappers_of
from a2c_compiled.integrations.stable_baselines3.policy_networks import (
    Floating,
    MultiInputNetwork,
    Network,
    PredictFromFrames,
    PredictPolicy,
    SampledPredictPolicy,
    StateDependentScale,
)
from a2c_compiled.integrations.stable_baselines3.recurrent_networks import OverTime, RecurrentPredictPolicy, lstm_layers
from a2c_compiled.losses import A2CLoss
from a2c_compiled.networks.for_spaces import discrete_distribution_for
from a2c_compiled.shared_trunk import ActorCritic

# Methods that a subclass must not override, because this module composes the networks in the same way as the original methods.
_COMPUTATIONS = (
    "forward",
    "extract_features",
    "evaluate_actions",
    "get_distribution",
    "predict_values",
    "_get_action_dist_from_latent",
    "_predict",
)
_POLICIES = (ActorCriticPolicy,) if MaskableActorCriticPolicy is None else (ActorCriticPolicy, MaskableActorCriticPolicy)
_MIN_SCALE = torch.finfo(torch.float32).tiny  # so small that it has no effect, because SB3 has no lower bound of the scale


ExportablePolicy = Union[PredictPolicy, PredictFromFrames, SampledPredictPolicy, RecurrentPredictPolicy]


class FromSB3(NamedTuple):
    """The result of :func:`from_sb3`: an exportable policy, and a loss."""

    policy: ExportablePolicy
    loss: A2CLoss


def from_sb3(model: Union[OnPolicyAlgorithm, ActorCriticPolicy], sampled: bool = False) -> FromSB3:
    """Converts an SB3 model to an exportable policy and a loss. Both share the model's parameters: training one changes the other.

    >>> policy, loss = from_sb3(model)
    >>> export.export_onnx(policy, {"observation": torch.from_numpy(observations)}, "policy.onnx", dynamic_axes=("N",))

    The **policy** maps observations of the environment, ``[N, ...]``, to the actions that ``model.predict(observation,
    deterministic=True)`` returns for a batch, with the same shape and dtype (in a Box, the dtype of the space):

    - The present observation statistics of ``VecNormalize`` are constants of the policy, if the model was trained with that wrapper.
    - The channels of images may be the first or the last dimension.
    - Observations of a Dict space are a mapping of keys to tensors, as for ``model.predict``. The loss takes them as a tuple of tensors, in
      the order of the space: ``tuple(observation[key] for key in model.observation_space)``.
    - Actions of a Box are clipped to its bounds.
    - The policy of ``RecurrentPPO`` takes and returns its hidden state: ``action, next_hidden = policy(observation, hidden)``. The loss of
      such a model takes observations as :mod:`a2c_compiled.recurrent` describes.
    - The observation of ``MaskablePPO`` is a pair of an observation and its action mask: ``policy((observation, action_masks))``. A mask is
      ``[N, choices]``, any dtype, nonzero for allowed actions, in SB3's order. The inputs of an exported policy are ``observation.0`` (of a
      Dict space: ``observation.0.<key>``) and the mask ``observation.1``; ``input_names`` of ``export_onnx`` gives them other names. The
      loss takes the mask as the last entry of the observation, a tuple, and integer actions. If a mask allows no option of a choice, the
      log-probability is NaN; in SB3, all options are then equally probable.
    - If ``VecFrameStack`` is around ``VecNormalize``, as in RL Zoo, the policy takes one frame and its hidden state, which is the stack of
      normalised frames: ``action, next_hidden = policy(observation, hidden)``. Pass a hidden state of zeros, in the shape of the model's
      space, at the first step of an episode; the runtime's ``Policy`` does so after ``reset``.
    - Other wrappers, such as ``VecFrameStack`` inside ``VecNormalize`` or without it, are not part of the policy. Their stacks begin with
      frames of zeros.

    The **loss** takes the data on which the model trains: observations after normalisation and with the channels first, rewards after
    ``VecNormalize``, and actions before clipping. Discrete actions have shape ``[T, N]``, all others ``[T, N, dim]``. The coefficients of
    the loss are the model's ``gamma``, ``gae_lambda``, ``ent_coef`` and ``vf_coef``; for a policy without its algorithm, they are SB3's
    defaults of A2C. With a given ``advantage``, losses and gradients equal those of SB3's A2C. If the loss computes the advantage, there
    are two differences:

    - The estimator bootstraps truncated steps. Do not add the terminal value to their rewards, as SB3's rollout collection does.
    - ``normalize_advantage`` becomes ``average_gae``: advantages are standardised over the whole rollout, not over a minibatch, and the
      divisor is ``max(std, 1e-4)``, not ``std + 1e-8``.

    For every algorithm the result is the A2C objective with the algorithm's coefficients, without PPO's clipped probability ratio and
    without TRPO's trust region. TRPO trains its critic separately: the coefficient of the critic loss is then A2C's default.

    A features extractor that actor and critic share is the trunk of an :class:`~a2c_compiled.ActorCritic`, if it has parameters: it runs
    once for both. That of a recurrent model runs twice.

    Args:
        model: an SB3 ``A2C`` or ``PPO``, sb3-contrib's ``RecurrentPPO``, ``MaskablePPO`` or ``TRPO``, another on-policy algorithm with an
            ``ActorCriticPolicy``, or its policy. With ``use_sde=True`` (generalised state-dependent exploration), the loss computes the
            scale of the noise from the features.

            - Action spaces: Box of float16, float32 or float64, Discrete, MultiDiscrete, MultiBinary.
            - Observation spaces: Box (also images), Discrete, MultiDiscrete with one axis, MultiBinary, and a Dict of them.
            - Features extractor: any module that maps a tensor, or a dict of tensors, to a tensor ``[N, features]``.
        sampled: True returns a policy that samples as ``model.predict(observation, deterministic=False)`` does. It takes the noise as a
            second input, ``loss.distribution.noise(loss.actor_network(model_observation))``, and also returns ``log_prob`` and
            ``state_value``; the runtime's ``Policy`` draws the noise.

    Returns:
        :class:`FromSB3`: ``policy`` and ``loss``.

    Raises:
        TypeError: ``model`` is none of these, or the policy overrides the computation (custom policies), or ``sampled`` is not a bool.
        ValueError: the observation or action space is not supported, or ``squash_output`` is True, or ``use_sde`` and ``sampled`` are both
            True (SB3 keeps the noise of several steps), or two ``VecFrameStack``, or a wrapper that changes the observation space, are
            around ``VecNormalize``. Two of these are combined: ``sampled=True``, ``RecurrentPPO`` and a ``VecFrameStack`` around
            ``VecNormalize``; or a Dict space with one of the latter two; or ``MaskablePPO`` with the last one. Or an LSTM is
            bidirectional, or has a projection or dropout.

    Warns:
        UserWarning: ``model`` was trained with ``VecNormalize``, and its environment has none. The policy then takes normalised
            observations.
    """
    sampled = flag("sampled", sampled)
    policy = _checked_policy(model)
    space = policy.observation_space
    distribution = _distribution(policy)
    actor, critic = _networks(policy)
    algorithm: Any = None if isinstance(model, _POLICIES) else model
    wrappers = wrappers_of(None if algorithm is None else algorithm.get_env())
    had_statistics = getattr(algorithm, "_last_original_obs", None) is not None
    if algorithm is not None and had_statistics and algorithm.get_vec_normalize_env() is None:
        warnings.warn(
            "model: expected an environment with the VecNormalize of the training, got one without: the policy takes normalised"
            " observations (before the conversion, call model.set_env(VecNormalize.load(path, env)))",
            stacklevel=2,
        )
    if sampled and getattr(policy, "use_sde", False):
        raise ValueError(
            "sampled: expected False for a model with use_sde=True, whose noise depends on earlier steps, got True"
        )
    raw = environment_to_model(space, wrappers.normalize)
    raw = MaskedToModel(raw) if _is_masked(policy) else raw
    parts = raw, actor, distribution, _bounds(policy)
    exportable: ExportablePolicy = PredictPolicy(*parts)
    if _is_recurrent(policy):
        if sampled:
            raise ValueError("sampled: expected False for a recurrent model, got True")
        if wrappers.stack is not None:
            raise ValueError("model: expected no VecFrameStack around VecNormalize for a recurrent model, got one")
        exportable = RecurrentPredictPolicy(*parts)
    elif wrappers.stack is not None:
        if _is_masked(policy):
            raise ValueError("model: expected no VecFrameStack around VecNormalize for a MaskablePPO, got one")
        if isinstance(space, spaces.Dict):
            raise ValueError(f"model: expected no VecFrameStack around VecNormalize for a Dict observation space, got {space}")
        if sampled:
            raise ValueError("sampled: expected False for a model with a VecFrameStack around VecNormalize, got True")
        dim = 1 if wrappers.stack.stacked_obs.channels_first else -1
        exportable = PredictFromFrames(*parts, list(wrappers.stack.venv.observation_space.shape or ()), dim)
    elif sampled:
        exportable = SampledPredictPolicy(*parts, critic)
    return FromSB3(exportable.to(policy.device), _loss(algorithm, actor, critic, distribution))


def _networks(policy: ActorCriticPolicy) -> Tuple[nn.Module, nn.Module]:
    """Returns the actor and the critic of ``policy``."""
    space = policy.observation_space
    preprocess = preprocessing(space, policy.normalize_images)
    extractor = policy.mlp_extractor
    shape: Any = list(space.shape or ())
    network: Any = Network
    if isinstance(space, spaces.Dict):
        if _is_recurrent(policy):
            raise ValueError(f"model: expected an observation space of one tensor for a recurrent model, got {space}")
        shape, network = {key: list(part.shape or ()) for key, part in space.items()}, MultiInputNetwork
    features = policy.pi_features_extractor, policy.vf_features_extractor
    heads = (extractor.policy_net, _actor_head(policy)), (extractor.value_net, policy.value_net)
    if _is_recurrent(policy):
        actor_layers, critic_layers, between = lstm_layers(policy)
        actor_features, critic_features = (Network(shape, preprocess, part, nn.Identity(), nn.Identity()) for part in features)
        actor = OverTime(actor_features, actor_layers, nn.Sequential(*heads[0]))
        return actor, OverTime(critic_features, critic_layers, nn.Sequential(between, *heads[1]))
    is_shared = policy.share_features_extractor and any(True for _ in features[0].parameters())
    if not is_shared and not _is_masked(policy):
        actor, critic = (network(shape, preprocess, part, *head) for part, head in zip(features, heads, strict=True))
        return actor, critic
    trunks: List[nn.Module] = [network(shape, preprocess, part, nn.Identity(), nn.Identity()) for part in features]
    width = [int(policy.features_dim)]
    ends: List[nn.Module] = [Network(width, nn.Identity(), nn.Identity(), *head) for head in heads]
    if _is_masked(policy):
        sizes = _choice_sizes(policy.action_space)
        trunks = [FeaturesAndMask(trunk, sum(sizes)) for trunk in trunks]
        ends = [MaskedActorHead(ends[0], sizes), CriticHead(ends[1], sum(sizes))]
    if not is_shared:
        return nn.Sequential(trunks[0], ends[0]), nn.Sequential(trunks[1], ends[1])
    both = ActorCritic(trunks[0], *ends)
    return both.actor_network, both.critic_network


def _checked_policy(model: Union[OnPolicyAlgorithm, ActorCriticPolicy]) -> ActorCriticPolicy:
    """Returns the policy of ``model``. Raises the errors of :func:`from_sb3` if the policy is not supported."""
    if not isinstance(model, (OnPolicyAlgorithm, *_POLICIES)):
        raise TypeError(f"model: expected an on-policy algorithm or an ActorCriticPolicy, got {type(model).__name__}")
    policy = model if isinstance(model, _POLICIES) else model.policy
    if not isinstance(policy, _POLICIES):
        raise TypeError(f"model: expected an ActorCriticPolicy, got {type(policy).__name__}")
    original = ActorCriticPolicy
    if _is_recurrent(policy):
        original = RecurrentActorCriticPolicy
    elif _is_masked(policy):
        original = MaskableActorCriticPolicy
    overridden = [name for name in _COMPUTATIONS if getattr(type(policy), name) is not getattr(original, name)]
    if overridden:
        raise TypeError(
            f"model: expected a policy with the methods of {original.__name__}, got {type(policy).__name__} with its own"
            f" {', '.join(overridden)}"
        )
    if not isinstance(policy.mlp_extractor, MlpExtractor):
        raise TypeError(f"model: expected an MlpExtractor as mlp_extractor, got {type(policy.mlp_extractor).__name__}")
    if policy.squash_output:
        raise ValueError("model: expected squash_output=False, got True (actions that tanh bounds are not supported)")
    return policy


def _is_recurrent(policy: ActorCriticPolicy) -> bool:
    """Returns whether ``policy`` is a recurrent policy of sb3-contrib."""
    return RecurrentActorCriticPolicy is not None and isinstance(policy, RecurrentActorCriticPolicy)


def _is_masked(policy: ActorCriticPolicy) -> bool:
    """Returns whether ``policy`` is a policy of sb3-contrib that takes action masks."""
    return MaskableActorCriticPolicy is not None and isinstance(policy, MaskableActorCriticPolicy)


def _choice_sizes(space: spaces.Space) -> List[int]:
    """Returns the number of options of each choice in an action of a masked policy. An entry of MultiBinary is a choice of two."""
    if isinstance(space, spaces.MultiDiscrete) and space.nvec.ndim == 1:
        return [int(n) for n in space.nvec]
    if isinstance(space, spaces.MultiBinary) and len(space.shape) == 1:
        return [2] * space.shape[0]
    if isinstance(space, spaces.Discrete):
        return [int(space.n)]
    raise ValueError(f"model: expected a Discrete, MultiDiscrete or MultiBinary action space of one axis, got {space}")


def _distribution(policy: ActorCriticPolicy) -> Distribution:
    """Returns this library's distribution for the action space of ``policy``."""
    space = policy.action_space
    if _is_masked(policy):
        return masked_distribution(_choice_sizes(space), isinstance(space, spaces.Discrete))
    if isinstance(space, spaces.Box):
        check_action_space(space)
        return Normal(math.prod(space.shape), scale_mapping="exp", scale_lb=_MIN_SCALE)
    distribution = discrete_distribution_for(space)
    if distribution is None:
        raise ValueError(f"model: expected a Box, Discrete, MultiDiscrete or MultiBinary action space, got {space}")
    return distribution


def _actor_head(policy: ActorCriticPolicy) -> nn.Module:
    """Returns the last layer of the actor. For a Box, it also returns the logarithm of the scale."""
    if not isinstance(policy.action_space, spaces.Box):
        return policy.action_net
    if isinstance(policy.action_dist, StateDependentNoiseDistribution):
        return StateDependentScale(policy.action_net, policy.log_std, policy.action_dist)
    scale = AddStateIndependentNormalScale(policy.log_std.numel())
    scale.state_independent_scale = policy.log_std
    return nn.Sequential(policy.action_net, scale)


def _bounds(policy: ActorCriticPolicy) -> nn.Module:
    """Returns the module that maps actions of the distribution to actions that ``model.predict`` returns."""
    if isinstance(policy.action_space, spaces.Box):
        return EnvironmentAction(policy.action_space)
    is_floating = isinstance(policy.action_space, spaces.MultiBinary) and not _is_masked(policy)
    return Floating() if is_floating else nn.Identity()


def _loss(algorithm: Any, actor: nn.Module, critic: nn.Module, distribution: Distribution) -> A2CLoss:
    """Returns the loss with the coefficients of ``algorithm``; None: with SB3's defaults of A2C."""
    if algorithm is None:
        return A2CLoss(actor, critic, distribution, GAE(0.99, 1.0), 0.0, 0.5, "l2")
    estimator = GAE(algorithm.gamma, algorithm.gae_lambda, average_gae=getattr(algorithm, "normalize_advantage", False))
    critic_coef = 0.5 if TRPO is not None and isinstance(algorithm, TRPO) else algorithm.vf_coef
    return A2CLoss(actor, critic, distribution, estimator, algorithm.ent_coef, critic_coef, "l2")
