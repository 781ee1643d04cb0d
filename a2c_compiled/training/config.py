"""What a training run is made of; imports no environments, so that the command line can always describe it."""

from dataclasses import dataclass
from typing import Optional, Tuple


@dataclass(frozen=True)
class TrainConfig:
    """What a training run is made of; every field is an option of ``a2c-compiled train``. The defaults are tuned for CartPole-v1.

    Attributes:
        env: name of a gymnasium environment.
        seed: of networks, actions and environments.
        num_envs: environments side by side.
        num_steps: steps of each between two updates.
        total_steps: steps of all environments together after which training ends unsolved.
        solved_return: greedy return, mean over 100 episodes, at which training ends (475 is CartPole-v1's); none never asks.
        lr: learning rate at the start; it falls linearly to a tenth over ``total_steps``.
        gamma: discount.
        lmbda: weight of the longer returns in the advantage.
        entropy_coef: weight of the entropy bonus.
        critic_coef: weight of the critic loss.
        optimizer: ``sgd``, ``rmsprop``, ``adam`` or ``adamw``.
        max_grad_norm: largest norm of the gradient.
        average_gae: standardise advantages over each rollout.
        hidden: widths of the hidden layers.
        compile: compile the update; False runs it eagerly.
        device: of networks and updates: ``auto`` (a GPU where there is one), or as torch names it.

    Raises:
        ValueError: a number of something is less than 1.
    """

    env: str = "CartPole-v1"
    seed: int = 0
    num_envs: int = 64
    num_steps: int = 16
    total_steps: int = 1_000_000
    solved_return: Optional[float] = 475.0
    lr: float = 5e-3
    gamma: float = 0.99
    lmbda: float = 0.95
    entropy_coef: float = 0.01
    critic_coef: float = 0.5
    optimizer: str = "rmsprop"
    max_grad_norm: float = 0.5
    average_gae: bool = False
    hidden: Tuple[int, ...] = (64, 64)
    compile: bool = True
    device: str = "auto"

    def __post_init__(self) -> None:
        for name in ("num_envs", "num_steps", "total_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")
        if min(self.hidden, default=1) < 1:
            raise ValueError(f"hidden: expected widths of at least 1, got {self.hidden}")
