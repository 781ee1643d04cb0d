"""Runs the benchmarks: measures subjects, prints tables, and writes results, report and figures to a folder."""

import logging
import time
import warnings
from contextlib import contextmanager
from typing import Callable, Dict, Iterator, List, Sequence

import torch

from a2c_compiled._extras import needs
from a2c_compiled._files import AnyPath, as_path, atomic_file
from a2c_compiled._torch_internals import recompile_limit
from a2c_compiled.benchmarks.measure import results
from a2c_compiled.benchmarks.measure.harness import Case, Row, compare
from a2c_compiled.benchmarks.measure.results import Results
from a2c_compiled.benchmarks.measure.shapes import Plan
from a2c_compiled.benchmarks.report import plot, tables
from a2c_compiled.benchmarks.subjects import (
    bench_estimators,
    bench_images,
    bench_integrations,
    bench_loss,
    bench_packed,
    bench_policy,
    bench_startup,
    bench_training,
    bench_update,
    goals,
)
from a2c_compiled.update import keep_freed_memory

with needs(__name__, "train", "export"):
    from tqdm import tqdm

SUBJECTS: Dict[str, Callable[[Plan], List[Case]]] = {
    "estimators": bench_estimators.cases,
    "sweep": bench_estimators.sweep,
    "packed": bench_packed.cases,
    "loss": bench_loss.cases,
    "update": bench_update.cases,
    "images": bench_images.cases,
    "policy": bench_policy.cases,
    "startup": bench_startup.cases,
    "training": bench_training.cases,
    "integrations": bench_integrations.cases,
}


def run(plan: Plan, out: AnyPath, subjects: Sequence[str] = tuple(SUBJECTS), threads: int = 1) -> Results:
    """Measures ``subjects`` and writes ``results.json``, ``report.md`` and the figures to ``out``.

    ``results.json`` is rewritten after every subject, so an interrupted run keeps the results of the finished subjects.

    Args:
        plan: device, shapes and number of samples.
        out: the output folder; created if it does not exist.
        subjects: keys of ``SUBJECTS``.
        threads: number of torch CPU threads during the run.

    Returns:
        All results.
    """
    started, out = time.perf_counter(), as_path("out", out)
    keep_freed_memory()  # process-wide, and called before the first contender (implementation), so that all contenders have it
    with _threads(threads), _quiet():
        measured = results.begin(plan)
        cases = {subject: SUBJECTS[subject](plan) for subject in subjects}
        with tqdm(total=sum(map(len, cases.values())), disable=None, unit="case", leave=False) as bar:
            for subject in subjects:
                rows: List[Row] = []
                for case in cases[subject]:
                    rows += compare(case, plan, _announcer(bar, case))
                    bar.update()
                measured = measured._replace(rows=[*measured.rows, *rows], seconds=time.perf_counter() - started)
                results.save(measured, out / "results.json")
                if subject != "sweep":
                    bar.clear()
                    for table in tables.tables(rows):
                        tqdm.write(table.plain())
        reached = goals.table(measured.rows, threads)
        if reached is not None:
            tqdm.write(reached.plain())
        pictures = plot.draw(measured, out)
        with atomic_file(out / "report.md") as temporary:
            temporary.write_text(tables.markdown(measured, pictures, reached))
    return measured


def _announcer(bar: "tqdm[None]", case: Case) -> Callable[[str], object]:
    """Returns a function that shows the case and the name of a contender before the progress bar, in at most 70 characters."""
    shape = f"{case.shape[0]}x{case.shape[1]}"
    return lambda contender: bar.set_description(f"{case.subject} {case.direction} {shape}: {contender}"[:70])


@contextmanager
def _threads(threads: int) -> Iterator[None]:
    """Sets the number of torch CPU threads in the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silences warnings and the logs of torch.compile. Allows it 64 graphs per function, since each case may compile one."""
    loggers = [logging.getLogger(name) for name in ("torch._dynamo", "torch._inductor", "torch.fx")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), recompile_limit(64):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
