"""What a training run is made of; imports no environments, so that the command line can always describe it."""

import dataclasses
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Optional, Tuple

from a2c_compiled._files import written_whole

COMPILED_FROM = 2_000_000
"""Environment steps of a run that gain what compiling takes, some seconds; small networks gain least."""


@dataclass(frozen=True)
class TrainConfig:
    """What a training run is made of; every field is an option of ``a2c-compiled train``. The defaults are tuned for CartPole-v1.

    Attributes:
        env: name of a gymnasium environment.
        vectorization: ``torch`` (on the device), ``gymnasium``, ``sync``, ``async``, or ``auto``: the first of these that there is.
        frame_stack: how many frames an observation shows.
        seed: of networks, actions and environments.
        num_envs: environments side by side, in all processes together.
        num_steps: steps of each between two updates.
        total_steps: steps of all environments together after which training ends unsolved.
        solved_return: greedy return, mean over 100 episodes, at which training ends; none takes gymnasium's threshold, inf never asks.
        lr: learning rate at the start.
        final_lr: share of the learning rate that it falls to, linearly over ``total_steps``.
        gamma: discount.
        lmbda: weight of the longer returns in the advantage.
        entropy_coef: weight of the entropy bonus.
        critic_coef: weight of the critic loss.
        optimizer: ``sgd``, ``rmsprop``, ``adam`` or ``adamw``.
        max_grad_norm: largest norm of the gradient.
        average_gae: standardise advantages over each rollout.
        normalize_observations: standardise observations by their running mean and variance.
        normalize_rewards: divide rewards by the running standard deviation of the discounted return.
        hidden: widths of the hidden layers.
        minibatches: pieces of the environments whose gradients are summed before each step of the optimizer, to save memory.
        autocast: compute the update's networks in ``bfloat16`` or ``float16``; none computes in float32, as acting does.
        compile: compile policy, environments written in torch, and update; none does on a GPU, and from 2,000,000 ``total_steps`` up.
        device: of networks and updates: ``auto`` (a GPU where there is one), or as torch names it.
        log_interval: updates from one line of the log to the next.
        checkpoint_seconds: time from one checkpoint to the next.

    Raises:
        ValueError: a number of something is less than 1, or out of its range.
    """

    env: str = "CartPole-v1"
    vectorization: str = "auto"
    frame_stack: int = 1
    seed: int = 0
    num_envs: int = 64
    num_steps: int = 16
    total_steps: int = 1_000_000
    solved_return: Optional[float] = None
    lr: float = 5e-3
    final_lr: float = 0.1
    gamma: float = 0.99
    lmbda: float = 0.95
    entropy_coef: float = 0.01
    critic_coef: float = 0.5
    optimizer: str = "rmsprop"
    max_grad_norm: float = 0.5
    average_gae: bool = False
    normalize_observations: bool = False
    normalize_rewards: bool = False
    hidden: Tuple[int, ...] = (64, 64)
    minibatches: int = 1
    autocast: Optional[str] = None
    compile: Optional[bool] = None
    device: str = "auto"
    log_interval: int = 10
    checkpoint_seconds: float = 60.0

    def __post_init__(self) -> None:
        for name in ("num_envs", "num_steps", "total_steps", "frame_stack", "minibatches", "log_interval"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed: expected a number from 0 to below 2 ** 32, got {self.seed}")
        if self.solved_return is not None and math.isnan(self.solved_return):
            raise ValueError(f"solved_return: expected a number or none, got {self.solved_return}")
        if min(self.hidden, default=1) < 1:
            raise ValueError(f"hidden: expected widths of at least 1, got {self.hidden}")
        if not 0 <= self.final_lr <= 1:
            raise ValueError(f"final_lr: expected a share from 0 to 1, got {self.final_lr}")
        if not self.checkpoint_seconds >= 0:
            raise ValueError(f"checkpoint_seconds: expected a number from 0 up, got {self.checkpoint_seconds}")
        if self.autocast not in (None, "bfloat16", "float16"):
            raise ValueError(f"autocast: expected 'bfloat16', 'float16' or none, got {self.autocast!r}")


def save_config(folder: Path, config: TrainConfig) -> None:
    """Write ``config.json``."""
    with written_whole(folder / "config.json") as path:
        path.write_text(json.dumps(dataclasses.asdict(config), indent=2) + "\n")


def load_config(folder: Path) -> TrainConfig:
    """Read ``config.json``.

    Raises:
        ValueError: it is missing, unreadable or of another version.
    """
    if not (folder / "config.json").is_file():
        raise ValueError(f"run: expected a folder that training wrote, found no {folder / 'config.json'}")
    try:
        fields = json.loads((folder / "config.json").read_text())
        return TrainConfig(**{**fields, "hidden": tuple(fields["hidden"])})
    except Exception as error:
        raise ValueError(f"run: {folder / 'config.json'} is not readable ({error})") from error
