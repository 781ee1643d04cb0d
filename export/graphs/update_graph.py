"""The A2C update itself as a graph of tensors to tensors, and the policy whose parameters it changes."""

import copy
import shutil
from contextlib import contextmanager
from pathlib import Path
from typing import Dict, Iterator, NamedTuple, Optional, Sequence, Union

import numpy as np
import torch
from torch import Tensor, nn

from a2c_compiled._files import written_together
from a2c_compiled._parameters import parameter_places
from a2c_compiled.export.formats.onnx import OLDEST_OPSET, export_onnx
from a2c_compiled.export.graphs.policies_and_losses import SampledPolicy, leading_axes, read_entries
from a2c_compiled.export.on_device import runtime
from a2c_compiled.export.onnx_model.model_file import remove_unused_weights
from a2c_compiled.export.tracing.call import NEW, InputsByName
from a2c_compiled.export.tracing.errors import ExportError
from a2c_compiled.losses import A2CLoss
from a2c_compiled.update import Rollout, TrainState, TrainStep

RUNTIME = Path(runtime.__file__)
"""What a device needs beside numpy and onnxruntime."""


class TrainStepGraph(InputsByName):
    """One update: state, learning rate and rollout in; new state (``new.<name>``) and metrics out.

    The state is parameters under their names in the loss, the optimizer's state under ``<slot>.<parameter>``, and ``step_count``. What the
    update does not change is no part of it. Where the loss estimates an entropy from samples, their ``noise`` is an input too,
    ``[samples, T, N, ...]``. The rollout is laid out as the loss's value estimator expects.

    Args:
        step: whose ``pure`` function this is.
        example: of rollouts; the update is tried on it, and leaves ``step`` as it is.

    Attributes:
        example_inputs: by name; the state is what ``step`` holds.
        dynamic_axes: names of their dimensions that may vary.
        state_names: of those inputs that an output replaces.

    Raises:
        ValueError: the loss needs an entry that the rollout lacks, or its parameters are of half precision, in which the squares that
            optimizers keep come to nothing.
        ExportError: a network writes its own buffers, such as running statistics.
    """

    source: TrainStep

    def __init__(self, step: TrainStep, example: Rollout) -> None:
        state = _named(step, step.state())
        for name in step.parameter_names:
            if state[name].dtype not in (torch.float32, torch.float64):
                raise ValueError(f"step: expected parameters of float32 or float64, got {state[name].dtype} for {name}")
        lr = step.lr.to(step.state().params[0].dtype)
        entries, axes = read_entries(step.loss, example), leading_axes(step.loss, example)
        inputs = {name: tensor.detach().clone() for name, tensor in {**state, "lr": lr, **entries}.items()}
        super().__init__(step, list(inputs))
        with _buffers_left_alone(step.loss):
            noise = step.loss.entropy_noise(example.observation)
            if noise is not None:
                if step.minibatches > 1:
                    raise ValueError(
                        f"step: expected minibatches=1 where an entropy is estimated from samples, got {step.minibatches}"
                    )
                inputs["noise"] = noise
            outputs = self(**inputs)
        self.state_names = [name for name in state if f"{NEW}{name}" in outputs]
        unchanged = set(state) - set(self.state_names)
        self.example_inputs = {name: tensor for name, tensor in inputs.items() if name not in unchanged}
        self.dynamic_axes: Dict[str, Sequence[Optional[str]]] = dict.fromkeys(entries, axes)
        if noise is not None:
            self.dynamic_axes["noise"] = (None, *axes)
        self.input_names = list(self.example_inputs)

    def varied(self, inputs: Dict[str, Tensor], generator: torch.Generator) -> Dict[str, Tensor]:
        """Another state, some way into training, and a learning rate that moves it by some hundredths.

        Where an optimizer's averages are zero, as at the start, it makes much of the rounding of small gradients.
        """
        other = {"lr": torch.full_like(inputs["lr"], 0.01), "step_count": torch.full_like(inputs["step_count"], 7.0)}
        for name in self.state_names:
            if name in other:
                continue
            draw = torch.randn(inputs[name].shape, generator=generator, dtype=torch.float64).to(inputs[name].dtype)
            if name in self.source.parameter_names:
                other[name] = inputs[name] + 0.1 * draw
            elif name.startswith(("square_avg.", "exp_avg_sq.")):  # positive, and no less than the square of the average
                other[name] = 0.1 + 0.01 * draw.abs()
            else:
                other[name] = 0.01 * draw
        return {**inputs, **other}

    def forward(self, **inputs: Tensor) -> Dict[str, Tensor]:
        """The new state and the metrics."""
        step = self.source
        given = {**_named(step, step.state()), **inputs}
        names = step.parameter_names
        params = [given[name].detach().requires_grad_() for name in names]
        slots = {slot: [given[f"{slot}.{name}"] for name in names] for slot in step.optimizer.slots}
        state = TrainState(params, slots, given["step_count"])
        rollout = Rollout(**{entry: inputs[entry] for entry in Rollout._fields if entry in inputs})
        new_state, metrics = step.pure(state, rollout, inputs["lr"], inputs.get("noise"))
        old, new = _named(step, state), _named(step, new_state)
        changed = {f"{NEW}{name}": new[name].detach() for name in new if new[name] is not old[name]}
        return {**changed, **{name: value for name, value in metrics._asdict().items() if value is not None}}


class ActingOutputs(NamedTuple):
    """Outputs of :class:`ActingPolicy`."""

    action: Tensor
    log_prob: Tensor
    state_value: Tensor
    greedy_action: Tensor
    greedy_log_prob: Tensor


class _Acting(SampledPolicy):
    def forward(self, observation: Tensor, noise: Tensor) -> ActingOutputs:  # type: ignore[override]
        params = self.actor_network(observation)
        greedy_action = self.distribution.mode(params)
        greedy_log_prob = self.distribution.log_prob(params, greedy_action)
        return ActingOutputs(*super().forward(observation, noise), greedy_action, greedy_log_prob)


class ActingPolicy(InputsByName):
    """The policy of a loss with parameters for inputs: from observation and noise to an action, and the greedy one.

    Args:
        loss: whose networks these are.
        parameter_names: of the parameters that are inputs; the others are constants.
        observation: an example, ``[N, ...]``.

    Attributes:
        example_inputs, dynamic_axes: as of :class:`TrainStepGraph`.

    Raises:
        ExportError: the distribution has no noise to be given.
    """

    source: SampledPolicy

    def __init__(self, loss: A2CLoss, parameter_names: Sequence[str], observation: Tensor) -> None:
        if loss.distribution.noise_kind is None:
            raise ExportError(
                f"ActingPolicy cannot be exported: {type(loss.distribution).__name__} draws its own random numbers, which have to be an"
                " input. Use one of a2c_compiled.distributions that has a noise_kind"
            )
        policy = _Acting(loss.actor_network, loss.critic_network, loss.distribution)
        own = dict(policy.named_parameters())
        params = {name: own[name].detach().clone() for name in own if name in parameter_names}
        with torch.no_grad():
            noise = loss.distribution.noise(loss.actor_network(observation))
        super().__init__(policy, [*params, "observation", "noise"])
        self.example_inputs = {**params, "observation": observation, "noise": noise}
        self.dynamic_axes = {"observation": ("N",), "noise": ("N",)}
        self._places = {place: name for place, name in parameter_places(policy).items() if name in params}

    def forward(self, **inputs: Tensor) -> Dict[str, Tensor]:
        """The fields of :class:`ActingOutputs`."""
        placed = {place: inputs[name] for place, name in self._places.items()}
        arguments = inputs["observation"], inputs["noise"]
        outputs = torch.func.functional_call(self.source, placed, arguments, tie_weights=False)
        return outputs._asdict()


def export_train_step(step: TrainStep, example_rollout: Rollout, path: Union[str, Path], opset: int = OLDEST_OPSET) -> Path:
    """Write the update as an ONNX file, and beside it all that learning needs where there is no torch.

    >>> export_train_step(step, rollout, "train_step.onnx")
    >>> learner = runtime.Learner.load("train_step.onnx")  # numpy and onnxruntime alone, from here on
    >>> learner.act(observation), learner.step({"observation": ..., "action": ..., ...})

    ``train_step.onnx`` is a :class:`TrainStepGraph`, ``train_step.policy.onnx`` an :class:`ActingPolicy`, ``train_step.state.npz`` the
    state of ``step`` and its learning rate, and ``runtime.py`` a copy of :mod:`a2c_compiled.export.on_device.runtime`. Steps and
    environments may be of any number, 1 included.

    Args:
        step: with the parameters and the optimizer state to start from; eager or compiled.
        example_rollout: ``[T, N, ...]``, real data, for which T and N are at least 2.
        path: of the first file, ending in ``.onnx``.
        opset: as in :func:`~a2c_compiled.export.export_onnx`.

    Returns:
        ``path``.

    Raises:
        TypeError, ValueError: an argument is unfit; the message names it.
        ExportError: the update cannot be exported; the message says what stands in the way.
    """
    if not isinstance(step, TrainStep):
        raise TypeError(f"step: expected a TrainStep, got {type(step).__name__}")
    if not isinstance(example_rollout, Rollout):
        raise TypeError(f"example_rollout: expected a Rollout, got {type(example_rollout).__name__}")
    if not isinstance(example_rollout.observation, torch.Tensor):
        raise TypeError(
            "example_rollout: expected an observation that is one tensor, which graphs take, got"
            f" {type(example_rollout.observation).__name__}"
        )
    path = Path(path)
    if path.suffix != ".onnx":
        raise ValueError(f"path: expected a name ending in .onnx, got {path}")
    step = copy.deepcopy(step).cpu()  # where exported files are checked
    rollout = Rollout(*(None if entry is None else entry.cpu() for entry in example_rollout))  # type: ignore[arg-type]
    update = TrainStepGraph(step, rollout)
    acting = ActingPolicy(step.loss, update.state_names, rollout.observation.flatten(0, 1))
    with written_together(path.parent) as folder:
        export_onnx(update, update.example_inputs, folder / path.name, update.dynamic_axes, opset)
        export_onnx(acting, acting.example_inputs, acting_path(folder / path.name), acting.dynamic_axes, opset)
        state = {name: update.example_inputs[name].numpy() for name in update.state_names}
        np.savez(folder / f"{path.stem}.state.npz", allow_pickle=False, **state, lr=step.lr.double().numpy())
        shutil.copy(RUNTIME, folder)
    for written in (path, acting_path(path)):
        remove_unused_weights(written)
    return path


def acting_path(path: Path) -> Path:
    """Where the policy of an exported training step is."""
    return path.with_suffix(".policy.onnx")


def _named(step: TrainStep, state: TrainState) -> Dict[str, Tensor]:
    """A state's tensors by name."""
    named = dict(zip(step.parameter_names, state.params, strict=True))
    for slot, tensors in state.slots.items():
        named |= {f"{slot}.{name}": tensor for name, tensor in zip(step.parameter_names, tensors, strict=True)}
    return {**named, "step_count": state.step}


@contextmanager
def _buffers_left_alone(module: nn.Module) -> Iterator[None]:
    """Put back what a call in the block writes into the buffers of ``module``, and raise ExportError if it writes any."""
    kept = [
        (f"{path}.{name}".lstrip("."), owner, name, buffer, buffer.clone())
        for path, owner in module.named_modules()
        for name, buffer in owner._buffers.items()
        if buffer is not None
    ]
    try:
        yield
    finally:
        written = []
        for path, owner, name, buffer, before in kept:
            if owner._buffers[name] is not buffer or not torch.equal(buffer, before):
                written.append(path)
                buffer.data = before
                owner._buffers[name] = buffer
    if written:
        raise ExportError(
            f"TrainStepGraph cannot be exported: a network writes its buffer {written[0]}, which a graph cannot keep. Call .eval() on that"
            " module if it then leaves the buffer alone, as nn.BatchNorm does, or do without: nn.LayerNorm and nn.GroupNorm keep no"
            " statistics"
        )
