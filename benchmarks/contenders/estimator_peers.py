"""Value estimators of peer libraries, called as applications call them.

A peer is another library, or a hand-written baseline, that computes the estimators of this library. Each becomes a contender, see
:mod:`a2c_compiled.benchmarks.measure.harness`. A peer that is not installed is left out.

The input data is prepared before timing, in the format of each peer:

- torchrl: tensors ``[N, T, 1]``.
- Stable-Baselines3: numpy arrays ``[T, N]``. As in its rollouts, the reward of a truncated step includes the discounted value of the
  episode's last observation.
- numba: a hand-written loop over numpy arrays in the layout of the case; and the same loop with tensors as inputs and outputs.
- rl-triton: tensors ``[N, T]`` on the GPU, float flags, and bootstrap values where an episode was truncated.
- PufferLib: ``[N, T]``, rewards and flags shifted one step later, with the same reward as for Stable-Baselines3. PufferLib returns one
  step less than the other peers, so the check compares its result with GAE over one step less.
- rl_games: ``[T, N, 1]``, float flags shifted one step later, with the same reward as for Stable-Baselines3.
- jax: arrays ``[T, N]`` that share the memory of the tensors. A call waits for its result, because torch cannot see jax's streams.
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
from a2c_compiled.benchmarks.measure.harness import Contender, Make, Result, as_tensors
from a2c_compiled.benchmarks.measure.shapes import Plan, Shape

Steps = Dict[str, Tensor]

# Estimators whose vectorised torchrl function is also timed with torch.compile.
_COMPILED = ("GAE", "TD(lambda)")
# Inputs of GAE in the order of torchrl's arguments.
_STEP = ("state_value", "next_state_value", "reward", "done", "terminated")


def installed(package: str) -> bool:
    """Returns whether ``package`` is installed."""
    return importlib.util.find_spec(package) is not None


class Computation(NamedTuple):
    """The computation that the peers run.

    Attributes:
        name: name of the estimator.
        sources: names of the inputs whose gradients are computed, if ``cotangents`` is not None.
        steps: inputs by name, ``[T, N]``.
        cotangents: gradients of the outputs, ``[T, N]``; None for a forward pass only.
        time_last: whether results are ``[N, T]`` instead of ``[T, N]``. Slow peers whose speed does not depend on the layout run only with
            ``[T, N]``.
    """

    name: str
    sources: Sequence[str]
    steps: Steps
    cotangents: Optional[List[Tensor]]
    time_last: bool

    @property
    def shape(self) -> Shape:
        """(environments, steps)."""
        num_steps, num_envs = self.steps["reward"].shape
        return num_envs, num_steps

    def laid_out(self, result: List[Tensor]) -> Result:
        """Converts results ``[N, T]`` to the layout of this computation."""
        return result if self.time_last else [tensor.t() for tensor in result]


def estimator_peers(computation: Computation, plan: Plan) -> Dict[str, Make]:
    """Returns functions that create the contenders of the installed peers, by contender name.

    Args:
        computation: the computation.
        plan: device, and the limits for slow and for compiled peers.
    """
    peers = _torchrl_peers(computation, plan) if installed("torchrl") else {}
    if computation.name == "GAE" and computation.cotangents is None:
        if plan.device.type != "cuda":
            return peers | _numpy_peers(computation)
        for name, make in gpu_peers(computation, plan).items():
            if name not in GPU_PEERS or installed(GPU_PEERS[name].package):
                peers[name] = make
    return peers


def _torchrl_peers(computation: Computation, plan: Plan) -> Dict[str, Make]:
    """Returns torchrl's loop and its vectorised function, eager and compiled, as far as the estimator has them and ``plan`` allows."""
    looped, vectorised = _torchrl_functions()
    peers: Dict[str, Make] = {}
    longest = plan.longest_loop if computation.cotangents is None else plan.longest_loop // 10
    if computation.name in looped and not computation.time_last and computation.shape[1] <= longest:
        peers["torchrl loop"] = lambda: _torchrl(looped[computation.name], computation)
    if computation.name in vectorised:
        peers["torchrl vectorised"] = lambda: _torchrl(vectorised[computation.name], computation)
        if (
            plan.compiling
            and computation.name in _COMPILED
            and not computation.time_last
            and computation.shape in plan.compiled_peers
        ):
            peers["torchrl vec. compiled"] = lambda: _torchrl(torch.compile(vectorised[computation.name]), computation)
    return peers


@cache
def _torchrl_functions() -> Tuple[Dict[str, Callable[[Steps], Any]], Dict[str, Callable[[Steps], Any]]]:
    """Returns torchrl's loop functions and its vectorised functions, each by estimator name."""
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


def _torchrl(function: Callable[[Steps], Any], computation: Computation) -> Contender:
    """Creates a contender that calls ``function`` with inputs ``[N, T, 1]``, and computes gradients if ``computation`` has cotangents."""
    batch = {name: _batch_first(step) for name, step in computation.steps.items()}

    def to_result(result: Any) -> Result:
        return computation.laid_out([tensor.squeeze(-1) for tensor in as_tensors(result)])

    if computation.cotangents is None:
        return Contender(lambda: function(batch), to_result)
    sources = [batch[name].requires_grad_() for name in computation.sources]
    cotangents = [_batch_first(cotangent) for cotangent in computation.cotangents]
    return Contender(lambda: torch.autograd.grad(as_tensors(function(batch)), sources, cotangents), to_result)


def _batch_first(step: Tensor) -> Tensor:
    """Converts a tensor from ``[T, N]`` to contiguous ``[N, T, 1]``."""
    return step.detach().t().contiguous().unsqueeze(-1)


def _numpy_peers(computation: Computation) -> Dict[str, Make]:
    """Returns the peers that compute forward GAE on the CPU."""
    peers: Dict[str, Make] = {}
    if installed("numba"):
        peers["numba, arrays"] = lambda: baselines.numba_gae(computation.steps, computation.time_last)
        peers["numba, tensors"] = lambda: baselines.numba_gae_of_tensors(computation.steps, computation.time_last)
    if installed("stable_baselines3") and not computation.time_last:
        peers["SB3 RolloutBuffer"] = lambda: sb3(computation.steps)
    return peers


def gpu_peers(computation: Computation, plan: Plan) -> Dict[str, Make]:
    """Returns the peers that compute forward GAE on a GPU, installed or not. The function of a missing peer raises ImportError."""
    peers: Dict[str, Make] = {name: partial(peer.make, computation) for name, peer in GPU_PEERS.items()}
    if plan.compiling and not computation.time_last and computation.shape in plan.compiled_peers:
        peers["associative_scan compiled"] = lambda: baselines.compiled_scan_gae(computation.steps)
    return peers


def folded_reward(steps: Steps) -> Tensor:
    """Returns ``reward + gamma * next_state_value`` at truncated steps, and ``reward`` elsewhere; float32 ``[T, N]``.

    With these rewards every ``done`` counts as a termination.
    """
    truncated = steps["done"] & ~steps["terminated"]
    return steps["reward"] + GAMMA * steps["next_state_value"].masked_fill(~truncated, 0.0)


def sb3_buffer(steps: Steps) -> Tuple[Any, Tensor, Any]:
    """Returns a filled RolloutBuffer, and the arguments of its method ``compute_returns_and_advantage``: last values and dones, ``[N]``."""
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
    """Creates a contender that calls ``RolloutBuffer.compute_returns_and_advantage``, which ``accelerate()`` may have replaced."""
    buffer, last_values, dones = sb3_buffer(steps)
    return Contender(
        partial(buffer.compute_returns_and_advantage, last_values, dones),
        lambda _: [torch.from_numpy(buffer.advantages), torch.from_numpy(buffer.returns)],
    )


def _rl_triton(computation: Computation) -> Contender:
    from rl_triton.ops.gae import compute_gae

    batch = {name: step.t().contiguous() for name, step in computation.steps.items()}
    truncated = batch["done"] & ~batch["terminated"]
    # rl-triton reads the next value where an episode was truncated, and at the last step unless the episode terminated there.
    bootstrapped = truncated.clone()
    bootstrapped[:, -1] = ~batch["terminated"][:, -1]
    bootstrap = batch["next_state_value"].masked_fill(~bootstrapped, 0.0)
    flags = (batch["terminated"].float(), truncated.float())
    return Contender(
        lambda: compute_gae(
            batch["reward"], batch["state_value"], *flags, gamma=GAMMA, lambda_=LMBDA, bootstrap_values=bootstrap
        ),
        # rl-triton returns no value target.
        lambda advantage: computation.laid_out([advantage, advantage + batch["state_value"]]),
    )


def _pufferlib(computation: Computation) -> Contender:
    steps = computation.steps
    kernel = _pufferlib_kernel(importlib.import_module("pufferlib._C"))
    # Later versions clamp rewards to [-1, 1]. GAE is linear, and the factor is a power of two, so the scaled result is exact.
    scale = 1 / 32

    value = scale * steps["state_value"].t().contiguous()
    # At index t, PufferLib's arrays hold the reward and the flag of step t - 1.
    late_reward, late_done = torch.zeros_like(value), torch.zeros_like(value)
    late_reward[:, 1:], late_done[:, 1:] = scale * folded_reward(steps)[:-1].t(), steps["done"][:-1].t().float()
    importance, advantage = torch.ones_like(value), torch.zeros_like(value)
    shorter: Any = [steps[name][:-1].double() if steps[name].is_floating_point() else steps[name][:-1] for name in _STEP]
    return Contender(
        lambda: kernel(value, late_reward, late_done, importance, advantage),
        lambda _: [advantage[:, :-1] / scale],
        [F.generalized_advantage_estimate(GAMMA, LMBDA, *shorter).advantage.t()],
    )


def _pufferlib_kernel(extension: Any) -> Callable[..., Any]:
    """Returns a function that calls PufferLib's kernel with five tensors, the last of which the kernel writes.

    Raises:
        RuntimeError: PufferLib was built for bfloat16.
    """
    if not hasattr(extension, "puff_advantage"):  # up to version 3, the import registers an operator
        return lambda *tensors: torch.ops.pufferlib.compute_puff_advantage(*tensors, GAMMA, LMBDA, 1.0, 1.0)
    if extension.precision_bytes != 4:
        raise RuntimeError(f"pufferlib: expected a build with 4 bytes per value, got {extension.precision_bytes}")

    def call(*tensors: Tensor) -> None:
        addresses = [tensor.data_ptr() for tensor in tensors]
        extension.puff_advantage(*addresses, *tensors[0].shape, GAMMA, LMBDA, 1.0, 1.0)

    return call


def _rl_games(computation: Computation) -> Contender:
    from rl_games.triton_kernels import compute_gae

    steps = computation.steps
    # At index t, the array of flags holds the flag of step t - 1.
    late_done = torch.zeros_like(steps["reward"])
    late_done[1:] = steps["done"][:-1].float()
    last_value, last_done = steps["next_state_value"][-1].unsqueeze(-1), steps["done"][-1].float()
    reward, value = folded_reward(steps).unsqueeze(-1), steps["state_value"].unsqueeze(-1)

    def to_result(advantage: Tensor) -> Result:
        # rl_games returns no value target.
        result = [advantage.squeeze(-1), (advantage + value).squeeze(-1)]
        return [tensor.t() for tensor in result] if computation.time_last else result

    return Contender(lambda: compute_gae(reward, value, late_done, last_value, last_done, GAMMA, LMBDA), to_result)


def _jax(computation: Computation) -> Contender:
    import jax

    arrays = [jax.dlpack.from_dlpack(computation.steps[name]) for name in _STEP]
    gae = baselines.jax_gae()

    def to_result(result: Any) -> Result:
        tensors = [torch.from_dlpack(array) for array in result]
        return [tensor.t() for tensor in tensors] if computation.time_last else tensors

    return Contender(lambda: jax.block_until_ready(gae(*arrays)), to_result)


class GpuPeer(NamedTuple):
    """A library that computes forward GAE on a GPU.

    Attributes:
        package: the package to import.
        make: creates the contender; raises an error if the package cannot be imported.
    """

    package: str
    make: Callable[[Computation], Contender]


GPU_PEERS = {
    "rl-triton": GpuPeer("rl_triton", _rl_triton),
    "PufferLib": GpuPeer("pufferlib", _pufferlib),
    "rl_games": GpuPeer("rl_games", _rl_games),
    "jax": GpuPeer("jax", _jax),
}
