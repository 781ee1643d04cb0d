"""The A2C loss and update of torchrl and Stable-Baselines3, with the same networks and the same rollout.

The work inside an update differs. torchrl's loss computes values and advantages from a TensorDict ``[N, T]``. Stable-Baselines3's update
reads the values of the rollout from a buffer, in which the collector stored them. This package computes the values in the update.

Peers are other libraries and a hand-written update. Each becomes a contender, see :mod:`a2c_compiled.benchmarks.measure.harness`.
"""

import copy
from typing import Any, Callable, Dict, List

import torch
from torch import Tensor, nn

from a2c_compiled import A2CLoss, Rollout
from a2c_compiled.benchmarks.contenders.baselines import numba_loops
from a2c_compiled.benchmarks.contenders.estimator_peers import folded_reward, installed
from a2c_compiled.benchmarks.contenders.loops import gradients, loop_contender, optimizer_state
from a2c_compiled.benchmarks.measure import data
from a2c_compiled.benchmarks.measure.harness import Contender, Make
from a2c_compiled.benchmarks.measure.shapes import Plan, Shape

SB3 = "SB3 A2C.train"
_TORCHRL_LOSSES = ("loss_objective", "loss_critic", "loss_entropy")


def torchrl_losses(rollout: Rollout, plan: Plan, direction: str) -> Dict[str, Make]:
    """Returns functions that create torchrl's A2CLoss, eager and compiled, by contender name.

    Args:
        rollout: the data, ``[T, N]``.
        plan: device, and the shapes at which peers are compiled.
        direction: "forward" computes the losses, "forward+backward" the gradients of their sum.
    """

    def make(compiled: bool) -> Contender:
        networks = data.loss(plan.device)
        losses = _torchrl(networks, rollout, compiled)
        if direction == "forward":
            return Contender(losses)
        parameters: List[Tensor] = list(networks.parameters())
        return Contender(lambda: gradients(losses(), parameters))

    return _eager_and_compiled(make, rollout, plan)


def updates(rollout: Rollout, shape: Shape, plan: Plan) -> Dict[str, Make]:
    """Returns functions that create the updates of the installed peers, by contender name.

    The updates are torchrl's loss in a training loop, a hand-written update, and Stable-Baselines3's advantage estimate and ``A2C.train``.
    """

    contenders = _eager_and_compiled(lambda compiled: torchrl_update(rollout, plan, compiled), rollout, plan)
    if installed("numba") and plan.device.type == "cpu":
        contenders["hand-written"] = lambda: _hand_written(rollout, False)
        if plan.compiling:
            contenders["hand-written compiled"] = lambda: _hand_written(rollout, True)
    if installed("stable_baselines3"):
        contenders[SB3] = lambda: _sb3_update(sb3_model(shape, plan.device), data.loss(plan.device), rollout)
    return contenders


def image_updates(rollout: Rollout, shape: Shape, plan: Plan) -> Dict[str, Make]:
    """Returns the update of Stable-Baselines3 with its convolutional policy, if it is installed, by contender name.

    ``rollout`` has the next observation of every step.
    """
    if not installed("stable_baselines3"):
        return {}
    return {SB3: lambda: _sb3_update(sb3_image_model(shape, plan.device), data.image_loss(plan.device), rollout)}


def torchrl_update(rollout: Rollout, plan: Plan, compiled: bool = False) -> Contender:
    """Creates a contender that trains on torchrl's A2CLoss in a plain training loop."""
    networks = data.loss(plan.device)
    return loop_contender(_torchrl(networks, rollout, compiled), list(networks.parameters()))


def _hand_written(rollout: Rollout, compiled: bool) -> Contender:
    """Creates a contender without an RL library: advantages from a numba loop, losses in torch."""
    networks = data.loss(rollout.reward.device)
    actor, critic = networks.actor_network, networks.critic_network
    gae, _ = numba_loops()
    both = torch.cat([rollout.observation, rollout.next_observation])
    constants = [tensor.numpy() for tensor in (rollout.reward, rollout.done, rollout.terminated)]

    def values_of(observation: Tensor) -> Tensor:
        return critic(observation).squeeze(-1)

    def losses_of(advantage: Tensor, value_target: Tensor) -> List[Tensor]:
        log_probs = actor(rollout.observation).log_softmax(-1)
        log_prob = log_probs.gather(-1, rollout.action.unsqueeze(-1)).squeeze(-1)
        entropy = -(log_probs.exp() * log_probs).sum(-1).mean()
        distance = nn.functional.mse_loss(values_of(rollout.observation), value_target)
        return [-(log_prob * advantage).mean(), data.CRITIC_COEF * distance, -data.ENTROPY_COEF * entropy]

    if compiled:
        values_of, losses_of = torch.compile(values_of), torch.compile(losses_of)

    def losses() -> List[Tensor]:
        with torch.no_grad():
            value, next_value = values_of(both).numpy().reshape(2, *rollout.reward.shape)
        advantage, value_target = gae(value, next_value, *constants)
        return losses_of(torch.from_numpy(advantage), torch.from_numpy(value_target))

    return loop_contender(losses, list(networks.parameters()))


def _eager_and_compiled(make: Callable[[bool], Contender], rollout: Rollout, plan: Plan) -> Dict[str, Make]:
    """Returns torchrl's contenders: ``make(False)``, and ``make(True)``, compiled, at the shapes of ``plan.compiled_peers``."""
    if not installed("torchrl"):
        return {}
    contenders: Dict[str, Make] = {"torchrl A2CLoss": lambda: make(False)}
    if plan.compiling and tuple(rollout.reward.shape)[::-1] in plan.compiled_peers:
        contenders["torchrl A2CLoss compiled"] = lambda: make(True)
    return contenders


def _torchrl(networks: Any, rollout: Rollout, compiled: bool) -> Callable[[], List[Tensor]]:
    """Returns a function that computes torchrl's three losses on the networks of ``networks``, an ``A2CLoss`` of this package."""
    from tensordict import TensorDict
    from tensordict.nn import TensorDictModule
    from torchrl.modules import ProbabilisticActor, ValueOperator
    from torchrl.objectives import A2CLoss, ValueEstimators

    actor = TensorDictModule(networks.actor_network, ["observation"], ["logits"])
    loss: Any = A2CLoss(
        ProbabilisticActor(actor, in_keys=["logits"], distribution_class=torch.distributions.Categorical),
        ValueOperator(networks.critic_network, in_keys=["observation"]),
        entropy_coeff=data.ENTROPY_COEF,
        critic_coeff=data.CRITIC_COEF,
        loss_critic_type="l2",
    )
    loss.make_value_estimator(ValueEstimators.GAE, gamma=data.GAMMA, lmbda=data.LMBDA)
    batch_first = Rollout(*(part.transpose(0, 1).contiguous() for part in rollout[:6] if part is not None))
    following = {"observation": batch_first.next_observation, "reward": batch_first.reward.unsqueeze(-1)}
    ends = {"done": batch_first.done.unsqueeze(-1), "terminated": batch_first.terminated.unsqueeze(-1)}
    batch = TensorDict(
        {"observation": batch_first.observation, "action": batch_first.action, "next": {**following, **ends}},
        batch_size=batch_first.reward.shape,
    )
    call = torch.compile(loss) if compiled else loss

    def losses() -> List[Tensor]:
        result = call(batch.clone(False))  # the loss writes the advantage into its input, and the next call would reuse it
        return [result[name] for name in _TORCHRL_LOSSES]

    return losses


def sb3_model(shape: Shape, device: torch.device) -> Any:
    """Returns Stable-Baselines3's A2C with the networks of :func:`data.loss`, without an environment.

    Args:
        shape: (environments, steps) of a rollout.
        device: device of the networks.
    """
    import numpy as np
    from gymnasium import spaces

    space = spaces.Box(-np.inf, np.inf, (data.OBSERVATION,), np.float32)
    model = _sb3_model("MlpPolicy", space, [data.HIDDEN, data.HIDDEN], shape, device)
    networks, policy = data.loss(device), model.policy
    for ours, trunk, head in (
        (networks.actor_network, policy.mlp_extractor.policy_net, policy.action_net),
        (networks.critic_network, policy.mlp_extractor.value_net, policy.value_net),
    ):
        nn.Sequential(*trunk, head).load_state_dict(copy.deepcopy(ours.state_dict()))
    return model


def sb3_image_model(shape: Shape, device: torch.device) -> Any:
    """Returns Stable-Baselines3's A2C with the networks of :func:`data.image_loss`. Arguments: see :func:`sb3_model`."""
    import numpy as np
    from gymnasium import spaces

    model = _sb3_model("CnnPolicy", spaces.Box(0, 255, data.IMAGE, np.uint8), [], shape, device)
    with torch.no_grad():
        for theirs, ours in zip(_sb3_parameters(model.policy), data.image_loss(device).parameters(), strict=True):
            theirs.copy_(ours)
    return model


def _sb3_model(policy: str, space: Any, net_arch: List[int], shape: Shape, device: torch.device) -> Any:
    """Returns Stable-Baselines3's A2C for observations in ``space``, with the coefficients of this benchmark."""
    from gymnasium import spaces
    from stable_baselines3 import A2C
    from stable_baselines3.common.logger import Logger

    num_envs, num_steps = shape
    options: Dict[str, Any] = {"learning_rate": data.LEARNING_RATE, "ent_coef": data.ENTROPY_COEF, "vf_coef": data.CRITIC_COEF}
    model: Any = A2C(
        policy,
        None,  # type: ignore[arg-type]
        n_steps=num_steps,
        gamma=data.GAMMA,
        gae_lambda=data.LMBDA,
        max_grad_norm=data.MAX_GRAD_NORM,
        policy_kwargs={"net_arch": net_arch},
        device=device,
        _init_setup_model=False,
        **options,
    )
    model.observation_space = space
    model.action_space = spaces.Discrete(data.ACTIONS)
    model.n_envs = num_envs
    model._setup_model()
    model.set_logger(Logger(None, []))
    return model


def _sb3_parameters(policy: Any) -> List[Any]:
    """Returns the parameters in the order of this package's loss: first the actor, with the features, then the critic."""
    extractor = policy.mlp_extractor
    parts = (policy.features_extractor, extractor.policy_net, policy.action_net, extractor.value_net, policy.value_net)
    return [parameter for part in parts for parameter in part.parameters()]


def _sb3_update(model: Any, networks: A2CLoss, rollout: Rollout) -> Contender:
    """Creates a contender that estimates advantages in a filled RolloutBuffer and calls ``A2C.train``.

    ``networks``: a loss with the weights of ``model``, whose critic computes the values in the buffer.
    """
    buffer, critic = model.rollout_buffer, networks.critic_network
    with torch.no_grad():
        values, next_values = (critic(part).squeeze(-1) for part in (rollout.observation, rollout.next_observation))
    ends = {"done": rollout.done, "terminated": rollout.terminated}
    reward = folded_reward({"reward": rollout.reward, "next_state_value": next_values, **ends})
    done = rollout.done.cpu().numpy()
    buffer.observations[:], buffer.actions[:] = rollout.observation.cpu().numpy(), rollout.action.unsqueeze(-1).cpu().numpy()
    buffer.values[:], buffer.rewards[:] = values.cpu().numpy(), reward.cpu().numpy()
    buffer.episode_starts[1:] = done[:-1]
    buffer.full = True
    # Reading the buffer replaces its arrays with flattened ones, so each update first restores the original ones.
    filled = dict(vars(buffer), generator_ready=False)

    def update() -> None:
        vars(buffer).update(filled)
        buffer.compute_returns_and_advantage(next_values[-1], done[-1])
        model.train()

    return Contender(update, lambda _: optimizer_state(model.policy.optimizer, _sb3_parameters(model.policy)))
