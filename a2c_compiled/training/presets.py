"""Options that are tuned for one environment each.

``python -m a2c_compiled.benchmarks.subjects.bench_presets`` measures the returns that training with them reaches.
"""

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
        "gamma": 0.9,  # the pendulum can be upright within a second, so a short horizon suffices
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
        "log_interval": 50,  # evaluations happen at log lines, and each takes seconds in this environment
        "num_envs": 32,
        "lr": 1e-2,
        "gamma": 0.995,  # with more discounting, hovering is worth more than landing
        "normalize_observations": True,
        "normalize_rewards": True,
    },
    "breakout": {
        "env": "MinAtar/Breakout-v1",
        "autoreset": "same_step",  # the mode in which this preset was tuned and measured
        "total_steps": 2_000_000,
        "solved_return": 18.0,
        "lr": 1e-2,
        "entropy_coef": 0.05,  # with less, the policy stops improving after the first few bricks
        "average_gae": True,
        "hidden": (),  # actor and critic are linear in the features of the convolution
    },
}
