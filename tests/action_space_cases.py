"""The rows of docs/action_spaces.md, and an environment for each that refuses every action outside its space."""

import re
from pathlib import Path

import gymnasium
import numpy as np
import torch
from gymnasium import spaces

from a2c_compiled import A2CLoss, estimators
from a2c_compiled.environments import make_vector
from a2c_compiled.networks.for_spaces import make_networks

PAGE = Path(__file__).parents[1] / "docs" / "action_spaces.md"
ROWS = re.findall(r"^\| `(.*?)` \| (.*?) \| (.*?) ?\|$", PAGE.read_text(), re.MULTILINE)
NAMES = {**vars(spaces), "np": np}
SPACES = {row[0]: eval(row[0], NAMES) for row in ROWS}
SERVED = {row[0]: row[1].strip("`") for row in ROWS if not row[1].startswith("refused")}
REFUSED = {row[0]: row[1] for row in ROWS if row[1].startswith("refused")}
DIFFERS = [row[0] for row in ROWS if row[0] in SERVED and row[2]]
CLIPPED = [row[0] for row in ROWS if "clipped" in row[2] and "Normal" in row[1]]
HALF_BOUNDED, FLOAT16, FLOAT64 = (
    "Box(-0.1, np.inf, (2,))",
    "Box(-1.0, 1.0, (2,), np.float16)",
    "Box(-np.inf, 0.1, (2,), np.float64)",
)
LENGTH = 5


class Strict(gymnasium.Env):
    """Raises ValueError for an action that is not in the space, or that has another dtype."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}
    observation_space = spaces.Box(-np.inf, np.inf, (4,))

    def __init__(self, space, render_mode=None):
        self.action_space, self.render_mode = space, render_mode

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return self.np_random.standard_normal(4).astype(np.float32), {}

    def step(self, action):
        if not self.action_space.contains(action) or action.dtype != self.action_space.dtype:
            raise ValueError(f"expected an action in {self.action_space}, got {action!r} of {action.dtype}")
        self.steps += 1
        return self.np_random.standard_normal(4).astype(np.float32), 1.0, self.steps == LENGTH, False, {}

    def render(self):
        return np.zeros((8, 8, 3), np.uint8)


def env_id(name):
    return f"Strict{list(SPACES).index(name)}-v0"


for name, space in SPACES.items():
    gymnasium.register(env_id(name), Strict, kwargs={"space": space}, disable_env_checker=True)


def make_loss(name, **options):
    """A loss that reads ``log_prob``, for the environment of a row."""
    envs = make_vector(env_id(name), 1, "sync")
    envs.observation_space, envs.action_space = Strict.observation_space, SPACES[name]
    torch.manual_seed(0)
    networks = make_networks(envs, (8,))
    envs.close()
    return A2CLoss(*networks, estimators.VTrace(), **options)


def outside(space, action):
    """Whether each action has a number outside the bounds of the space: ``[...]``."""
    action = action.double().numpy()
    return ((action < space.low) | (action > space.high)).any(-1)
