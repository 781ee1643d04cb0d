"""Runs a whole rollout as one graph, for environments written in torch."""

from typing import Any, Callable, Dict, List, Optional, Tuple

import torch
from torch import Tensor

from a2c_compiled._environment_action import EnvironmentAction
from a2c_compiled._torch_internals import scan_operator
from a2c_compiled.environments import EnvironmentState, EnvironmentStep, TensorEnvironments
from a2c_compiled.losses import A2CLoss
from a2c_compiled.rollouts.acting import act
from a2c_compiled.rollouts.hidden_state import HiddenState, advanced, with_hidden_states
from a2c_compiled.update.compilation import CompiledFunction
from a2c_compiled.update.rollout import Rollout

Carry = List[Any]
"""State at the beginning of a step: ``[physics, steps, observation]``, with ``N`` first in each shape.

Physics is the state of the simulation, steps the number of steps in the episode; see :class:`~a2c_compiled.environments.EnvironmentState`.
With recurrent networks, also ``hidden`` and ``start``, see :class:`~a2c_compiled.rollouts.hidden_state.HiddenState`.
"""
Fields = Dict[str, Tensor]
"""Fields of :class:`Rollout`, and hidden states, by name. Shapes: ``[N, ...]`` for one step, ``[T, N, ...]`` for all steps."""

Transition = Callable[[EnvironmentState, Tensor, Tensor], Tuple[EnvironmentState, EnvironmentStep]]
"""Takes one step with an action of the policy and noise, see :meth:`TensorEnvironments.transition`."""
Step = Callable[[A2CLoss, Transition, Carry, Tensor], Tuple[Carry, Fields]]


class DeviceRollout:
    """Steps policy and environments ``T`` times without copying data to the host.

    * Eager mode: a Python loop.
    * Compiled on a CPU: one graph that scans one compiled step over time.
    * Compiled on a GPU: ``T`` compiled steps, captured in one CUDA graph.

    Args:
        envs: environments written in torch. Call their ``reset`` before the first rollout.
        loss: loss whose actor network and distribution sample the actions.
        compile: whether to compile the rollout. False runs it in eager mode.
        environment_action: maps the actions of the policy to those of the environments; None: these are the same.
    """

    def __init__(
        self, envs: TensorEnvironments, loss: A2CLoss, compile: bool, environment_action: Optional[EnvironmentAction]
    ) -> None:
        self.envs = envs
        self.environment_action = environment_action
        self.loss = loss
        self._run: Callable[..., Tuple[Carry, Fields]] = _loop
        self._captured: Optional[_CapturedLoop] = None
        if compile and envs.device.type == "cuda":
            self._run = self._replay
        elif compile:
            self._run = _compiled_scan()

    def __call__(
        self, observation: Tensor, hidden_state: Optional[HiddenState], num_steps: int
    ) -> Tuple[Tensor, Optional[HiddenState], Rollout]:
        """Steps the environments ``num_steps`` times, from their current state.

        Args:
            observation: ``[N, ...]``: the current observation of the environments.
            hidden_state: the current hidden states of the networks, ``[N, H]`` and ``[N]``. None without recurrent networks.
            num_steps: ``T``, the number of steps.

        Returns:
            The observation after the last step, ``[N, ...]``, the hidden states after it, and the rollout, ``[T, N, ...]``.
        """
        state = self.envs.state
        assert state is not None, "expected reset() before the first rollout"
        carry = [*state, observation, *(hidden_state or ())]
        carry, fields = self._run(self.loss, self._transition, carry, self.envs.draw(num_steps))
        self.envs.state = EnvironmentState(*carry[:2])
        return carry[2], _hidden_state(carry), Rollout(**with_hidden_states(fields))

    def _transition(self, state: EnvironmentState, action: Tensor, noise: Tensor) -> Tuple[EnvironmentState, EnvironmentStep]:
        """Takes one step with an action of the policy."""
        if self.environment_action is not None:
            action = self.environment_action(action)
        return self.envs.transition(state, action, noise)

    def _replay(self, loss: A2CLoss, transition: Transition, carry: Carry, noise: Tensor) -> Tuple[Carry, Fields]:
        """Replays the CUDA graph. Captures it first if there is none for this number of steps."""
        if self._captured is None or self._captured.noise.shape != noise.shape:
            self._captured = _CapturedLoop(loss, transition, carry, noise)
        return self._captured(carry, noise)


def _step(loss: A2CLoss, transition: Transition, carry: Carry, noise: Tensor) -> Tuple[Carry, Fields]:
    """Takes one step. Returns the state at the beginning of the next step, and the fields of the rollout for this step."""
    physics, steps, observation = carry[:3]
    hidden_state = _hidden_state(carry)
    action, log_prob, state_value, hidden = act(loss, observation, None if hidden_state is None else hidden_state.hidden)
    state, step = transition(EnvironmentState(physics, steps), action, noise)
    done = step.terminated | step.truncated
    fields = {
        "observation": observation,
        "action": action,
        "reward": step.reward,
        "next_observation": step.final_observation,
        "done": done,
        "terminated": step.terminated,
        "log_prob": log_prob,
        "state_value": state_value,
    }
    hidden_state, hidden_fields = advanced(hidden_state, hidden, done)
    fields = {name: tensor for name, tensor in fields.items() if tensor is not None}
    return [*state, step.observation, *(hidden_state or ())], {**fields, **hidden_fields}


def _hidden_state(carry: Carry) -> Optional[HiddenState]:
    """Returns the hidden states in ``carry``. None without recurrent networks."""
    return HiddenState(*carry[3:]) if len(carry) > 3 else None


def _loop(loss: A2CLoss, transition: Transition, carry: Carry, noise: Tensor, step: Step = _step) -> Tuple[Carry, Fields]:
    """Takes one step for each entry of ``noise``, ``[T, N, noise_size]``. Returns the final state, and all fields of the rollout."""
    steps = []
    for step_noise in noise.unbind(0):
        carry, step_fields = step(loss, transition, carry, step_noise)
        steps.append(step_fields)
    return carry, {name: torch.stack([fields[name] for fields in steps]) for name in steps[0]}


def _compiled_scan() -> Callable[..., Tuple[Carry, Fields]]:
    """Compiles the loop with torch's scan operator, so that the compile time does not grow with the number of steps.

    If this version of torch lacks the operator, compiles the Python loop instead.
    """
    operator = scan_operator()
    if operator is None:
        return CompiledFunction(_loop)
    scan, options = operator

    def scanned(loss: A2CLoss, transition: Transition, carry: Carry, noise: Tensor) -> Tuple[Carry, Fields]:
        def body(carry: Carry, step_noise: Tensor) -> Any:
            next_carry, fields = _step(loss, transition, carry, step_noise)
            # The scan operator rejects tensors that share memory. The compiler fuses these copies away.
            return [tensor.clone() for tensor in next_carry], {name: tensor.clone() for name, tensor in fields.items()}

        return scan(body, [tensor.clone() for tensor in carry], noise)

    return CompiledFunction(scanned, eager=_loop, **options)


class _CapturedLoop:
    """``T`` compiled steps in one CUDA graph.

    The graph reads the parameters from the networks' memory, so each replay uses the current parameters.
    """

    def __init__(self, loss: A2CLoss, transition: Transition, carry: Carry, noise: Tensor) -> None:
        self.noise = noise.clone()
        self._carry = [tensor.clone() for tensor in carry]
        step = CompiledFunction(_step)
        side_stream = torch.cuda.Stream()
        side_stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side_stream):  # compile and warm up before the capture
            for _ in range(2):
                _loop(loss, transition, self._carry, self.noise[:1], step)
        torch.cuda.current_stream().wait_stream(side_stream)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._next_carry, self._fields = _loop(loss, transition, self._carry, self.noise, step)

    def __call__(self, carry: Carry, noise: Tensor) -> Tuple[Carry, Fields]:
        """Copies the inputs into the graph's memory, replays the graph, and copies the outputs, which the next replay overwrites."""
        for graph_input, tensor in zip([*self._carry, self.noise], [*carry, noise], strict=True):
            graph_input.copy_(tensor)
        self._graph.replay()
        next_carry = [tensor.clone() for tensor in self._next_carry]
        return next_carry, {name: tensor.clone() for name, tensor in self._fields.items()}
