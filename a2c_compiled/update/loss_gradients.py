"""The losses of a rollout and their gradient by the parameters that learn: of minibatches, in half precision, over processes."""

from contextlib import nullcontext
from typing import Any, ContextManager, Dict, List, Optional, Tuple

import torch
from torch import Tensor, nn

from a2c_compiled.losses import A2CLoss, A2CLosses
from a2c_compiled.losses.a2c import LOSSES
from a2c_compiled.update.all_reduce import summed_over_processes
from a2c_compiled.update.minibatches import added, combined, cut, environment_dim, shares
from a2c_compiled.update.rollout import Rollout, as_loss_arguments

Derivatives = List[Optional[Tensor]]
"""One for each parameter; None where the losses do not depend on it."""


class LossGradients:
    """A function from parameters and a rollout to the losses, detached, and the derivatives of their sum.

    Args:
        loss: whose parameters these are; what it holds is not read, but for parameters that do not learn.
        minibatches, autocast: as of :class:`~a2c_compiled.TrainStep`.
        group_name: of the process group to sum over; None for this process alone.
    """

    def __init__(self, loss: A2CLoss, minibatches: int, autocast: Optional[torch.dtype], group_name: Optional[str]) -> None:
        self.loss, self.minibatches, self.autocast, self.group_name = loss, minibatches, autocast, group_name

    def __call__(
        self, placed: Dict[str, Tensor], params: List[Tensor], rollout: Rollout, noise: Optional[Tensor] = None
    ) -> Tuple[A2CLosses, Derivatives]:
        """``params`` require grad, ``placed`` has them by their places in the loss; ``noise`` is that of its sampled entropy."""
        arguments = as_loss_arguments(rollout._asdict())
        if self.minibatches == 1:
            if noise is not None:
                arguments["noise"] = noise
            losses, derivatives = self._of_piece(placed, params, arguments)
        else:
            if noise is not None:
                raise ValueError("noise: expected None with minibatches, which draw their own, got a tensor")
            dim = environment_dim(rollout, self.loss.value_estimator.time_dim, self.minibatches)
            pieces = cut(self._with_estimates(placed, arguments), dim, self.minibatches)
            weights = shares(pieces, torch.promote_types(params[0].dtype, torch.float32))
            parts, of_pieces = zip(*(self._of_piece(placed, params, piece) for piece in pieces), strict=True)
            summed = None if self.loss.reduction == "sum" else weights
            derivatives = [added(terms, summed) for terms in zip(*of_pieces, strict=True)]
            losses = combined(parts, weights, self.loss.reduction)
        if self.group_name is not None:
            return self._over_processes(losses, derivatives, rollout, self.group_name)
        return losses, derivatives

    def _with_estimates(self, placed: Dict[str, Tensor], arguments: Dict[str, Any]) -> Dict[str, Any]:
        """What the loss takes of a rollout once its advantages are known."""
        inside = {f"loss.{place}": tensor for place, tensor in placed.items()}
        with self._precision(arguments["reward"].device):
            estimates = torch.func.functional_call(_Estimates(self.loss), inside, (), arguments, tie_weights=False)
        given = {name: arguments[name] for name in ("observation", "action", "sample_log_prob")} | estimates._asdict()
        del given["new_state_value"]
        return given

    def _of_piece(
        self, placed: Dict[str, Tensor], params: List[Tensor], arguments: Dict[str, Any]
    ) -> Tuple[A2CLosses, Derivatives]:
        with torch.enable_grad():
            with self._precision(params[0].device):
                losses = torch.func.functional_call(self.loss, placed, (), arguments, tie_weights=False)
            present = [getattr(losses, name) for name in LOSSES if getattr(losses, name) is not None]
            if not present:
                raise ValueError("loss: expected out_keys with a loss_* among them, got none to minimise")
            total = sum(present[1:], present[0])
        derivatives = torch.autograd.grad(total, params, allow_unused=True)
        detached = A2CLosses(*(None if part is None else part.detach() for part in losses))
        return detached, [None if derivative is None else derivative.detach() for derivative in derivatives]

    def _precision(self, device: torch.device) -> ContextManager[Any]:
        """What the networks run in."""
        if self.autocast is None:
            return nullcontext()
        return torch.autocast(device.type, self.autocast, cache_enabled=False)

    def _over_processes(
        self, losses: A2CLosses, derivatives: Derivatives, rollout: Rollout, group_name: str
    ) -> Tuple[A2CLosses, Derivatives]:
        """Of all processes' steps together: of means the mean, by the number of steps that count, of sums the sum."""
        grads = [derivative for derivative in derivatives if derivative is not None]
        count = rollout.reward.new_full((), rollout.reward.numel()) if rollout.mask is None else rollout.mask.sum()
        count = count.to(torch.promote_types(grads[0].dtype, torch.float32))
        one = torch.ones_like(count)
        share = one if self.loss.reduction == "sum" else count
        present = [name for name in A2CLosses._fields if getattr(losses, name) is not None]
        weighted = [getattr(losses, name) * (share if name in LOSSES else count) for name in present]
        sums = summed_over_processes([*(grad * share for grad in grads), *weighted, count], group_name)
        total = sums[-1].clamp_min(1)
        divisor = one if self.loss.reduction == "sum" else total
        named = dict(zip(present, sums[len(grads) : -1], strict=True))
        means = {name: value / (divisor if name in LOSSES else total) for name, value in named.items()}
        averaged = iter([grad / divisor for grad in sums[: len(grads)]])
        return A2CLosses(**means), [None if derivative is None else next(averaged) for derivative in derivatives]


class _Estimates(nn.Module):
    """The estimates of a loss as a module's call, which is what ``functional_call`` makes."""

    def __init__(self, loss: A2CLoss) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, **arguments: Any) -> Any:
        """As :meth:`~a2c_compiled.A2CLoss.estimates`."""
        return self.loss.estimates(**arguments)
