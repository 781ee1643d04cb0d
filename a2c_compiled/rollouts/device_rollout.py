"""Whole rollouts as one graph, where environments are written in torch."""

from typing import Any, Callable, Dict, List, Optional, Tuple

import torch
from torch import Tensor

from a2c_compiled._torch_internals import scan_operator
from a2c_compiled.environments import EnvironmentState, TensorEnvironments
from a2c_compiled.losses import A2CLoss
from a2c_compiled.rollouts.acting import act
from a2c_compiled.update.compilation import compiled
from a2c_compiled.update.rollout import Rollout

Carry = List[Any]
"""Physics, steps and observation: where a step begins."""
Kept = Dict[str, Tensor]
"""What a rollout has of a step, or of all of them."""

Step = Callable[[A2CLoss, TensorEnvironments, Carry, Tensor], Tuple[Carry, Kept]]


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
        self._run: Callable[..., Tuple[Carry, Kept]] = _loop
        self._captured: Optional[_CapturedLoop] = None
        if compile and envs.device.type == "cuda":
            self._run = self._replay
        elif compile:
            self._run = _compiled_scan()

    def __call__(self, observation: Tensor, num_steps: int) -> Tuple[Tensor, Rollout]:
        """The observation after ``num_steps`` steps from ``observation``, and the steps."""
        state = self.envs.state
        assert state is not None, "the environments were reset to see the observation"
        carry, kept = self._run(self.loss, self.envs, [*state, observation], self.envs.draw(num_steps))
        self.envs.state = EnvironmentState(*carry[:2])
        return carry[2], Rollout(**kept)

    def _replay(self, loss: A2CLoss, envs: TensorEnvironments, carry: Carry, noise: Tensor) -> Tuple[Carry, Kept]:
        if self._captured is None or self._captured.noise.shape != noise.shape:
            self._captured = _CapturedLoop(loss, envs, carry, noise)
        return self._captured(carry, noise)


def _step(loss: A2CLoss, envs: TensorEnvironments, carry: Carry, noise: Tensor) -> Tuple[Carry, Kept]:
    """Where the next step begins, and what is kept of this one."""
    physics, steps, observation = carry
    action, log_prob, state_value = act(loss, observation)
    state, step = envs.transition(EnvironmentState(physics, steps), action, noise)
    done = step.terminated | step.truncated
    kept = {
        "observation": observation,
        "action": action,
        "reward": step.reward,
        "next_observation": step.final_observation,
        "done": done,
        "terminated": step.terminated,
        "log_prob": log_prob,
        "state_value": state_value,
    }
    return [*state, step.observation], {name: tensor for name, tensor in kept.items() if tensor is not None}


def _loop(loss: A2CLoss, envs: TensorEnvironments, carry: Carry, noise: Tensor, step: Step = _step) -> Tuple[Carry, Kept]:
    rows = []
    for draw in noise.unbind(0):
        carry, values = step(loss, envs, carry, draw)
        rows.append(values)
    return carry, {name: torch.stack([row[name] for row in rows]) for name in rows[0]}


def _compiled_scan() -> Callable[..., Tuple[Carry, Kept]]:
    """The loop as one operator: compiled in the time that one step takes, however many there are."""
    operator = scan_operator()
    if operator is None:
        return compiled(_loop)
    scan, options = operator

    def scanned(loss: A2CLoss, envs: TensorEnvironments, carry: Carry, noise: Tensor) -> Tuple[Carry, Kept]:
        def body(carry: Carry, draw: Tensor) -> Any:
            after, kept = _step(loss, envs, carry, draw)
            # The operator takes no tensors that share memory; the copies are fused away.
            return [tensor.clone() for tensor in after], {name: tensor.clone() for name, tensor in kept.items()}

        return scan(body, [tensor.clone() for tensor in carry], noise)

    return compiled(scanned, **options)


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

    def __call__(self, carry: Carry, noise: Tensor) -> Tuple[Carry, Kept]:
        for place, tensor in zip([*self._carry, self.noise], [*carry, noise], strict=True):
            place.copy_(tensor)
        self._graph.replay()
        return [tensor.clone() for tensor in self._after], {name: tensor.clone() for name, tensor in self._kept.items()}
