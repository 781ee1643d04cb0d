"""Options of a training run."""

import dataclasses
import json
from dataclasses import dataclass, field
from typing import Any, Optional, Tuple, Union, get_args, get_origin

from a2c_compiled._files import AnyPath, as_path, atomic_file
from a2c_compiled._hyperparameters import ANY, NOT_NEGATIVE, POSITIVE, UNIT, Range, positive_int
from a2c_compiled._kinds import described, flag, integer
from a2c_compiled.environments.make import AUTORESETS
from a2c_compiled.environments.source import ENVPOOL, module_of

COMPILE_FROM_STEPS = 2_000_000
"""On a CPU, runs of at least this number of environment steps compile by default.

In shorter runs, compiling may take more time than it saves. Small networks gain least from compiling."""

RESUMABLE = ("total_steps", "solved_return", "device", "log_interval", "checkpoint_seconds", "threads", "process_timeout")
"""Options that may change when a run is resumed: when the run ends, logs and saves, its device, its threads and its waiting."""


def _option(default: Any, help: str) -> Any:
    """Returns a field whose help text ``a2c-compiled train --help`` shows."""
    return field(default=default, metadata={"help": help})


@dataclass(frozen=True)
class TrainConfig:
    """Options of a training run. The defaults are tuned for CartPole-v1.

    Each field is an option of ``a2c-compiled train``; ``a2c-compiled train --help`` describes it.

    Raises:
        TypeError: an option has a wrong type.
        ValueError: a number is out of range, or ``autocast`` is unknown. Other names are checked when
            :class:`~a2c_compiled.training.Trainer` uses them.
    """

    env: Optional[str] = _option(
        "CartPole-v1",
        f"name of a gymnasium environment; {ENVPOOL}:NAME for one of envpool; or module:X, where X is a gymnasium.Env class, a"
        " TensorEnvironments class, a function of num_envs and seed, or the name of an environment that the module registers",
    )
    vectorization: str = _option(
        "auto",
        "how the environments run: torch (written in torch, on the device), gymnasium (gymnasium's own vectorised version),"
        " sync (one after the other), async (one process each), or auto (the first of torch, gymnasium and sync that exists)",
    )
    autoreset: str = _option(
        "auto",
        "when environments with vectorization sync or async reset: same-step (in the step that ends an episode), next-step (in a step of"
        " its own, which lets the critic run on fewer observations), or auto (next-step for images with sync, else same-step)",
    )
    frame_stack: int = _option(1, "number of successive frames in one observation")
    seed: int = _option(0, "seed of network weights, actions and environments")
    num_envs: int = _option(64, "number of parallel environments, summed over all processes")
    num_steps: int = _option(16, "steps of each environment in one rollout; each rollout is used for one training step")
    total_steps: int = _option(
        1_000_000, "number of environment steps, summed over all environments, after which training ends at the latest"
    )
    solved_return: Optional[float] = _option(
        None,
        "end training when the greedy policy's mean return reaches X in two evaluations of 100 episodes; 'none' selects gymnasium's"
        " reward threshold if the environment has one, 'inf' trains to the end",
    )
    lr: float = _option(5e-3, "initial learning rate")
    final_lr: float = _option(
        0.1, "final learning rate as a fraction of --lr; the learning rate falls linearly over --total-steps"
    )
    gamma: float = _option(0.99, "discount factor")
    lmbda: float = _option(0.95, "lambda of generalized advantage estimation, from 0 to 1")
    entropy_coef: float = _option(0.01, "weight of the entropy bonus")
    critic_coef: float = _option(0.5, "weight of the critic loss")
    optimizer: str = _option("rmsprop", "sgd, rmsprop, adam or adamw")
    max_grad_norm: float = _option(
        0.5, "largest 2-norm of the gradient of all parameters; larger gradients are scaled down to it"
    )
    average_gae: bool = _option(False, "standardise the advantages of each rollout")
    normalize_observations: bool = _option(False, "standardise observations by their running mean and variance")
    normalize_rewards: bool = _option(False, "divide rewards by the running standard deviation of the discounted return")
    hidden: Tuple[int, ...] = _option((64, 64), "widths of the hidden layers of actor and critic")
    minibatches: int = _option(
        1, "split the environments of a rollout into N parts and sum their gradients before the optimizer step, to save memory"
    )
    autocast: Optional[str] = _option(
        None,
        "dtype of the networks in the training step: bfloat16 or float16; 'none' selects float32; rollouts always use float32",
    )
    compile: Optional[bool] = _option(
        None,
        "compile the policy, environments written in torch, and the training step; without this option, runs on a GPU and runs of at"
        f" least {COMPILE_FROM_STEPS:,} total steps are compiled",
    )
    device: str = _option(
        "auto",
        "device of the networks and the training step: auto (a GPU if there is one), or a torch device such as cpu or cuda:0",
    )
    threads: Optional[int] = _option(None, "number of CPU threads of torch in each process; 'none' leaves the choice to torch")
    log_interval: int = _option(
        10, "training steps from one line of the log to the next; evaluations during training happen only at these lines"
    )
    checkpoint_seconds: float = _option(60.0, "seconds from one checkpoint to the next")
    process_timeout: float = _option(
        300.0, "with several processes: end after waiting X seconds for another process, which is named after 30 seconds"
    )

    def __post_init__(self) -> None:
        for option in dataclasses.fields(self):
            # __setattr__, because the class is frozen. NumPy's numbers become Python's, which JSON can store.
            object.__setattr__(self, option.name, _checked(option.name, option.type, getattr(self, option.name)))
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed: expected a number from 0 to below 2 ** 32, got {self.seed}")
        if min(self.hidden, default=1) < 1:
            raise ValueError(f"hidden: expected widths of at least 1, got {self.hidden}")
        if max(self.hidden, default=1) >= 2**63:  # torch takes no larger ones
            raise ValueError(f"hidden: expected widths of 64 bits, got {self.hidden}")
        if self.threads is not None and self.threads >= 2**31:
            raise ValueError(f"threads: expected a number below 2 ** 31 or none, got {self.threads}")
        object.__setattr__(self, "autoreset", self.autoreset.replace("-", "_"))
        if self.autoreset not in ("auto", *AUTORESETS):
            raise ValueError(f"autoreset: expected one of auto, {', '.join(AUTORESETS)}, got {self.autoreset!r}")
        if self.autocast not in (None, "bfloat16", "float16"):
            raise ValueError(f"autocast: expected 'bfloat16', 'float16' or none, got {self.autocast!r}")

    @property
    def environment(self) -> str:
        """Name of the environment. Raises ValueError if ``env`` is None."""
        if self.env is None:
            raise ValueError("env: expected the name of an environment, a class or a function, got none")
        return self.env


_RANGES = {
    "solved_return": Range("a number or none"),
    "lr": NOT_NEGATIVE,
    "final_lr": UNIT,
    "gamma": UNIT,
    "lmbda": UNIT,
    "max_grad_norm": POSITIVE,
    "checkpoint_seconds": NOT_NEGATIVE,
    "process_timeout": Range("a positive number of seconds up to 1e6", 0.0, 1e6, open_below=True),
}


def _checked(name: str, field_type: Any, value: Any) -> Any:
    """Returns an option in the type of its field. Raises TypeError for another type, ValueError for a number out of range."""
    if get_origin(field_type) is Union:  # Optional
        if value is None:
            return None
        field_type = get_args(field_type)[0]
    if field_type is bool:
        return flag(name, value)
    if field_type is float:
        return _RANGES.get(name, ANY).number(name, value)
    if field_type is int:
        return integer(name, value) if name == "seed" else positive_int(name, value)
    expected = str if field_type is str else (tuple, list)
    if not isinstance(value, expected):
        raise TypeError(f"{name}: expected {'a name' if expected is str else 'a sequence of integers'}, got {described(value)}")
    return value if expected is str else tuple(integer(name, width) for width in value)


def check_resumable(before: TrainConfig, now: TrainConfig) -> None:
    """Checks that a run can be resumed with other options.

    Args:
        before: the options of the run.
        now: the options with which the run is resumed.

    Raises:
        ValueError: an option that is not in ``RESUMABLE`` differs. ``env`` may differ if ``before`` has none, and ``autoreset`` may be
            ``"auto"``: it is then that of ``before``.
    """
    for name, value in dataclasses.asdict(now).items():
        is_open = (name == "env" and before.env is None) or (name == "autoreset" and value == "auto")
        if name not in RESUMABLE and not is_open and value != getattr(before, name):
            raise ValueError(f"{name}: expected {getattr(before, name)!r} as in the run that is resumed, got {value!r}")


def with_environment(config: TrainConfig, env: Optional[str], trust_environment: bool) -> TrainConfig:
    """Returns the options of an earlier run, with an environment that may be imported.

    Args:
        config: the options that ``config.json`` has.
        env: name of the environment, as the user gives it; None takes that of ``config``.
        trust_environment: whether to import the module that ``config`` names.

    Raises:
        ValueError: ``env`` is None, and ``config`` has no environment, or names a module and ``trust_environment`` is False.
    """
    if env is not None:
        return dataclasses.replace(config, env=env)
    if config.env is None:
        raise ValueError("env: expected --env, because the config.json of the run names no environment, got none")
    if module_of(config.env) and not trust_environment:
        raise ValueError(
            f"env: expected --env {config.env} or --trust-environment, because the config.json of the run names a module, whose import"
            " runs its code, got neither"
        )
    return config


def save_config(folder: AnyPath, config: TrainConfig) -> None:
    """Writes ``config`` to ``config.json`` in ``folder``."""
    with atomic_file(as_path("folder", folder) / "config.json") as path:
        path.write_text(json.dumps(dataclasses.asdict(config), indent=2) + "\n")


def load_config(folder: AnyPath) -> TrainConfig:
    """Reads ``config.json`` in ``folder``.

    Raises:
        ValueError: the file is missing or not readable, or has other fields or a value out of range.
        TypeError: ``folder`` is not a path.
    """
    file = as_path("folder", folder) / "config.json"
    if not file.is_file():
        raise ValueError(f"run: expected a folder that training wrote, found no {file}")
    try:
        fields = json.loads(file.read_text())
        earlier = {"autoreset": "same_step"}  # the mode of versions without this option
        return TrainConfig(**{**earlier, **fields, "hidden": tuple(fields["hidden"])})
    except Exception as error:  # a damaged file may raise any error
        raise ValueError(f"run: {file} is not readable ({error})") from error
