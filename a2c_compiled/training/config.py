"""What a training run is made of."""

import dataclasses
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Optional, Tuple

from a2c_compiled._files import written_whole

COMPILED_FROM = 2_000_000
"""Environment steps of a run that gain what compiling takes, some seconds; small networks gain least."""

RESUMABLE = ("total_steps", "solved_return", "device", "log_interval", "checkpoint_seconds")
"""What may change when a run is resumed: how long it goes on, where, and what it says of itself."""


def _option(default: Any, help: str) -> Any:
    """A field with the text that ``a2c-compiled train --help`` shows."""
    return field(default=default, metadata={"help": help})


@dataclass(frozen=True)
class TrainConfig:
    """What a training run is made of; every field is an option of ``a2c-compiled train``, whose help says what it is. The defaults are
    tuned for CartPole-v1.

    Raises:
        ValueError: a number of something is less than 1, or out of its range.
    """

    env: str = _option("CartPole-v1", "name of a gymnasium environment")
    vectorization: str = _option(
        "auto", "``torch`` (on the device), ``gymnasium``, ``sync``, ``async``, or ``auto``: the first of these that there is"
    )
    frame_stack: int = _option(1, "how many frames an observation shows")
    seed: int = _option(0, "of networks, actions and environments")
    num_envs: int = _option(64, "environments side by side, in all processes together")
    num_steps: int = _option(16, "steps of each between two updates")
    total_steps: int = _option(1_000_000, "steps of all environments together after which training ends unsolved")
    solved_return: Optional[float] = _option(
        None, "greedy return, mean over 100 episodes, at which training ends; none takes gymnasium's threshold, inf never asks"
    )
    lr: float = _option(5e-3, "learning rate at the start")
    final_lr: float = _option(0.1, "share of the learning rate that it falls to, linearly over ``total_steps``")
    gamma: float = _option(0.99, "discount")
    lmbda: float = _option(0.95, "weight of the longer returns in the advantage")
    entropy_coef: float = _option(0.01, "weight of the entropy bonus")
    critic_coef: float = _option(0.5, "weight of the critic loss")
    optimizer: str = _option("rmsprop", "``sgd``, ``rmsprop``, ``adam`` or ``adamw``")
    max_grad_norm: float = _option(0.5, "largest norm of the gradient")
    average_gae: bool = _option(False, "standardise advantages over each rollout")
    normalize_observations: bool = _option(False, "standardise observations by their running mean and variance")
    normalize_rewards: bool = _option(False, "divide rewards by the running standard deviation of the discounted return")
    hidden: Tuple[int, ...] = _option((64, 64), "widths of the hidden layers")
    minibatches: int = _option(
        1, "pieces of the environments whose gradients are summed before each step of the optimizer, to save memory"
    )
    autocast: Optional[str] = _option(
        None, "compute the update's networks in ``bfloat16`` or ``float16``; none computes in float32, as acting does"
    )
    compile: Optional[bool] = _option(
        None,
        f"compile policy, environments written in torch, and update; none does on a GPU, and from {COMPILED_FROM:,} ``total_steps`` up",
    )
    device: str = _option("auto", "of networks and updates: ``auto`` (a GPU where there is one), or as torch names it")
    log_interval: int = _option(10, "updates from one line of the log to the next")
    checkpoint_seconds: float = _option(60.0, "time from one checkpoint to the next")

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


def check_resumable(before: TrainConfig, now: TrainConfig) -> None:
    """Raise ValueError where a run that began as ``before`` cannot go on as ``now``."""
    for name, value in dataclasses.asdict(now).items():
        if name not in RESUMABLE and value != getattr(before, name):
            raise ValueError(f"{name}: expected {getattr(before, name)!r} as in the run that is resumed, got {value!r}")


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
