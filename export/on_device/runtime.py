"""Runs and trains policies that :mod:`a2c_compiled` exported, without torch. Needs this file, numpy and onnxruntime.

Act with a policy:

>>> policy = Policy.load("policy.onnx")
>>> action = policy.act(observation)
>>> policy.reset(done)  # a policy with memory forgets the episodes that ended

Continue training from the state that was exported:

>>> learner = Learner.load("train_step.onnx")
>>> action, log_prob, state_value = output = learner.act(observation)
>>> envs.step(output.environment_action)  # the action within the bounds of the environment's action space
>>> metrics = learner.step({"observation": observations, "action": actions, ...})  # each [T, N, ...]: T steps of N environments
>>> policy = Policy.load("policy.onnx", parameters=learner.parameters)
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import math
import numbers
import os
from contextlib import contextmanager
from pathlib import Path
from typing import Any, DefaultDict, Dict, Iterator, List, Mapping, NamedTuple, Optional, Sequence, Tuple, Union

import numpy as np
import onnxruntime
from numpy.typing import ArrayLike
from onnxruntime import InferenceSession, IOBinding, OrtValue

__all__ = ["Learner", "Policy", "PolicyOutput"]

POLICY_ENDING, STATE_ENDING = ".policy.onnx", ".state.npz"
"""Endings of the files beside a training step: its policy and its state."""

# Names that the exporter uses in metadata and graphs, and classes of exported modules. This file repeats them, because it cannot import
# the package.
_PREFIX, _NEW = "a2c_compiled.", "new."
_GREEDY = ("GreedyPolicy", "PredictPolicy", "RecurrentPolicy", "PredictFromFrames", "RecurrentPredictPolicy")
_POLICIES = (*_GREEDY, "SampledPolicy", "SampledPredictPolicy", "RecurrentSampledPolicy")
_DRAWN_BY = {"gumbel": "gumbel", "logistic": "logistic", "normal": "standard_normal", "uniform": "random"}
"""For each kind of noise, the method of numpy's random generator that draws it."""
_ARRAYS = ("observation", "noise", "hidden")
"""Arguments of a policy that are not parameters."""
_Observation = Union[ArrayLike, Sequence[Any], Mapping[str, Any]]
"""An array, or the arrays of an observation with several inputs."""
_PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
    "coreml": "CoreMLExecutionProvider",
    "openvino": "OpenVINOExecutionProvider",
    "directml": "DmlExecutionProvider",
}
"""onnxruntime's execution providers, by the names that ``provider`` takes."""
_PACKAGES = {"openvino": "onnxruntime-openvino", "directml": "onnxruntime-directml", "coreml": "onnxruntime on macOS"}
_OPTIONS = {"cuda": {"use_tf32": "0"}}  # matrix products in float32, as on the CPU and in torch, not in TF32


class _Scored(NamedTuple):
    """The three entries of :class:`PolicyOutput`."""

    action: np.ndarray
    log_prob: np.ndarray
    state_value: np.ndarray


class PolicyOutput(_Scored):
    """The result of acting on ``N`` observations. For a single observation, the arrays have no dimension ``N``.

    A tuple of ``action``, ``log_prob`` and ``state_value``. Record ``action`` in the rollout, and step the environment with
    ``environment_action``.

    Attributes:
        action: ``[N]`` or ``[N, *event]``, where event is the shape of one action. Its dtype, such as int64 or float32, depends on
            the action distribution.
        log_prob: ``[N]``, floating point: log-probability of the action.
        state_value: ``[N]``, floating point: the critic's value of the observation.
    """

    _environment_action: Optional[np.ndarray] = None

    @property
    def environment_action(self) -> np.ndarray:
        """The action for the environment: ``[N]`` or ``[N, *event]``, dtype of the action space, between its bounds.

        It is ``action`` if the file has no such output: where the two cannot differ, or the export was not given the action space.
        """
        return self.action if self._environment_action is None else self._environment_action

    def _for_environment(self, action: Optional[np.ndarray]) -> PolicyOutput:
        """Sets :attr:`environment_action`, and returns this object. None stands for the own ``action``."""
        self._environment_action = action
        return self


class Policy:
    """An exported policy that maps observations to actions. Create it with :meth:`load`. Not safe for use by several threads at a time.

    A policy with memory keeps its hidden state from one :meth:`act` to the next. Call :meth:`reset` when episodes end.
    """

    def __init__(self, graph: _Graph, random: _Random) -> None:
        self._is_greedy = graph.module in _GREEDY
        self._memory = _Memory(graph)
        self._actor = _Actor(graph, {}, random, self._memory)

    @classmethod
    def load(
        cls,
        path: Union[str, Path],
        provider: str = "auto",
        threads: int = 1,
        parameters: Optional[Mapping[str, ArrayLike]] = None,
        seed: Optional[int] = None,
        check: bool = True,
    ) -> Policy:
        """Loads an exported greedy or sampled policy, with or without memory, or a Stable-Baselines3 model that ``from_sb3`` converted.

        Args:
            path: path of the ``.onnx`` file.
            provider: ``"cpu"``, ``"cuda"``, or ``"auto"``: CUDA if onnxruntime can start it, else the CPU. Or ``"tensorrt"``, ``"coreml"``,
                ``"openvino"`` or ``"directml"``, if onnxruntime is built with it. Operators that the provider lacks run on the CPU. These
                providers may compute in other precisions; set them up with onnxruntime's own means.
            threads: number of threads that onnxruntime may use, 1 or more.
            parameters: arrays by parameter name, such as :attr:`Learner.parameters`, which replace the parameters in the file. Shapes as
                in the file. Dtypes as in the file, or dtypes that numpy casts to them (``casting="same_kind"``). Parameters that are not in
                the mapping keep their values. A greedy policy ignores the parameters of the critic and of the distribution.
            seed: seed of the noise that a sampled policy draws. None: the noise differs from run to run.
            check: whether to compare the file with the digest of its export, ``policy.onnx.sha256`` beside it, if there is one.

        Raises:
            FileNotFoundError: there is no file at ``path``.
            ValueError, TypeError: the file is not such a policy, it is not the file that was exported, or an argument is invalid; the
                message names it.
        """
        random = _Random(seed)
        with _reading(path):
            graph = _Graph(_checked(path, check), _POLICIES, provider, threads)
            if parameters is not None:
                graph = _Graph(graph.path, _POLICIES, graph.provider, threads, _with_parameters(graph, parameters))
            return cls(graph, random)

    def act(self, observation: _Observation, noise: Optional[ArrayLike] = None) -> Union[np.ndarray, PolicyOutput]:
        """Returns actions for observations.

        Args:
            observation: ``[N, ...]``, or one observation without ``N``. Dtype: as exported, or a dtype that numpy casts to it
                (``casting="same_kind"``). For inputs ``observation.0``, ``observation.1``, ...: a tuple of such arrays. For inputs
                ``observation.<key>``: a mapping of keys to such arrays.
            noise: ``[N, ...]``, or without ``N`` for one observation, floating point: random numbers from which a sampled policy makes its
                actions. The action distribution determines their kind, such as standard Gumbel noise for discrete actions and standard
                normal noise for vectors. None: the policy draws the noise. A greedy policy accepts only None.

        Returns:
            A greedy policy returns only the actions, an array. A sampled policy returns a :class:`PolicyOutput`.

        Raises:
            ValueError, TypeError: an argument is invalid; the message names it.
        """
        results = self._actor.act(observation, noise)
        if self._is_greedy:
            return results[0]
        return PolicyOutput(*results[:3])._for_environment(self._actor.named("environment_action", results))

    def reset(self, done: Optional[ArrayLike] = None) -> None:
        """Sets the hidden states to 0, as at the first step of an episode. Without memory, nothing happens.

        After ``reset()``, the number ``N`` of observations may change.

        Args:
            done: ``[N]``, bool, or one bool for a single observation: True where an episode ended. The other hidden states are kept. None:
                all episodes ended.

        Raises:
            ValueError, TypeError: ``done`` is not such an array.
        """
        self._memory.reset(done)


class Learner:
    """An exported training step with its state: acts, and trains on rollouts. Create it with :meth:`load`.

    The state stays on the device where onnxruntime computes, in two copies: a training step reads one copy and writes the other, then they
    swap roles. Not safe for use by several threads at a time. Shapes and dtypes: see :meth:`step`.

    Attributes:
        rollout_entries: names of the arrays that :meth:`step` needs.
        time_dim: dimension of time in these arrays: 0 for ``[T, N, ...]``, 1 for ``[N, T, ...]``.
    """

    _lr: float

    def __init__(self, update: _Graph, policy: _Graph, initial: Mapping[str, np.ndarray], random: _Random) -> None:
        self._graph, self._random = update, random
        self._digest = hashlib.sha256(update.path.read_bytes()).hexdigest()
        self._state_tensors = {name: tensor for name, tensor in update.inputs.items() if f"{_NEW}{name}" in update.outputs}
        self._entries = {
            name: tensor for name, tensor in update.inputs.items() if name not in {*self._state_tensors, "lr", "noise"}
        }
        self.rollout_entries = tuple(dict.fromkeys(map(_argument, self._entries)))
        self.time_dim = int(next(iter(self._entries.values())).shape[0] == "N")
        self._memory = _Memory(policy)
        self._parameter_names = self._parameters_of(policy)
        self._choices = _choices(policy)
        state, self.lr = self._checked_state(initial)
        metrics = {name: tensor for name, tensor in update.outputs.items() if not name.startswith(_NEW)}
        self._metrics = {name: np.empty(tensor.shape, tensor.dtype) for name, tensor in metrics.items()}
        first, second = (
            {name: OrtValue.ortvalue_from_numpy(array.copy(), update.device, 0) for name, array in state.items()}
            for _ in range(2)
        )
        self._current, self._next = self._bind(policy, first, second), self._bind(policy, second, first)

    @classmethod
    def load(
        cls, path: Union[str, Path], provider: str = "auto", threads: int = 1, seed: Optional[int] = None, check: bool = True
    ) -> Learner:
        """Loads ``train_step.onnx``, with ``train_step.policy.onnx`` and ``train_step.state.npz`` beside it.

        Args:
            path: path of ``train_step.onnx``.
            provider: ``"cpu"``, ``"cuda"`` or ``"auto"``, as in :meth:`Policy.load`.
            threads: as in :meth:`Policy.load`.
            seed: seed of the noise for acting, and for training steps that estimate an entropy from samples. None: the noise differs from
                run to run.
            check: whether to compare the three files with the digests of their export, ``train_step.onnx.sha256``, if there are any.

        Raises:
            FileNotFoundError: one of the files is missing.
            ValueError, TypeError: one of the files is not what was exported, or an argument is invalid; the message names it.
        """
        random = _Random(seed)
        if provider in _PROVIDERS and provider not in ("cpu", "cuda"):
            # onnxruntime copies a bound input to such a device once, so it would not see the state that a training step writes.
            raise ValueError(f"provider: expected 'auto', 'cpu' or 'cuda' for a training step, got {provider!r}")
        with _reading(path):
            update = _Graph(_checked(path, check), ("TrainStepGraph",), provider, threads)
            policy = _Graph(_beside(update.path, POLICY_ENDING), ("ActingPolicy",), update.provider, threads)
            return cls(update, policy, read_arrays(_beside(update.path, STATE_ENDING)), random)

    def act(self, observation: _Observation, greedy: bool = False, noise: Optional[ArrayLike] = None) -> PolicyOutput:
        """Returns actions of the policy with the current parameters.

        Args:
            observation, noise: shapes and dtypes as in :meth:`Policy.act`.
            greedy: True takes the greedy action, which needs no noise. False takes an action that the noise selects.

        Returns:
            A :class:`PolicyOutput`. Its ``log_prob`` is that of ``action``, not of ``environment_action``.

        Raises:
            ValueError, TypeError: an argument is invalid; the message names it.
        """
        if greedy and noise is not None:
            raise ValueError("noise: expected None for the greedy action, got an array")
        actor = self._current.actor
        results = actor.act(observation, noise, noiseless=greedy)
        action, log_prob, state_value, greedy_action, greedy_log_prob = results[:5]
        if greedy:
            output = PolicyOutput(greedy_action, greedy_log_prob, state_value)
            return output._for_environment(actor.named("greedy_environment_action", results))
        return PolicyOutput(action, log_prob, state_value)._for_environment(actor.named("environment_action", results))

    def reset(self, done: Optional[ArrayLike] = None) -> None:
        """Sets the hidden states to 0 where ``done`` is True, see :meth:`Policy.reset`."""
        self._memory.reset(done)

    def hidden(self, num_envs: int) -> np.ndarray:
        """Returns a copy of the hidden states from which the next :meth:`act` starts, ``[num_envs, H]``, floating point.

        A policy without memory has ``H = 0``.

        Raises:
            ValueError: ``num_envs`` is not the number of environments in the last :meth:`act`, unless :meth:`reset` ended all episodes.
        """
        return self._memory.of(num_envs, "num_envs").copy()

    def step(self, rollout: Mapping[str, _Observation]) -> Dict[str, float]:
        """Runs one training step on ``T`` steps of ``N`` parallel environments, and updates the state.

        Args:
            rollout: arrays by name, one for each of ``rollout_entries``: ``[T, N, ...]``, or ``[N, T, ...]`` if the training step was
                exported with this layout. Dtypes: as exported, or dtypes that numpy casts to them (``casting="same_kind"``). ``done``,
                ``terminated`` and ``mask`` are bool. T and N may differ from call to call, but T is fixed if the networks have a recurrent
                layer other than MinGRU. If the loss estimates the entropy from samples, ``noise``, ``[samples, T, N, ...]``, may be passed
                too. Without ``noise``, the learner draws it. Observations of several inputs are tuples of arrays. Those of recurrent
                networks are ``(x, hidden, start)``: ``hidden`` from :meth:`hidden` before the step, or after it in the next observation;
                ``start``, bool, True at the first step of the rollout and of each episode, and everywhere in the next observation.

        Returns:
            The losses and ``grad_norm``, the norm of the gradient before clipping, by name.

        Raises:
            ValueError, TypeError: the rollout is invalid; the message names the entry.
            FloatingPointError: the gradient is not finite. The state is unchanged.
        """
        arrays = self._checked_rollout(rollout)
        arrays["lr"] = np.array(self._lr, self._graph.inputs["lr"].dtype)
        for name, array in arrays.items():
            self._current.update.bind_cpu_input(name, array)
        self._graph.run(self._current.update)
        metrics = {name: array.item() for name, array in self._metrics.items()}
        if not math.isfinite(metrics["grad_norm"]):
            raise FloatingPointError(
                f"rollout: expected a finite gradient, got one of norm {metrics['grad_norm']}; the state is unchanged"
            )
        self._current, self._next = self._next, self._current
        return metrics

    @property
    def lr(self) -> float:
        """The learning rate, at least 0. It can be assigned at any time; the next training step uses it."""
        return self._lr

    @lr.setter
    def lr(self, value: float) -> None:
        if isinstance(value, bool) or not isinstance(value, numbers.Real):
            raise TypeError(f"lr: expected a number, got {type(value).__name__}")
        if not 0 <= value <= float(np.finfo(self._graph.inputs["lr"].dtype).max):
            raise ValueError(f"lr: expected a finite number of at least 0, got {value}")
        self._lr = float(value)

    @property
    def parameters(self) -> Dict[str, np.ndarray]:
        """Copies of the parameters of the networks by name, in their shapes and dtypes. :meth:`Policy.load` accepts them."""
        return {name: self._current.values[name].numpy().copy() for name in self._parameter_names}

    def save_state(self, path: Union[str, Path]) -> None:
        """Writes everything that :meth:`load_state` needs to continue as if training had never stopped.

        The file is an ``.npz`` without pickles. It is written completely or not at all.

        Raises:
            TypeError: ``path`` is not a path.
            OSError: the file cannot be written; an older file is unchanged. The error is a FileNotFoundError if the folder of ``path`` does
                not exist, or if ``path`` is a folder.
        """
        extra = {"lr": self._lr, "graph": self._digest, "random": json.dumps(self._random.bits.state)}
        arrays = {name: value.numpy() for name, value in self._current.values.items()}
        _write_arrays(_path(path), {**arrays, **{name: np.array(value) for name, value in extra.items()}})

    def load_state(self, path: Union[str, Path]) -> None:
        """Continues from a state that :meth:`save_state` wrote: parameters, optimizer state, learning rate and random numbers.

        Raises:
            TypeError: ``path`` is not a path.
            FileNotFoundError: there is no file at ``path``.
            ValueError: the file is not such a state, or it belongs to another graph. The learner is unchanged.
        """
        arrays = read_arrays(_existing(path))
        if str(arrays.get("graph")) != self._digest:
            raise ValueError(f"path: expected a state that was saved with this very {self._graph.path.name}, got {path}")
        state, lr = self._checked_state(arrays)
        random = _Random.state_in(str(arrays.get("random")))
        self.lr = lr
        for name, array in state.items():
            self._next.values[name].update_inplace(array)
        self._current, self._next = self._next, self._current
        self._random.bits.state = random

    def _bind(self, policy: _Graph, values: Dict[str, OrtValue], others: Dict[str, OrtValue]) -> _BoundState:
        """Binds the training step to read the state in ``values`` and to write ``others``, and the policy to act with ``values``."""
        update = self._graph.session.io_binding()
        for name in self._state_tensors:
            update.bind_ortvalue_input(name, values[name])
            update.bind_ortvalue_output(f"{_NEW}{name}", others[name])
        for name, array in self._metrics.items():
            update.bind_ortvalue_output(name, OrtValue.ortvalue_from_numpy(array))
        params = {name: values[name] for name in self._parameter_names}
        return _BoundState(values, update, _Actor(policy, params, self._random, self._memory))

    def _parameters_of(self, policy: _Graph) -> List[str]:
        """Returns the names of the parameters that ``policy`` reads."""
        names = [name for name in policy.inputs if _argument(name) not in _ARRAYS]
        others = [name for name in names if policy.inputs[name] != self._state_tensors.get(name)]
        if others:
            raise ValueError(
                f"path: expected {policy.path.name} to have the networks of {self._graph.path}, got others: {', '.join(others)}"
            )
        return names

    def _checked_state(self, arrays: Mapping[str, np.ndarray]) -> Tuple[Dict[str, np.ndarray], float]:
        """Returns the state in ``arrays``, and the learning rate."""
        for name, tensor in self._state_tensors.items():
            if name not in arrays:
                raise ValueError(f"path: expected a state of {self._graph.path.name}, got one without {name}")
            actual = _Tensor(arrays[name].dtype, arrays[name].shape)
            if actual != tensor:
                raise ValueError(f"path: expected {name} of {self._graph.path.name} to be {tensor}, got {actual}")
        lr = arrays.get("lr")
        if lr is None or lr.shape or lr.dtype.kind != "f":
            raise ValueError(f"path: expected a learning rate in the state, got {lr}")
        return {name: arrays[name] for name in self._state_tensors}, lr.item()

    def _checked_rollout(self, rollout: Mapping[str, _Observation]) -> Dict[str, np.ndarray]:
        """Returns the inputs of the training step from a rollout, with the noise."""
        if not isinstance(rollout, Mapping):
            raise TypeError(f"rollout: expected a mapping of names to arrays, got {type(rollout).__name__}")
        noise = self._graph.inputs.get("noise")
        unknown = [name for name in rollout if name not in self.rollout_entries and not (noise and name == "noise")]
        _check_names("rollout", self.rollout_entries, rollout, unknown)
        values: Dict[str, Any] = {}
        for name in self.rollout_entries:
            values.update(_parts(name, rollout[name], self._graph.names, "rollout[%r]"))
        arrays: Dict[str, np.ndarray] = {}
        size: Tuple[int, ...] = ()
        for name, tensor in self._entries.items():
            # The first entry determines T and N.
            tensor = tensor.with_sizes(0, *size)
            arrays[name] = tensor.checked(f"rollout[{name!r}]", values[name])
            size = arrays[name].shape[:2]
        if noise:
            noise, given = noise.with_sizes(1, *size), rollout.get("noise")
            given = self._random.draw(self._graph, noise.shape) if given is None else given
            arrays["noise"] = noise.checked("rollout['noise']", given)
        if self._choices is not None:  # a graph can only turn a wrong choice into NaN
            self._check_choices(arrays["action"], arrays.get("mask"), self._choices)
        return arrays

    @staticmethod
    def _check_choices(action: np.ndarray, mask: Optional[np.ndarray], choices: List[int]) -> None:
        """Raises ValueError unless the choices of every step that counts are in range. ``mask``: ``[T, N]`` or ``[T, N, 1]``, bool."""
        wrong = (action < 0) | (action >= choices)
        if mask is not None:
            wrong &= mask.reshape(*action.shape[:2], *[1] * (action.ndim - 2))
        if wrong.any():
            expected = "choices from 0 to " + " and ".join(str(n - 1) for n in choices)
            raise ValueError(f"rollout['action']: expected {expected}, got {action[wrong].min()} to {action[wrong].max()}")


class _BoundState(NamedTuple):
    """One of the two copies of a learner's state, with the training step and the policy that read it."""

    values: Dict[str, OrtValue]
    update: IOBinding
    actor: _Actor


class _Actor:
    """Runs the graph of a policy on arrays. The bound input and output arrays are reused while ``N`` stays the same.

    Args:
        graph: graph of the policy.
        parameters: the parameters that are inputs of the graph.
        random: source of the noise.
        memory: hidden states.
    """

    def __init__(self, graph: _Graph, parameters: Mapping[str, OrtValue], random: _Random, memory: _Memory) -> None:
        self._graph, self._random, self._memory = graph, random, memory
        self._binding = graph.session.io_binding()
        for name, value in parameters.items():
            self._binding.bind_ortvalue_input(name, value)
        self._observation = {name: tensor for name, tensor in graph.inputs.items() if _argument(name) == "observation"}
        self._noise = graph.inputs.get("noise")
        self._has_memory = "hidden" in graph.inputs
        self._places = {name: i for i, name in enumerate(graph.outputs)}
        self._resize(1)

    def act(self, observation: _Observation, noise: Optional[ArrayLike], noiseless: bool = False) -> List[np.ndarray]:
        """Returns the outputs of the graph in order, without ``N`` if ``observation`` is one observation without ``N``.

        ``noiseless``: the noise is 0, and the random generator is unchanged.
        """
        values = _parts("observation", observation, self._graph.names)
        arrays, is_single = {}, True
        for name, tensor in self._observation.items():
            arrays[name] = tensor.converted(name, values[name])
            is_single &= arrays[name].ndim < len(tensor.shape)
        if is_single:
            arrays = {name: array[None] for name, array in arrays.items()}
        for name, array in arrays.items():
            if array.shape != self._inputs[name].shape:  # only the first: all arrays have the same N
                self._resize(self._checked_size(arrays))
            self._put(name, array)
        if self._noise is not None:
            self._put("noise", 0.0 if noiseless else self._checked_noise(self._noise, noise, is_single))
        elif noise is not None:
            raise ValueError(f"noise: expected None for {self._graph.path.name}, which has no noise input, got an array")
        if self._has_memory:
            self._put("hidden", self._memory.of(len(self._inputs["hidden"]), "observation"))
        self._graph.run(self._binding)
        if self._has_memory:
            self._memory.hidden = self._outputs[self._places["next_hidden"]].copy()
        return [(output[0] if is_single else output).copy() for output in self._outputs]

    def _checked_size(self, arrays: Mapping[str, np.ndarray]) -> int:
        """Returns ``N``, the same in all ``arrays``. Raises ValueError if an array has a wrong shape."""
        size: Tuple[int, ...] = ()
        for name, array in arrays.items():
            size = self._observation[name].with_sizes(0, *size).shaped(name, array).shape[:1]
        return size[0]

    def named(self, name: str, results: Sequence[np.ndarray]) -> Optional[np.ndarray]:
        """Returns the output ``name`` of the ``results`` of :meth:`act`, or None if the graph has no such output."""
        place = self._places.get(name)
        return None if place is None else results[place]

    def _checked_noise(self, tensor: _Tensor, noise: Optional[ArrayLike], is_single: bool) -> np.ndarray:
        """Returns the noise in the shape of the input ``tensor``. Draws it if ``noise`` is None."""
        if noise is None:
            return self._random.draw(self._graph, self._inputs["noise"].shape)
        # The noise must have one row for each observation: a graph would use a single row for all observations.
        return tensor.with_sizes(0, len(self._inputs["noise"])).checked("noise", [noise] if is_single else noise)

    def _put(self, name: str, value: Union[float, np.ndarray]) -> None:
        """Writes ``value`` into a bound input."""
        self._inputs[name][...] = value
        if self._graph.provider != "cpu":  # the session has its own copy of the array
            self._binding.bind_cpu_input(self._graph.in_file(name), self._inputs[name])

    def _resize(self, size: int) -> None:
        """Allocates and binds input and output arrays for ``N = size``."""
        inputs = {name: tensor.empty(size) for name, tensor in self._graph.inputs.items() if _argument(name) in _ARRAYS}
        outputs = {name: tensor.empty(size) for name, tensor in self._graph.outputs.items()}
        for name, array in inputs.items():
            self._binding.bind_cpu_input(self._graph.in_file(name), array)
        for name, array in outputs.items():
            self._binding.bind_ortvalue_output(self._graph.in_file(name), OrtValue.ortvalue_from_numpy(array))
        self._inputs, self._outputs = inputs, list(outputs.values())


class _Memory:
    """The hidden states of the episodes in which a policy acts.

    Attributes:
        hidden: ``[N, H]``, the states after the last call. None: all episodes begin, from zeros.
    """

    def __init__(self, graph: _Graph) -> None:
        self._tensor = graph.inputs.get("hidden", _Tensor(np.dtype("float32"), ("N", 0)))
        self.hidden: Optional[np.ndarray] = None

    def reset(self, done: Optional[ArrayLike]) -> None:
        """Sets the hidden states to 0 where ``done`` is True, see :meth:`Policy.reset`."""
        if done is None:
            self.hidden = None
            return
        flags = np.atleast_1d(np.asarray(done))
        if flags.dtype != np.bool_:
            raise TypeError(f"done: expected bool, got {flags.dtype}")
        if self.hidden is None:
            return
        if flags.shape != self.hidden.shape[:1]:
            raise ValueError(f"done: expected shape [{len(self.hidden)}], as in the last act, got {list(flags.shape)}")
        self.hidden[flags] = 0.0

    def of(self, size: int, name: str) -> np.ndarray:
        """Returns the hidden states of ``size`` episodes. The error of another size calls the argument ``name``."""
        if self.hidden is None:
            return np.zeros_like(self._tensor.empty(size))
        if len(self.hidden) != size:
            raise ValueError(
                f"{name}: expected N = {len(self.hidden)}, as in the last act, because the policy has memory, got N = {size}"
                " (call reset() before another N)"
            )
        return self.hidden


class _Tensor(NamedTuple):
    """Dtype and shape of an input or output of a graph, with names for the sizes that may vary."""

    dtype: np.dtype
    shape: Tuple[Any, ...]

    @classmethod
    def of(cls, node: onnxruntime.NodeArg) -> _Tensor:
        """Reads dtype and shape of an input or output of a session."""
        # node.type is, for example, "tensor(float)".
        kind = node.type[len("tensor(") : -1]
        return cls(np.dtype({"float": "float32", "double": "float64"}.get(kind, kind)), tuple(node.shape))

    def __str__(self) -> str:
        return f"{self.dtype} [{', '.join(map(str, self.shape))}]"

    def with_sizes(self, dim: int, *sizes: int) -> _Tensor:
        """Replaces the sizes of the dimensions ``dim``, ``dim + 1``, ... by ``sizes``."""
        return self._replace(shape=(*self.shape[:dim], *sizes, *self.shape[dim + len(sizes) :]))

    def empty(self, size: int) -> np.ndarray:
        """Returns an array of this dtype and shape, with ``size`` as its first dimension."""
        return np.empty(self.with_sizes(0, size).shape, self.dtype)

    def checked(self, name: str, value: Any) -> np.ndarray:
        """Returns ``value`` as an array of this dtype and shape. Errors call it ``name``."""
        return self.shaped(name, self.converted(name, value))

    def converted(self, name: str, value: Any) -> np.ndarray:
        """Returns ``value`` as an array of this dtype, of any shape."""
        try:
            array = np.asarray(value)
        except Exception as error:
            raise ValueError(f"{name}: expected an array, got {type(value).__name__} ({error})") from error
        if array.dtype != self.dtype and not np.can_cast(array.dtype, self.dtype, "same_kind"):
            raise TypeError(f"{name}: expected {self.dtype} or a dtype that converts to it, got {array.dtype}")
        with np.errstate(over="ignore"):  # numbers that are too large for the dtype become infinite
            converted = np.asarray(array, self.dtype, order="C")
        if array.dtype.kind in "iu" and self.dtype.kind in "iu" and not np.array_equal(converted, array):
            raise ValueError(f"{name}: expected numbers that {self.dtype} holds, got {array.min()} to {array.max()}")
        return converted

    def shaped(self, name: str, array: np.ndarray) -> np.ndarray:
        """Returns ``array`` if it has this shape, else raises ValueError."""
        pairs = zip(array.shape, self.shape)  # noqa: B905 (strict came with Python 3.10)
        if array.ndim != len(self.shape) or any(size != expected and isinstance(expected, int) for size, expected in pairs):
            raise ValueError(f"{name}: expected {self}, got shape {list(array.shape)}")
        if 0 in array.shape:
            raise ValueError(
                f"{name}: expected {self} with at least one entry in each dimension, got shape {list(array.shape)}"
            )
        return array


class _Graph:
    """An exported file in an onnxruntime session, with its metadata.

    Args:
        path: path of the file.
        modules: names of the classes of modules that are accepted.
        provider, threads: as in :meth:`Policy.load`.
        model: bytes of an ONNX model to run instead of the file's content.
    """

    def __init__(self, path: Path, modules: Sequence[str], provider: str, threads: int, model: Optional[bytes] = None) -> None:
        self.path = path
        self.session = _session(path, model, provider, threads)
        used = self.session.get_providers()[0]
        self.provider = next(name for name, full in _PROVIDERS.items() if full == used)
        self.device = "cuda" if self.provider == "cuda" else "cpu"  # where tensors are bound
        about = self.session.get_modelmeta().custom_metadata_map
        self.module = about.get(f"{_PREFIX}module", "")
        renamed = _read_metadata(path, about, "renamed")
        self._names_in_file: Dict[str, str] = {**renamed.get("inputs", {}), **renamed.get("outputs", {})}
        self.renamed_weights: Dict[str, str] = renamed.get("weights", {})
        self.noise = _kinds(path, str(_read_metadata(path, about, "noise").get("noise", "")))
        if self.module not in modules:
            raise ValueError(f"path: expected an exported {' or '.join(modules)}, got {path}, {_described(self.module)}")
        argument = {in_file: name for name, in_file in self._names_in_file.items()}
        self.inputs = {argument.get(node.name, node.name): _Tensor.of(node) for node in self.session.get_inputs()}
        self.outputs = {argument.get(node.name, node.name): _Tensor.of(node) for node in self.session.get_outputs()}
        # Names of all inputs of the module, also of those that it does not read and the graph therefore lacks.
        shapes = _read_metadata(path, about, "shapes")
        self.names = dict.fromkeys([*(argument.get(name, name) for name in shapes), *self.inputs])

    def in_file(self, name: str) -> str:
        """Returns the name in the file of the input or output ``name``."""
        return self._names_in_file.get(name, name)

    def run(self, binding: IOBinding) -> None:
        """Runs the graph on the bound inputs, and writes the bound outputs."""
        try:
            if self.provider != "cpu":
                binding.synchronize_inputs()
            self.session.run_with_iobinding(binding)
            if self.provider != "cpu":
                binding.synchronize_outputs()
        except Exception as error:
            raise RuntimeError(f"{self.path}: onnxruntime failed ({error})") from error


def _argument(name: str) -> str:
    """Returns the name of the argument that an input belongs to: ``observation`` for ``observation.0``."""
    return name.partition(".")[0]


def _parts(name: str, value: Any, names: Mapping[str, Any], label: str = "%s") -> Dict[str, Any]:
    """Returns ``{name: value}``; if ``names`` has ``<name>.<key>``, the entries of ``value`` by these names.

    Raises:
        TypeError: ``value`` is neither a tuple or list, for keys that are indices, nor a mapping. ``label`` makes the name in the message.
        ValueError: an entry is missing or unknown.
    """
    if name in names:
        return {name: value}
    prefix = f"{name}."
    keys = list(dict.fromkeys(_argument(other[len(prefix) :]) for other in names if other.startswith(prefix)))
    if keys[0] == "0":
        if not isinstance(value, (tuple, list)):
            raise TypeError(f"{label % name}: expected a tuple of {len(keys)} arrays, got {type(value).__name__}")
        if len(value) != len(keys):
            raise ValueError(f"{label % name}: expected a tuple of {len(keys)} arrays, got one of {len(value)}")
        value = dict(zip(keys, value))  # noqa: B905 (strict came with Python 3.10)
    elif not isinstance(value, Mapping):
        raise TypeError(f"{label % name}: expected a mapping of {', '.join(keys)} to arrays, got {type(value).__name__}")
    _check_names(label % name, keys, value, [key for key in value if key not in keys])
    return {part: x for key in keys for part, x in _parts(f"{prefix}{key}", value[key], names, label).items()}


def _check_names(what: str, expected: Sequence[str], given: Mapping[str, Any], unknown: Sequence[str]) -> None:
    """Raises ValueError if an expected name is missing, or if there are unknown names."""
    missing = [name for name in expected if name not in given]
    if missing or unknown:
        raise ValueError(f"{what}: expected {', '.join(expected)}; missing: {missing}, unknown: {list(unknown)}")


def _described(module: str) -> str:
    """Returns the end of an error message: which file this is, and which function loads it."""
    if not module:
        return "which a2c_compiled did not export"
    use = {
        **dict.fromkeys(_POLICIES, "which Policy.load takes"),
        "TrainStepGraph": "which Learner.load takes",
        "ActingPolicy": "which Learner.load finds beside the TrainStepGraph that it loads",
    }
    return f"an exported {module}, {use.get(module, 'which onnxruntime.InferenceSession takes')}"


def _choices(policy: _Graph) -> Optional[List[int]]:
    """Returns the number of choices for each entry of an action, or None if an entry is not a choice."""
    noise, event = policy.inputs.get("noise"), policy.outputs["action"].shape[1:]
    # The metadata has a size for each entry of an action. An action that is a single choice has one kind of noise without a size.
    counts = [size for _, size in policy.noise if size]
    expected_event = (len(counts),) if counts else ()
    if noise is None or {kind for kind, _ in policy.noise} != {"gumbel"} or event != expected_event:
        return None
    return counts or [int(noise.shape[-1])]


def _read_metadata(path: Path, about: Mapping[str, str], key: str) -> Dict[str, Any]:
    """Returns an entry of the metadata, a JSON object; an empty one if the file has no such entry."""
    try:
        value = json.loads(about.get(f"{_PREFIX}{key}", "{}"))
        # renamed holds objects of strings
        known = isinstance(value, dict) and all(isinstance(entry, dict) for entry in value.values() if key == "renamed")
    except (ValueError, RecursionError):
        known = False
    if not known:
        raise ValueError(f"path: expected metadata {_PREFIX}{key} as the export writes it in {path}, got something else")
    return dict(value)


def _kinds(path: Path, noise: str) -> List[Tuple[str, int]]:
    """Parses the kind of noise in the metadata: ``"normal"``, or ``"gumbel:4,normal:2"`` for several kinds side by side.

    Returns pairs of kind and size. A size of 0: this kind fills the whole last dimension of the noise.
    """
    parts = [part.partition(":") for part in noise.split(",") if part]
    if not all(size.isdecimal() or not size for _, _, size in parts):
        raise ValueError(f"path: expected metadata {_PREFIX}noise as the export writes it in {path}, got {noise[:100]!r}")
    return [(kind, int(size or 0)) for kind, _, size in parts]


def _session(path: Path, model: Optional[bytes], provider: str, threads: int) -> InferenceSession:
    """Returns a session that runs ``model``, or the file at ``path`` if ``model`` is None."""
    if provider not in ("auto", *_PROVIDERS):
        raise ValueError(f"provider: expected {', '.join(map(repr, ('auto', *_PROVIDERS)))}, got {provider!r}")
    if isinstance(threads, bool) or not isinstance(threads, int) or threads < 1:
        raise ValueError(f"threads: expected an integer of at least 1, got {threads!r}")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4  # log fatal errors only: other errors are raised
    options.enable_mem_pattern = provider != "directml"  # which requires this
    source = str(path) if model is None else model
    wanted = "cuda" if provider == "auto" else provider
    session, obstacle = (None, "") if wanted == "cpu" else _device_session(wanted, source, options)
    if session is not None:
        return session
    try:
        session = InferenceSession(source, options, providers=[_PROVIDERS["cpu"]], enable_fallback=0)
    except Exception as error:
        raise ValueError(f"path: expected an ONNX file that onnxruntime can read, got {path} ({error})") from error
    if provider not in ("auto", "cpu"):
        raise ValueError(f"provider: expected one that works on this machine, got {provider!r} ({obstacle})")
    return session


def _device_session(
    provider: str, source: Union[str, bytes], options: onnxruntime.SessionOptions
) -> Tuple[Optional[InferenceSession], str]:
    """Returns a session with a provider other than the CPU, or None and the reason why there is none."""
    name = _PROVIDERS[provider]
    available = onnxruntime.get_available_providers()
    if name not in available:
        package = _PACKAGES.get(provider, "onnxruntime-gpu")
        return None, f"this onnxruntime is built without {name}, with {', '.join(available)}; install {package}"
    try:
        if provider in ("cuda", "tensorrt"):
            # Loaded first, because onnxruntime prints errors if there is no driver.
            ctypes.CDLL("nvcuda.dll" if os.name == "nt" else "libcuda.so.1")
        providers = [(name, _OPTIONS.get(provider, {})), _PROVIDERS["cpu"]]
        session = InferenceSession(source, options, providers=providers, enable_fallback=0)
    except Exception as error:
        return None, str(error)
    if name not in session.get_providers():
        hint = "; if pip installed those of CUDA, call onnxruntime.preload_dlls() first" if provider == "cuda" else ""
        return None, f"onnxruntime does not find its libraries{hint}"
    return session, ""


class _Random:
    """Draws noise for graphs: standard Gumbel, logistic and normal numbers, and uniform numbers in [0, 1)."""

    def __init__(self, seed: Optional[int]) -> None:
        if seed is not None and (isinstance(seed, bool) or not isinstance(seed, numbers.Integral) or seed < 0):
            raise ValueError(f"seed: expected an integer of at least 0 or None, got {seed!r}")
        self.bits: np.random.BitGenerator = np.random.PCG64(seed)
        self._generator = np.random.Generator(self.bits)

    @staticmethod
    def state_in(text: str) -> Dict[str, Any]:
        """Returns the state of ``bits`` that a saved text holds."""
        bits = np.random.PCG64()
        try:
            bits.state = json.loads(text)
        except Exception as error:
            raise ValueError(f"path: expected the state of a random generator in the file, got {text} ({error})") from error
        return dict(bits.state)

    def draw(self, graph: _Graph, shape: Tuple[int, ...]) -> np.ndarray:
        """Returns noise of the kind that the metadata of ``graph`` names, in ``shape``, float64."""
        if not graph.noise:
            raise ValueError(f"noise: expected an array, since {graph.path.name} does not name its kind of noise, got None")
        unknown = [kind for kind, _ in graph.noise if kind not in _DRAWN_BY]
        if unknown:
            raise ValueError(
                f"noise: expected an array, since this runtime cannot draw noise of the kind {unknown[0]!r}, got None"
            )
        draws = [(getattr(self._generator, _DRAWN_BY[kind]), size or shape[-1]) for kind, size in graph.noise]
        return np.concatenate([draw(size=(*shape[:-1], size)) for draw, size in draws], -1)


def _with_parameters(graph: _Graph, parameters: Mapping[str, ArrayLike]) -> bytes:
    """Returns the content of a policy's file, with ``parameters`` in place of the parameters in the file.

    The parameters are written into the bytes of the file. ``SessionOptions.add_initializer``, which exists for this purpose, checks neither
    names nor shapes. It is also too late for weights that onnxruntime rearranges while it loads, such as convolution weights.
    """
    if not isinstance(parameters, Mapping):
        raise TypeError(f"parameters: expected a mapping of names to arrays, got {type(parameters).__name__}")
    is_greedy = graph.module in _GREEDY
    model = bytearray(graph.path.read_bytes())
    weights = _weights(model)
    weights.update({name: weights.pop(in_file) for name, in_file in graph.renamed_weights.items() if in_file in weights})
    for name, value in parameters.items():
        if is_greedy and str(name).startswith(("critic_network.", "distribution.")):
            continue  # a greedy policy does not use these, for example a scale that does not depend on the observation
        if name not in weights:
            raise ValueError(f"parameters: expected names among {sorted(weights)}, which {graph.path.name} has, got {name!r}")
        tensor, place = weights[name]
        array = tensor.checked(f"parameters[{name!r}]", value)
        model[place] = array.astype(array.dtype.newbyteorder("<")).tobytes()
    return bytes(model)


def _weights(model: bytearray) -> Dict[str, Tuple[_Tensor, slice]]:
    """Returns the weights in an ONNX file by name: dtype and shape, and the bytes that hold the numbers.

    The weights are the initializers (field 5) of the graph (field 7 of ModelProto). The fields of an initializer (TensorProto) are dims
    (1), data_type (2), name (8) and raw_data (9). A weight without raw_data or with another data_type is left out.
    """
    dtypes = {1: "float32", 10: "float16", 11: "float64"}
    weights: Dict[str, Tuple[_Tensor, slice]] = {}
    for graph in _fields(model, slice(0, len(model)))[7]:
        for initializer in _fields(model, graph)[5]:
            shape, data_type, name, raw_data = map(_fields(model, initializer).__getitem__, (1, 2, 8, 9))
            if raw_data and data_type[0] in dtypes:
                weights[model[name[0]].decode()] = _Tensor(np.dtype(dtypes[data_type[0]]), tuple(shape)), raw_data[0]
    return weights


def _fields(message: bytearray, place: slice) -> DefaultDict[int, List[Any]]:
    """Returns the values of a protobuf message by field number: integers, or for longer values the slice of their bytes."""
    position, fields = place.start, DefaultDict[int, List[Any]](list)

    def integer() -> int:
        nonlocal position
        value, shift, byte = 0, 0, 128
        while byte >= 128:  # 7 bits in each byte, lowest bits first; the 8th bit means that more bytes follow
            byte = message[position]
            value, shift, position = value | (byte & 127) << shift, shift + 7, position + 1
        return value

    # Wire types of protobuf. 0: an integer. 2: a length, then as many bytes. 1 and 5: 8 and 4 bytes.
    while position < place.stop:
        field, wire_type = divmod(integer(), 8)
        if wire_type == 0:
            fields[field].append(integer())
        else:
            length = integer() if wire_type == 2 else {1: 8, 5: 4}[wire_type]
            fields[field].append(slice(position, position + length))
            position += length
    return fields


@contextmanager
def _reading(path: Union[str, Path]) -> Iterator[None]:
    """Context in which a file and those beside it are read. An error of any other kind than is documented becomes a ValueError."""
    try:
        yield
    except Exception as error:
        if isinstance(error, (ValueError, TypeError, OSError)) and not isinstance(error, UnicodeError):
            raise
        raise ValueError(
            f"path: expected a file as the export writes it, got {path} ({type(error).__name__}: {error})"
        ) from error


def _path(path: Union[str, Path]) -> Path:
    """Returns ``path`` as a Path. Raises TypeError if it is not a path."""
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(f"path: expected a path, got {type(path).__name__}")
    return Path(path)


def _existing(path: Union[str, Path]) -> Path:
    """Returns ``path`` as a Path. Raises FileNotFoundError if no file is there."""
    if not _path(path).is_file():
        raise FileNotFoundError(f"path: expected a file, found none at {path}")
    return Path(path)


def _checked(path: Union[str, Path], check: bool) -> Path:
    """Returns ``path`` as a Path. If ``check``, raises ValueError if a file is not the one whose digest was stored at export."""
    path = _existing(path)
    if not isinstance(check, bool):
        raise TypeError(f"check: expected a bool, got {type(check).__name__}")
    stored = path.with_name(f"{path.name}.sha256")
    for line in stored.read_text(errors="replace").splitlines() if check and stored.is_file() else ():
        digest, _, name = line.partition("  ")
        file = path.parent / Path(name).name
        if file.is_file() and hashlib.sha256(file.read_bytes()).hexdigest() != digest:
            raise ValueError(
                f"path: expected the {file} that was exported, got one with another SHA-256 than in {stored.name}"
                " (pass check=False if the file was changed on purpose)"
            )
    return path


def _beside(path: Path, suffix: str) -> Path:
    """Returns the path with another suffix. Raises FileNotFoundError if no file has this path."""
    file = path.with_suffix(suffix)
    if not file.is_file():
        raise FileNotFoundError(f"path: expected {file.name} beside {path}, as export_train_step writes it, found none")
    return file


def read_arrays(path: Path) -> Dict[str, np.ndarray]:
    """Reads an ``.npz`` file. Raises ValueError if the file is not one."""
    try:
        # Opened here, because np.load does not close a file that it cannot read.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as loaded:
            arrays = dict(loaded)
        for name, array in arrays.items():
            if not isinstance(array, np.ndarray):  # of an entry in another format, np.load returns the bytes
                raise ValueError(f"expected arrays, got {type(array).__name__} for {name}")
        return arrays
    except Exception as error:
        raise ValueError(f"path: expected an .npz file of arrays, got {path} ({error})") from error


def _write_arrays(path: Path, arrays: Mapping[str, Any]) -> None:
    """Writes an ``.npz`` file, completely or not at all."""
    if path.is_dir() or not path.parent.is_dir():
        raise FileNotFoundError(f"path: expected a path for a file in an existing folder, got {path}")
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            np.savez(file, **arrays)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
