"""``torch.gru_cell`` and ``torch.lstm_cell`` in operations that keep sizes symbolic.

Tracing torch's own functions fixes the size of the batch in the graph.
"""

from typing import Any, Callable, Dict, List, Optional, Tuple

import torch
from torch import Tensor
from torch.nn.functional import linear


def _gru_cell(
    x: Tensor, h: Tensor, w_ih: Tensor, w_hh: Tensor, b_ih: Optional[Tensor] = None, b_hh: Optional[Tensor] = None
) -> Tensor:
    """Computes the formula of ``nn.GRUCell``: ``[N, H]`` from ``x`` ``[N, F]`` and ``h`` ``[N, H]``."""
    x_reset, x_update, x_new = _gates(x, w_ih, b_ih, h.size(-1))
    h_reset, h_update, h_new = _gates(h, w_hh, b_hh, h.size(-1))
    reset, update = (x_reset + h_reset).sigmoid(), (x_update + h_update).sigmoid()
    new = (x_new + reset * h_new).tanh()
    return new + update * (h - new)


def _lstm_cell(
    x: Tensor,
    state: Tuple[Tensor, Tensor],
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Optional[Tensor] = None,
    b_hh: Optional[Tensor] = None,
) -> Tuple[Tensor, Tensor]:
    """Computes the formula of ``nn.LSTMCell``: ``h`` and ``c``, ``[N, H]``, from ``x`` ``[N, F]`` and ``state``, the previous pair."""
    h, c = state
    gates = zip(_gates(x, w_ih, b_ih, h.size(-1)), _gates(h, w_hh, b_hh, h.size(-1)), strict=True)
    of_input, forget, new, output = (of_x + of_h for of_x, of_h in gates)
    c = forget.sigmoid() * c + of_input.sigmoid() * new.tanh()
    return output.sigmoid() * c.tanh(), c


def _gates(x: Tensor, weight: Tensor, bias: Optional[Tensor], size: int) -> List[Tensor]:
    """Returns the parts of ``linear(x, weight, bias)``, each of ``size`` entries."""
    return list(linear(x, weight, bias).split(size, -1))


CELLS: Dict[Any, Callable[..., Any]] = {torch.gru_cell: _gru_cell, torch.lstm_cell: _lstm_cell}
"""The function of this module that computes the same, by function of torch."""
