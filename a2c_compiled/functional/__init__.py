"""Value estimators as functions of tensors, with TorchRL's names and argument order, without TensorDict.

These conventions hold for every function that takes ``reward``:

* Shapes: ``reward``, ``done``, ``terminated``, values and log-probabilities have one shape ``[*B, T, *F]`` and one device.
  ``T`` is the number of steps. ``*B`` and ``*F`` stand for zero or more other dimensions. Results have the shape ``[*B, T, *F]``.
* Time: ``time_dim`` is the dimension of the ``T`` steps. The default -2 fits ``[T, N]`` and ``[N, T, 1]``. Use ``time_dim=-1`` for
  ``[N, T]`` and ``[T]``. The functions do not transpose or copy the data to move time to another dimension.
* Dtypes: ``reward``, values and log-probabilities have one floating dtype. Results have this dtype. The functions compute float16 and
  bfloat16 inputs in float32.
* Flags: ``done`` and ``terminated`` are bool. ``done`` is True at the last step of an episode, terminated or truncated; no trace
  passes this step. ``terminated`` is True at a step that reached a terminal state; the return of this step does not bootstrap.
  The trace ends there too, whether ``done`` is True or not. ``terminated=None`` means ``terminated = done``.
* Truncation: a truncated step is ``done`` and not ``terminated``. Its return ends with ``gamma * next_state_value``, so its
  ``next_state_value`` must be the value of the last observation before the reset.
* NaN and infinity: the functions select with flags (``masked_fill``, ``where``); they do not multiply by 0. NaN that belongs to another
  episode, or to the value after a terminal state, reaches neither results nor gradients. A discount or trace decay that is exactly 0
  stops NaN too. Nothing else does: NaN reaches every earlier step of its episode, even where the product of the discounts between both
  steps underflows to 0. All backends agree on the steps whose results are not finite. Whether a result is NaN or infinite may differ
  only after a discount that is itself infinite.
* Coefficients: ``gamma``, ``lmbda`` and thresholds are numbers (int, float or a NumPy scalar, not a bool), one-element tensors, or tensors
  that broadcast to ``reward``. Formulas write :math:`\\gamma_t` and :math:`\\lambda_t`, because a coefficient may have one entry per step.
  Results are differentiable in coefficients. torch passes no NumPy scalars but float64 to TorchScript.
* Packed sequences: S sequences of different lengths may follow each other along time, without padding. ``cu_seqlens``, ``[S + 1]``,
  int32 or int64, holds the start of each sequence, then T. Sequence i consists of the steps ``cu_seqlens[i]`` to
  ``cu_seqlens[i + 1] - 1``, and its results do not depend on the other sequences: its last step bootstraps from the
  ``next_state_value`` of that step unless the step is ``terminated``. The entries of ``cu_seqlens`` must ascend from 0 to T. The
  functions do not check this, because a check would synchronise with the device.
* Masks: ``mask``, ``[*B, T, *F]``, bool, is True at included steps and False at excluded steps, such as padding. The results at included
  steps, and all gradients, equal those of the data without the excluded steps, whatever values those hold, NaN included. Results and
  gradients at excluded steps are 0. A trace ends directly before an excluded step, as at a truncation: the step there bootstraps from its
  own ``next_state_value``. With ``skip_masked=True`` the trace continues at the next included step, with one factor ``gamma * lmbda`` for
  each included step; the ``next_state_value`` of the step before a gap must then be the value after the gap.
* Empty data: ``T = 0`` and ``N = 0`` give empty results.
* Errors: a wrong shape, device or ``time_dim`` raises ValueError. A wrong dtype or type raises TypeError. The message has the form
  ``argument: expected X, got Y``.
* Modes: every function runs in eager mode, under ``torch.compile(fullgraph=True)``, in TorchScript and in exported graphs.
"""

from a2c_compiled.functional.eligibility import eligibility_trace, episodic_cumsum
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
    "eligibility_trace",
    "episodic_cumsum",
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
