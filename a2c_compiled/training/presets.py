"""Options that are tuned for an environment; ``python -m a2c_compiled.benchmarks.subjects.bench_presets`` measures what they reach."""

from typing import Any, Dict

PRESETS: Dict[str, Dict[str, Any]] = {
    "cartpole": {},  # the defaults
    "acrobot": {
        "env": "Acrobot-v1",
        "total_steps": 500_000,
        "num_envs": 16,
        "lr": 3e-3,
        "normalize_observations": True,
        "normalize_rewards": True,
    },
    "pendulum": {
        "env": "Pendulum-v1",
        "total_steps": 1_500_000,
        "solved_return": -170.0,
        "num_envs": 128,
        "num_steps": 8,
        "lr": 1e-2,
        "gamma": 0.9,  # an upright pendulum is a matter of a second
        "entropy_coef": 0.003,
        "normalize_observations": True,
        "normalize_rewards": True,
    },
    "invertedpendulum": {
        "env": "InvertedPendulum-v5",
        "total_steps": 500_000,
        "num_envs": 16,
        "entropy_coef": 0.003,
        "normalize_observations": True,
        "normalize_rewards": True,
    },
    "lunarlander": {
        "env": "LunarLander-v3",
        "total_steps": 3_000_000,
        "log_interval": 50,  # as often as it looks at the greedy policy, which takes seconds here
        "num_envs": 32,
        "lr": 1e-2,
        "gamma": 0.995,  # hovering is worth more than landing to who does not look far ahead
        "normalize_observations": True,
        "normalize_rewards": True,
    },
    "breakout": {
        "env": "MinAtar/Breakout-v1",
        "total_steps": 2_000_000,
        "solved_return": 18.0,
        "lr": 1e-2,
        "entropy_coef": 0.05,  # with less, the policy settles for the first few bricks
        "average_gae": True,
        "hidden": (),  # on the features of the convolution
    },
}
