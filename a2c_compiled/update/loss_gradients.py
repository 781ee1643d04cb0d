"""The losses of a rollout and their gradients, with minibatches, autocast and several processes."""

from contextlib import nullcontext
from typing import Any, ContextManager, Dict, List, Optional, Sequence, Tuple

import torch
from torch import Tensor, nn

from a2c_compiled.losses import A2CLoss, A2CLosses
from a2c_compiled.losses.a2c import LOSSES, total_loss
from a2c_compiled.update.all_reduce import summed_over_processes
from a2c_compiled.update.minibatches import combined_losses, environment_dim, split_environments, step_shares, weighted_sum
from a2c_compiled.update.rollout import Rollout, as_loss_arguments

Derivatives = List[Optional[Tensor]]
"""One gradient per parameter; None for a parameter on which the losses do not depend."""


class LossGradients:
    """Computes the losses of a rollout and the gradient of their sum with respect to the parameters.

    Args:
        loss: the loss module. Each call passes values of the trained parameters. The module provides the other parameters and the buffers.
        minibatches, autocast: see :class:`~a2c_compiled.TrainStep`.
        group_name: name of the process group over which losses and gradients are combined. None: this process only.
    """

    def __init__(self, loss: A2CLoss, minibatches: int, autocast: Optional[torch.dtype], group_name: Optional[str]) -> None:
        self.loss, self.minibatches, self.autocast, self.group_name = loss, minibatches, autocast, group_name

    def __call__(
        self, placed: Dict[str, Tensor], params: List[Tensor], rollout: Rollout, noise: Optional[Tensor] = None
    ) -> Tuple[A2CLosses, Derivatives]:
        """Computes the losses, detached, and one gradient per parameter.

        Args:
            placed: the tensors of ``params``, by each name under which the loss holds a parameter.
            params: values of the trained parameters, which require grad.
            rollout: the steps to learn from.
            noise: noise for the sampled entropy, see :meth:`a2c_compiled.A2CLoss.forward`. None draws the noise.

        Raises:
            TypeError, ValueError: see :meth:`a2c_compiled.TrainStep.pure`.
        """
        arguments = as_loss_arguments(rollout._asdict())
        if self.minibatches == 1:
            if noise is not None:
                arguments["noise"] = noise
            losses, derivatives = self._losses_and_gradients(placed, params, arguments)
        else:
            if noise is not None:
                raise ValueError("noise: expected None with several minibatches, since each draws its own noise, got a tensor")
            arguments = self.with_estimates(placed, arguments)
            # An advantage has the shape of the log-probability.
            dim = environment_dim(self.loss.value_estimator, rollout.reward, arguments["advantage"])
            pieces = split_environments(arguments, dim, self.minibatches)
            dtype = torch.promote_types(params[0].dtype, torch.float32)
            weights = step_shares(pieces, "advantage", dtype)
            results = [
                self._losses_and_gradients(placed, params, piece, scale)
                for piece, scale in zip(pieces, self._value_scales(pieces, weights), strict=True)
            ]
            piece_losses, piece_derivatives = zip(*results, strict=True)
            gradient_weights = None if self.loss.reduction == "sum" else weights
            derivatives = [weighted_sum(terms, gradient_weights) for terms in zip(*piece_derivatives, strict=True)]
            losses = combined_losses(piece_losses, weights, self.loss.reduction)
        return self._over_processes(losses, derivatives, rollout.reward, rollout.mask)

    def of_minibatch(
        self, placed: Dict[str, Tensor], params: List[Tensor], arguments: Dict[str, Any]
    ) -> Tuple[A2CLosses, Derivatives]:
        """Computes the same as a call, from arguments of the loss that include the advantage. ``minibatches`` is not read."""
        losses, derivatives = self._losses_and_gradients(placed, params, arguments)
        return self._over_processes(losses, derivatives, arguments["advantage"], arguments["mask"])

    def with_estimates(self, placed: Dict[str, Tensor], arguments: Dict[str, Any]) -> Dict[str, Any]:
        """Returns the arguments of the loss, with advantages and value targets that are computed from the whole rollout."""
        placed_in_module = {f"loss.{place}": tensor for place, tensor in placed.items()}
        with self._precision(arguments["reward"].device):
            estimates = torch.func.functional_call(_Estimates(self.loss), placed_in_module, (), arguments, tie_weights=False)
        loss_arguments = {name: arguments[name] for name in ("observation", "action", "sample_log_prob")} | estimates._asdict()
        del loss_arguments["new_state_value"]  # not an argument of the loss, which calls the critic itself
        return loss_arguments

    def _value_scales(self, pieces: Sequence[Dict[str, Any]], weights: Sequence[Tensor]) -> List[Optional[Tensor]]:
        """Returns the factors of the critic losses of ``pieces``, whose losses are multiplied with ``weights`` afterwards.

        One value for several agents counts once, however many of them count: a piece then has another share of the values than of the
        steps. None: the shares are equal.
        """
        if pieces[0]["mask"] is None or pieces[0]["value_target"].shape == pieces[0]["advantage"].shape:
            return [None for _ in pieces]
        shares = step_shares(pieces, "value_target", weights[0].dtype)
        return [share / weight.masked_fill(weight == 0, 1.0) for share, weight in zip(shares, weights, strict=True)]

    def _losses_and_gradients(
        self, placed: Dict[str, Tensor], params: List[Tensor], arguments: Dict[str, Any], value_scale: Optional[Tensor] = None
    ) -> Tuple[A2CLosses, Derivatives]:
        """Calls the loss on ``arguments``. Returns the losses and the gradients of their sum, all detached.

        ``value_scale``: a factor of the outputs that are means over the values.
        """
        with torch.enable_grad():
            with self._precision(params[0].device):
                losses = torch.func.functional_call(self.loss, placed, (), arguments, tie_weights=False)
            if value_scale is not None:
                names = ("value_clip_fraction",) if self.loss.reduction == "sum" else ("value_clip_fraction", "loss_critic")
                means = {name: getattr(losses, name) for name in names if getattr(losses, name) is not None}
                losses = losses._replace(**{name: mean * value_scale for name, mean in means.items()})
            total = total_loss(losses)
        derivatives = torch.autograd.grad(total, params, allow_unused=True)
        detached = A2CLosses(*(None if part is None else part.detach() for part in losses))
        return detached, [None if derivative is None else derivative.detach() for derivative in derivatives]

    def _precision(self, device: torch.device) -> ContextManager[Any]:
        """Returns the autocast context for the networks; without autocast, an empty context."""
        if self.autocast is None:
            return nullcontext()
        return torch.autocast(device.type, self.autocast, cache_enabled=False)

    def _over_processes(
        self, losses: A2CLosses, derivatives: Derivatives, steps: Tensor, mask: Optional[Tensor]
    ) -> Tuple[A2CLosses, Derivatives]:
        """Combines losses and gradients of all processes of the group; without a group, returns them.

        ``steps``: a tensor with one entry for each step. ``mask``: the steps that count; None: all steps.

        The result is an average, weighted with each process's number of unmasked steps. With ``reduction="sum"``, losses and gradients are
        summed instead; the other outputs are still averaged.
        """
        if self.group_name is None:
            return losses, derivatives
        grads = [derivative for derivative in derivatives if derivative is not None]
        dtype = torch.promote_types(grads[0].dtype, torch.float32)  # half precision would round the count
        count = steps.new_full((), steps.numel(), dtype=dtype) if mask is None else mask.sum()
        count = count.to(dtype)
        one = torch.ones_like(count)
        weight = one if self.loss.reduction == "sum" else count
        present = [name for name in A2CLosses._fields if getattr(losses, name) is not None]
        weighted = [getattr(losses, name) * (weight if name in LOSSES else count) for name in present]
        sums = summed_over_processes([*(grad * weight for grad in grads), *weighted, count], self.group_name)
        total = sums[-1].clamp_min(1)  # 0 if every step is masked
        divisor = one if self.loss.reduction == "sum" else total
        named = dict(zip(present, sums[len(grads) : -1], strict=True))
        means = {name: value / (divisor if name in LOSSES else total) for name, value in named.items()}
        averaged = iter([grad / divisor for grad in sums[: len(grads)]])
        return A2CLosses(**means), [None if derivative is None else next(averaged) for derivative in derivatives]


class _Estimates(nn.Module):
    """A module whose ``forward`` is ``loss.estimates``, because ``torch.func.functional_call`` calls ``forward``."""

    def __init__(self, loss: A2CLoss) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, **arguments: Any) -> Any:
        """See :meth:`a2c_compiled.A2CLoss.estimates`."""
        return self.loss.estimates(**arguments)
