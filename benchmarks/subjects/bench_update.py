"""Measures one A2C update: generalized advantage estimation, loss, backward, gradient clipping and RMSprop.

All contenders start from the same weights and use the same rollout. The check compares the parameters after the first update, and the
square roots of RMSprop's averages, which show the absolute values of the clipped gradients.
"""

import copy
import tempfile
from pathlib import Path
from typing import Any, Callable, Dict, List

import torch
from torch import Tensor

from a2c_compiled import A2CLoss, Rollout, TrainStep, compile_options
from a2c_compiled._extras import needs
from a2c_compiled.benchmarks.contenders import update_peers
from a2c_compiled.benchmarks.contenders.loops import flat, loop_contender
from a2c_compiled.benchmarks.contenders.modes import AOT, COMPILED, EAGER, GRAPH, RUNTIME
from a2c_compiled.benchmarks.contenders.products import products
from a2c_compiled.benchmarks.measure import cuda, data
from a2c_compiled.benchmarks.measure.data import LEARNING_RATE, MAX_GRAD_NORM
from a2c_compiled.benchmarks.measure.harness import OURS, PRODUCTS, Case, Contender, Make, PreparedCase, Result
from a2c_compiled.benchmarks.measure.shapes import Plan, Shape
from a2c_compiled.export import TrainStepGraph, export_aot, export_train_step
from a2c_compiled.export.formats.aot import load_aot
from a2c_compiled.export.on_device.runtime import Learner
from a2c_compiled.export.tracing.call import NEW

with needs(__name__, "train", "export"):
    import numpy as np


def cases(plan: Plan) -> List[Case]:
    """Returns one case per shape."""
    return [_case(shape, plan) for shape in plan.updates]


def _case(shape: Shape, plan: Plan) -> Case:
    def prepare() -> PreparedCase:
        rollout = data.rollout(shape, plan.device)
        contenders: Dict[str, Make] = {EAGER: lambda: timed(make_step(data.loss(plan.device), False), rollout)}
        if plan.compiling:
            contenders[COMPILED] = lambda: timed(make_step(data.loss(plan.device), True), rollout)
            contenders[f"{OURS} loss, own loop"] = lambda: _own_loop(rollout, plan, {})
            contenders[f"{OURS} loss, own loop, options"] = lambda: _own_loop(rollout, plan, compile_options())
            if plan.device.type == "cuda":
                contenders[GRAPH] = lambda: _graph(make_step(data.loss(plan.device), True), rollout)
        if plan.device.type == "cpu":
            contenders[PRODUCTS] = lambda: products(make_step(data.loss(plan.device), False), rollout)
            contenders[RUNTIME] = lambda: _runtime(make_step(data.loss(plan.device), False), rollout)
            if plan.compiling:
                contenders[AOT] = lambda: _aot(make_step(data.loss(plan.device), False), rollout)
        return PreparedCase(expected(rollout, plan), {**contenders, **update_peers.updates(rollout, shape, plan)})

    return Case("A2C update", "whole", "[T, N]", shape, prepare, tolerance=1e-3)


def expected(rollout: Rollout, plan: Plan, make_loss: Callable[[torch.device], A2CLoss] = data.loss) -> Result:
    """Returns the parameters and the roots of RMSprop's averages after the first update, computed eagerly in float64.

    Args:
        rollout: the data, ``[T, N]``.
        plan: its device is the device of the loss.
        make_loss: makes the loss on a device.
    """
    parts: Any = [part.double() if part is not None and part.is_floating_point() else part for part in rollout]
    oracle = make_step(make_loss(plan.device).double(), compile=False)
    oracle(Rollout(*parts))
    return state(oracle)


def make_step(loss: A2CLoss, compile: bool) -> TrainStep:
    """Returns the training step of every contender of this library."""
    return TrainStep(loss, lr=LEARNING_RATE, max_grad_norm=MAX_GRAD_NORM, compile=compile, dynamic=False)


def timed(step: TrainStep, rollout: Rollout) -> Contender:
    """Creates the contender that calls ``step``."""
    return Contender(lambda: step(rollout), lambda _: state(step))


def _runtime(step: TrainStep, rollout: Rollout) -> Contender:
    """Creates the contender that runs the exported training step in ``runtime.py`` on onnxruntime: numpy in and out."""
    with tempfile.TemporaryDirectory() as folder:
        path = export_train_step(step, data.rollout((3, 4), torch.device("cpu")), Path(folder) / "train_step.onnx")
        learner = Learner.load(path, provider="cpu", threads=torch.get_num_threads())
    arrays = {name: getattr(rollout, name).numpy() for name in learner.rollout_entries}

    def state_after(_: Any) -> Result:
        with tempfile.TemporaryDirectory() as folder:
            learner.save_state(Path(folder) / "state.npz")
            saved = dict(np.load(Path(folder) / "state.npz"))
        return _named_state(step, {name: torch.from_numpy(array) for name, array in saved.items() if array.dtype.kind == "f"})

    return Contender(lambda: learner.step(arrays), state_after)


def _aot(step: TrainStep, rollout: Rollout) -> Contender:
    """Creates the contender that AOTInductor compiled ahead of time. Each call takes the state that the previous call returned."""
    example = TrainStepGraph(step, data.rollout((3, 4), torch.device("cpu")))
    with tempfile.TemporaryDirectory() as folder:
        path = export_aot(example, example.example_inputs, Path(folder) / "train_step.aot.pt2", example.dynamic_axes)
        program = load_aot(path)
    inputs = {name: tensor for name, tensor in example.example_inputs.items() if name not in Rollout._fields}
    inputs |= {name: tensor for name, tensor in rollout._asdict().items() if name in example.input_names}

    def update() -> None:
        outputs = program(**inputs)
        inputs.update({name: outputs[f"{NEW}{name}"] for name in example.state_names})

    return Contender(update, lambda _: _named_state(step, inputs))


def _named_state(step: TrainStep, tensors: Dict[str, Tensor]) -> Result:
    """Returns the result of :func:`state` from tensors by name."""
    names = step.parameter_names
    return flat([tensors[name] for name in names], [tensors[f"square_avg.{name}"] for name in names])


def _graph(step: TrainStep, rollout: Rollout) -> Contender:
    """Creates the contender that replays a CUDA graph of ``step``. The state is reset after the warm-up of the capture."""
    start = copy.deepcopy(step.state_dict())
    return Contender(cuda.captured(lambda: step(rollout), lambda: step.load_state_dict(start)), lambda _: state(step))


def state(step: TrainStep) -> Result:
    """Returns the parameters and the roots of RMSprop's averages."""
    state = step.state()
    return flat(state.params, state.slots["square_avg"])


def _own_loop(rollout: Rollout, plan: Plan, options: Dict[str, Any]) -> Contender:
    """Creates a plain training loop around the compiled loss. ``options``: the options of ``torch.compile``."""
    loss = data.loss(plan.device)
    compiled = torch.compile(loss, fullgraph=True, dynamic=False, options=options)

    def losses() -> List[Tensor]:
        parts = compiled(*rollout[:6])
        return [parts.loss_objective, parts.loss_critic, parts.loss_entropy]

    return loop_contender(losses, list(loss.parameters()))
