"""What is said of a file that was held against eager."""

from pathlib import Path
from typing import Any, Dict, List, NamedTuple

from a2c_compiled.export.checking.comparison import OutputError

PASSED = "passed"


class Report(NamedTuple):
    """What :func:`~a2c_compiled.export.verify` found.

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


def summary(error: Exception) -> str:
    """The first line of an error."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
