"""Sequences of different lengths: packed end to end, padded to the longest, one after the other."""

from functools import partial
from typing import Callable, List, Optional

import torch
from torch import Tensor

from a2c_compiled import functional as F
from a2c_compiled.benchmarks.contenders.modes import widened
from a2c_compiled.benchmarks.measure import data
from a2c_compiled.benchmarks.measure.data import GAMMA, LMBDA
from a2c_compiled.benchmarks.measure.harness import COPY, OURS, Case, Contender, Field, as_tensors, copy_contender
from a2c_compiled.benchmarks.measure.shapes import Plan, Shape
from a2c_compiled.benchmarks.subjects.bench_estimators import GAE, gradients

Estimate = Callable[[List[Tensor]], List[Tensor]]

PACKED, PADDED, ONE_BY_ONE = f"{OURS} packed", f"{OURS} padded", f"{OURS} one by one"


def cases(plan: Plan) -> List[Case]:
    """GAE over sequences of one to twice as many steps as the shape says."""
    return [_case(shape, direction, plan) for direction in ("forward", "forward+backward") for shape in plan.packed]


def _case(shape: Shape, direction: str, plan: Plan) -> Case:
    sequences, mean = shape
    lengths = torch.randint(1, 2 * mean, (sequences,), generator=torch.Generator().manual_seed(0)).tolist()
    total = sum(lengths)

    def enter() -> Field:
        steps = {name: tensor.squeeze(-1) for name, tensor in data.steps((1, total), plan.device).items()}
        inputs = GAE.inputs(steps)
        flat, wide = list(inputs.values()), list(widened(inputs).values())
        rows = [_padded(tensor, lengths) for tensor in flat]
        real = torch.arange(rows[0].size(1), device=plan.device) < torch.tensor(lengths, device=plan.device).unsqueeze(1)
        cu_seqlens = torch.tensor([0, *lengths], device=plan.device).cumsum(0)
        given = data.cotangents(flat[0], 2)

        def asked(estimate: Estimate, tensors: List[Tensor], cotangents: List[Tensor]) -> Callable[[], List[Tensor]]:
            if direction == "forward":
                return lambda: estimate(tensors)
            sources = [value.requires_grad_() for value in tensors[: len(GAE.sources)]]
            return lambda: gradients(sources, cotangents, estimate(tensors))

        def one_by_one(tensors: List[Tensor]) -> List[Tensor]:
            pieces = zip(*(tensor.split(lengths) for tensor in tensors), strict=True)
            return [torch.cat(parts) for parts in zip(*(_gae(list(piece)) for piece in pieces), strict=True)]

        packed = asked(partial(_gae, cu_seqlens=cu_seqlens), flat, given)
        padded = asked(_gae, rows, [_padded(cotangent, lengths) for cotangent in given])
        return Field(
            asked(one_by_one, wide, [cotangent.double() for cotangent in given])(),
            {
                COPY: copy_contender(traffic, plan.device),
                PACKED: lambda: Contender(packed),
                PADDED: lambda: Contender(padded, lambda result: [tensor[real] for tensor in result]),
                ONE_BY_ONE: lambda: Contender(asked(one_by_one, flat, given)),
            },
        )

    traffic = GAE.traffic(total, direction)
    return Case("GAE of packed sequences", direction, "[total]", shape, enter, traffic)


def _gae(tensors: List[Tensor], cu_seqlens: Optional[Tensor] = None) -> List[Tensor]:
    state_value, next_state_value, reward, done, terminated = tensors
    return as_tensors(
        F.generalized_advantage_estimate(
            GAMMA, LMBDA, state_value, next_state_value, reward, done, terminated, time_dim=-1, cu_seqlens=cu_seqlens
        )
    )


def _padded(packed: Tensor, lengths: List[int]) -> Tensor:
    """One sequence a row. Flags are padded with True, so that nothing comes from behind a sequence's end."""
    value = packed.dtype == torch.bool
    return torch.nn.utils.rnn.pad_sequence(packed.split(lengths), batch_first=True, padding_value=value)
