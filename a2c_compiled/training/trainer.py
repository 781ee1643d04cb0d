"""The loop: collect, update, look at the returns, stop when solved."""

import random
import time
from dataclasses import dataclass
from typing import Dict, List

import numpy as np
import torch
from tqdm import tqdm

from a2c_compiled.estimators import GAE
from a2c_compiled.losses import A2CLoss
from a2c_compiled.training.collector import RolloutCollector
from a2c_compiled.training.config import TrainConfig
from a2c_compiled.training.environments import make_environments
from a2c_compiled.training.evaluation import EVALUATION_SEED, evaluate, greedy_policy
from a2c_compiled.training.networks import make_networks
from a2c_compiled.training.train_step import TrainStep


@dataclass
class TrainResult:
    """What training leaves: the loss with its trained networks, and how it went.

    Attributes:
        loss: holds actor, critic and distribution.
        step: the training step, with the optimizer's state.
        history: per update: ``steps`` of the environments so far, ``seconds``, ``return`` (mean over the last 100 episodes), metrics.
        greedy_return: mean over 100 episodes at the end.
        steps: environment steps taken.
        seconds: wall time, compilation included.
        interrupted: whether Ctrl-C ended it; what was learnt until then is there.
    """

    loss: A2CLoss
    step: TrainStep
    history: List[Dict[str, float]]
    greedy_return: float
    steps: int
    seconds: float
    interrupted: bool = False


def seed_everything(seed: int) -> None:
    """Seed the generators of Python, numpy and torch."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def make_loss(config: TrainConfig) -> A2CLoss:
    """The loss that ``config`` describes, with new networks."""
    envs = make_environments(config.env, 1)
    actor, critic, distribution = make_networks(envs, config.hidden)
    envs.close()
    estimator = GAE(config.gamma, config.lmbda, average_gae=config.average_gae)
    loss = A2CLoss(
        actor,
        critic,
        distribution,
        estimator,
        entropy_coef=config.entropy_coef,
        critic_coef=config.critic_coef,
        loss_critic_type="l2",
    )
    automatic = "cuda" if torch.cuda.is_available() else "cpu"
    return loss.to(automatic if config.device == "auto" else config.device)


def train(config: TrainConfig, progress: bool = True) -> TrainResult:
    """Train until the greedy policy solves the environment, or ``total_steps`` are spent.

    The greedy policy is asked whenever the mean return of the last 100 training episodes has come near ``solved_return``.

    Raises:
        ValueError: the environment or an option is unknown.
    """
    seed_everything(config.seed)
    loss = make_loss(config)
    step = TrainStep(loss, config.optimizer, config.lr, config.max_grad_norm, config.compile)
    envs = make_environments(config.env, config.num_envs)
    collector = RolloutCollector(envs, loss, config.num_steps, config.seed)
    history: List[Dict[str, float]] = []
    returns: List[float] = []
    steps_per_update = config.num_envs * config.num_steps
    updates = max(1, config.total_steps // steps_per_update)
    started = time.perf_counter()
    bar = tqdm(total=config.total_steps, unit="step", unit_scale=True, disable=not progress, desc=f"seed {config.seed}")
    interrupted = False
    with bar:
        if config.compile:
            bar.set_postfix_str("compiling the update")
        try:
            for update in range(updates):
                step.lr.fill_(config.lr * (1.0 - 0.9 * update / updates))
                metrics = step(collector.collect())
                returns = (returns + collector.returns)[-100:]
                mean_return = float(np.mean(returns)) if returns else float("nan")
                history.append(
                    {
                        "steps": (update + 1) * steps_per_update,
                        "seconds": time.perf_counter() - started,
                        "return": mean_return,
                        **{name: float(value) for name, value in metrics._asdict().items() if value is not None},
                    }
                )
                bar.update(steps_per_update)
                bar.set_postfix(
                    {"return": f"{mean_return:.0f}", "loss": f"{history[-1].get('loss_critic', 0.0):.3g}"}, refresh=False
                )
                if update % 10 == 9 and _is_solved(loss, config, mean_return):
                    break
        except KeyboardInterrupt:
            if not history:
                raise
            interrupted = True  # what was learnt so far is the result
    envs.close()
    greedy_return = _greedy_return(loss, config, EVALUATION_SEED)
    seconds = time.perf_counter() - started
    return TrainResult(loss, step, history, greedy_return, int(history[-1]["steps"]), seconds, interrupted)


def _is_solved(loss: A2CLoss, config: TrainConfig, mean_return: float) -> bool:
    """Whether the greedy policy is good enough; asked only where the training policy's mean return has come near."""
    goal = config.solved_return
    if goal is None or not mean_return >= goal - 0.2 * abs(goal):
        return False
    # Twice, so that one lucky set of starts is not enough.
    return all(_greedy_return(loss, config, seed) >= goal for seed in (EVALUATION_SEED, EVALUATION_SEED + 1))


def _greedy_return(loss: A2CLoss, config: TrainConfig, seed: int) -> float:
    return float(evaluate(greedy_policy(loss), config.env, seed=seed).mean())
