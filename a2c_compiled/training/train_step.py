"""One A2C update as one pure function, and the object that applies it."""

from typing import Any, Callable, Dict, List, NamedTuple, Optional, Tuple

import torch
from torch import Tensor, nn

from a2c_compiled._coefficients import NOT_NEGATIVE, CoefficientModule
from a2c_compiled._compilation import compiled
from a2c_compiled._parameters import parameter_places
from a2c_compiled.losses import A2CLoss
from a2c_compiled.training.optimizers import FunctionalOptimizer, Slots
from a2c_compiled.training.rollout import Rollout


class TrainMetrics(NamedTuple):
    """What one update reports: the losses' scalars, and the norm of the gradient before clipping."""

    loss_objective: Optional[Tensor]
    loss_critic: Optional[Tensor]
    entropy: Optional[Tensor]
    loss_entropy: Optional[Tensor]
    value_clip_fraction: Optional[Tensor]
    explained_variance: Optional[Tensor]
    kl_approx: Optional[Tensor]
    grad_norm: Tensor


class TrainState(NamedTuple):
    """All that an update changes, in the order of ``TrainStep.parameter_names``."""

    params: List[Tensor]
    slots: Slots
    step: Tensor


class TrainStep(CoefficientModule):
    """Forward, backward, gradient-norm clipping and optimizer in one call, eager or as one compiled graph.

    >>> step = TrainStep(loss, optimizer="rmsprop", lr=7e-4)
    >>> metrics = step(rollout)

    Calling it updates the parameters that ``loss`` holds. ``step.lr = 3e-4`` changes the learning rate without compiling again.
    Eagerly, torch's optimizers read the learning rate on the host, which waits for a GPU; compiled, nothing does.

    ``state_dict`` holds parameters, coefficients, optimizer state and learning rate under the names that they have in the loss.

    Args:
        loss: whose parameters learn; those that do not require grad when the step is made stay as they are.
        optimizer: ``"sgd"``, ``"rmsprop"``, ``"adam"`` or ``"adamw"``.
        lr: learning rate.
        max_grad_norm: largest 2-norm of the gradient of all parameters together; None does not clip.
        compile: run as one graph (``torch.compile(fullgraph=True)``); False runs eagerly.
        dynamic: as in ``torch.compile``: None compiles for the first shape and, when another comes, once more for all.
        options: of the optimizer, see :class:`~a2c_compiled.training.optimizers.FunctionalOptimizer`.

    Raises:
        TypeError: ``loss`` is no :class:`~a2c_compiled.A2CLoss`, or an option is unknown.
        ValueError: the optimizer is unknown, a number is out of range, the loss reduces to no scalar, or nothing in it learns.
    """

    lr: Tensor
    step_count: Tensor

    def __init__(
        self,
        loss: A2CLoss,
        optimizer: str = "rmsprop",
        lr: float = 7e-4,
        max_grad_norm: Optional[float] = 0.5,
        compile: bool = True,
        dynamic: Optional[bool] = None,
        **options: Any,
    ) -> None:
        super().__init__()
        if not isinstance(loss, A2CLoss):
            raise TypeError(f"loss: expected an A2CLoss, got {type(loss).__name__}")
        if loss.reduction == "none":
            raise ValueError("loss: expected reduction 'mean' or 'sum', which give scalars, got 'none'")
        self.register_coefficient("lr", lr, NOT_NEGATIVE, scalar=True)
        if max_grad_norm is not None and not max_grad_norm > 0:
            raise ValueError(f"max_grad_norm: expected a positive number or None, got {max_grad_norm}")
        self.loss = loss
        self.optimizer = FunctionalOptimizer(optimizer, **options)
        self.max_grad_norm = max_grad_norm
        self.parameter_names = [name for name, parameter in loss.named_parameters() if parameter.requires_grad]
        if not self.parameter_names:
            raise ValueError("loss: expected at least one parameter that requires grad, got none")
        learnt = set(self.parameter_names)
        self._places = [(place, name) for place, name in parameter_places(loss).items() if name in learnt]
        params = self._params()
        self.optimizer_state = nn.Module()
        for slot, tensors in self.optimizer.init(params).items():
            for name, tensor in zip(self.parameter_names, tensors, strict=True):
                _add_buffer(self.optimizer_state, f"{slot}.{name}", tensor)
        # Counts in float32, as torch does, and as a coefficient keeps its dtype: bfloat16 cannot count beyond 256.
        self.register_buffer("step_count", torch.zeros(()))
        for name, buffer in self._buffers.items():
            self._buffers[name] = None if buffer is None else buffer.to(params[0].device)
        self._compiles, self._dynamic = compile, dynamic
        self._run = self._make_run()

    def _make_run(self) -> Callable[["TrainStep", Rollout], TrainMetrics]:
        if not self._compiles:
            return TrainStep._update
        return compiled(TrainStep._update, dynamic=self._dynamic)

    def __getstate__(self) -> Dict[str, Any]:
        """Without the compiled function, which neither copies nor pickles; the copy compiles its own."""
        return {name: value for name, value in self.__dict__.items() if name != "_run"}

    def __setstate__(self, state: Dict[str, Any]) -> None:
        super().__setstate__(state)
        self._run = self._make_run()

    def pure(self, state: TrainState, rollout: Rollout, lr: Tensor) -> Tuple[TrainState, TrainMetrics]:
        """The update as a function: the new state and the metrics, nothing written in place (but what a network writes by itself, and the
        statistics of an ``advantage_norm`` in training mode).

        ``state.params`` are to require grad.
        """
        params = dict(zip(self.parameter_names, state.params, strict=True))
        placed = {place: params[name] for place, name in self._places}
        arguments = {
            "reward": rollout.reward,
            "next_observation": rollout.next_observation,
            "done": rollout.done,
            "terminated": rollout.terminated,
            "state_value": rollout.state_value,
            "sample_log_prob": rollout.log_prob,
            "mask": rollout.mask,
            "steps_to_next_obs": rollout.steps_to_next_obs,
            "group": rollout.group,
        }
        with torch.enable_grad():
            inputs = (rollout.observation, rollout.action)
            losses = torch.func.functional_call(self.loss, placed, inputs, arguments, tie_weights=False)
            parts = [losses.loss_objective, losses.loss_critic, losses.loss_entropy]
            present = [part for part in parts if part is not None]
            if not present:
                raise ValueError("loss: expected out_keys with a loss_* among them, got none to minimise")
            total = sum(present[1:], present[0])
        derivatives = torch.autograd.grad(total, state.params, allow_unused=True)
        # As in torch.optim, a parameter that the loss does not depend on is left alone, weight decay included.
        used = [i for i, derivative in enumerate(derivatives) if derivative is not None]
        grads = [derivative.detach() for derivative in derivatives if derivative is not None]
        grad_norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(grad) for grad in grads]))
        if self.max_grad_norm is not None:
            # As torch.nn.utils.clip_grad_norm_ does it.
            scale = (self.max_grad_norm / (grad_norm + 1e-6)).clamp_max(1.0)
            grads = [grad * scale for grad in grads]
        with torch.no_grad():
            new_state = self._optimized(state, used, grads, lr)
        return new_state, TrainMetrics(
            _detached(losses.loss_objective),
            _detached(losses.loss_critic),
            losses.entropy,
            _detached(losses.loss_entropy),
            losses.value_clip_fraction,
            losses.explained_variance,
            losses.kl_approx,
            grad_norm,
        )

    def _optimized(self, state: TrainState, used: List[int], grads: List[Tensor], lr: Tensor) -> TrainState:
        chosen = {slot: [tensors[i] for i in used] for slot, tensors in state.slots.items()}
        updated, new, step = self.optimizer.update([state.params[i] for i in used], grads, chosen, state.step, lr)
        params, slots = list(state.params), {slot: list(tensors) for slot, tensors in state.slots.items()}
        for position, i in enumerate(used):
            params[i] = updated[position]
            for slot in slots:
                slots[slot][i] = new[slot][position]
        return TrainState(params, slots, step)

    def state(self) -> TrainState:
        """The tensors that the step holds, themselves."""
        slots = {slot: [self._slot(slot, name) for name in self.parameter_names] for slot in self.optimizer.slots}
        return TrainState(self._params(), slots, self.step_count)

    def forward(self, rollout: Rollout) -> TrainMetrics:
        """Update the parameters from ``rollout``; the metrics are detached scalars."""
        if not isinstance(rollout, Rollout):
            raise TypeError(f"rollout: expected a Rollout, got {type(rollout).__name__}")
        # Lets torch.autograd.grad be traced; the graph stays one.
        with torch._dynamo.config.patch(trace_autograd_ops=True):
            metrics = self._run(self, rollout)
        if torch.is_autocast_enabled(rollout.reward.device.type):
            torch.clear_autocast_cache()  # it holds the parameters as they were
        return metrics

    def _update(self, rollout: Rollout) -> TrainMetrics:
        state = self.state()
        new_state, metrics = self.pure(state, rollout, self.lr)
        with torch.no_grad():
            for old, new in zip(_tensors(state), _tensors(new_state), strict=True):
                if new is not old:
                    old.copy_(new)
        return metrics

    def _params(self) -> List[Tensor]:
        parameters: Dict[str, Tensor] = dict(self.loss.named_parameters())
        return [parameters[name] for name in self.parameter_names]

    def _slot(self, slot: str, name: str) -> Tensor:
        return self.optimizer_state.get_buffer(f"{slot}.{name}")


def _detached(tensor: Optional[Tensor]) -> Optional[Tensor]:
    return None if tensor is None else tensor.detach()


def _tensors(state: TrainState) -> List[Tensor]:
    return [*state.params, *(tensor for tensors in state.slots.values() for tensor in tensors), state.step]


def _add_buffer(module: nn.Module, name: str, tensor: Tensor) -> None:
    """Register a buffer under a dotted name, so that optimizer state is saved under the names of its parameters."""
    *path, last = name.split(".")
    for head in path:
        if head not in module._modules:
            module.add_module(head, nn.Module())
        module = module.get_submodule(head)
    module.register_buffer(last, tensor)
