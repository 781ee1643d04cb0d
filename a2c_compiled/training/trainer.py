"""The training loop: collect a rollout, take a training step, log, evaluate, save checkpoints, and stop when solved or on a signal."""

import time
import warnings
from collections import deque
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from typing import Any, Deque, Dict, List, Optional, Tuple

import numpy as np
import torch
from torch import Tensor, nn

from a2c_compiled._files import AnyPath, as_path
from a2c_compiled.environments import Environments, EnvironmentSource, GymnasiumEnvironments, goal_of, make_environments
from a2c_compiled.environments.replay import MAX_REPLAYED_STEPS, CannotResume
from a2c_compiled.environments.source import importable_name
from a2c_compiled.losses import A2CLoss
from a2c_compiled.networks.observation_norm import update_norms
from a2c_compiled.recurrent import is_recurrent
from a2c_compiled.rollouts.collector import RolloutCollector
from a2c_compiled.rollouts.episode_returns import EpisodeReturns
from a2c_compiled.rollouts.reward_scale import RewardScale
from a2c_compiled.rollouts.tensor_groups import group_of, prefixed
from a2c_compiled.training.checkpoint import (
    Checkpoint,
    check_counters,
    has_checkpoint,
    load_checkpoint,
    load_tensors,
    random_state,
    remove_checkpoints,
    save_checkpoint,
    set_random_state,
)
from a2c_compiled.training.config import TrainConfig, check_resumable, load_config, save_config
from a2c_compiled.training.construction import (
    autoreset_of,
    compiles,
    device_of,
    make_loss,
    make_step,
    seed_everything,
    use_threads,
)
from a2c_compiled.training.diagnosis import TrainingDivergedError, diagnose
from a2c_compiled.training.distributed.processes import BUSY_SECONDS, Processes
from a2c_compiled.training.distributed.starting import started_processes
from a2c_compiled.training.evaluation import EVALUATION_SEED, NetworkPolicy, evaluate
from a2c_compiled.training.interruption import StopRequest, stop_requests
from a2c_compiled.training.log import RunLog
from a2c_compiled.training.run_folder import folder_lock
from a2c_compiled.update import Rollout, TrainMetrics, TrainStep

PATIENCE = 20
"""Training stops with an error when a row is logged after at least this many successive skipped training steps.

A training step is skipped if its gradient is not finite."""

NEAR = 0.8
"""The greedy policy is evaluated only if the mean return of training episodes is at least ``goal - NEAR * abs(goal)``.

0.8 is a low bar, because sampled actions may have a far lower return than greedy ones."""

EVALUATION_TRIALS = ((EVALUATION_SEED + 200, 10), (EVALUATION_SEED, 100), (EVALUATION_SEED + 100, 100))
"""Seed and number of episodes of each evaluation that the policy must pass, in order; see :func:`evaluate`.

The first evaluation has few episodes because most policies fail it. The last evaluation guards against 100 lucky starts."""


@dataclass
class TrainResult:
    """Result of a training run.

    Attributes:
        loss: the loss with the trained networks.
        step: the training step, with the optimizer state.
        history: the rows that this call logged.
        greedy_return: mean return of the greedy policy over 100 episodes at the end; NaN if training was interrupted, and in all
            processes but the first.
        steps: number of environment steps, summed over environments and processes.
        seconds: wall time, including compilation and the time before the run was resumed.
        is_first: whether this process has rank 0.
        interrupted: name of the signal that ended training, or ``"a signal to another process"``; None if training ended by itself. The
            loss has the state at that moment.
    """

    loss: A2CLoss
    step: TrainStep
    history: List[Dict[str, float]]
    greedy_return: float
    steps: int
    seconds: float
    is_first: bool = True
    interrupted: Optional[str] = None


def train(
    config: TrainConfig,
    progress: bool = True,
    folder: Optional[AnyPath] = None,
    resume: bool = False,
    environments: Optional[EnvironmentSource] = None,
) -> TrainResult:
    """Trains until the greedy policy solves the environment, or until ``total_steps`` environment steps.

    The greedy policy is evaluated when a row is logged and the mean return of the last 100 training episodes is near the goal: over 10
    episodes, and if their mean return reaches the goal, twice over 100 others. Training ends when all three means reach the goal.

    Under torchrun every process calls this function. Each process steps an equal part of the environments.

    Args:
        config: options of the run.
        progress: whether to show a progress bar.
        folder: folder for ``config.json``, log and checkpoints. They replace the files of an earlier run. None writes no files.
        resume: whether to resume from the checkpoint in ``folder``. Without a checkpoint, a new run starts. Processes that torchrun
            restarted always resume.
        environments: see :class:`Trainer`.

    Raises:
        ValueError: the environment or an option is not valid, the checkpoint is not readable or has other options, another training writes
            to ``folder``, or the processes have different options.
        OSError: ``config.json``, the log or the last checkpoint cannot be written.
        RuntimeError: another process has ended, or did not answer for ``process_timeout`` seconds. If the wait cannot be interrupted, this
            process ends with exit status 2 instead.
        TrainingDivergedError: the gradients of many successive training steps were not finite.
    """
    return Trainer(config, folder, environments).run(progress, resume)


class Trainer:
    """A training run: options, loss, training step, environments and counters.

    Args:
        config: options of the run.
        folder: folder for ``config.json``, log and checkpoints; None writes no files.
        environments: what the environments are made from, in place of ``config.env``, see
            :func:`~a2c_compiled.environments.make_environments`. A class or function without an importable name is recorded in
            ``config.json`` as null.

    Raises:
        ValueError: the environment or an option is not valid, ``num_envs`` is not a multiple of the number of processes, or the processes
            have different options or versions of torch and this library.
        TypeError: ``environments`` or ``folder`` is of another kind, or the environments return something other than tensors.
        RuntimeError: the processes cannot be connected, or another process has ended or does not answer.
    """

    def __init__(
        self, config: TrainConfig, folder: Optional[AnyPath] = None, environments: Optional[EnvironmentSource] = None
    ) -> None:
        self.started = time.perf_counter()
        self.environments = config.environment if environments is None else environments
        self.config = replace(config, env=importable_name(self.environments))
        self.folder = None if folder is None else as_path("folder", folder)
        self.device = device_of(config)
        if self.device.type == "cpu":
            use_threads(config.threads)
        self.processes = started_processes(self.device, config.process_timeout)
        self.processes.check_equal({**asdict(self.config), "torch": torch.__version__, "a2c_compiled": version("a2c_compiled")})
        world_size = self.processes.world_size
        if config.num_envs % world_size:
            raise ValueError(f"num_envs: expected a multiple of the {world_size} processes, got {config.num_envs}")
        seed_everything(self.own_seed)
        envs = self._make_environments()
        seed_everything(config.seed)  # the same network weights in every process
        self.loss = make_loss(config, world_size > 1, envs)
        self.step = make_step(config, self.loss, compiles(config), self.processes)
        seed_everything(self.own_seed)
        self.collector = self._make_collector(envs)
        self.reward_scale = RewardScale(self.num_envs, config.gamma).to(self.device) if config.normalize_rewards else None
        self.updates, self.seconds_before = 0, 0.0
        self.returns: Deque[float] = deque(maxlen=100)
        self.lengths: Deque[float] = deque(maxlen=100)
        self.episodes = 0
        self._logged = 0, 0.0  # environment steps and seconds at the last logged row
        self._first_seconds: Optional[Tuple[float, float]] = None  # of the first rollout and training step, which compile
        self._stop: Optional[StopRequest] = None  # only within run()
        self._greedy_returns: List[np.ndarray] = []  # of each evaluation since the last training step

    @property
    def num_envs(self) -> int:
        """Number of environments of this process."""
        return self.config.num_envs // self.processes.world_size

    @property
    def own_seed(self) -> int:
        """Seed of the first environment of this process, and of its random generators."""
        return self.config.seed + self.processes.rank * self.num_envs

    def _make_environments(self) -> Environments:
        config = self.config
        autoreset = autoreset_of(config, self.environments)
        options = config.vectorization, config.frame_stack, self.own_seed, autoreset
        return make_environments(self.environments, self.num_envs, self.device, *options)

    def _make_collector(self, envs: Environments) -> RolloutCollector:
        """Returns a collector. Rollouts have the last next observation alone where that suffices, but not in runs of earlier versions."""
        takes_step = isinstance(envs, GymnasiumEnvironments) and envs.reset_takes_a_step
        networks = nn.ModuleList([self.loss.actor_network, self.loss.critic_network])
        last_alone = takes_step and self.config.autoreset != "same_step" and not is_recurrent(networks)
        return RolloutCollector(envs, self.loss, self.config.num_steps, self.own_seed, compiles(self.config), last_alone)

    @property
    def steps_per_update(self) -> int:
        """Environment steps for one training step, summed over the environments of all processes."""
        return self.config.num_envs * self.config.num_steps

    @property
    def total_updates(self) -> int:
        """Number of training steps after which training ends, at least 1."""
        return max(1, self.config.total_steps // self.steps_per_update)

    @property
    def seconds(self) -> float:
        """Wall time in seconds. For a resumed run, it includes the time before the checkpoint."""
        return self.seconds_before + time.perf_counter() - self.started

    def run(self, progress: bool = True, resume: bool = False) -> TrainResult:
        """Runs the training loop.

        Args:
            progress: whether to show a progress bar.
            resume: whether to resume from the checkpoint in the folder. Without a checkpoint, a new run starts.

        Raises:
            ValueError: the checkpoint is not readable, has other options, or is not visible to all processes, or another training writes to
                the folder.
            OSError: ``config.json``, the log or the last checkpoint cannot be written.
            RuntimeError: another process has ended, or did not answer for ``process_timeout`` seconds. If the wait cannot be interrupted,
                this process ends with exit status 2 instead.
            TrainingDivergedError: the gradients of many successive training steps were not finite.
        """
        with folder_lock(self.folder, self.processes):
            return self._run(progress, resume)

    def _run(self, progress: bool, resume: bool) -> TrainResult:
        first = self.processes.is_first
        resume_at = self._begin(resume)
        history: List[Dict[str, float]] = []
        saved, stopped, greedy = time.perf_counter(), False, float("nan")
        with RunLog(
            self.folder, self.config.total_steps, resume_at, progress, enabled=first, config=asdict(self.config)
        ) as log:
            with (
                closing(self.collector.envs),
                stop_requests() as stop,
                self.processes.watched(stop),
            ):
                compiling = self._first_seconds is None and compiles(self.config)
                if compiling:
                    log.say("compiling the rollout, then the training step")
                self._stop = stop
                while True:
                    is_over = self.is_over()
                    self._log_greedy_returns(log, history)
                    # The processes exchange stop requests only when a row is logged.
                    stopped = (self.processes.world_size == 1 or self._is_logged) and self.processes.any(bool(stop))
                    if is_over or stopped:
                        break
                    rollout, metrics = self.update()
                    if compiling and self._first_seconds is not None:
                        compiling = False
                        seconds = "compiled: the first rollout took {:.1f} s, the first training step {:.1f} s"
                        log.tell(seconds.format(*self._first_seconds))
                    if not self._is_logged and self.processes.world_size > 1:
                        continue  # the processes exchange checkpoint times only when a row is logged
                    if self._is_logged:
                        history.append(self.row(metrics))
                        log.write(history[-1])
                        self.check(rollout)
                    if self.processes.any(time.perf_counter() - saved >= self.config.checkpoint_seconds):
                        self.save()
                        saved = time.perf_counter()
                self.save(last=True)
            self._stop = None
            if first and not stopped:
                self._greedy_returns = []  # the last evaluation alone is logged
                greedy = self.greedy_return()
                self._log_greedy_returns(log, history)
        interrupted = (stop.received or "a signal to another process") if stopped else None
        steps = self.updates * self.steps_per_update
        return TrainResult(self.loss, self.step, history, greedy, steps, self.seconds, first, interrupted)

    @property
    def _is_logged(self) -> bool:
        """Whether a row is logged after the last training step."""
        return self.updates % self.config.log_interval == 0 or self.updates == self.total_updates

    def _begin(self, resume: bool) -> Optional[int]:
        """Prepares the folder. Loads the checkpoint of a resumed run; removes the checkpoints of an earlier run before a new one.

        Returns the number of environment steps of a resumed run, and None for a new run or without a folder.
        """
        if self.folder is None:
            return None
        resumed = (resume or self.processes.restarts > 0) and has_checkpoint(self.folder)
        if self.processes.any(resumed) and self.processes.any(not resumed):
            raise ValueError(
                f"out: expected a folder that all processes share, got {self.folder}, where only some processes find a checkpoint"
            )
        if resumed:
            self.load(self.folder)
        if self.processes.is_first:
            if not resumed:
                remove_checkpoints(self.folder)
            save_config(self.folder, self.config)
        return self.updates * self.steps_per_update if resumed else None

    def update(self) -> Tuple[Rollout, TrainMetrics]:
        """Sets the learning rate, which falls linearly, collects a rollout, takes a training step and updates the running statistics.

        Returns the rollout, with scaled rewards, and the metrics of the training step. Raises TypeError if the environments return
        something other than tensors.
        """
        self._greedy_returns = []
        left = 1.0 - self.updates / self.total_updates
        self.step.lr.fill_(self.config.lr * (self.config.final_lr + (1.0 - self.config.final_lr) * left))
        started = time.perf_counter()
        rollout = self.collector.collect()
        collected = time.perf_counter()
        if self.reward_scale is not None:
            rollout = rollout._replace(reward=self.reward_scale.scale(rollout.reward, rollout.done, rollout.mask))
        self.processes.arrive()
        metrics = self.step(rollout)
        if self._first_seconds is None:
            self._first_seconds = collected - started, time.perf_counter() - collected
        update_norms(self.loss, rollout.observation, rollout.mask)  # last: rollout and training step use the same statistics
        self.updates += 1
        if self.updates % EpisodeReturns.MAX_ROLLOUTS == 0:
            self._take_episodes()  # otherwise the collector would drop the episodes of these rollouts
        return rollout, metrics

    def row(self, metrics: TrainMetrics) -> Dict[str, float]:
        """Returns the next row of the log, numbers by column, for the ``metrics`` of the last training step."""
        self._take_episodes()
        steps, seconds = self.updates * self.steps_per_update, self.seconds
        reported = {name: value for name, value in metrics._asdict().items() if value is not None}
        # A single copy from the device for all values.
        values = torch.stack([value.double() for value in (*reported.values(), self.step.lr, self.step.skipped)]).tolist()
        row = {
            "steps": steps,
            "updates": self.updates,
            "seconds": seconds,
            "steps_per_second": (steps - self._logged[0]) / (seconds - self._logged[1]),
            "return": _mean(self.returns),
            "episode_length": _mean(self.lengths),
            "episodes": self.episodes,
            **dict(zip((*reported, "lr", "skipped"), values, strict=True)),
        }
        self._logged = steps, seconds
        return row

    def _log_greedy_returns(self, log: RunLog, history: List[Dict[str, float]]) -> None:
        """Adds mean and standard deviation of the greedy policy's returns to the last row, if the policy was evaluated."""
        if not self._greedy_returns:
            return
        returns = np.concatenate(self._greedy_returns)
        columns = {
            "greedy_return": float(returns.mean()),
            "greedy_return_std": float(returns.std()),
            "greedy_episodes": len(returns),
        }
        log.write({"steps": self.updates * self.steps_per_update, **columns})
        if history:  # empty if a resumed run evaluates the policy before its first row
            history[-1].update(columns)

    def _take_episodes(self) -> None:
        """Adds the episodes of all processes that ended since the last call to the statistics."""
        returns, lengths = map(self.processes.gathered, self.collector.episodes.take())
        self.episodes += len(returns)
        self.returns.extend(returns)
        self.lengths.extend(lengths)

    def check(self, rollout: Rollout) -> None:
        """Raises an error if too many successive training steps were skipped.

        Args:
            rollout: the last rollout, for the error message.

        Raises:
            TrainingDivergedError: the gradients of the last ``PATIENCE`` or more training steps were not finite.
        """
        in_a_row = int(self.step.skipped_in_a_row)
        if in_a_row >= PATIENCE:
            raise TrainingDivergedError(
                f"gradients were not finite in the last {in_a_row} training steps, which were skipped; {diagnose(self.loss, rollout)}"
            )

    def is_over(self) -> bool:
        """Returns whether training ends before the next training step.

        The greedy policy is evaluated before the training step. If a run stops before this evaluation, the resumed run makes it.
        """
        logged = self.updates % self.config.log_interval == 0
        return self.updates >= self.total_updates or (logged and self.is_solved())

    def is_solved(self) -> bool:
        """Returns whether the greedy policy solves the environment. All processes must call this method.

        The policy is evaluated only if the mean return of training episodes is near the goal, see ``NEAR``.
        """
        goal = goal_of(self.environments, self.config.solved_return)
        if goal is None:
            return False
        solved = self.processes.is_first and _mean(self.returns) >= goal - NEAR * abs(goal)
        try:
            solved = solved and all(self.greedy_return(seed, episodes) >= goal for seed, episodes in EVALUATION_TRIALS)
        except _StoppedError:
            solved = False  # the resumed run evaluates the policy again
        return self.processes.of_first(solved)

    def greedy_return(self, seed: int = EVALUATION_SEED, episodes: int = 100) -> float:
        """Evaluates the greedy policy. :meth:`run` logs mean and standard deviation of the returns.

        Args:
            seed: seed of the environments, see :func:`~a2c_compiled.training.evaluation.play`.
            episodes: number of episodes.

        Returns:
            Mean undiscounted return of the episodes.

        Raises:
            ValueError: ``episodes`` is less than 1, or the environment cannot be made.
        """
        returns = evaluate(
            _UntilStopped(self.loss, self._stop, self.processes),
            self.environments,
            episodes,
            seed,
            frame_stack=self.config.frame_stack,
        )
        self._greedy_returns.append(returns)
        return float(returns.mean())

    def save(self, last: bool = False) -> None:
        """Writes a checkpoint, if the run has a folder.

        Args:
            last: whether to raise an error if the checkpoint cannot be written. False issues a warning instead.

        Raises:
            OSError: the checkpoint cannot be written, and ``last`` is true.
        """
        if self.folder is None:
            return
        self._take_episodes()
        facts: Dict[str, Any] = {
            "updates": self.updates,
            "seconds": self.seconds,
            "returns": list(self.returns),
            "lengths": list(self.lengths),
            "episodes": self.episodes,
        }
        scale = self.reward_scale
        training = prefixed(step=self.step.state_dict(), reward_moments=None if scale is None else scale.moments.state_dict())
        own = prefixed(
            collector=self.collector.state_dict(),
            reward_scale=None if scale is None else {"running": scale.running},
            random=random_state(self.device),
        )
        try:
            save_checkpoint(self.folder, Checkpoint(training, own, facts), self.processes)
            self.processes.remember_checkpoint(self.folder, self.updates)
        except OSError as error:
            if last:
                raise OSError(f"the run could not be saved ({error}); its last checkpoint is in {self.folder}") from error
            warnings.warn(f"training goes on, but its checkpoint could not be written: {error}", RuntimeWarning, stacklevel=2)

    def load(self, folder: AnyPath) -> None:
        """Restores the checkpoint in ``folder``.

        If the state of the environments or the random generators cannot be restored, issues a warning and begins new episodes.

        Raises:
            ValueError: the checkpoint is not readable, has other options, or has more environment steps than ``total_steps``.
            TypeError: ``folder`` is not a path.
        """
        folder = as_path("folder", folder)
        before = load_config(folder)
        check_resumable(before, self.config)
        if before.autoreset != self.config.autoreset:  # a run of an earlier version goes on in its mode
            self.config = replace(self.config, autoreset=before.autoreset)
            self.collector.envs.close()
            self.collector = self._make_collector(self._make_environments())
        checkpoint = load_checkpoint(folder, self.processes.rank)
        load_tensors(self.step, group_of(checkpoint.training, "step"), folder)
        if self.reward_scale is not None:
            load_tensors(self.reward_scale.moments, group_of(checkpoint.training, "reward_moments"), folder)
        facts = checkpoint.facts
        check_counters(facts, folder)
        self.updates, self.seconds_before, self.episodes = facts["updates"], facts["seconds"], facts["episodes"]
        if self.updates > self.total_updates:
            taken = self.updates * self.steps_per_update
            raise ValueError(
                f"total_steps: expected at least the {taken:,} steps already taken, got {self.config.total_steps:,}"
            )
        self.returns.extend(facts["returns"])
        self.lengths.extend(facts["lengths"])
        self._logged = self.updates * self.steps_per_update, self.seconds
        self.processes.remember_checkpoint(folder, self.updates)
        self._load_own(checkpoint.own)

    def _load_own(self, own: Dict[str, Tensor]) -> None:
        """Restores the state of this process from ``own``, or else issues a warning and begins new episodes."""
        state, num_envs = group_of(own, "collector"), self.collector.envs.num_envs
        try:
            if not state or state["episodes.running"].shape != (2, num_envs):
                raise CannotResume(
                    "env: its state was not saved, since it cannot be restored or an episode had more than"
                    f" {MAX_REPLAYED_STEPS:,} steps, or was saved with another number of processes"
                )
            self.collector.load_state_dict(state)
            if self.reward_scale is not None:
                self.reward_scale.running.copy_(own["reward_scale.running"])
            set_random_state(group_of(own, "random"), self.device)
        except (CannotResume, RuntimeError, KeyError) as error:
            # RuntimeError: the generator states are those of another device. KeyError: the checkpoint lacks a state.
            # With the seed of the start, the run would repeat its first episodes and actions.
            seed = self.config.seed + self.config.num_envs * (self.updates + 1) + self.processes.rank * num_envs
            seed_everything(seed)
            self.collector.begin_episodes(seed)
            if self.reward_scale is not None:
                self.reward_scale.running.zero_()
            reason = f"the checkpoint has no {error}" if isinstance(error, KeyError) else error
            warnings.warn(f"the run goes on with new episodes ({reason})", RuntimeWarning, stacklevel=2)


class _StoppedError(Exception):
    """A request to end training arrived during an evaluation."""


class _UntilStopped(NetworkPolicy):
    """The greedy policy of a loss, which raises an error at the first step after a request to end training.

    Args:
        loss: loss with the networks.
        stop: requests to end training; None after training, when no other process waits.
        processes: the processes, which wait for the end of the evaluation.
    """

    def __init__(self, loss: A2CLoss, stop: Optional[StopRequest], processes: Processes) -> None:
        super().__init__(loss)
        self._stop, self._processes, self._said = stop, processes, time.monotonic()

    def __call__(self, observation: Any) -> np.ndarray:
        if self._stop:
            raise _StoppedError
        if self._stop is not None and time.monotonic() - self._said > BUSY_SECONDS:
            self._processes.keep_waiting()
            self._said = time.monotonic()
        return super().__call__(observation)


def _mean(values: Deque[float]) -> float:
    """Returns the mean, or NaN if there are no values."""
    return float(np.mean(values)) if values else float("nan")
