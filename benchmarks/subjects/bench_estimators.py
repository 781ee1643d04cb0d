"""Measures the value estimators: forward without gradients, as in training, and forward plus backward.

All contenders (implementations of an estimator, see :mod:`a2c_compiled.benchmarks.measure.harness`) have the same data. The data is
prepared in the format of each contender before timing.
"""

from functools import partial
from typing import Any, Callable, Dict, List, NamedTuple, Tuple

import torch
from torch import Tensor, nn

from a2c_compiled import functional as F
from a2c_compiled.benchmarks.contenders import estimator_peers
from a2c_compiled.benchmarks.contenders.modes import Modes, widened
from a2c_compiled.benchmarks.measure import data
from a2c_compiled.benchmarks.measure.data import GAMMA, LMBDA
from a2c_compiled.benchmarks.measure.harness import COPY, Case, PreparedCase, as_tensors, copy_contender
from a2c_compiled.benchmarks.measure.shapes import Plan, Shape
from a2c_compiled.kernels import scan_forms
from a2c_compiled.kernels.scan_forms import Form

TIME_DIM = {"[T, N]": -2, "[N, T]": -1}


class _Estimator(nn.Module):
    """Base of the modules that call a function of :mod:`a2c_compiled.functional`, so that every mode can run it."""

    def __init__(self, time_dim: int) -> None:
        super().__init__()
        self.gamma, self.lmbda, self.time_dim = GAMMA, LMBDA, time_dim


class _Gae(_Estimator):
    def forward(
        self, state_value: Tensor, next_state_value: Tensor, reward: Tensor, done: Tensor, terminated: Tensor
    ) -> Tuple[Tensor, Tensor]:
        result = F.generalized_advantage_estimate(
            self.gamma, self.lmbda, state_value, next_state_value, reward, done, terminated, self.time_dim
        )
        return result.advantage, result.value_target


class _TDLambda(_Estimator):
    def forward(self, next_state_value: Tensor, reward: Tensor, done: Tensor, terminated: Tensor) -> Tensor:
        return F.td_lambda_return_estimate(
            self.gamma, self.lmbda, next_state_value, reward, done, terminated, None, self.time_dim
        )


class _VTrace(_Estimator):
    def forward(
        self,
        log_pi: Tensor,
        log_mu: Tensor,
        state_value: Tensor,
        next_state_value: Tensor,
        reward: Tensor,
        done: Tensor,
        terminated: Tensor,
    ) -> Tuple[Tensor, Tensor]:
        result = F.vtrace_advantage_estimate(
            self.gamma, log_pi, log_mu, state_value, next_state_value, reward, done, terminated, 1.0, 1.0, self.time_dim
        )
        return result.advantage, result.value_target


class _Reward2Go(_Estimator):
    def forward(self, reward: Tensor, done: Tensor) -> Tensor:
        return F.reward2go(reward, done, self.gamma, self.time_dim)


class Estimator(NamedTuple):
    """An estimator to measure.

    Attributes:
        name: name of the estimator.
        module: creates the module for a time dimension.
        forward: form of the forward kernel, its recurrence and operands, see :mod:`a2c_compiled.kernels.scan_forms`.
        backward: form of the backward kernel.
        sources: names of the inputs whose gradients are computed.
    """

    name: str
    module: Callable[[int], nn.Module]
    forward: Form
    backward: Form
    sources: Tuple[str, ...]

    def inputs(self, steps: Dict[str, Tensor]) -> Dict[str, Tensor]:
        """Returns the entries of ``steps`` that the estimator reads, in the order of its arguments."""
        return {name: steps[name] for name in (*self.forward.values, *self.forward.flags) if name in steps}

    def traffic(self, elements: int, direction: str) -> int:
        """Returns the bytes that any implementation must move in float32.

        Per element, these are 4 bytes for each value read or written, and 1 for each flag read.

        Args:
            elements: steps times environments.
            direction: "forward" or "forward+backward".
        """
        size = 4 * len(self.forward.values + self.forward.outputs) + len(self.forward.flags)
        if direction != "forward":
            size += 4 * len(self.backward.values + self.sources) + len(self.backward.flags)
        return size * elements


_VALUES = ("state_value", "next_state_value")
GAE = Estimator("GAE", _Gae, scan_forms.GAE, scan_forms.GAE_BACKWARD, _VALUES)
ESTIMATORS = (
    GAE,
    Estimator("TD(lambda)", _TDLambda, scan_forms.TD_LAMBDA, scan_forms.TD_LAMBDA_BACKWARD, ("next_state_value",)),
    Estimator("V-trace", _VTrace, scan_forms.VTRACE, scan_forms.VTRACE_BACKWARD, _VALUES),
    Estimator("reward-to-go", _Reward2Go, scan_forms.REWARD2GO, scan_forms.REWARD2GO_BACKWARD, ("reward",)),
)


def cases(plan: Plan) -> List[Case]:
    """Returns the cases of every estimator, layout and direction. Forward GAE over ``[T, N]`` has all shapes, the others few."""
    listed: List[Case] = []
    for estimator in ESTIMATORS:
        for layout in plan.layouts:
            modes = modes_of(estimator, TIME_DIM[layout], plan)
            for direction in ("forward", "forward+backward"):
                has_all_shapes = estimator is GAE and layout == "[T, N]" and direction == "forward"
                shapes = plan.estimators if has_all_shapes else plan.others
                listed += [_case(estimator, modes, layout, direction, shape, plan) for shape in shapes]
    return listed


def sweep(plan: Plan) -> List[Case]:
    """Returns the cases of the figures: forward GAE over ``[T, N]``, for growing numbers of steps and of environments."""
    modes = modes_of(GAE, TIME_DIM["[T, N]"], plan)
    shapes = sorted(set(plan.sweeps) - set(plan.estimators))
    return [_case(GAE, modes, "[T, N]", "forward", shape, plan) for shape in shapes]


def modes_of(estimator: Estimator, time_dim: int, plan: Plan) -> Modes:
    """Returns ``estimator`` in every mode.

    Args:
        estimator: the estimator.
        time_dim: -2 for ``[T, N]``, -1 for ``[N, T]``.
        plan: its device is the device of the example inputs.
    """
    example = estimator.inputs(data.steps((3, 5), plan.device))
    return Modes(estimator.module(time_dim), example, ("T", "N") if time_dim == -2 else ("N", "T"), dynamic=True)


def _case(estimator: Estimator, modes: Modes, layout: str, direction: str, shape: Shape, plan: Plan) -> Case:
    traffic = estimator.traffic(shape[0] * shape[1], direction)

    def prepare() -> PreparedCase:
        steps = data.steps(shape, plan.device)
        cotangents = None if direction == "forward" else data.cotangents(steps["reward"], len(estimator.forward.outputs))
        time_last = layout == "[N, T]"
        peers = estimator_peers.estimator_peers(
            estimator_peers.Computation(estimator.name, estimator.sources, steps, cotangents, time_last), plan
        )
        if time_last:
            steps = {name: step.t().contiguous() for name, step in steps.items()}
            cotangents = cotangents and [cotangent.t().contiguous() for cotangent in cotangents]
        inputs, finish = estimator.inputs(steps), None
        wide = widened(inputs)
        if cotangents is not None:
            finish = partial(gradients, _sources(estimator, inputs), cotangents)
            expected = gradients(_sources(estimator, wide), [part.double() for part in cotangents], modes.oracle()(**wide))
        else:
            expected = as_tensors(modes.oracle()(**wide))
        ours = modes.contenders(inputs, plan, finish, loop_steps=shape[1])
        return PreparedCase(expected, {COPY: copy_contender(traffic, plan.device), **ours, **peers})

    return Case(estimator.name, direction, layout, shape, prepare, traffic)


def _sources(estimator: Estimator, inputs: Dict[str, Tensor]) -> List[Tensor]:
    """Returns the inputs whose gradients are computed, after marking them with ``requires_grad_``."""
    return [inputs[name].requires_grad_() for name in estimator.sources]


def gradients(sources: List[Tensor], cotangents: List[Tensor], result: Any) -> List[Tensor]:
    """Returns the gradients of ``sources``, for the gradients ``cotangents`` of the tensors in ``result``."""
    return list(torch.autograd.grad(as_tensors(result), sources, cotangents))
