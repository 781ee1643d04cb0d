"""Exported files against eager."""

from pathlib import Path
from typing import Any, Callable, Dict, List, NamedTuple, Union

import numpy as np
import torch

from a2c_compiled.export.checking.comparison import PASSED, OutputError, compared, summary
from a2c_compiled.export.checking.reference_cases import Case, load_cases
from a2c_compiled.export.formats import ENDINGS, format_of
from a2c_compiled.export.tracing.call import named_outputs


class Report(NamedTuple):
    """What :func:`verify` found.

    Attributes:
        path: of the file.
        size: of the file and what belongs to it, in bytes.
        cases: what it was run on: sizes, and what is extreme about the data.
        outputs: errors by output.
        random: outputs that are others at every call, like the entropy that a loss estimates from samples. Of these shape and dtype
            alone are compared.
        checks: what else an ONNX file was put to, and ``"passed"``, or what it said instead, or ``"not run: ..."`` where that cannot be.
    """

    path: Path
    size: int
    cases: List[str]
    outputs: Dict[str, OutputError]
    random: List[str]
    checks: Dict[str, str]

    @property
    def passed(self) -> bool:
        """Whether every output is within tolerance, and every check that could be run passed."""
        checked = all(outcome == PASSED or outcome.startswith("not run") for outcome in self.checks.values())
        return checked and all(error.passed for error in self.outputs.values())

    @property
    def worst(self) -> float:
        """The largest relative error of any output."""
        return max((error.relative for error in self.outputs.values()), default=0.0)

    def __str__(self) -> str:
        """A line for the file, one for each output and one for each check."""
        lines = [f"{self.path}: {'equal to eager' if self.passed else 'DIFFERS FROM EAGER'} in {len(self.cases)} cases"]
        width = max(map(len, [*self.outputs, *self.random, *self.checks]), default=0)
        for name, error in self.outputs.items():
            failed = "" if error.passed else "  !"
            lines.append(f"  {name:<{width}}  absolute {error.absolute:8.1e}  relative {error.relative:8.1e}{failed}")
        lines += [f"  {name:<{width}}  random: shape and dtype alone compared" for name in self.random]
        lines += [f"  {name:<{width}}  {outcome}" for name, outcome in self.checks.items()]
        return "\n".join(lines)

    def as_json(self) -> Dict[str, Any]:
        """The same, of numbers, strings, lists and dicts; an error without bound is None, since JSON has no infinity."""
        fields = {**self._asdict(), "path": str(self.path), "passed": self.passed}
        return {**fields, "outputs": {name: error.as_json() for name, error in self.outputs.items()}}


def verify(path: Union[str, Path]) -> Report:
    """Run an exported file in several cases, and hold it against what eager answered when it was exported.

    The cases are shapes other than the example's, 1 included; steps of which some, all or none end or are cut short, or count; numbers a
    hundred times the example's. An update is tried on the state that it was exported with and on another, some way into training.

    ONNX files run in onnxruntime on the CPU. They are also put to ``onnx.checker`` with full checks and to strict shape inference, and run
    the smallest cases in onnx's reference evaluator. TorchScript files (``.pt``), programs (``.pt2``) and packages (``.aot.pt2``) run in
    torch.

    Args:
        path: of the file, with its ``.cases.npz`` beside it.

    Raises:
        ValueError: the file is missing, of another kind, unreadable, or without its cases, or its inputs or outputs are other ones.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"path: expected an exported file, found nothing at {path}")
    format = format_of(path)
    if format is None:
        raise ValueError(f"path: expected a file ending in {', '.join(ENDINGS)}, got {path}")
    cases = load_cases(path)
    try:
        run = format.load(path)
        answers = {label: _answer(run, case) for label, case in cases.items()}
    except Exception as error:
        raise ValueError(f"{path}: does not run ({summary(error)})") from error
    for label, case in cases.items():
        if sorted(answers[label]) != sorted({**case.outputs, **case.random}):
            raise ValueError(f"{path}: expected outputs {[*case.outputs, *case.random]}, got {list(answers[label])}")
    random = sorted({name for case in cases.values() for name in case.random})
    return Report(path, _size(path), list(cases), compared(cases, answers), random, format.checks(path, cases))


@torch.no_grad()
def _answer(run: Callable[..., Any], case: Case) -> Dict[str, np.ndarray]:
    outputs = named_outputs(run(**{name: torch.from_numpy(array) for name, array in case.inputs.items()}))
    return {name: np.asarray(output) for name, output in outputs.items()}


def _size(path: Path) -> int:
    return sum(file.stat().st_size for file in (path, *path.parent.glob(f"{path.name}.*.data")))
