"""Large scans are divided among the threads of torch's pool. The division changes no bit of a result."""

import ctypes
import itertools
import multiprocessing
import random

import pytest
import torch
from cases import contiguous, interleaved, operands, padded, transposed
from loops import loop_over

from a2c_compiled._torch_internals import parallel_for
from a2c_compiled.kernels import cpu_scan, scan_forms
from a2c_compiled.kernels.scan_forms import FORMS, MASKED_FORMS

Body = ctypes.CFUNCTYPE(None, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p)
ParallelFor = ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64, Body, ctypes.c_void_p)

# Large enough that at least two threads share them: wide and narrow rows, long rows, short rows that are contiguous one after the other, an
# outer dimension, sizes that are no multiple of a piece.
SHAPES = [
    ((64, 6000), 0),
    ((500, 1100), 0),
    ((6000, 64), 1),
    ((600, 700), 1),
    ((70_000, 5), 1),
    ((120_001, 3), 1),
    ((200, 30, 70), 1),
    ((9, 4500, 10), 0),
]


class Pool:
    """A pool that divides every loop at random, and runs the parts in random order, in the calling thread."""

    def __init__(self, status=0):
        self.chance, self.calls, self.status = random.Random(0), [], status
        self.function = ParallelFor(self._run)
        self.address = ctypes.cast(self.function, ctypes.c_void_p).value

    def _run(self, begin, end, grain, body, context):
        self.calls.append((begin, end, grain))
        cuts = sorted({begin, end, *(self.chance.randint(begin, end) for _ in range(3))})
        parts = list(itertools.pairwise(cuts))
        self.chance.shuffle(parts)
        for part in parts:
            body(*part, context)
        return self.status


@pytest.fixture
def pool_of():
    """Makes the kernels use a pool, until the test ends."""
    yield lambda pool: cpu_scan._extension.use_threads(0 if pool is None else pool.address)
    cpu_scan._extension.use_threads(parallel_for())


def groups_of(form, shape, dtype, strides, per_step):
    """Coefficients, values and flags of a form, with these strides."""
    tensors = list(operands(form, shape, dtype, "per step" if per_step else "numbers").values())
    tensors = [strides(tensor) if tensor.dim() > 0 else tensor for tensor in tensors]
    first_value, first_flag = len(form.coefficients), len(form.coefficients) + len(form.values)
    flags = tensors[first_flag:]
    if len(flags) < len(form.flags):  # the mask
        flags.append(strides(torch.rand(shape, generator=torch.Generator().manual_seed(1)) < 0.9))
    return tensors[:first_value], tensors[first_value:first_flag], flags


@pytest.mark.parametrize("form", [*FORMS, *MASKED_FORMS], ids=lambda form: form.name)
@loop_over("strides", [contiguous, transposed, interleaved, padded])
@loop_over(("shape", "dim"), SHAPES)
def test_a_divided_scan_has_the_same_bits(form, strides, shape, dim, pool_of):
    pool = Pool()
    dtype = (torch.float32, torch.float64, torch.bfloat16)[SHAPES.index((shape, dim)) % 3]
    groups = groups_of(form, shape, dtype, strides, per_step=strides is transposed and dtype != torch.bfloat16)
    pool_of(None)
    expected = cpu_scan.run(form, *groups, dim)
    pool_of(pool)
    for result, value in zip(cpu_scan.run(form, *groups, dim), expected, strict=True):
        torch.testing.assert_close(result, value, rtol=0, atol=0, equal_nan=True)
    [(begin, end, grain)] = pool.calls
    assert begin == 0
    assert end >= 2 * grain


def test_a_small_scan_stays_in_its_thread(pool_of):
    pool = Pool()
    pool_of(pool)
    cpu_scan.run(scan_forms.GAE, *groups_of(scan_forms.GAE, (64, 128), torch.float32, contiguous, False), 0)
    assert pool.calls == []


def test_a_pool_that_fails_raises_an_error(pool_of):
    pool_of(Pool(status=1))
    with pytest.raises(MemoryError):
        cpu_scan.run(scan_forms.GAE, *groups_of(scan_forms.GAE, (64, 4000), torch.float32, contiguous, False), 0)


def test_torch_has_the_pool():
    assert parallel_for() != 0


def scan_of(seed):
    x = torch.randn(64, 16384, generator=torch.Generator().manual_seed(seed))
    return cpu_scan.run(scan_forms.LINEAR_SCAN, (), (x, x.sigmoid()), (), 0)[0].double().sum().item()


@pytest.mark.slow
def test_a_forked_process_scans_in_its_own_thread():
    expected = scan_of(0)
    with multiprocessing.get_context("fork").Pool(1) as forked:
        assert forked.apply_async(scan_of, (0,)).get(60) == expected
