"""The A2C update itself as a graph of tensors to tensors."""

from contextlib import contextmanager
from typing import Dict, Iterator, Optional, Sequence

import torch
from torch import Tensor, nn

from a2c_compiled.export.graphs.examples import leading_axes, read_entries
from a2c_compiled.export.tracing.call import NEW, InputsByName
from a2c_compiled.export.tracing.errors import ExportError
from a2c_compiled.update import Rollout, TrainState, TrainStep


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
