"""One A2C update as one pure function, and the object that applies it."""

from contextlib import contextmanager, nullcontext
from typing import Any, Callable, ContextManager, Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple

import torch
from torch import Tensor, nn

from a2c_compiled._hyperparameters import NOT_NEGATIVE, CoefficientModule, positive_int
from a2c_compiled._parameters import parameter_places
from a2c_compiled._torch_internals import traced_gradients
from a2c_compiled.losses import A2CLoss
from a2c_compiled.update.all_reduce import group_name_of
from a2c_compiled.update.compilation import compiled
from a2c_compiled.update.loss_gradients import LossGradients
from a2c_compiled.update.optimizers import FunctionalOptimizer, Slots
from a2c_compiled.update.rollout import Rollout


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
    >>> metrics = step.many(rollouts)  # [K, T, N, ...]: K updates, one after the other, in one graph

    Calling it updates the parameters that ``loss`` holds. ``step.lr = 3e-4`` changes the learning rate without compiling again.
    Eagerly, torch's optimizers read the learning rate on the host, which waits for a GPU; compiled, nothing does.

    ``state_dict`` holds parameters, coefficients, optimizer state and learning rate under the names that they have in the loss.

    An update whose gradient is not finite changes neither parameters nor optimizer state: ``step.skipped`` counts such updates, and
    ``step.skipped_in_a_row`` those since the last that was none. What networks keep of their own, such as running statistics, is not
    guarded.

    Args:
        loss: whose parameters learn; those that do not require grad when the step is made stay as they are.
        optimizer: ``"sgd"``, ``"rmsprop"``, ``"adam"`` or ``"adamw"``.
        lr: learning rate.
        max_grad_norm: largest 2-norm of the gradient of all parameters together; None does not clip.
        compile: run as one graph (``torch.compile(fullgraph=True)``); False runs eagerly.
        dynamic: as in ``torch.compile``: None compiles for the first shape and, when another comes, once more for all.
        skip_nonfinite: guard against gradients that are not finite, as above.
        minibatches: into how many pieces of as many environments the rollout is cut. Their gradients add up to the whole's, which takes
            a piece's memory. Advantages are computed first, of the whole; ``explained_variance`` is the mean over the pieces.
        autocast: half precision that the networks run in, ``torch.bfloat16`` or ``torch.float16`` (whose gradients are not scaled);
            parameters, losses and optimizer remain as they are. None for none.
        process_group: over whose processes gradients and metrics are averaged, by steps that count, in one all-reduce within the graph;
            ``explained_variance`` is the mean over the processes. None for this process alone. Parameters are to start out equal.
        cuda_graph: launch the compiled update on a CUDA device at once: faster where it is small. Metrics are overwritten by the next call.
        options: of the optimizer, see :class:`~a2c_compiled.update.optimizers.FunctionalOptimizer`.

    Raises:
        TypeError: ``loss`` is no :class:`~a2c_compiled.A2CLoss`, or an option is unknown.
        ValueError: the optimizer is unknown, a number is out of range, the loss reduces to no scalar, nothing in it learns, the dtype
            is not half precision, or ``cuda_graph`` is asked for without ``compile`` or with parameters that are not on a CUDA device.
    """

    lr: Tensor
    step_count: Tensor
    skipped: Tensor
    skipped_in_a_row: Tensor

    def __init__(
        self,
        loss: A2CLoss,
        optimizer: str = "rmsprop",
        lr: float = 7e-4,
        max_grad_norm: Optional[float] = 0.5,
        compile: bool = True,
        dynamic: Optional[bool] = None,
        skip_nonfinite: bool = True,
        minibatches: int = 1,
        autocast: Optional[torch.dtype] = None,
        process_group: Optional[object] = None,
        cuda_graph: bool = False,
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
        for counter in _COUNTERS:
            self.register_buffer(counter, torch.zeros(()))
        for name, buffer in self._buffers.items():
            self._buffers[name] = None if buffer is None else buffer.to(params[0].device)
        self.skip_nonfinite = skip_nonfinite
        self.minibatches = positive_int("minibatches", minibatches)
        if autocast not in (None, torch.bfloat16, torch.float16):
            raise ValueError(f"autocast: expected torch.bfloat16, torch.float16 or None, got {autocast}")
        self.autocast = autocast
        self._group_name = group_name_of(process_group)
        if cuda_graph and not (compile and params[0].is_cuda):
            raise ValueError(f"cuda_graph: expected False unless compiled for a CUDA device, got True on {params[0].device}")
        self._compiles, self._dynamic, self._cuda_graph = compile, dynamic, cuda_graph
        self._make_calls()

    def _make_calls(self) -> None:
        self._run: Callable[[TrainStep, Rollout], TrainMetrics] = TrainStep._update
        self._run_many: Callable[[TrainStep, Rollout], TrainMetrics] = TrainStep._update_many
        self._tracing: ContextManager[Any] = nullcontext()
        if self._compiles:
            self._tracing = traced_gradients()  # made once: that takes longer than to enter it
            self._run = compiled(TrainStep._update, dynamic=self._dynamic, cuda_graph=self._cuda_graph)
            self._run_many = compiled(TrainStep._update_many, dynamic=self._dynamic, cuda_graph=self._cuda_graph)

    def __getstate__(self) -> Dict[str, Any]:
        """Without the compiled functions, which neither copy nor pickle; the copy compiles its own."""
        return {name: value for name, value in self.__dict__.items() if name not in ("_run", "_run_many", "_tracing")}

    def __setstate__(self, state: Dict[str, Any]) -> None:
        super().__setstate__(state)
        self._make_calls()

    def _load_from_state_dict(self, state_dict: Dict[str, Any], prefix: str, *arguments: Any) -> None:
        for counter in _COUNTERS:  # not all in what earlier versions saved
            state_dict.setdefault(f"{prefix}{counter}", torch.zeros(()))
        super()._load_from_state_dict(state_dict, prefix, *arguments)

    def pure(
        self, state: TrainState, rollout: Rollout, lr: Tensor, noise: Optional[Tensor] = None
    ) -> Tuple[TrainState, TrainMetrics]:
        """The update as a function: the new state and the metrics, nothing written in place (but what a network writes by itself, and the
        statistics of an ``advantage_norm`` in training mode).

        ``state.params`` are to require grad. ``noise`` is that of :meth:`a2c_compiled.A2CLoss.forward`; None draws it.
        """
        named = dict(zip(self.parameter_names, state.params, strict=True))
        placed = {place: named[name] for place, name in self._places}
        gradients = LossGradients(self.loss, self.minibatches, self.autocast, self._group_name)
        losses, derivatives = gradients(placed, state.params, rollout, noise)
        # As in torch.optim, a parameter that the loss does not depend on is left alone, weight decay included.
        used = [i for i, derivative in enumerate(derivatives) if derivative is not None]
        grads = [derivative for derivative in derivatives if derivative is not None]
        grad_norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(grad) for grad in grads]))
        if self.max_grad_norm is not None:
            # As torch.nn.utils.clip_grad_norm_ does it.
            scale = (self.max_grad_norm / (grad_norm + 1e-6)).clamp_max(1.0)
            grads = [grad * scale for grad in grads]
        with torch.no_grad():
            new_state = self._optimized(state, used, grads, lr)
            if self.skip_nonfinite:
                new_state = _chosen(grad_norm.isfinite(), new_state, state)
        return new_state, TrainMetrics(*losses, grad_norm)

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
        with self._calling(rollout):
            return self._run(self, rollout)

    def many(self, rollouts: Rollout) -> TrainMetrics:
        """Update the parameters from each rollout of ``[K, T, N, ...]`` in turn, in one graph that is ``K`` updates long.

        Saves what it takes to call a graph, which is most of a small update's time on a GPU. The metrics are ``[K]``.
        """
        with self._calling(rollouts):
            return self._run_many(self, rollouts)

    @contextmanager
    def _calling(self, rollout: Rollout) -> Iterator[None]:
        if not isinstance(rollout, Rollout):
            raise TypeError(f"rollout: expected a Rollout, got {type(rollout).__name__}")
        with self._tracing:
            yield
        if torch.is_autocast_enabled(rollout.reward.device.type):
            torch.clear_autocast_cache()  # it holds the parameters as they were

    def _update(self, rollout: Rollout) -> TrainMetrics:
        state = self.state()
        new_state, metrics = self.pure(state, rollout, self.lr)
        self._write(state, new_state, [metrics.grad_norm])
        return metrics

    def _update_many(self, rollouts: Rollout) -> TrainMetrics:
        state = held = self.state()
        metrics: List[TrainMetrics] = []
        for k in range(rollouts.reward.size(0)):
            rollout = Rollout(*(_selected(entry, k) for entry in rollouts))
            if k > 0:
                state = state._replace(params=[param.detach().requires_grad_() for param in state.params])
            state, latest = self.pure(state, rollout, self.lr)
            metrics.append(latest)
        self._write(held, state, [latest.grad_norm for latest in metrics])
        return TrainMetrics(*map(_stacked, zip(*metrics, strict=True)))

    @torch.no_grad()
    def _write(self, old_state: TrainState, new_state: TrainState, grad_norms: List[Tensor]) -> None:
        for old, new in zip(_tensors(old_state), _tensors(new_state), strict=True):
            if new is not old:
                old.copy_(new)
        if self.skip_nonfinite:
            for grad_norm in grad_norms:
                finite = grad_norm.isfinite()
                self.skipped.add_(~finite)
                self.skipped_in_a_row.add_(1).masked_fill_(finite, 0)

    def _params(self) -> List[Tensor]:
        parameters: Dict[str, Tensor] = dict(self.loss.named_parameters())
        return [parameters[name] for name in self.parameter_names]

    def _slot(self, slot: str, name: str) -> Tensor:
        return self.optimizer_state.get_buffer(f"{slot}.{name}")


_COUNTERS = ("step_count", "skipped", "skipped_in_a_row")


def _stacked(parts: Sequence[Any]) -> Any:
    return None if parts[0] is None else torch.stack(list(parts))


def _selected(entry: Any, k: int) -> Any:
    if isinstance(entry, tuple):
        return tuple(_selected(part, k) for part in entry)
    return None if entry is None else entry[k]


def _chosen(condition: Tensor, new_state: TrainState, old_state: TrainState) -> TrainState:
    """One state or the other, selected on the device."""

    def choose(new: Tensor, old: Tensor) -> Tensor:
        return new if new is old else torch.where(condition, new, old.detach())

    params = [choose(*pair) for pair in zip(new_state.params, old_state.params, strict=True)]
    slots = {
        slot: [choose(*pair) for pair in zip(new, old_state.slots[slot], strict=True)] for slot, new in new_state.slots.items()
    }
    return TrainState(params, slots, choose(new_state.step, old_state.step))


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
