"""Whole rollouts as one graph, where environments are written in torch."""

from typing import Any, Callable, List, Optional, Tuple

import torch
from torch import Tensor
from torch._higher_order_ops.scan import scan

from a2c_compiled._compilation import compiled
from a2c_compiled.losses import A2CLoss
from a2c_compiled.training.acting import act, reads_state_value
from a2c_compiled.training.environments import EnvironmentState, TensorEnvironments
from a2c_compiled.training.rollout import Rollout

Carry = List[Tensor]
"""Physics, steps and observation: where a step begins."""
Step = Callable[[A2CLoss, TensorEnvironments, Carry, Tensor], Tuple[Carry, List[Tensor]]]


class DeviceRollout:
    """Policy and environments over ``T`` steps without a return to the host.

    Eagerly it is a loop; compiled, one graph: on a CPU a scan over one compiled step, on a GPU the compiled steps in a CUDA graph.

    Args:
        envs: where to act.
        loss: whose policy acts.
        compile: compile it.
    """

    def __init__(self, envs: TensorEnvironments, loss: A2CLoss, compile: bool) -> None:
        self.envs = envs
        self.loss = loss
        self._run = _loop
        self._captured: Optional[_CapturedLoop] = None
        if compile and envs.device.type == "cuda":
            self._run = self._replay
        elif compile:
            self._run = compiled(_scan)

    def __call__(self, observation: Tensor, num_steps: int) -> Tuple[Tensor, Rollout]:
        """The observation after ``num_steps`` steps from ``observation``, and the steps."""
        state = self.envs.state
        assert state is not None, "the environments were reset to see the observation"
        carry, kept = self._run(self.loss, self.envs, [*state, observation], self.envs.draw(num_steps))
        self.envs.state = EnvironmentState(*carry[:2])
        present = iter(kept)
        *always, log_prob, state_value = (
            next(present) if wanted else None
            for wanted in (*[True] * 6, self.loss.reads_log_prob, reads_state_value(self.loss))
        )
        return carry[2], Rollout(*always, log_prob, state_value)

    def _replay(self, loss: A2CLoss, envs: TensorEnvironments, carry: Carry, noise: Tensor) -> Tuple[Carry, List[Tensor]]:
        if self._captured is None or self._captured.noise.shape != noise.shape:
            self._captured = _CapturedLoop(loss, envs, carry, noise)
        return self._captured(carry, noise)


def _step(loss: A2CLoss, envs: TensorEnvironments, carry: Carry, noise: Tensor) -> Tuple[Carry, List[Tensor]]:
    """Where the next step begins, and what is kept of this one."""
    physics, steps, observation = carry
    action, log_prob, state_value = act(loss, observation)
    state, step = envs.transition(EnvironmentState(physics, steps), action, noise)
    done = step.terminated | step.truncated
    kept = [observation, action, step.reward, step.final_observation, done, step.terminated, log_prob, state_value]
    return [*state, step.observation], [tensor for tensor in kept if tensor is not None]


def _loop(
    loss: A2CLoss, envs: TensorEnvironments, carry: Carry, noise: Tensor, step: Step = _step
) -> Tuple[Carry, List[Tensor]]:
    kept = []
    for draw in noise.unbind(0):
        carry, values = step(loss, envs, carry, draw)
        kept.append(values)
    return carry, [torch.stack(column) for column in zip(*kept, strict=True)]


def _scan(loss: A2CLoss, envs: TensorEnvironments, carry: Carry, noise: Tensor) -> Tuple[Carry, List[Tensor]]:
    """The loop as one operator: compiled in the time that one step takes, however many there are."""

    def body(carry: Carry, draw: Tensor) -> Any:
        after, kept = _step(loss, envs, carry, draw)
        # The operator takes no tensors that share memory; the copies are fused away.
        return [tensor.clone() for tensor in after], [tensor.clone() for tensor in kept]

    return scan(body, [tensor.clone() for tensor in carry], noise)


class _CapturedLoop:
    """Compiled steps in one CUDA graph, which reads the networks' parameters where they are."""

    def __init__(self, loss: A2CLoss, envs: TensorEnvironments, carry: Carry, noise: Tensor) -> None:
        self.noise = noise.clone()
        self._carry = [tensor.clone() for tensor in carry]
        step = compiled(_step)
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):  # compiled and warm before it is captured
            for _ in range(2):
                _loop(loss, envs, self._carry, self.noise[:1], step)
        torch.cuda.current_stream().wait_stream(aside)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._after, self._kept = _loop(loss, envs, self._carry, self.noise, step)

    def __call__(self, carry: Carry, noise: Tensor) -> Tuple[Carry, List[Tensor]]:
        for place, tensor in zip([*self._carry, self.noise], [*carry, noise], strict=True):
            place.copy_(tensor)
        self._graph.replay()
        return [tensor.clone() for tensor in self._after], [tensor.clone() for tensor in self._kept]
