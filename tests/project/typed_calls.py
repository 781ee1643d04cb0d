"""Right and wrong calls, for mypy alone: `make check` fails if mypy no longer sees the types of the whole package.

Each wrong call has a `type: ignore` with the expected error. mypy reports an ignore that is not needed, so it must find each error.
There is one call for each way to import a module, because two folders are linked into the package.
"""

from pathlib import Path

from a2c_compiled import A2CLoss, export
from a2c_compiled.benchmarks.measure import timing
from a2c_compiled.export.on_device import runtime


def right_calls() -> None:
    loss: A2CLoss = A2CLoss().make_value_estimator("gae")
    report: export.Report = export.verify(Path("policy.onnx"))
    seconds: float = timing.time_call(lambda: None, samples=3).median
    print(loss, report, seconds)


def wrong_calls() -> None:
    export.verify(1, 2, 3, nonsense=4)  # type: ignore[call-arg, arg-type]
    timing.time_call("no function")  # type: ignore[arg-type]
    runtime.Policy(nonsense=4)  # type: ignore[call-arg]
    A2CLoss(nonsense=4)  # type: ignore[call-arg]
    seconds: str = timing.time_call(lambda: None).median  # type: ignore[assignment]
    print(seconds)
