"""The A2C training step: a pure function of parameters, optimizer state and rollout, and the module that applies it."""

import functools
import operator
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Sequence, Tuple

import torch
from torch import Tensor, nn

from a2c_compiled._files import AnyPath
from a2c_compiled._hyperparameters import NOT_NEGATIVE, POSITIVE, CoefficientModule, positive_int
from a2c_compiled._kinds import flag, number_or_tensor, optional_flag
from a2c_compiled.kernels.cpu_scan import keep_freed_memory
from a2c_compiled.losses import A2CLoss, A2CLosses
from a2c_compiled.losses.parameter_names import parameter_names_by_location
from a2c_compiled.update.all_reduce import group_name_of
from a2c_compiled.update.compilation import CompiledFunction
from a2c_compiled.update.epochs import check_epochs, learning_rates, rows_of, selected, shuffled, with_given
from a2c_compiled.update.loss_gradients import Derivatives, LossGradients
from a2c_compiled.update.optimizers import FunctionalOptimizer, Slots
from a2c_compiled.update.packing import Packing
from a2c_compiled.update.rollout import Rollout, as_loss_arguments, check_rollout, mapped
from a2c_compiled.update.saved_code import read_graphs, write_graphs


class TrainMetrics(NamedTuple):
    """The metrics of one training step: 0-d float tensors, detached. :meth:`TrainStep.many` returns them as ``[K]``.

    ``grad_norm`` is the 2-norm of the gradient of all parameters, before clipping. The other fields are the fields of
    :class:`~a2c_compiled.A2CLosses`; a field is None if the loss does not compute it.
    """

    loss_objective: Optional[Tensor]
    loss_critic: Optional[Tensor]
    entropy: Optional[Tensor]
    loss_entropy: Optional[Tensor]
    value_clip_fraction: Optional[Tensor]
    explained_variance: Optional[Tensor]
    kl_approx: Optional[Tensor]
    grad_norm: Tensor


class TrainState(NamedTuple):
    """The tensors that a training step changes.

    Attributes:
        params: the trained parameters, in the order of ``TrainStep.parameter_names``, with the parameters' shapes and dtypes.
        slots: optimizer state, by the name that torch.optim uses: one tensor per parameter, with the parameter's shape and dtype.
        step: 0-d, float32: number of optimizer steps so far. A skipped step does not count.
    """

    params: List[Tensor]
    slots: Slots
    step: Tensor


class TrainStep(CoefficientModule):
    """One A2C update in one call: loss, gradient, clipping and optimizer, as one compiled graph or in eager mode.

    >>> step = TrainStep(loss, optimizer="rmsprop", lr=7e-4)
    >>> metrics = step(rollout)  # one update; the parameters of loss change in place
    >>> metrics = step.many(rollouts)  # K rollouts [K, T, N, ...]: K updates, one after the other, in one graph
    >>> metrics = step.epochs(rollout, epochs=4, minibatch_size=64)  # one update for each minibatch
    >>> step.lr = 3e-4  # changes the learning rate without compiling again

    One call computes, for the parameters ``p`` and the optimizer state ``s``::

        g = gradient, with respect to p, of the sum of the losses (loss_objective + loss_critic + loss_entropy)
        g = g * min(1, max_grad_norm / (norm(g) + 1e-6))
        p, s = optimizer(p, g, s, lr)

    A loss that is switched off is left out of the sum. As in torch.optim, a parameter on which the losses do not depend is not changed,
    not even by weight decay.

    If the norm of the gradient is NaN or infinite, the update is skipped: parameters and optimizer state do not change. ``step.skipped``
    counts the skipped updates, and ``step.skipped_in_a_row`` those since the last successful update. A skipped update may still change
    buffers that networks update themselves, such as running statistics.

    ``state_dict`` contains ``lr``, the counters ``step_count``, ``skipped`` and ``skipped_in_a_row``, the parameters and coefficients of
    the loss (``loss.*``) and the optimizer state (``optimizer_state.<name of the state>.<parameter name>``). After a call of :meth:`epochs`
    with a generator, it also contains ``generator_state``.

    With parameters on the CPU, the constructor calls :func:`~a2c_compiled.update.keep_freed_memory`: the process keeps up to 64 MiB of
    freed memory. The compiled step never waits for the GPU. In eager mode, torch's optimizers read the learning rate on the host and wait
    for the GPU.

    Args:
        loss: the loss whose parameters are trained. Parameters that do not require grad at construction are never changed.
        optimizer: ``"sgd"``, ``"rmsprop"``, ``"adam"`` or ``"adamw"``.
        lr: learning rate: a number, or a tensor with one element.
        max_grad_norm: upper limit of the 2-norm of the gradient of all parameters together. None: no clipping.
        compile: True: run as one graph (``torch.compile(fullgraph=True)``), with the errors of eager mode. False: run in eager mode.
        dynamic: as in ``torch.compile``. None: compile for the first shape; at a second shape, compile once more for all ``T`` and ``N``
            of at least 2. ``T = 1`` and ``N = 1`` are compiled apart.
        skip_nonfinite: whether to skip an update whose gradient is not finite, as described above. False takes the
            step, which may make parameters NaN.
        minibatches: number of equal parts into which the environments of the rollout are split. The gradients of the parts add up to the
            gradient of the whole rollout, with the memory of one part. Advantages are computed before the split, for the whole rollout.
            ``explained_variance`` is the average over the parts.
        autocast: dtype of the networks: ``torch.bfloat16`` or ``torch.float16``. Parameters, losses and optimizer state keep their dtypes.
            Gradients are not scaled, also not with float16. None: no autocast.
        process_group: a ``torch.distributed.ProcessGroup``. Gradients and metrics are combined over its processes in one all-reduce
            inside the graph: averaged with the number of unmasked steps of each process as weight; with ``reduction="sum"``,
            gradients and losses are summed. A value for several agents has the same weights. ``explained_variance`` is the average over the
            processes. The parameters must be equal in
            all processes at the start. None: this process only.
        cuda_graph: whether to run the compiled step as one CUDA graph, which is faster for small updates. The next call overwrites the
            metrics.
        options: options of the optimizer, see :class:`~a2c_compiled.update.optimizers.FunctionalOptimizer`.

    Raises:
        TypeError: ``loss`` is not an :class:`~a2c_compiled.A2CLoss`, ``optimizer`` is not a string, ``lr`` is neither a number nor a
            tensor, ``minibatches`` is not an integer, ``process_group`` is not a process group, or the optimizer has no such option.
        ValueError: ``optimizer`` is unknown, a number is out of range, ``loss`` has ``reduction="none"`` or no parameter that requires
            grad, ``autocast`` is not half precision, or ``cuda_graph`` is True without ``compile`` or without parameters on a CUDA device.
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
            raise ValueError("loss: expected reduction 'mean' or 'sum', since a scalar is minimised, got 'none'")
        self.register_coefficient("lr", lr, NOT_NEGATIVE, scalar=True)
        self.loss = loss
        self.optimizer = FunctionalOptimizer(optimizer, **options)
        self.max_grad_norm = None if max_grad_norm is None else POSITIVE.number("max_grad_norm", max_grad_norm)
        self.parameter_names = [name for name, parameter in loss.named_parameters() if parameter.requires_grad]
        if not self.parameter_names:
            raise ValueError("loss: expected at least one parameter that requires grad, got none")
        trained = set(self.parameter_names)
        self._places = [(place, name) for place, name in parameter_names_by_location(loss).items() if name in trained]
        params = self._params()
        if params[0].device.type == "cpu":
            keep_freed_memory()  # otherwise the memory of activations is returned to the system after every call
        self.optimizer_state = nn.Module()
        for slot, tensors in self.optimizer.init(params).items():
            for name, tensor in zip(self.parameter_names, tensors, strict=True):
                _add_buffer(self.optimizer_state, f"{slot}.{name}", tensor)
        # Counters are float32, as in torch.optim. CoefficientModule keeps their dtype when the module is converted, because bfloat16
        # cannot count beyond 256.
        for counter in _COUNTERS:
            self.register_buffer(counter, torch.zeros(()))
        for name, buffer in self._buffers.items():
            self._buffers[name] = None if buffer is None else buffer.to(params[0].device)
        self.skip_nonfinite = flag("skip_nonfinite", skip_nonfinite)
        self.minibatches = positive_int("minibatches", minibatches)
        if autocast not in (None, torch.bfloat16, torch.float16):
            raise ValueError(f"autocast: expected torch.bfloat16, torch.float16 or None, got {autocast!r}")
        self.autocast = autocast
        self._group_name = group_name_of(process_group)
        if process_group is not None and loss.value_norm is not None and not loss.value_norm.moments.across_processes:
            raise ValueError("process_group: expected None unless the loss's value_norm has across_processes=True, got a group")
        compile, cuda_graph = flag("compile", compile), flag("cuda_graph", cuda_graph)
        if cuda_graph and not (compile and params[0].is_cuda):
            raise ValueError(f"cuda_graph: expected False unless compiled for a CUDA device, got True on {params[0].device}")
        dynamic = optional_flag("dynamic", dynamic)
        self._compiles, self._dynamic, self._cuda_graph = compile, dynamic, cuda_graph
        # The generator of the last call of epochs(), and a loaded state that the generator of the next call gets.
        self._generator: Optional[torch.Generator] = None
        self._generator_state: Optional[Tensor] = None
        self._make_calls()

    def _make_calls(self) -> None:
        """Sets the functions that :meth:`forward` and :meth:`many` call: compiled, or in eager mode."""
        self._run: Callable[[TrainStep, Rollout], TrainMetrics] = TrainStep._update
        self._run_many: Callable[[TrainStep, Rollout], TrainMetrics] = TrainStep._update_many
        self._run_estimates: Callable[[TrainStep, Rollout], Dict[str, Any]] = TrainStep._with_estimates
        self._run_minibatch: Callable[..., TrainMetrics] = TrainStep._update_minibatch
        if self._compiles:
            call = functools.partial(CompiledFunction, dynamic=self._dynamic, keep_examples=True)
            self._run = call(TrainStep._update, cuda_graph=self._cuda_graph, rollout_dims=(0, 1))
            self._run_many = call(TrainStep._update_many, cuda_graph=self._cuda_graph, rollout_dims=(1, 2))
            # Without a CUDA graph, whose results the next call overwrites: all minibatches read the estimates.
            self._run_estimates = call(TrainStep._with_estimates, rollout_dims=(0, 1))
            self._run_minibatch = call(TrainStep._update_minibatch, cuda_graph=self._cuda_graph)

    def __getstate__(self) -> Dict[str, Any]:
        """Leaves out the compiled functions, which cannot be copied or pickled. A copy of the step compiles again."""
        kept = {name: value for name, value in self.__dict__.items() if not name.startswith("_run")}
        return {**kept, "_generator": None, "_generator_state": self._state_of_generator()}

    def __setstate__(self, state: Dict[str, Any]) -> None:
        super().__setstate__(state)
        self._make_calls()

    def _state_of_generator(self) -> Optional[Tensor]:
        """Returns the state of the generator of :meth:`epochs`: uint8, on the CPU. None if there was none."""
        return self._generator_state if self._generator is None else self._generator.get_state()

    def _save_to_state_dict(self, destination: Dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        generator_state = self._state_of_generator()
        if generator_state is not None:
            destination[f"{prefix}generator_state"] = generator_state

    def _load_from_state_dict(self, state_dict: Dict[str, Any], prefix: str, *arguments: Any) -> None:
        for counter in _COUNTERS:  # files of earlier versions lack some counters
            state_dict.setdefault(f"{prefix}{counter}", torch.zeros(()))
        generator_state = state_dict.pop(f"{prefix}generator_state", None)
        if generator_state is not None:
            self._generator, self._generator_state = None, generator_state.cpu()
        super()._load_from_state_dict(state_dict, prefix, *arguments)

    def pure(
        self, state: TrainState, rollout: Rollout, lr: Tensor, noise: Optional[Tensor] = None
    ) -> Tuple[TrainState, TrainMetrics]:
        """Computes one update as a pure function: returns the new state and the metrics, and changes no tensor in place.

        Some tensors still change in place: buffers that a network updates in its own ``forward`` and, in training mode, the statistics of
        ``advantage_norm`` and ``value_norm``, and those of ``state.params`` that ``value_norm`` corrects.

        Args:
            state: parameters, which must require grad, optimizer state and step count. :meth:`state` returns the present state.
            rollout: ``[T, N, ...]``, the steps to learn from. Dtypes: see :class:`~a2c_compiled.Rollout`.
            lr: 0-d, floating point: learning rate.
            noise: ``[samples_mc_entropy, T, N, ...]``, floating point: noise for the sampled entropy, see
                :meth:`a2c_compiled.A2CLoss.forward`. None draws the noise.

        Returns:
            The new :class:`TrainState` and the :class:`TrainMetrics`.

        Raises:
            TypeError: a dtype in ``rollout`` is wrong.
            ValueError: a tensor in ``rollout`` is missing or has a wrong shape, ``minibatches`` does not divide the number of
                environments, ``noise`` is given with several minibatches, or the loss has no ``loss_*`` output.
        """
        number_or_tensor("lr", lr)
        losses, derivatives = self._gradients()(self._placed(state.params), state.params, rollout, noise)
        return self._updated(state, losses, derivatives, lr)

    def _gradients(self) -> LossGradients:
        return LossGradients(self.loss, self.minibatches, self.autocast, self._group_name)

    def _placed(self, params: List[Tensor]) -> Dict[str, Tensor]:
        """Returns ``params`` by each name under which the loss holds a parameter."""
        named = dict(zip(self.parameter_names, params, strict=True))
        return {place: named[name] for place, name in self._places}

    def _updated(
        self, state: TrainState, losses: A2CLosses, derivatives: Derivatives, lr: Tensor
    ) -> Tuple[TrainState, TrainMetrics]:
        """Clips the gradients and takes an optimizer step. Returns the new state and the metrics.

        As in torch.optim, a parameter without a gradient is not changed, not even by weight decay.
        """
        used = [i for i, derivative in enumerate(derivatives) if derivative is not None]
        grads = [derivative for derivative in derivatives if derivative is not None]
        grad_norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(grad) for grad in grads]))
        packing = Packing([state.params[i] for i in used])
        grads = packing.packed(grads)
        if self.max_grad_norm is not None:
            # The formula of torch.nn.utils.clip_grad_norm_.
            scale = (self.max_grad_norm / (grad_norm + 1e-6)).clamp_max(1.0)
            grads = [grad * scale for grad in grads]
        with torch.no_grad():
            old = _mapped(lambda tensors: packing.packed([tensors[i] for i in used]), state)
            new = TrainState(*self.optimizer.update(old.params, grads, old.slots, old.step, lr))
            if self.skip_nonfinite:
                new = _state_where(grad_norm.isfinite(), new, old)
            new_used = _mapped(packing.unpacked, new)
        return _with_used(state, used, new_used), TrainMetrics(*losses, grad_norm)

    def state(self) -> TrainState:
        """Returns the present parameters, optimizer state and step count. The tensors are not copies."""
        buffers = dict(self.optimizer_state.named_buffers())
        slots = {slot: [buffers[f"{slot}.{name}"] for name in self.parameter_names] for slot in self.optimizer.slots}
        return TrainState(self._params(), slots, self.step_count)

    def forward(self, rollout: Rollout) -> TrainMetrics:
        """Updates the parameters of the loss from one rollout.

        Args:
            rollout: ``[T, N, ...]``. Dtypes: see :class:`~a2c_compiled.Rollout`.

        Returns:
            The metrics: 0-d float tensors, detached.

        Raises:
            TypeError: ``rollout`` is not a :class:`~a2c_compiled.Rollout`, or a dtype is wrong.
            ValueError: a tensor is missing or has a wrong shape, or ``minibatches`` does not divide the number of environments.
        """
        check_rollout(rollout)
        return self._call(self._run, rollout)

    def many(self, rollouts: Rollout) -> TrainMetrics:
        """Updates the parameters ``K`` times, from ``K`` rollouts in order. A compiled step runs all updates in one graph.

        One graph for ``K`` updates saves ``K - 1`` calls. On a GPU, the call takes most of the time of a small update.

        Args:
            rollouts: ``[K, T, N, ...]``: ``K`` rollouts, stacked, ``K`` at least 1. Dtypes: see :class:`~a2c_compiled.Rollout`.

        Returns:
            The metrics of all updates: float tensors ``[K]``, detached.

        Raises:
            TypeError, ValueError: see :meth:`forward`.
        """
        check_rollout(rollouts)
        if rollouts.reward.dim() == 0 or rollouts.reward.size(0) == 0:
            raise ValueError(f"rollouts: expected at least one rollout, got a reward of shape {list(rollouts.reward.shape)}")
        return self._call(self._run_many, rollouts)

    def epochs(
        self,
        rollout: Rollout,
        epochs: int,
        minibatch_size: int,
        by: str = "steps",
        generator: Optional[torch.Generator] = None,
        advantage: Optional[Tensor] = None,
        value_target: Optional[Tensor] = None,
        lr: Optional[Tensor] = None,
    ) -> TrainMetrics:
        """Learns from one rollout in several epochs of minibatches. Each minibatch is one update, of the losses of its steps alone.

        >>> metrics = step.epochs(rollout, epochs=4, minibatch_size=64)  # 4 * ceil(T * N / 64) updates

        Advantages and value targets are computed once, before the first update, from the whole rollout; a ``value_norm`` or an
        ``advantage_norm`` is updated once. Each epoch visits all steps in a new random order. If ``minibatch_size`` does not divide their
        number, the last minibatch of an epoch is smaller: other steps fill it up, which a mask excludes, so that one compiled graph serves
        all minibatches. Only layers that mix the steps of a batch, such as batch normalisation, read these other steps.

        A step that ``rollout.mask`` excludes takes a place in a minibatch, but does not count.

        Args:
            rollout: ``[T, N, ...]``. Dtypes: see :class:`~a2c_compiled.Rollout`.
            epochs: number of passes over the rollout.
            minibatch_size: number of steps, or of environments, in a minibatch.
            by: ``"steps"``: minibatches are drawn from the ``T * N`` steps. ``"environments"``: they are drawn from the environments, each
                with all its steps. Recurrent networks need ``"environments"``; their hidden states stay those of the rollout.
            generator: the generator that draws the orders. ``state_dict`` then contains its state as ``generator_state``. After
                ``load_state_dict``, the next call sets the state of its ``generator`` to the loaded one. None: torch's default
                generator for the CPU.
            advantage: ``[T, N]``, floating point: the advantage of each step; of each agent with a value estimator of several agents.
                None: the value estimator computes advantage and value target.
            value_target: ``[T, N]``, floating point: the value target of each step, only with ``advantage``.
            lr: ``[K]``, floating point: the learning rate of each update. None: ``step.lr`` for all updates.

        Returns:
            The metrics of all ``K`` updates: float tensors ``[K]``, detached.

        Raises:
            TypeError: an argument has a wrong type, or a tensor a wrong dtype.
            ValueError: a number is less than 1, ``minibatch_size`` is more than the number of steps or environments, ``by`` is unknown or
                does not fit the networks or the layout, the training step has ``minibatches``, or a tensor is missing or has a wrong shape.
        """
        passes, size = positive_int("epochs", epochs), positive_int("minibatch_size", minibatch_size)
        check_epochs(self.loss, by, self.minibatches, generator, advantage, value_target)
        check_rollout(rollout)
        arguments = (
            self._call(self._run_estimates, rollout) if advantage is None else with_given(rollout, advantage, value_target)
        )
        arguments, dim = rows_of(by, arguments, self.loss.value_estimator, rollout.reward)
        count = arguments["advantage"].size(dim)
        if size > count:
            raise ValueError(f"minibatch_size: expected at most the number of {by}, {count}, got {size}")
        num_updates = passes * -(-count // size)
        rates = [self.lr] * num_updates if lr is None else learning_rates(lr, num_updates, self.lr)
        self._use_generator(generator)
        indices, counted = shuffled(count, size, passes, generator, rollout.reward.device)
        metrics: List[TrainMetrics] = []
        for rows, rate in zip(zip(indices, counted, strict=True), rates, strict=True):
            update_metrics = self._call(self._run_minibatch, arguments, dim, *rows, rate)
            # A copy, because the next call of a CUDA graph overwrites the metrics.
            metrics.append(TrainMetrics(*map(_copied, update_metrics)) if self._cuda_graph else update_metrics)
        return TrainMetrics(*map(_stacked, zip(*metrics, strict=True)))

    def _use_generator(self, generator: Optional[torch.Generator]) -> None:
        """Keeps ``generator`` for ``state_dict``, and gives it the state that ``load_state_dict`` has loaded."""
        if generator is not None:
            if self._generator_state is not None:
                generator.set_state(self._generator_state)
            self._generator, self._generator_state = generator, None

    def save_compiled(self, path: AnyPath) -> None:
        """Saves the compiled code of the calls so far, so that :meth:`load_compiled` spares another process the compilation.

        >>> step(rollout)  # compiles, in 10 to 20 seconds
        >>> step.save_compiled("step.code")

        The file holds the code for the present settings of the training step and of torch: training or evaluation mode, coefficients that
        are None, number of threads, autocast. It holds no parameters and no state; those are in ``state_dict``. The code is compiled
        again for the file, in 5 to 10 seconds for each graph.

        Args:
            path: the file. It is written atomically.

        Raises:
            TypeError: ``path`` is not a path.
            ValueError: the training step is in eager mode, has parameters on another device than the CPU, has a process group, or has
                compiled nothing yet.
            IsADirectoryError: ``path`` is a folder.
            RuntimeError: the code cannot be saved, for example because a network's class is defined inside a function; or this
                version of torch cannot save any.
            OSError: the file cannot be written.
        """
        functions = self._compiled_functions()
        if not any(function.has_graphs for function in functions.values()):
            raise ValueError("save_compiled: expected a call that has compiled code before, got none")
        write_graphs(path, lambda: {name: function.saved_graphs(self) for name, function in functions.items()})

    def load_compiled(self, path: AnyPath) -> None:
        """Loads the file that :meth:`save_compiled` has written. A call that fits its code does not compile.

        >>> step = TrainStep(loss)  # in another process, with the same arguments
        >>> step.load_compiled("step.code")
        >>> step(rollout)  # does not compile

        A call uses the code if torch.compile would use it: if classes and settings of loss, networks and optimizer, shapes and settings of
        torch are those of the call that was compiled. Otherwise it compiles, as without the file, and a RuntimeWarning says why.

        The file is a program: loading it runs code that it contains. Load only files of your own.

        Args:
            path: the file.

        Raises:
            TypeError: ``path`` is not a path.
            ValueError: the training step is in eager mode, has parameters on another device than the CPU, or has a process group;
                or the file is not of this kind, or was written with another version of torch, Python or this library, or for a processor
                with features that this one lacks; or a class or function that the networks use has other code, or a global variable that
                they read has another value.
            RuntimeError: this process cannot load the code, or this version of torch cannot load any.
            OSError: the file cannot be read.
        """
        functions = self._compiled_functions()
        for name, graphs in read_graphs(path).items():
            functions[name].load_graphs(graphs)

    def _compiled_functions(self) -> Dict[str, CompiledFunction]:
        """Returns the compiled functions whose code can be saved, by the names of their attributes. Raises ValueError if it cannot be."""
        if not self._compiles:
            raise ValueError("compile: expected True for compiled code in files, got False")
        device = self.step_count.device
        if device.type != "cpu":
            raise ValueError(f"device: expected parameters on the CPU for compiled code in files, got {device}")
        if self._group_name is not None:
            raise ValueError(f"process_group: expected None for compiled code in files, got {self._group_name}")
        return {name: value for name, value in vars(self).items() if isinstance(value, CompiledFunction)}

    def _call(self, run: Callable[..., Any], *arguments: Any) -> Any:
        """Calls ``run(self, *arguments)``. Then clears the autocast cache."""
        result = run(self, *arguments)
        if torch.is_autocast_enabled(self.step_count.device.type):
            torch.clear_autocast_cache()  # the cache holds half-precision copies of the old parameters
        return result

    def _update(self, rollout: Rollout) -> TrainMetrics:
        state = self.state()
        new_state, metrics = self.pure(state, rollout, self.lr)
        self._write(state, new_state, [metrics.grad_norm])
        return metrics

    def _update_many(self, rollouts: Rollout) -> TrainMetrics:
        state = old_state = self.state()
        metrics: List[TrainMetrics] = []
        for k in range(rollouts.reward.size(0)):
            rollout = Rollout(*(mapped(operator.itemgetter(k), entry) for entry in rollouts))
            if k > 0:
                state = state._replace(params=_requiring_grad(state.params, old_state.params))
            state, update_metrics = self.pure(state, rollout, self.lr)
            metrics.append(update_metrics)
        self._write(old_state, state, [update_metrics.grad_norm for update_metrics in metrics])
        return TrainMetrics(*map(_stacked, zip(*metrics, strict=True)))

    def _with_estimates(self, rollout: Rollout) -> Dict[str, Any]:
        return self._gradients().with_estimates(self._placed(self._params()), as_loss_arguments(rollout._asdict()))

    def _update_minibatch(
        self, arguments: Dict[str, Any], dim: int, indices: Tensor, counted: Optional[Tensor], lr: Tensor
    ) -> TrainMetrics:
        """Takes one update from some rows of the arguments of the loss, see :func:`~a2c_compiled.update.epochs.selected`."""
        state = self.state()
        with torch.no_grad():
            rows = selected(arguments, dim, indices, counted)
        losses, derivatives = self._gradients().of_minibatch(self._placed(state.params), state.params, rows)
        new_state, metrics = self._updated(state, losses, derivatives, lr)
        self._write(state, new_state, [metrics.grad_norm])
        return metrics

    @torch.no_grad()
    def _write(self, old_state: TrainState, new_state: TrainState, grad_norms: List[Tensor]) -> None:
        """Copies the new state into the tensors of the old one, and updates the counters of skipped updates."""
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


_COUNTERS = ("step_count", "skipped", "skipped_in_a_row")


def _requiring_grad(params: List[Tensor], old_params: List[Tensor]) -> List[Tensor]:
    """Returns ``params`` as tensors that require grad, as ``old_params`` do.

    Dynamo cannot trace ``requires_grad_`` in torch 2.11. A selection that never selects the old value has the same effect.
    """
    condition = torch.ones((), dtype=torch.bool, device=params[0].device)
    return [torch.where(condition, new, old) for new, old in zip(params, old_params, strict=True)]


def _copied(metric: Any) -> Any:
    """Copies a metric; None if the loss does not compute it."""
    return None if metric is None else metric.clone()


def _stacked(parts: Sequence[Any]) -> Any:
    """Stacks one metric of all updates; None if the loss does not compute it."""
    return None if parts[0] is None else torch.stack(list(parts))


def _mapped(function: Callable[..., List[Tensor]], *states: TrainState) -> TrainState:
    """Applies ``function`` to the lists of parameters of all states, and to those of each optimizer state. Keeps the first ``step``."""
    slots = {slot: function(*(state.slots[slot] for state in states)) for slot in states[0].slots}
    return TrainState(function(*(state.params for state in states)), slots, states[0].step)


def _state_where(condition: Tensor, new_state: TrainState, old_state: TrainState) -> TrainState:
    """Returns ``new_state`` if ``condition``, a 0-d bool tensor, is true, else ``old_state``. The host does not read ``condition``."""
    chosen = _mapped(
        lambda news, olds: [torch.where(condition, new, old.detach()) for new, old in zip(news, olds, strict=True)],
        new_state,
        old_state,
    )
    return chosen._replace(step=torch.where(condition, new_state.step, old_state.step))


def _with_used(state: TrainState, used: List[int], new: TrainState) -> TrainState:
    """Returns ``new``, which has the parameters at the indices ``used``, together with the other parameters of ``state``."""

    def replaced(new_tensors: List[Tensor], tensors: List[Tensor]) -> List[Tensor]:
        by_index = dict(zip(used, new_tensors, strict=True))
        return [by_index.get(i, tensor) for i, tensor in enumerate(tensors)]

    return _mapped(replaced, new, state)


def _tensors(state: TrainState) -> List[Tensor]:
    """Returns all tensors of ``state``, in an order that is the same for every state of one training step."""
    return [*state.params, *(tensor for tensors in state.slots.values() for tensor in tensors), state.step]


def _add_buffer(module: nn.Module, name: str, tensor: Tensor) -> None:
    """Registers a buffer under a dotted name, so that ``state_dict`` names optimizer state after the parameters."""
    *path, last = name.split(".")
    for head in path:
        if head not in module._modules:
            module.add_module(head, nn.Module())
        module = module.get_submodule(head)
    module.register_buffer(last, tensor)
