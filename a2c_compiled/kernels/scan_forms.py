"""The fused forms: the operands of every kernel, in order. The one table that the operators and all backends read."""

from typing import NamedTuple, Sequence, Tuple

import torch
from torch import Tensor

Names = Tuple[str, ...]


class Form(NamedTuple):
    """A scan with its prologue and epilogue inside.

    Values, flags and outputs share one shape; coefficients are zero-dimensional, or have it too. Values and outputs share one
    floating dtype; flags are bool.
    """

    name: str
    coefficients: Names
    values: Names
    flags: Names
    outputs: Names
    # In reverse time, y[t] = x[t] + decay[t] * y[t+1]; else its transpose, y[t] = x[t] + decay[t-1] * y[t-1].
    reverse: bool

    def empty_outputs(self, values: Sequence[Tensor], flags: Sequence[Tensor]) -> Tuple[Tensor, ...]:
        """Where the outputs go: laid out as the flags are, which neither a gradient nor a broadcast value distorts."""
        first = torch.empty_like(flags[0] if flags else values[0], dtype=values[0].dtype)
        return (first, *[torch.empty_like(first) for _ in self.outputs[1:]])


_ENDS = ("done", "terminated")
_GAE = ("gamma", "lmbda")
_VTRACE = ("gamma", "rho_thresh", "c_thresh", "pg_rho_thresh", "lmbda")
_STEP = ("state_value", "next_state_value", "reward")

LINEAR_SCAN = Form("linear_scan", (), ("x", "decay"), (), ("y",), True)
LINEAR_SCAN_TRANSPOSED = Form("linear_scan_transposed", (), ("x", "decay"), (), ("y",), False)

REWARD2GO = Form("reward2go", ("gamma",), ("reward",), ("done",), ("returns",), True)
REWARD2GO_BACKWARD = Form("reward2go_backward", ("gamma",), ("grad_returns",), ("done",), ("grad_reward",), False)

GAE = Form("gae", _GAE, _STEP, _ENDS, ("advantage", "value_target"), True)
GAE_BACKWARD = Form(
    "gae_backward",
    _GAE,
    ("grad_advantage", "grad_value_target"),
    _ENDS,
    ("grad_state_value", "grad_next_state_value", "grad_reward"),
    False,
)

TD_LAMBDA = Form("td_lambda", _GAE, ("next_state_value", "reward"), _ENDS, ("returns",), True)
TD_LAMBDA_BACKWARD = Form("td_lambda_backward", _GAE, ("grad_returns",), _ENDS, ("grad_next_state_value", "grad_reward"), False)

VTRACE = Form("vtrace", _VTRACE, ("log_pi", "log_mu", *_STEP), _ENDS, ("advantage", "value_target"), True)
VTRACE_BACKWARD = Form(
    "vtrace_backward",
    _VTRACE,
    ("grad_advantage", "grad_value_target", "log_pi", "log_mu", *_STEP, "value_target"),
    _ENDS,
    ("grad_log_pi", "grad_log_mu", "grad_state_value", "grad_next_state_value", "grad_reward"),
    False,
)

FORMS = (
    LINEAR_SCAN,
    LINEAR_SCAN_TRANSPOSED,
    REWARD2GO,
    REWARD2GO_BACKWARD,
    GAE,
    GAE_BACKWARD,
    TD_LAMBDA,
    TD_LAMBDA_BACKWARD,
    VTRACE,
    VTRACE_BACKWARD,
)
