"""Measures GAE over sequences of different lengths: packed into one tensor, padded to the longest, or one call per sequence."""

from functools import partial
from typing import Callable, List, Optional

import torch
from torch import Tensor

from a2c_compiled import functional as F
from a2c_compiled.benchmarks.contenders.modes import widened
from a2c_compiled.benchmarks.measure import data
from a2c_compiled.benchmarks.measure.data import GAMMA, LMBDA
from a2c_compiled.benchmarks.measure.harness import COPY, OURS, Case, Contender, PreparedCase, as_tensors, copy_contender
from a2c_compiled.benchmarks.measure.shapes import Plan, Shape
from a2c_compiled.benchmarks.subjects.bench_estimators import GAE, gradients

Estimate = Callable[[List[Tensor]], List[Tensor]]

PACKED, PADDED, ONE_BY_ONE = f"{OURS} packed", f"{OURS} padded", f"{OURS} one by one"


def cases(plan: Plan) -> List[Case]:
    """Returns the forward and the forward+backward case of each (sequences, mean length).

    The lengths are random integers from 1 to ``2 * mean length - 1``.
    """
    return [_case(shape, direction, plan) for direction in ("forward", "forward+backward") for shape in plan.packed]


def _case(shape: Shape, direction: str, plan: Plan) -> Case:
    sequences, mean = shape
    lengths = torch.randint(1, 2 * mean, (sequences,), generator=torch.Generator().manual_seed(0)).tolist()
    total = sum(lengths)

    def prepare() -> PreparedCase:
        steps = {name: tensor.squeeze(-1) for name, tensor in data.steps((1, total), plan.device).items()}
        inputs = GAE.inputs(steps)
        flat, wide = list(inputs.values()), list(widened(inputs).values())
        padded_inputs = [_padded(tensor, lengths) for tensor in flat]
        lengths_column = torch.tensor(lengths, device=plan.device).unsqueeze(1)
        exists = torch.arange(padded_inputs[0].size(1), device=plan.device) < lengths_column  # False for padding
        cu_seqlens = torch.tensor([0, *lengths], device=plan.device).cumsum(0)
        packed_cotangents = data.cotangents(flat[0], 2)

        def computation(estimate: Estimate, tensors: List[Tensor], cotangents: List[Tensor]) -> Callable[[], List[Tensor]]:
            """Returns the function to time: the estimate, or its gradients if ``direction`` has a backward pass."""
            if direction == "forward":
                return lambda: estimate(tensors)
            sources = [value.requires_grad_() for value in tensors[: len(GAE.sources)]]
            return lambda: gradients(sources, cotangents, estimate(tensors))

        def one_by_one(tensors: List[Tensor]) -> List[Tensor]:
            pieces = zip(*(tensor.split(lengths) for tensor in tensors), strict=True)
            return [torch.cat(parts) for parts in zip(*(_gae(list(piece)) for piece in pieces), strict=True)]

        packed = computation(partial(_gae, cu_seqlens=cu_seqlens), flat, packed_cotangents)
        padded = computation(_gae, padded_inputs, [_padded(cotangent, lengths) for cotangent in packed_cotangents])
        return PreparedCase(
            computation(one_by_one, wide, [cotangent.double() for cotangent in packed_cotangents])(),
            {
                COPY: copy_contender(traffic, plan.device),
                PACKED: lambda: Contender(packed),
                PADDED: lambda: Contender(padded, lambda result: [tensor[exists] for tensor in result]),
                ONE_BY_ONE: lambda: Contender(computation(one_by_one, flat, packed_cotangents)),
            },
        )

    traffic = GAE.traffic(total, direction)
    return Case("GAE of packed sequences", direction, "[total]", shape, prepare, traffic)


def _gae(tensors: List[Tensor], cu_seqlens: Optional[Tensor] = None) -> List[Tensor]:
    state_value, next_state_value, reward, done, terminated = tensors
    return as_tensors(
        F.generalized_advantage_estimate(
            GAMMA, LMBDA, state_value, next_state_value, reward, done, terminated, time_dim=-1, cu_seqlens=cu_seqlens
        )
    )


def _padded(packed: Tensor, lengths: List[int]) -> Tensor:
    """Converts ``[total]`` to ``[sequences, longest]``. Flags are padded with True, so no value passes a sequence's end."""
    padding = packed.dtype == torch.bool  # True for flags, False (0) for numbers
    return torch.nn.utils.rnn.pad_sequence(packed.split(lengths), batch_first=True, padding_value=padding)
