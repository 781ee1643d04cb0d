"""Compares the functions of docs/other_trainers.md with those of the trainers that are installed, and times both.

    python tests/integrations/other_trainers.py
    python tests/integrations/other_trainers.py --cleanrl cleanrl/ppo.py --pufferlib pufferlib/extensions/pufferlib.cpp

CleanRL has no function, so the script runs the loop of its file ``ppo.py``. PufferLib's operator is built from its source file if the
package is not installed. With ``--record``, the script writes a small rollout and the trainer's results to tests/fixtures/other_trainers,
for ``test_other_trainers.py``. Prints a table: trainer, version, shape, median time of both functions on one thread, and the largest
difference of the results, relative to the largest number. Fails if results differ. Not collected by pytest.
"""

import argparse
import importlib
import re
import textwrap
from functools import partial
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np
import torch
from torch import Tensor

TESTS = Path(__file__).parents[1]
PAGE = TESTS.parent / "docs" / "other_trainers.md"
RECORDS = TESTS / "fixtures" / "other_trainers"
GAMMA, LMBDA, CLIP = 0.99, 0.95, 1.0
SHAPES = ((24, 4096), (128, 64))  # steps, environments
TOLERANCES = {torch.float32: 2e-6, torch.float64: 1e-12}

Rollout = Dict[str, Tensor]
Function = Callable[..., Any]


def functions_of_the_page() -> Dict[str, Any]:
    """Returns the names that the Python blocks of the page define."""
    session: Dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL):
        exec(compile(block, PAGE.name, "exec"), session)
    return session


def random_rollout(steps: int, environments: int) -> Rollout:
    """Returns a rollout, ``[T, N]``, with ended episodes of both kinds, and ``last_value``, ``[N]``.

    ``next_value`` is the value of the observation after each step, before a reset.
    """
    generator = torch.Generator().manual_seed(steps)
    shape = (steps, environments)
    value, next_value, reward, log_pi, log_mu = (torch.randn(shape, generator=generator) for _ in range(5))
    kind = torch.rand(shape, generator=generator)
    last_value = torch.randn(environments, generator=generator)
    terminated, truncated = kind < 0.1, (kind > 0.1) & (kind < 0.2)
    next_value = torch.where(terminated | truncated, next_value, torch.cat([value[1:], last_value.unsqueeze(0)]))
    flags = {"terminated": terminated, "truncated": truncated}
    return {
        "value": value,
        "next_value": next_value,
        "reward": reward,
        "log_pi": log_pi,
        "log_mu": log_mu,
        "last_value": last_value,
    } | flags


def column(tensor: Tensor) -> Tensor:
    return tensor.unsqueeze(-1)


def one_step_late(tensor: Tensor) -> Tensor:
    return torch.cat([torch.zeros_like(tensor[:1]), tensor[:-1]])


def rsl_rl(rollout: Rollout) -> Function:
    value, done = column(rollout["value"]), column(rollout["terminated"] | rollout["truncated"])
    reward = column(rollout["reward"]) + GAMMA * value * column(rollout["truncated"])
    last_value = column(rollout["last_value"])

    class Critic:
        def get_hidden_state(self) -> None:
            return None

        def reset(self, dones: Any = None, hidden_state: Any = None) -> None:
            pass

        def __call__(self, observation: Any) -> Tensor:
            return last_value

    def call(function: Function) -> List[Any]:
        steps = {"values": value, "rewards": reward, "dones": done.byte(), "returns": torch.zeros_like(value)}
        storage = SimpleNamespace(**steps, num_transitions_per_env=len(value))
        options = {"gamma": GAMMA, "lam": LMBDA, "normalize_advantage_per_mini_batch": False}
        function(SimpleNamespace(storage=storage, critic=Critic(), **options), None)
        return [storage.advantages, storage.returns]

    return call


def skrl(rollout: Rollout, time_limit_bootstrap: bool = False) -> Function:
    steps = {name: column(rollout[name]) for name in ("terminated", "truncated")}
    reward = column(rollout["reward"])
    if time_limit_bootstrap:
        reward = reward + GAMMA * column(rollout["next_value"]) * steps["truncated"]
    steps |= {"rewards": reward, "values": column(rollout["value"]), "last_values": column(rollout["last_value"])}
    options = {"discount_factor": GAMMA, "lambda_coefficient": LMBDA, "time_limit_bootstrap": time_limit_bootstrap}
    return lambda function: list(function(**steps, **options))


def skrl_with_bootstrap(rollout: Rollout) -> Function:
    return skrl(rollout, time_limit_bootstrap=True)


def tianshou(rollout: Rollout) -> Function:
    flat = {name: tensor.t().flatten().numpy() for name, tensor in rollout.items() if tensor.dim() == 2}
    ends = {"terminated": flat["terminated"], "truncated": flat["truncated"]}
    steps = len(rollout["value"])
    last = np.arange(steps - 1, len(flat["value"]), steps)
    unfinished = last[~(ends["terminated"] | ends["truncated"])[last]]
    batch = SimpleNamespace(rew=flat["reward"].astype(np.float64), **ends)
    buffer = SimpleNamespace(terminated=ends["terminated"], unfinished_index=lambda: unfinished)
    arguments = batch, buffer, np.arange(len(flat["value"])), flat["next_value"], flat["value"]
    return lambda function: list(function(*arguments, gamma=GAMMA, gae_lambda=LMBDA))


def rllib(rollout: Rollout) -> Function:
    def elongated(name: str, extra: Optional[Tensor] = None) -> Any:
        """Returns the tensor with one more step at the end of each environment's data, flat."""
        tensor = rollout[name]
        return torch.cat([tensor, (torch.zeros_like(tensor[0]) if extra is None else extra).unsqueeze(0)]).t().flatten().numpy()

    truncated = rollout["truncated"].clone()
    truncated[-1] = ~rollout["terminated"][-1]  # the end of a chunk counts as truncated
    rollout = rollout | {"truncated": truncated}
    flags = elongated("terminated"), elongated("truncated")
    arguments = elongated("value", rollout["last_value"]), elongated("reward"), *flags
    real = np.arange(arguments[0].size) % (len(truncated) + 1) < len(truncated)
    return lambda function: [function(*arguments, GAMMA, LMBDA)[real]]


def rllib_vtrace(rollout: Rollout) -> Function:
    arguments = {
        "target_action_log_probs": rollout["log_pi"],
        "behaviour_action_log_probs": rollout["log_mu"],
        "discounts": GAMMA * (~(rollout["terminated"] | rollout["truncated"])).float(),
        "rewards": rollout["reward"],
        "values": rollout["value"],
        "bootstrap_values": rollout["last_value"],
    }
    return lambda function: list(function(**arguments))


def pufferlib(rollout: Rollout) -> Function:
    late = [one_step_late(rollout[name]).t().float().contiguous() for name in ("reward", "terminated")]
    ratio = (rollout["log_pi"] - rollout["log_mu"]).exp()
    value, ratio = rollout["value"].t().contiguous(), ratio.t().contiguous()
    options = GAMMA, LMBDA, CLIP, CLIP
    return lambda function: [function(value, *late, ratio, torch.zeros_like(value), *options)]


def cleanrl(rollout: Rollout) -> Function:
    done = (rollout["terminated"] | rollout["truncated"]).float()
    steps = rollout["reward"], rollout["value"], one_step_late(done), rollout["last_value"].unsqueeze(0), done[-1]
    return lambda function: list(function(*steps, GAMMA, LMBDA))


def attribute(module: str, name: str) -> Function:
    """Returns the attribute ``name`` of a module, or the attribute of an attribute if the name contains a dot."""
    found: Any = importlib.import_module(module)
    for part in name.split("."):
        found = getattr(found, part)
    return found


def puffer_advantage(source: Optional[Path]) -> Function:
    """Returns a function with the arguments of ``pufferlib.pufferl.compute_puff_advantage`` that calls PufferLib's CPU operator."""
    if source is None:
        importlib.import_module("pufferlib._C")
    else:
        from torch.utils.cpp_extension import load

        load("_C", [str(source)], extra_cflags=["-O3"])

    def call(*arguments: Any) -> Tensor:
        torch.ops.pufferlib.compute_puff_advantage(*arguments)
        return arguments[4]

    return call


def cleanrl_loop(source: Path) -> Function:
    """Returns the loop of CleanRL's ``ppo.py`` as a function with the arguments of ``gae`` on the page."""
    lines = source.read_text().split("# bootstrap value if not done\n")[1].split("# flatten the batch")[0]
    code = compile(textwrap.dedent(lines), source.name, "exec")

    def call(
        rewards: Tensor, values: Tensor, dones: Tensor, next_value: Tensor, next_done: Tensor, gamma: float, lmbda: float
    ) -> Any:
        args = SimpleNamespace(num_steps=len(rewards), gamma=gamma, gae_lambda=lmbda)
        names = {"rewards": rewards, "values": values, "dones": dones, "next_done": next_done, "device": "cpu", "args": args}
        agent = SimpleNamespace(get_value=lambda observation: next_value)
        exec(code, names | {"torch": torch, "agent": agent, "next_obs": None}, found := {})
        return found["advantages"], found["returns"]

    return call


class Trainer(NamedTuple):
    """A trainer.

    Attributes:
        arguments: takes a rollout, converts it to the trainer's convention, and returns a function ``call``. ``call(function)`` calls the
            trainer's function, or ours, and returns the results.
        ours: the name of our function on the page.
        package: the package on PyPI.
        module, theirs: the trainer's function. None: ``puffer_advantage`` or ``cleanrl_loop`` makes it.
    """

    arguments: Callable[[Rollout], Function]
    ours: str
    package: str
    module: str = ""
    theirs: str = ""


_RLLIB = "ray.rllib"
TRAINERS = {
    "rsl_rl": Trainer(rsl_rl, "compute_returns", "rsl-rl-lib", "rsl_rl.algorithms", "PPO.compute_returns"),
    "skrl": Trainer(skrl, "compute_gae", "skrl", "skrl.agents.torch.ppo.ppo", "compute_gae"),
    "skrl_bootstrap": Trainer(skrl_with_bootstrap, "compute_gae", "skrl", "skrl.agents.torch.ppo.ppo", "compute_gae"),
    "tianshou": Trainer(
        tianshou,
        "compute_episodic_return",
        "tianshou",
        "tianshou.algorithm.algorithm_base",
        "Algorithm.compute_episodic_return",
    ),
    "rllib": Trainer(
        rllib, "compute_value_targets", "ray", f"{_RLLIB}.utils.postprocessing.value_predictions", "compute_value_targets"
    ),
    "rllib_vtrace": Trainer(
        rllib_vtrace, "vtrace_torch", "ray", f"{_RLLIB}.algorithms.impala.torch.vtrace_torch_v2", "vtrace_torch"
    ),
    "pufferlib": Trainer(pufferlib, "compute_puff_advantage", "pufferlib"),
    "cleanrl": Trainer(cleanrl, "gae", "cleanrl"),
}


def find(name: str, sources: Dict[str, Optional[Path]]) -> Tuple[Function, str]:
    """Returns the trainer's function and the trainer's version.

    Raises:
        ImportError: the trainer is not installed, and no source file is given.
    """
    trainer, source = TRAINERS[name], sources.get(name)
    if name == "cleanrl":
        if source is None:
            raise ImportError("expected --cleanrl ppo.py, got no file")
        return cleanrl_loop(source), "file"
    function = attribute(trainer.module, trainer.theirs) if trainer.module else puffer_advantage(source)
    return function, "file" if source else version(trainer.package)


def as_tensors(results: Sequence[Any]) -> List[Tensor]:
    return [torch.as_tensor(result).clone() for result in results]


def largest_difference(name: str, ours: Sequence[Any], theirs: Sequence[Any]) -> float:
    """Returns the largest difference of the results, relative to the largest number.

    Raises:
        ValueError: the results differ by more than rounding, in shape or in dtype.
    """
    largest = 0.0
    for a, b in zip(as_tensors(ours), as_tensors(theirs), strict=True):
        if (a.shape, a.dtype) != (b.shape, b.dtype):
            raise ValueError(f"{name}: expected {b.dtype} {list(b.shape)}, got {a.dtype} {list(a.shape)}")
        difference = float((a - b).abs().max() / b.abs().max())
        if not difference <= TOLERANCES[b.dtype]:
            raise ValueError(f"{name}: expected results that differ by rounding, got a relative difference of {difference:.1e}")
        largest = max(largest, difference)
    return largest


def record(name: str, function: Function, trainer_version: str) -> None:
    """Writes a small rollout and the trainer's results for it."""
    rollout = random_rollout(9, 5)
    results = TRAINERS[name].arguments(rollout)(function)
    arrays = {f"rollout.{key}": tensor.numpy() for key, tensor in rollout.items()}
    arrays |= {f"result.{i}": np.asarray(result) for i, result in enumerate(as_tensors(results))}
    RECORDS.mkdir(exist_ok=True)
    np.savez_compressed(RECORDS / f"{name}.npz", version=np.array(trainer_version), **arrays)


def compare(name: str, ours: Function, theirs: Function, trainer_version: str) -> None:
    """Prints a line of the table for each shape. Compares the results before it times the functions."""
    from a2c_compiled.benchmarks.measure.timing import time_interleaved

    for steps, environments in SHAPES:
        call = TRAINERS[name].arguments(random_rollout(steps, environments))
        difference = largest_difference(name, call(ours), call(theirs))
        both = {"theirs": partial(call, theirs), "ours": partial(call, ours)}
        times = time_interleaved(both, samples=200, sample_seconds=0.0, budget_seconds=5)
        slow, fast = (times[key].median * 1e6 for key in both)
        shape = f"{environments}x{steps}"
        print(
            f"{name:14} {trainer_version:8} {shape:9} {slow:10.0f} {fast:9.0f} {slow / fast:6.1f} {difference:10.1e}",
            flush=True,
        )


def main() -> None:
    from a2c_compiled.update import keep_freed_memory

    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("trainers", nargs="*", choices=[[], *TRAINERS], help="only these")
    parser.add_argument("--cleanrl", type=Path, help="CleanRL's file ppo.py")
    parser.add_argument("--pufferlib", type=Path, help="PufferLib's file extensions/pufferlib.cpp")
    parser.add_argument(
        "--record", metavar="VERSION", nargs="?", const="", help="write the arrays for the tests; VERSION of a source file"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()  # for both functions
    page = functions_of_the_page()
    print(f"{'trainer':14} {'version':8} {'shape':9} {'theirs, us':>10} {'ours, us':>9} {'ratio':>6} {'difference':>10}")
    for name in options.trainers or TRAINERS:
        try:
            theirs, found = find(name, {"cleanrl": options.cleanrl, "pufferlib": options.pufferlib})
        except ImportError as error:
            print(f"{name:14} not installed: {error}")
            continue
        if options.record is not None:
            record(name, theirs, options.record or found)
        compare(name, page[TRAINERS[name].ours], theirs, options.record or found)


if __name__ == "__main__":
    main()
