"""The training step as a graph from tensors to tensors."""

from contextlib import contextmanager
from typing import Any, Dict, Iterator, Optional, Sequence

import torch
from torch import Tensor, nn

from a2c_compiled.export.graphs.examples import leading_axes, read_entries
from a2c_compiled.export.tracing.call import NEW, InputsByName
from a2c_compiled.export.tracing.errors import ExportError
from a2c_compiled.update import Rollout, TrainState, TrainStep
from a2c_compiled.update.rollout import mapped


class TrainStepGraph(InputsByName):
    """One training step as a graph: maps the state, the learning rate and a rollout to the new state and the metrics.

    Inputs:

    - The state: each parameter under its name in the loss, the optimizer state under ``<slot>.<parameter>``, and ``step_count``. State that
      the training step does not change is a constant of the graph, not an input.
    - ``lr``: learning rate, a scalar in the dtype of the parameters.
    - The rollout entries that the loss reads, in the layout that its value estimator expects. An observation that is a tuple has an input
      for each tensor: ``observation.0``, ``observation.1``, ...
    - ``noise``, ``[samples, T, N, ...]``: only if the loss estimates the entropy from samples.

    Outputs: ``new.<name>`` for each state input, and the metrics of :class:`~a2c_compiled.update.TrainMetrics` that are not None.

    Args:
        step: training step; its method ``pure`` becomes the graph.
        example: example rollout, in the layout that the value estimator expects and the dtypes that the loss reads. The constructor runs
            the training step once on this rollout, without changing ``step``.

    Attributes:
        example_inputs: tensors by input name, among them copies of the state of ``step``. An observation may be a tuple of tensors.
        dynamic_axes: names of the dimensions that may vary in size, by the names in ``example_inputs``. The number of steps is fixed if
            the networks have a recurrent layer whose cell is not :class:`~a2c_compiled.recurrent.MinGRU`.
        state_names: names of the inputs for which there is an output ``new.<name>``.

    Raises:
        ValueError: the rollout lacks an entry that the loss needs; or the parameters are neither float32 nor float64 (in half precision,
            the squared gradients that optimizers keep underflow to 0); or ``step`` has minibatches and estimates the entropy from samples.
        TypeError: an entry of ``example`` is not a tensor; an observation is neither a tensor nor a tuple of tensors.
        ExportError: a network writes to its own buffers, such as running statistics.
    """

    source: TrainStep

    def __init__(self, step: TrainStep, example: Rollout) -> None:
        state = _state_by_name(step, step.state())
        for name in step.parameter_names:
            if state[name].dtype not in (torch.float32, torch.float64):
                raise ValueError(f"step: expected parameters of float32 or float64, got {state[name].dtype} for {name}")
        lr = step.lr.to(step.state().params[0].dtype)
        entries, axes = read_entries(step.loss, example), leading_axes(step.loss, example)
        inputs: Dict[str, Any] = {
            name: mapped(lambda tensor: tensor.detach().clone(), entry)
            for name, entry in {**state, "lr": lr, **entries}.items()
        }
        super().__init__(step, list(inputs))
        with _buffers_restored(step.loss):
            noise = step.loss.entropy_noise(example.observation)
            if noise is not None:
                if step.minibatches > 1:
                    raise ValueError(
                        f"step: expected minibatches=1 if the loss estimates an entropy from samples, got {step.minibatches}"
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
        """Returns ``inputs`` with another state, as after some training, and with a learning rate of 0.01.

        Most reference outputs are computed for this state. At the start of training, the running averages of an optimizer are zero, so
        the training step amplifies the rounding errors of small gradients.

        Args:
            inputs: tensors by input name, in the shapes and dtypes of ``example_inputs``.
            generator: source of random numbers.

        Returns:
            Tensors of the same names, shapes and dtypes.
        """
        other = {"lr": torch.full_like(inputs["lr"], 0.01), "step_count": torch.full_like(inputs["step_count"], 7.0)}
        for name in self.state_names:
            if name in other:
                continue
            draw = torch.randn(inputs[name].shape, generator=generator, dtype=torch.float64).to(inputs[name].dtype)
            if name in self.source.parameter_names:
                other[name] = inputs[name] + 0.1 * draw
            elif name.startswith(("square_avg.", "exp_avg_sq.")):
                # A second moment is positive and at least the square of the first moment.
                other[name] = 0.1 + 0.01 * draw.abs()
            else:
                other[name] = 0.01 * draw
        return {**inputs, **other}

    def forward(self, **inputs: Tensor) -> Dict[str, Tensor]:
        """Computes the new state and the metrics.

        Args:
            inputs: tensors by input name, in the shapes and dtypes of ``example_inputs``. Dimensions in ``dynamic_axes`` may have other
                sizes.

        Returns:
            By name: ``new.<name>`` for each changed tensor of the state, in its shape and dtype, and the metrics, which are scalars.
        """
        step = self.source
        tensors_by_name = {**_state_by_name(step, step.state()), **inputs}
        names = step.parameter_names
        params = [tensors_by_name[name].detach().requires_grad_() for name in names]
        slots = {slot: [tensors_by_name[f"{slot}.{name}"] for name in names] for slot in step.optimizer.slots}
        state = TrainState(params, slots, tensors_by_name["step_count"])
        rollout = Rollout(**{entry: inputs[entry] for entry in Rollout._fields if entry in inputs})
        new_state, metrics = step.pure(state, rollout, inputs["lr"], inputs.get("noise"))
        old, new = _state_by_name(step, state), _state_by_name(step, new_state)
        changed = {f"{NEW}{name}": new[name].detach() for name in new if new[name] is not old[name]}
        return {**changed, **{name: value for name, value in metrics._asdict().items() if value is not None}}


def _state_by_name(step: TrainStep, state: TrainState) -> Dict[str, Tensor]:
    """Returns the tensors of a state under the names that :class:`TrainStepGraph` lists."""
    named = dict(zip(step.parameter_names, state.params, strict=True))
    for slot, tensors in state.slots.items():
        named |= {f"{slot}.{name}": tensor for name, tensor in zip(step.parameter_names, tensors, strict=True)}
    return {**named, "step_count": state.step}


@contextmanager
def _buffers_restored(module: nn.Module) -> Iterator[None]:
    """Restores the buffers of ``module`` after the block, and raises ExportError if the block wrote to any of them."""
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
            f"TrainStepGraph cannot be exported: a network writes to its buffer {written[0]}, which a graph cannot update. Call .eval() on"
            " the module that has this buffer, if that stops the writes, as for nn.BatchNorm and spectral_norm, or replace it:"
            " nn.LayerNorm and nn.GroupNorm keep no statistics"
        )
