"""Runs kernels on operands beside pages without access rights: one byte read or written outside an operand ends the process.

As a script: ``python tests/campaigns/guard_pages.py [--times 10000] [--seed 0] [--first 0] [--backend cpp]``. Each case draws a form, a
shape, a dtype, the strides of every operand, and its place: directly after a page without rights, directly before one, or one element away.
The C++ kernels may not write to the pages of inputs. The results are compared with the definition in plain torch, in float64, and
the bytes between the elements of outputs must stay as they are. ``--backend triton`` runs the Triton kernels in the interpreter.
"""

import ctypes
import importlib
import itertools
import math
import mmap
import os
import random
import sys
import threading
import time
import warnings
from typing import Any, NamedTuple
from unittest import mock

import torch
from campaign import Summary, in_processes, is_crash, parser
from tolerances import RELATIVE

from a2c_compiled.kernels import cpu_scan, scan_forms

PAGE = mmap.PAGESIZE
NO_ACCESS, READ_ONLY = 0, 1
FORMS = {form.name: form for form in (*scan_forms.FORMS, *scan_forms.MASKED_FORMS)}
BUILDS = ("_cpu_avx2", "_cpu")
PLACES = ("after a page", "before a page", "one element after", "one element before")
DTYPES = (torch.float32, torch.float32, torch.float64, torch.float64, torch.float16, torch.bfloat16)
# Sizes on both sides of every threshold of the C++ kernels: parts from 64 steps on, tiles of 128, blocks of 1024 sequences.
LARGE = (63, 64, 65, 127, 128, 129, 255, 257, 1023, 1024, 1025, 3001)
MOST = {"cpp": 100_000, "triton": 60}
"""The largest number of elements of an operand."""


class Pages:
    """Memory between two pages without access rights.

    Attributes:
        address: the address of the first byte with access rights.
        size: the number of bytes with access rights, a multiple of ``PAGE``.
    """

    _c = ctypes.CDLL(None, use_errno=True)

    def __init__(self, size):
        self.size = -(-size // PAGE) * PAGE
        self.memory = mmap.mmap(-1, self.size + 2 * PAGE)
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self.memory)) + PAGE
        self.bytes[:] = 255  # NaN in every floating dtype
        self._protect(self.address - PAGE, PAGE, NO_ACCESS)
        self._protect(self.address + self.size, PAGE, NO_ACCESS)

    @property
    def bytes(self):
        """The bytes with access rights, as a tensor."""
        return torch.frombuffer(self.memory, dtype=torch.uint8, count=self.size, offset=PAGE)

    def _protect(self, address, size, rights):
        if self._c.mprotect(ctypes.c_void_p(address), ctypes.c_size_t(size), rights):
            raise OSError(ctypes.get_errno(), "mprotect")

    def forbid_writing(self):
        self._protect(self.address, self.size, READ_ONLY)


class Operand:
    """A tensor in pages of its own.

    Args:
        place: one of PLACES.
    """

    def __init__(self, shape, strides, dtype, place):
        count = 1 + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
        size = count * dtype.itemsize
        self.pages = Pages(size + dtype.itemsize)
        first, last = PAGE, PAGE + self.pages.size - size
        offset = dict(zip(PLACES, (first, last, first + dtype.itemsize, last - dtype.itemsize), strict=True))[place]
        flat = torch.frombuffer(self.pages.memory, dtype=dtype, count=count, offset=offset)
        self.tensor = flat.as_strided(shape, strides)

    def only_the_tensor_is_written(self):
        """Whether all bytes around the elements are as they were; overwrites the tensor."""
        integers = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[self.tensor.itemsize]
        self.tensor.view(integers).fill_(-1 if integers != torch.uint8 else 255)
        return bool(self.pages.bytes.eq(255).all())


class Case(NamedTuple):
    """A case that depends on its name alone."""

    name: str
    backend: str
    build: str
    path: str
    form: Any
    dtype: torch.dtype
    shape: tuple
    dim: int
    threads: int


def draw(name, backend="cpp"):
    """Draws the case with this name, ``SEED:NUMBER``."""
    chance = random.Random(name)
    while True:
        dims = chance.choice((1, 2, 2, 2, 3, 4))
        shape = tuple(chance.choice((chance.randint(1, 40), chance.randint(1, 8))) for _ in range(dims))
        dim = chance.randrange(dims)
        if backend == "cpp" and chance.random() < 0.3:
            large = chance.choice((dim, chance.randrange(dims)))
            shape = (*shape[:large], chance.choice(LARGE), *shape[large + 1 :])
        if math.prod(shape) <= MOST[backend]:
            break
    build, form, dtype = chance.choice(BUILDS), FORMS[chance.choice(sorted(FORMS))], chance.choice(DTYPES)
    paths = ("run", "run", "operator", "call" if dtype.itemsize > 2 else "operator")  # call serves no half precision
    path = chance.choice(paths) if backend == "cpp" else "triton"
    return Case(name, backend, build, path, form, dtype, shape, dim, chance.choice((1, 1, 1, 4)) if path == "run" else 1)


def random_strides(chance, shape, expanded=0.0):
    """Strides with any order of the dimensions and gaps between elements and rows; with the chance ``expanded``, one stride is 0."""
    order = list(range(len(shape)))
    if chance.random() < 0.3:
        chance.shuffle(order)
    strides, step = [0] * len(shape), chance.choice((1, 1, 1, 1, 2, 3))
    for d in reversed(order):
        strides[d] = step
        step = step * shape[d] + chance.choice((0, 0, 0, 0, 1, 5))
    if chance.random() < expanded:
        strides[chance.randrange(len(shape))] = 0
    return tuple(strides)


def numbers(case, generator):
    """Random coefficients, values and flags of a case, by name, in float64, exact in the dtype of the case."""

    def one_of(*choices):
        return torch.tensor(choices)[torch.randint(len(choices), case.shape, generator=generator)]

    by_name = {}
    for name in case.form.coefficients:
        # No clip of a ratio, e ** (k / 4), is close to a threshold: there rounding would decide.
        by_name[name] = one_of(0.5, 0.875, 1.0) if name in ("gamma", "lmbda") else one_of(0.625, 0.875)
        by_name[name] = by_name[name] * (1.0 if name in ("gamma", "lmbda", "c_thresh") else 2.0)
    for name in case.form.values:
        by_name[name] = torch.randn(case.shape, generator=generator, dtype=torch.float64).to(case.dtype)
    for name in ("log_pi", "log_mu"):
        if name in by_name:
            by_name[name] = one_of(-0.75, -0.25, 0.0, 0.25, 0.5)
    if "decay" in by_name:
        by_name["decay"] = one_of(0.0, 0.5, 0.875, 1.0)
    for name in case.form.flags:
        by_name[name] = torch.rand(case.shape, generator=generator) < (0.7 if name == "mask" else 0.2)
    if "mask" in case.form.flags:  # the values of excluded steps have no effect
        for name in case.form.values:
            by_name[name] = by_name[name].masked_fill(~by_name["mask"], torch.nan)
    return by_name


def in_torch(form, by_name, dim):
    """The outputs of a form by its definition in plain torch, in float64."""
    operands = [by_name[name] for name in (*form.coefficients, *form.values, *form.flags)]
    wide = [x.double() if x.is_floating_point() else x for x in operands]
    with mock.patch.object(cpu_scan, "is_available", return_value=False), mock.patch.object(cpu_scan, "warn_once"):
        outputs = getattr(torch.ops.a2c_compiled, form.name)(*wide, dim)
    return outputs if isinstance(outputs, tuple) else (outputs,)


class Prepared:
    """The operands of a case in guarded pages, and the expected outputs."""

    def __init__(self, case):
        self.case, self.chance = case, random.Random(f"{case.name} operands")
        generator = torch.Generator().manual_seed(self.chance.getrandbits(60))
        form, dim = case.form, case.dim - len(case.shape)
        wide = torch.float64 if case.dtype == torch.float64 else torch.float32
        by_name = numbers(case, generator)
        self.inputs = {}
        for name in (*form.coefficients, *form.values, *form.flags):
            dtype = wide if name in form.coefficients else torch.bool if name in form.flags else case.dtype
            by_name[name] = self._placed(name, by_name[name], dtype)
            if name == "value_target":  # the definition computes it anew
                forward = FORMS[form.name.replace("_backward", "")]
                names = (*forward.coefficients, *forward.values, *forward.flags)
                missing = [other for other in names if other not in self.inputs]
                by_name |= {other: self._placed(other, by_name[other], torch.bool) for other in missing}
                targets = in_torch(forward, by_name, dim)[1]
                by_name[name] = self._placed(name, targets.to(case.dtype), case.dtype)
        self.expected = in_torch(form, by_name, dim)
        for operand in self.inputs.values():
            if case.backend == "cpp":  # the interpreter writes every operand back
                operand.pages.forbid_writing()

    def _placed(self, name, x, dtype):
        """Copies ``x`` into pages, once for each name; returns the tensor there."""
        if name not in self.inputs or name == "value_target":
            shape = self.case.shape
            if name in self.case.form.coefficients and self.chance.random() < 0.6:
                shape, x = (), x.flatten()[0]
            # A mask, and what belongs to it, must stay as it was drawn.
            expanded = 0.0 if self.case.form.unmasked_name or name == "value_target" else 0.1
            strides = random_strides(self.chance, shape, expanded) if shape else ()
            operand = self.inputs[name] = Operand(shape, strides, dtype, self.chance.choice(PLACES))
            for d, stride in enumerate(strides):
                if stride == 0:
                    x = x.narrow(d, 0, 1).expand(shape)
            first = [slice(0, 1) if stride == 0 else slice(None) for stride in strides]
            operand.tensor[tuple(first)] = x[tuple(first)].to(dtype)
        return self.inputs[name].tensor

    def groups(self):
        form = self.case.form
        return [[self.inputs[name].tensor for name in names] for names in (form.coefficients, form.values, form.flags)]

    def starts(self):
        """The starts of packed sequences in guarded pages, or None. They end the trace at the last step alone, where it ends anyway."""
        if not self.case.form.flags or self.chance.random() < 0.5:
            return None
        values = torch.tensor(
            [self.chance.choice((-(2**31), -1, 0, 41_000, 2**31 - 1)) for _ in range(self.chance.randint(1, 4))]
        )
        values = torch.cat((values, torch.tensor([self.case.shape[self.case.dim]])))
        dtype, step = self.chance.choice((torch.int32, torch.int64)), self.chance.choice((1, 2))
        self.inputs["cu_seqlens"] = Operand(values.shape, (step,), dtype, self.chance.choice(PLACES))
        self.inputs["cu_seqlens"].tensor.copy_(values)
        self.inputs["cu_seqlens"].pages.forbid_writing()
        return self.inputs["cu_seqlens"].tensor

    def outputs(self):
        """New outputs in guarded pages."""
        shape, dtype = self.case.shape, self.case.dtype
        return [
            Operand(shape, random_strides(self.chance, shape), dtype, self.chance.choice(PLACES))
            for _ in self.case.form.outputs
        ]

    def fault(self, results):
        """What is wrong with the outputs; None if nothing is."""
        case = self.case
        for name, result, expected in zip(case.form.outputs, results, self.expected, strict=True):
            # value_target was rounded before the kernel read it
            allowed = RELATIVE[case.dtype] * (8 if case.dtype.itemsize == 2 else 3) * (1 + expected.abs().max())
            error = (result.double() - expected).abs().max()
            if not error <= allowed:
                return f"{name}: off by {error:.1e}, {allowed:.1e} allowed"
        return None


def run_in_threads(prepared, outputs):
    """Calls the kernel once for each list of ``outputs``, all at the same time."""
    case, groups, errors = prepared.case, prepared.groups(), []

    def run(operands):
        try:
            cpu_scan.run(case.form, *groups, case.dim, tuple(operand.tensor for operand in operands))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(operands,)) for operands in outputs[1:]]
    for thread in threads:
        thread.start()
    run(outputs[0])
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def outcome(case):
    """Runs a case; returns ``"right"`` or what is wrong."""
    prepared = Prepared(case)
    coefficients, values, flags = prepared.groups()
    if case.path == "run":
        outputs = [prepared.outputs() for _ in range(case.threads)]
        run_in_threads(prepared, outputs)
        for operands in outputs:
            fault = prepared.fault([operand.tensor for operand in operands])
            if fault is not None:
                return fault
        written = all(operand.only_the_tensor_is_written() for operand in itertools.chain(*outputs))
        return "right" if written else "bytes beside an output were written"
    if case.path == "call":
        results = cpu_scan.call(case.form, case.dim, prepared.starts(), *coefficients, *values, *flags)
        if results is None:
            return "call refused the operands"
    elif case.path == "operator":
        results = getattr(torch.ops.a2c_compiled, case.form.name)(*coefficients, *values, *flags, case.dim - len(case.shape))
    else:
        results = run_triton(case, coefficients, values, flags)
    results = results if isinstance(results, tuple) else (results,)
    return prepared.fault(results) or "right"


def run_triton(case, coefficients, values, flags):
    from a2c_compiled.kernels import triton_scan
    from a2c_compiled.kernels.triton import tuning

    chance = random.Random(f"{case.name} blocks")
    splits = chance.choice((1, 1, 3))
    blocks = tuning.Blocks(
        rows=chance.choice((1, 2, 4)),
        steps=chance.choice((2, 4)),
        chunks=chance.choice((1, 2)),
        num_warps=1,
        vector=2,
        splits=splits,
    )
    with tuning.forced(blocks):
        return triton_scan.run(case.form, coefficients, values, flags, case.dim - len(case.shape))


def work(cases, backend):
    """Yields the outcome of each case."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    for name in cases:
        case = draw(name, backend)
        if backend == "cpp":
            cpu_scan._extension = importlib.import_module(f"a2c_compiled.kernels.{case.build}")
        try:
            yield outcome(case)
        except Exception as error:
            yield f"{type(error).__name__}: {error}"[:200]


def campaign(names, backend="cpp"):
    """Yields each name of a case, its outcome and its seconds."""
    if backend == "triton":
        os.environ["TRITON_INTERPRET"] = "1"  # Triton reads the variable when it is imported
    yield from in_processes(work, names, backend, at_once=2000)


def main():
    options = parser(__doc__, times=(10_000, "number of cases"), first=(0, "number of the first case"))
    options.add_argument("--backend", choices=MOST, default="cpp")
    arguments = options.parse_args()
    end, summary = time.monotonic() + arguments.seconds, Summary()
    names = [f"{arguments.seed}:{i}" for i in range(arguments.first, arguments.first + arguments.times)]
    for name, result, seconds in campaign(names, arguments.backend):
        case = draw(name, arguments.backend)
        wrong = f"{result}; --first {name.partition(':')[2]} --times 1; {case}" if result != "right" else None
        summary.add(case.form.name, "crash" if is_crash(result) else result, wrong, seconds)
        if time.monotonic() > end:
            break
    return summary.report()


if __name__ == "__main__":
    sys.exit(main())
