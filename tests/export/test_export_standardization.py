"""Exported standardisation: the sums are float64 in every format, and a single element of the batch stays unchanged."""

from typing import NamedTuple

import oracle
import pytest
import torch
from export_cases import EXPORTERS, LOADERS, UNCOMPILED
from tolerances import assert_close

from a2c_compiled.functional import standardize

pytestmark = pytest.mark.slow

EPS = 1e-5


class Results(NamedTuple):
    together: torch.Tensor
    masked: torch.Tensor
    grouped: torch.Tensor


class Standardize(torch.nn.Module):
    def forward(self, x: torch.Tensor, mask: torch.Tensor, group: torch.Tensor) -> Results:
        return Results(standardize(x, 1e-5), standardize(x, 1e-5, mask), standardize(x, 1e-5, None, group))


def make_inputs(x):
    index = torch.arange(x.numel()).reshape(x.shape)
    return {"x": x, "mask": index % 3 != 2, "group": index % 2}


@pytest.mark.parametrize("ending", UNCOMPILED)
def test_sums_of_an_exported_graph_are_float64(ending, tmp_path):
    path = EXPORTERS[ending](Standardize(), make_inputs(torch.randn(6, 3)), tmp_path / f"graph{ending}", ("T", "N"))
    run = LOADERS[ending](path)
    for x in (torch.full((2048, 3), 0.95), 1e4 + torch.randn(1024, 3), torch.full((1, 1), 7.0)):
        inputs = make_inputs(x)
        outputs = run(inputs)
        truths = [
            oracle.standardize(x, EPS),
            oracle.standardize(x, EPS, inputs["mask"]),
            oracle.standardize(x, EPS, group=inputs["group"]),
        ]
        for name, truth in zip(Results._fields, truths, strict=True):
            assert_close(outputs[name], truth, what=f"{name} of {list(x.shape)}")
