"""Random cases of every function, value estimator and loss against the float64 oracle: values and gradients.

    python tests/random_cases.py --estimators 100000 --loss 10000 --seed 0
    python tests/random_cases.py --case GAE:17                     # repeats one case
    python tests/random_cases.py --families GAE,VTrace --backend triton --estimators 300 --loss 0

The oracle cuts the data into pieces, or deletes the steps that the mask excludes, and then runs the plain loop on what is left. For the
bound see :func:`compare`. A case is undecided, and another one is drawn, if rounding may turn one of its comparisons: a clip, or the
condition of UPGO. Exit status 1 if a result or gradient is beyond its bound. To add a family, add a function that draws a
:class:`random_steps.Case` to a table in ``FAMILIES``.
"""

import argparse
import collections
import contextlib
import functools
import inspect
import itertools
import math
import numbers
import os
import sys
import time
from typing import Any, Dict, Iterator, List, NamedTuple, Sequence, Tuple
from unittest import mock

import cases
import numpy as np
import oracle
import random_estimators
import random_losses
import torch
from random_steps import Case, Draw, with_zero
from rounding import Float64, Magnitudes, value_and_size
from torch import Tensor

from a2c_compiled.kernels import cpu_scan

FAMILIES = {"estimators": random_estimators.FAMILIES, "loss": random_losses.FAMILIES}
BOUND = 4.0
COARSE_BOUND = 2.0
GROWTH = 2.0**-22
TOGETHER = 50_000  # number of steps that go through the oracle's loop together
LONGEST = {"cpp": 2048, "torch": 300, "triton": 33}


class Results(NamedTuple):
    """Results and, by name of the variable, gradients of a weighted sum of the results."""

    results: Sequence[Tensor]
    gradients: Dict[str, Tensor]


def evaluate(results: Sequence[Tensor], variables: Dict[str, Tensor]) -> Results:
    dependent = [result for result in results if result.requires_grad]
    gradients: Sequence[Tensor] = [torch.zeros_like(x) for x in variables.values()]
    if dependent and variables:
        weights = [cases.weights(result) for result in dependent]
        gradients = torch.autograd.grad(dependent, list(variables.values()), weights, materialize_grads=True)
    return Results([result.detach() for result in results], dict(zip(variables, gradients, strict=True)))


def is_variable(x: Any) -> bool:
    return isinstance(x, Tensor) and x.requires_grad


def library(case: Case) -> List[Results]:
    """Returns what the library computes with gradients, and without gradients, where it takes other ways."""
    variables = {name: x for name, x in case.arguments.items() if is_variable(x)}
    arguments = {name: x.detach() if isinstance(x, Tensor) else x for name, x in case.arguments.items()}
    with torch.no_grad():
        plain = case.call(**arguments)
    return [evaluate(case.call(**case.arguments), variables), Results(plain, {})]


def key(case: Case) -> Any:
    """Cases with the same key run through the oracle's loop together."""
    if case.scan is None:
        return None, (), 0
    length = case.layout.shape[case.layout.time_dim]
    return case.scan, case.options, next(i for i, longest in enumerate((16, 64, 300, math.inf)) if length <= longest)


def expected(group: Sequence[Case], indices: Sequence[np.ndarray], run: Float64) -> Tuple[List[Results], List[bool]]:
    """Runs the oracle on cases with one key. Over magnitudes, the results are sizes.

    Also returns for each case whether rounding may turn one of its comparisons.
    """
    given = [{name: in_run(x, case, run) for name, x in {**case.arguments, **case.constants}.items()} for case in group]
    variables = [
        {name: value_or_size(given[i][name]) for name, x in case.arguments.items() if is_variable(x)}
        for i, case in enumerate(group)
    ]
    undecided: List[List[Tensor]] = [[] for _ in group]
    outputs: List[Any] = [()] * len(group)
    if group[0].scan is not None:
        prepared = []
        for i, case in enumerate(group):
            prepared.append(case.before(**given[i]))
            undecided[i] += run.undecided()
        outputs = scanned(group, indices, prepared, run, undecided)
    results = []
    for i, case in enumerate(group):
        results.append([value_or_size(x) for x in case.after(outputs[i], **given[i])])
        undecided[i] += run.undecided()
    flat = {(i, name): x for i, of_case in enumerate(variables) for name, x in of_case.items()}
    gradients = evaluate(list(itertools.chain(*results)), flat).gradients
    return (
        [
            Results([x.detach() for x in one], {name: gradients[i, name] for name in variables[i]})
            for i, one in enumerate(results)
        ],
        [any(bool(flag.any()) for flag in flags) for flags in undecided],
    )


def in_run(x: Any, case: Case, run: Float64) -> Any:
    """Returns a number or a floating tensor, rounded to the dtype in which the library computes, as a variable of the run."""
    if isinstance(x, numbers.Real):
        x = torch.tensor(float(x), dtype=torch.float64)
    if not isinstance(x, Tensor) or not x.is_floating_point():
        return x
    return run.leaf(x.to(case.working_dtype).double())


def value_or_size(x: Any) -> Tensor:
    return x if isinstance(x, Tensor) else value_and_size(x)[1]


def scanned(
    group: Sequence[Case],
    indices: Sequence[np.ndarray],
    prepared: List[Dict[str, Any]],
    run: Float64,
    undecided: List[List[Tensor]],
) -> List[Any]:
    """Runs the oracle's loop over the columns of all cases at once, and returns the results of each case."""
    joined = {}
    # Before the first step of a piece, repeat its last step. No result depends on these entries: most loops run backwards, and "done" ends
    # the others there.
    takes = [torch.from_numpy(np.where(index < 0, index[-1], index)) for index in indices]
    for name in prepared[0]:
        joined[name] = torch.cat(
            [case.layout.time_first(one[name]).take(take) for case, one, take in zip(group, prepared, takes, strict=True)], 1
        )
    if "done" in joined:
        joined["done"] = joined["done"] | torch.cat([torch.from_numpy(index < 0) for index in indices], 1)
    name = group[0].scan or ""
    names = oracle_names(name)
    time_first = {argument: 0 for argument in ("time_dim", "dim") if argument in names}
    results = getattr(oracle, name)(**joined, **dict(group[0].options), **time_first)
    results = results if isinstance(results, tuple) else (results,)
    comparisons = run.undecided()
    sizes = [index.shape[1] for index in indices]
    of_cases = zip(*(x.split(sizes, 1) for x in results), strict=True)
    outputs = []
    for case, index, columns in zip(group, indices, of_cases, strict=True):
        places = np.full(math.prod(case.layout.shape), index.size)
        places[index[index >= 0]] = np.flatnonzero(index >= 0)
        outputs.append(tuple(case.layout.callers_order(with_zero(x).take(torch.from_numpy(places))) for x in columns))
    for flag in comparisons:
        for of_case, part in zip(undecided, flag.split(sizes), strict=True):
            of_case.append(part)
    return outputs


@functools.cache
def oracle_names(name: str) -> Tuple[str, ...]:
    return tuple(inspect.signature(getattr(oracle, name)).parameters)


class Verdict(NamedTuple):
    """The largest error of a case, as a fraction of what is allowed."""

    case: Case
    undecided: bool
    of_results: float
    of_gradients: float
    worst: str


def judge(group: Sequence[Case]) -> Iterator[Verdict]:
    """Compares the library with the oracle, for cases with one key."""
    indices = [np.zeros((0, 0)) if case.scan is None else case.layout.columns() for case in group]
    longest = max(map(len, indices))
    indices = [np.pad(index, ((longest - len(index), 0), (0, 0)), constant_values=-1) for index in indices]
    exact, _ = expected(group, indices, Float64())
    sizes, undecided = expected(group, indices, Magnitudes())
    grown, _ = expected(group, indices, Magnitudes(GROWTH))
    for i, case in enumerate(group):
        eps = torch.finfo(case.working_dtype).eps
        oracles = [dict(named(of[i])) for of in (exact, sizes, grown)]
        ratios = {"result": 0.0, "gradient": 0.0}
        worst = ""
        for what, x in itertools.chain(*map(named, library(case))):
            one, size, more = (of_case[what] for of_case in oracles)
            ratio, text = compare(x, one, size, (more - size) / GROWTH + size, eps)
            if ratio > max(ratios.values()):
                worst = f"{' '.join(what)}: {text}"
            ratios[what[0]] = max(ratios[what[0]], ratio)
        yield Verdict(case, undecided[i], ratios["result"], ratios["gradient"], worst)


def named(results: Results) -> Iterator[Tuple[Tuple[str, str], Tensor]]:
    yield from ((("result", str(i)), x) for i, x in enumerate(results.results))
    yield from ((("gradient", name), x) for name, x in results.gradients.items())


def compare(actual: Tensor, exact: Tensor, size: Tensor, roundings: Tensor, eps: float) -> Tuple[float, str]:
    """Returns the largest error as a fraction of the bound, and a text about the entry where it is.

    The bound of an entry is ``BOUND * eps * roundings``, with the eps of the dtype in which the library computes. For a result of a coarser
    dtype, ``COARSE_BOUND`` times the eps of this dtype times ``size`` is added:

    * ``size`` is the result of the oracle's loop over absolute values, see :mod:`rounding`;
    * ``roundings`` counts in ``size`` each term as often as the loop rounds it, and once more for the result. For one step it is a few
      times ``size``. With a decay of 0.99 over many steps, it is a few hundred times ``size``.
    """
    if actual.shape != exact.shape:
        return math.inf, f"shape {list(actual.shape)}, expected {list(exact.shape)}"
    if actual.numel() == 0:
        return 0.0, ""
    info = torch.finfo(actual.dtype)
    bound = BOUND * eps * roundings + max(torch.finfo(torch.float32).smallest_normal, info.smallest_normal * info.eps)
    if info.eps > eps:
        bound += COARSE_BOUND * info.eps * size
    error = (actual.double() - exact).abs()
    # A size beyond the limit means that the result overflows, or that rounding errors are divided by each other.
    ratio = torch.where(size < min(info.max / 4, 1e30), error / bound, 0.0).nan_to_num(nan=math.inf, posinf=math.inf)
    at = int(ratio.argmax())
    place = list(np.unravel_index(at, actual.shape))
    values = (x.reshape(-1)[at].item() for x in (actual, exact, bound))
    return ratio.max().item(), "entry {}: {:.9g}, expected {:.9g}, allowed error {:.1e}".format(
        [int(p) for p in place], *values
    )


def draw_case(name: str, seed: int, longest: int) -> Case:
    makers = {k: v for families in FAMILIES.values() for k, v in families.items()}
    return makers[name](Draw(name, seed, longest), seed)


@contextlib.contextmanager
def using(backend: str) -> Iterator[None]:
    """In the block, scans on the CPU run on ``backend``: "cpp", "torch", or "triton" in the interpreter."""
    with contextlib.ExitStack() as stack:
        if backend != "cpp":
            stack.enter_context(mock.patch.object(cpu_scan, "call", return_value=None))
        if backend == "torch":
            stack.enter_context(mock.patch.object(cpu_scan, "is_available", return_value=False))
            stack.enter_context(mock.patch.object(cpu_scan, "warn_once"))
        if backend == "triton":
            if not torch.cuda.is_available():
                os.environ.setdefault("TRITON_INTERPRET", "1")  # Triton reads the variable when it is imported
            from a2c_compiled.kernels import triton_scan

            stack.enter_context(mock.patch.object(cpu_scan, "run", triton_scan.run))
        yield


class Summary:
    """What is known about the cases of one family."""

    def __init__(self) -> None:
        self.decided = self.undecided = 0
        self.of_results = self.of_gradients = 0.0
        self.failures: List[Verdict] = []

    def add(self, verdict: Verdict) -> None:
        if verdict.undecided:
            self.undecided += 1
            return
        self.decided += 1
        self.of_results, self.of_gradients = (
            max(self.of_results, verdict.of_results),
            max(self.of_gradients, verdict.of_gradients),
        )
        if max(verdict.of_results, verdict.of_gradients) > 1:
            self.failures.append(verdict)


def run(
    names: Sequence[str], count: int, seed: int = 0, backend: str = "cpp", longest: int = LONGEST["cpp"]
) -> Dict[str, Summary]:
    """Draws cases of the families ``names`` in turn, of at most ``longest`` steps, until ``count`` cases are decided."""
    summaries = {name: Summary() for name in names}
    turns = zip(itertools.cycle(names), itertools.count(seed * 1_000_000_000))

    def judge_all(group: List[Case]) -> None:
        for verdict in judge(group) if group else ():
            summaries[verdict.case.family].add(verdict)

    with using(backend):
        while left := count - sum(summary.decided for summary in summaries.values()):
            groups: Dict[Any, List[Case]] = collections.defaultdict(list)
            steps: Dict[Any, int] = collections.defaultdict(int)
            for name, number in itertools.islice(turns, left):
                case = draw_case(name, number, longest)
                groups[key(case)].append(case)
                steps[key(case)] += math.prod(case.layout.shape)
                if steps[key(case)] > TOGETHER:
                    judge_all(groups.pop(key(case)))
                    del steps[key(case)]
            for group in groups.values():
                judge_all(group)
    return summaries


def report(summaries: Dict[str, Summary]) -> List[Verdict]:
    """Prints a line for each family, and returns the failures."""
    width = max(map(len, summaries))
    print(f"{'family':{width}s}  {'cases':>8s} {'undecided':>9s}   {'worst error, as a part of its bound':s}")
    for name, summary in summaries.items():
        worst = f"results {summary.of_results:.3f}, gradients {summary.of_gradients:.3f}"
        print(f"{name:{width}s}  {summary.decided:8,d} {summary.undecided:9,d}   {worst}", flush=True)
    return [failure for summary in summaries.values() for failure in summary.failures]


def explain(verdict: Verdict, backend: str, longest: int) -> None:
    """Prints a case, and what is wrong with it."""
    case = verdict.case
    print(f"\n{case.name}: {case.dtype}, shape {list(case.layout.shape)}, time_dim {case.layout.time_dim}, {case.size} numbers")
    print(f"  {verdict.worst or 'equal to the oracle'}")
    if case.size <= 60:
        for name, x in {**case.arguments, **case.constants, "mask": case.layout.mask}.items():
            print(f"  {name}: {x}")
    print(f"  repeat: python tests/random_cases.py --backend {backend} --longest {longest} --case {case.name}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--estimators", type=int, default=100_000, help="number of cases of functions and estimators")
    parser.add_argument("--loss", type=int, default=10_000, help="number of cases of the loss")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--families", help="names of families, separated by commas; default: all")
    parser.add_argument("--backend", choices=LONGEST, default="cpp", help="triton: the interpreter, with short data")
    parser.add_argument("--longest", type=int, help="largest number of steps; default: 2048, or less with another backend")
    parser.add_argument("--case", metavar="FAMILY:SEED", help="judge this one case")
    options = parser.parse_args()
    longest = options.longest or LONGEST[options.backend]
    torch.set_num_threads(1)
    if options.case is not None:
        name, seed = options.case.rsplit(":", 1)
        with using(options.backend):
            (verdict,) = judge([draw_case(name, int(seed), longest)])
        explain(verdict, options.backend, longest)
        print(f"  worst error as a part of its bound: results {verdict.of_results:.3f}, gradients {verdict.of_gradients:.3f}")
        sys.exit(max(verdict.of_results, verdict.of_gradients) > 1 and not verdict.undecided)
    failures: List[Verdict] = []
    start = time.perf_counter()
    for kind, families in FAMILIES.items():
        names = [name for name in families if options.families is None or name in options.families.split(",")]
        if names and getattr(options, kind):
            failures += report(run(names, getattr(options, kind), options.seed, options.backend, longest))
    print(f"{time.perf_counter() - start:.0f} s")
    if failures:
        print(f"\n{len(failures)} cases are beyond their bound. The smallest:")
        for failure in sorted(failures, key=lambda failure: failure.case.size)[:3]:
            explain(failure, options.backend, longest)
        sys.exit(1)


if __name__ == "__main__":
    main()
