"""Value estimators as functions of tensors: TorchRL's names and argument order, no TensorDict.

What holds for all of them:

* ``reward``, ``done``, ``terminated`` and the values share one shape ``[*B, T, *F]`` and one device, with time at ``time_dim``: -2 by
  default, which serves ``[T, N]`` and ``[N, T, 1]`` alike; ``[N, T]`` and ``[T]`` say -1. Nothing is transposed or copied for it.
* ``reward`` and the values share one floating dtype, which is also the result's; float16 and bfloat16 are computed in float32.
* ``done`` and ``terminated`` are bool. ``done`` (the episode ended, or was cut short) cuts the trace; ``terminated`` (it ended) also
  cuts the bootstrap. ``terminated`` implies ``done``, and None means that every ``done`` is one. Selected, never multiplied: NaN
  beyond them does not leak, neither into results nor into gradients.
* ``gamma``, ``lmbda`` and thresholds are numbers, one-element tensors, or tensors that broadcast to the data; gradients reach them.
* ``cu_seqlens`` (int32 or int64, ``[S + 1]``) packs S sequences of different lengths end to end in time, without padding: sequence i
  is the steps from ``cu_seqlens[i]`` to before ``cu_seqlens[i + 1]``, the last entry being T. Each gives what it would give alone; its
  last step, if not ``done``, bootstraps from its own next value. Entries are not checked, which would wait for the device:
  they are to ascend from 0 to T.
* ``T = 0`` and ``N = 0`` give empty results.
* A wrong shape, device or ``time_dim`` raises ValueError, a wrong dtype TypeError, before anything is computed; the message names the
  argument, what was expected and what came.
* Every function compiles whole (``fullgraph=True``), scripts (TorchScript), and exports.
"""

from a2c_compiled.functional.gae import generalized_advantage_estimate
from a2c_compiled.functional.n_step import n_step_return_estimate
from a2c_compiled.functional.retrace import retrace_return_estimate
from a2c_compiled.functional.scan import reverse_scan, reward2go
from a2c_compiled.functional.standardization import standardize
from a2c_compiled.functional.td import (
    td0_advantage_estimate,
    td0_return_estimate,
    td1_advantage_estimate,
    td1_return_estimate,
    td_lambda_advantage_estimate,
    td_lambda_return_estimate,
)
from a2c_compiled.functional.upgo import upgo_return_estimate
from a2c_compiled.functional.value_estimate import ValueEstimate
from a2c_compiled.functional.vtrace import vtrace_advantage_estimate

__all__ = [
    "ValueEstimate",
    "generalized_advantage_estimate",
    "n_step_return_estimate",
    "retrace_return_estimate",
    "reverse_scan",
    "reward2go",
    "standardize",
    "td0_advantage_estimate",
    "td0_return_estimate",
    "td1_advantage_estimate",
    "td1_return_estimate",
    "td_lambda_advantage_estimate",
    "td_lambda_return_estimate",
    "upgo_return_estimate",
    "vtrace_advantage_estimate",
]
