"""GAE, forward: eager and compiled against the peers."""

from functools import partial
from typing import Any, Callable, Dict, List, Sequence, Tuple

import torch

from a2c_compiled import functional as F
from benchmarks.harness import DEVICE, Contender, Row, compare
from benchmarks.peers import gae_peers


def run(shapes: Sequence[Tuple[int, int]], samples: int) -> List[Row]:
    """One comparison a shape."""
    rows: List[Row] = []
    compiled = torch.compile(F.generalized_advantage_estimate, fullgraph=True, dynamic=True)
    for num_envs, num_steps in shapes:
        generator = torch.Generator().manual_seed(0)
        state_value, next_state_value, reward = torch.randn(3, num_steps, num_envs, generator=generator).to(DEVICE)
        done = (torch.rand(num_steps, num_envs, generator=generator) < 0.05).to(DEVICE)
        terminated = done & (torch.rand(num_steps, num_envs, generator=generator) < 0.5).to(DEVICE)
        arguments = (0.99, 0.95, state_value, next_state_value, reward, done, terminated)
        contenders: Dict[str, Contender] = {
            "eager": partial(_as_tuple, F.generalized_advantage_estimate, *arguments),
            "compiled": partial(_as_tuple, compiled, *arguments),
            **gae_peers(*arguments),
        }
        rows += compare("GAE", (num_envs, num_steps), contenders, samples)
    return rows


def _as_tuple(function: Callable[..., Any], *arguments: Any) -> Tuple[Any, ...]:
    return tuple(function(*arguments))
