"""The estimators of the libraries that users come from, called as their users would.

Each is left out where it is not installed, and gets its data in the form that it wants before the clock starts:

- torchrl: ``[N, T, 1]``.
- Stable-Baselines3: numpy, time-major; the value of a truncated episode's last observation is folded into the reward, as its rollouts do.
- numba: the loop that anyone would write, over numpy arrays in the layout of the case; and from tensors to tensors, as ours.
- rl-triton: float flags, and bootstrap values where an episode was truncated, ``[N, T]`` on the GPU.
- PufferLib: rewards and flags one step late, folded as for Stable-Baselines3. Its answer has one step less, and is held against that.
"""

import importlib
import importlib.util
from functools import cache, partial
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Sequence, Tuple

import torch
from torch import Tensor

from a2c_compiled import functional as F
from a2c_compiled.benchmarks.contenders import baselines
from a2c_compiled.benchmarks.measure.data import GAMMA, LMBDA
from a2c_compiled.benchmarks.measure.harness import Answer, Contender, Make, as_tensors
from a2c_compiled.benchmarks.measure.shapes import Plan, Shape

Steps = Dict[str, Tensor]

_COMPILES = ("GAE", "TD(lambda)")
_STEP = ("state_value", "next_state_value", "reward", "done", "terminated")


def installed(package: str) -> bool:
    """Whether a package can be imported."""
    return importlib.util.find_spec(package) is not None


class Question(NamedTuple):
    """What the peers are asked.

    Attributes:
        name: of the estimator.
        sources: inputs whose gradient is wanted, if ``cotangents`` are given.
        steps: the data, time-major.
        cotangents: of the results, time-major; None asks for the results.
        rows: answer in ``[N, T]``. The slow loops, for which the layout makes no difference, answer only time-major.
    """

    name: str
    sources: Sequence[str]
    steps: Steps
    cotangents: Optional[List[Tensor]]
    rows: bool

    @property
    def shape(self) -> Shape:
        """Environments and steps."""
        num_steps, num_envs = self.steps["reward"].shape
        return num_envs, num_steps

    def laid_out(self, answer: List[Tensor]) -> Answer:
        """From ``[N, T]`` to what is asked for."""
        return answer if self.rows else [tensor.t() for tensor in answer]


def estimator_peers(asked: Question, plan: Plan) -> Dict[str, Make]:
    """Who else knows the answer, and is installed."""
    found = _torchrl_peers(asked, plan) if installed("torchrl") else {}
    if asked.name == "GAE" and asked.cotangents is None:
        found |= _gpu_peers(asked, plan) if plan.device.type == "cuda" else _numpy_peers(asked)
    return found


def _torchrl_peers(asked: Question, plan: Plan) -> Dict[str, Make]:
    looped, vectorised = _torchrl_functions()
    found: Dict[str, Make] = {}
    longest = plan.longest_loop if asked.cotangents is None else plan.longest_loop // 10
    if asked.name in looped and not asked.rows and asked.shape[1] <= longest:
        found["torchrl loop"] = lambda: _torchrl(looped[asked.name], asked)
    if asked.name in vectorised:
        found["torchrl vectorised"] = lambda: _torchrl(vectorised[asked.name], asked)
        if plan.compiling and asked.name in _COMPILES and not asked.rows and asked.shape in plan.compiled_peers:
            found["torchrl vec. compiled"] = lambda: _torchrl(torch.compile(vectorised[asked.name]), asked)
    return found


@cache
def _torchrl_functions() -> Tuple[Dict[str, Callable[[Steps], Any]], Dict[str, Callable[[Steps], Any]]]:
    """torchrl's loops, and what it calls vectorised, by estimator."""
    from torchrl.objectives.value import functional as torchrl

    def picked(steps: Steps, names: Sequence[str]) -> List[Tensor]:
        return [steps[name] for name in names]

    return {
        "GAE": lambda s: torchrl.generalized_advantage_estimate(GAMMA, LMBDA, *picked(s, _STEP)),
        "TD(lambda)": lambda s: torchrl.td_lambda_return_estimate(GAMMA, LMBDA, *picked(s, _STEP[1:])),
        "V-trace": lambda s: torchrl.vtrace_advantage_estimate(GAMMA, s["log_pi"], s["log_mu"], *picked(s, _STEP)),
    }, {
        "GAE": lambda s: torchrl.vec_generalized_advantage_estimate(GAMMA, LMBDA, *picked(s, _STEP)),
        "TD(lambda)": lambda s: torchrl.vec_td_lambda_return_estimate(GAMMA, LMBDA, *picked(s, _STEP[1:])),
        "reward-to-go": lambda s: torchrl.reward2go(s["reward"], s["done"], GAMMA),
    }


def _torchrl(function: Callable[[Steps], Any], asked: Question) -> Contender:
    batch = {name: _rows_of_one(step) for name, step in asked.steps.items()}

    def answer(result: Any) -> Answer:
        return asked.laid_out([tensor.squeeze(-1) for tensor in as_tensors(result)])

    if asked.cotangents is None:
        return Contender(lambda: function(batch), answer)
    sources = [batch[name].requires_grad_() for name in asked.sources]
    cotangents = [_rows_of_one(cotangent) for cotangent in asked.cotangents]
    return Contender(lambda: torch.autograd.grad(as_tensors(function(batch)), sources, cotangents), answer)


def _rows_of_one(step: Tensor) -> Tensor:
    """``[N, T, 1]`` from ``[T, N]``."""
    return step.detach().t().contiguous().unsqueeze(-1)


def _numpy_peers(asked: Question) -> Dict[str, Make]:
    found: Dict[str, Make] = {}
    if installed("numba"):
        found["numba, arrays"] = lambda: baselines.numba_gae(asked.steps, asked.rows)
        found["numba, tensors"] = lambda: baselines.numba_gae_of_tensors(asked.steps, asked.rows)
    if installed("stable_baselines3") and not asked.rows:
        found["SB3 RolloutBuffer"] = lambda: sb3(asked.steps)
    return found


def _gpu_peers(asked: Question, plan: Plan) -> Dict[str, Make]:
    found: Dict[str, Make] = {}
    if plan.compiling and not asked.rows and asked.shape in plan.compiled_peers:
        found["associative_scan compiled"] = lambda: baselines.compiled_scan_gae(asked.steps)
    if installed("rl_triton"):
        found["rl-triton"] = lambda: _rl_triton(asked)
    if installed("pufferlib"):
        found["PufferLib"] = lambda: _pufferlib(asked)
    return found


def folded_reward(steps: Steps) -> Tensor:
    """Rewards to which the discounted value of a truncated episode's last observation was added: then every ``done`` is a termination."""
    truncated = steps["done"] & ~steps["terminated"]
    return steps["reward"] + GAMMA * steps["next_state_value"].masked_fill(~truncated, 0.0)


def sb3_buffer(steps: Steps) -> Tuple[Any, Tensor, Any]:
    """A filled RolloutBuffer, with the last values and flags: what ``compute_returns_and_advantage`` takes."""
    import numpy as np
    from gymnasium import spaces
    from stable_baselines3.common.buffers import RolloutBuffer

    num_steps, num_envs = steps["reward"].shape
    box = spaces.Box(-1.0, 1.0, (1,), np.float32)
    buffer = RolloutBuffer(num_steps, box, box, "cpu", gae_lambda=LMBDA, gamma=GAMMA, n_envs=num_envs)
    done = steps["done"].numpy()
    buffer.values[:], buffer.rewards[:] = steps["state_value"].numpy(), folded_reward(steps).numpy()
    buffer.episode_starts[1:] = done[:-1]
    return buffer, steps["next_state_value"][-1], done[-1]


def sb3(steps: Steps) -> Contender:
    """The buffer's own method, or what stands in its place now."""
    buffer, last_values, dones = sb3_buffer(steps)
    return Contender(
        partial(buffer.compute_returns_and_advantage, last_values, dones),
        lambda _: [torch.from_numpy(buffer.advantages), torch.from_numpy(buffer.returns)],
    )


def _rl_triton(asked: Question) -> Contender:
    from rl_triton.ops.gae import compute_gae

    batch = {name: step.t().contiguous() for name, step in asked.steps.items()}
    truncated = batch["done"] & ~batch["terminated"]
    bootstrapped = truncated.clone()
    bootstrapped[:, -1] = ~batch["terminated"][:, -1]
    bootstrap = batch["next_state_value"].masked_fill(~bootstrapped, 0.0)
    flags = (batch["terminated"].float(), truncated.float())
    return Contender(
        lambda: compute_gae(
            batch["reward"], batch["state_value"], *flags, gamma=GAMMA, lambda_=LMBDA, bootstrap_values=bootstrap
        ),
        # It returns no value target.
        lambda advantage: asked.laid_out([advantage, advantage + batch["state_value"]]),
    )


def _pufferlib(asked: Question) -> Contender:
    steps = asked.steps
    importlib.import_module("pufferlib._C")  # registers the operator

    value = steps["state_value"].t().contiguous()
    late_reward, late_done = torch.zeros_like(value), torch.zeros_like(value)
    late_reward[:, 1:], late_done[:, 1:] = folded_reward(steps)[:-1].t(), steps["done"][:-1].t().float()
    importance, advantage = torch.ones_like(value), torch.zeros_like(value)
    seen: Any = [steps[name][:-1].double() if steps[name].is_floating_point() else steps[name][:-1] for name in _STEP]
    return Contender(
        lambda: torch.ops.pufferlib.compute_puff_advantage(
            value, late_reward, late_done, importance, advantage, GAMMA, LMBDA, 1.0, 1.0
        ),
        lambda _: [advantage[:, :-1]],
        [F.generalized_advantage_estimate(GAMMA, LMBDA, *seen).advantage.t()],
    )
