"""Compares exported files with eager mode."""

from pathlib import Path
from typing import Any, Callable, Dict, List, Mapping, NamedTuple

import numpy as np
import torch
from torch import Tensor

from a2c_compiled._files import AnyPath, as_path
from a2c_compiled._kinds import flag
from a2c_compiled.export.checking.comparison import PASSED, OutputError, compared
from a2c_compiled.export.checking.digests import check_digests
from a2c_compiled.export.checking.randomness import same_distribution, samples
from a2c_compiled.export.checking.reference_cases import Case, load_cases, summary
from a2c_compiled.export.formats import ENDINGS, format_of
from a2c_compiled.export.tracing.call import named_outputs


class Report(NamedTuple):
    """The result of :func:`verify`.

    Attributes:
        path: path of the file.
        size: size in bytes of the file and of the files with its weights.
        cases: names of the cases that ran. A name states the sizes of the case and what is extreme about its data.
        outputs: error of each output, by name.
        random: names of outputs that depend on random numbers, such as an entropy that the loss estimates from samples. Their shapes,
            dtypes and distributions are compared.
        checks: outcomes of the further checks of an ONNX file, and of the comparison of distributions if an output is random, by name:
            ``"passed"``, what failed, or ``"not run: <reason>"``.
    """

    path: Path
    size: int
    cases: List[str]
    outputs: Dict[str, OutputError]
    random: List[str]
    checks: Dict[str, str]

    @property
    def passed(self) -> bool:
        """True if every output is within tolerance, and every check that could run passed."""
        checked = all(outcome == PASSED or outcome.startswith("not run") for outcome in self.checks.values())
        return checked and all(error.passed for error in self.outputs.values())

    @property
    def worst(self) -> float:
        """The largest relative error of all outputs; 0 if every output is random."""
        return max((error.relative for error in self.outputs.values()), default=0.0)

    def __str__(self) -> str:
        """Returns one line for the file, one for each output and one for each check."""
        lines = [f"{self.path}: {'equal to eager' if self.passed else 'DIFFERS FROM EAGER'} in {len(self.cases)} cases"]
        width = max(map(len, [*self.outputs, *self.random, *self.checks]), default=0)
        for name, error in self.outputs.items():
            failed = "" if error.passed else "  !"
            lines.append(f"  {name:<{width}}  absolute {error.absolute:8.1e}  relative {error.relative:8.1e}{failed}")
        lines += [f"  {name:<{width}}  random: shape, dtype and distribution are compared" for name in self.random]
        lines += [f"  {name:<{width}}  {outcome}" for name, outcome in self.checks.items()]
        return "\n".join(lines)

    def as_json(self) -> Dict[str, Any]:
        """Returns the report as numbers, strings, lists and dicts. An infinite error is None, since JSON has no infinity."""
        fields = {**self._asdict(), "path": str(self.path), "passed": self.passed}
        return {**fields, "outputs": {name: error.as_json() for name, error in self.outputs.items()}}


def verify(path: AnyPath, check: bool = True) -> Report:
    """Runs an exported file on its reference cases, and compares the outputs with the outputs of eager mode, stored at export.

    The cases cover:

    - shapes other than the example's, among them sizes of 1;
    - episodes that terminate or are truncated at some steps, at every step or at none, and a mask that leaves steps out;
    - observations, rewards and values a hundred times as large as the example's;
    - for a training step, the state at export and another state, as after some training.

    An output may differ by the rounding errors that eager mode makes itself, which the cases hold for each element. Of random outputs,
    500 samples are compared; a right file fails this at most once in a million.

    ONNX files run in onnxruntime on the CPU. They must also pass the full checks of ``onnx.checker`` and strict shape inference. Their one
    or two smallest cases also run in onnx's reference evaluator. TorchScript files (``.pt``), programs (``.pt2``) and packages
    (``.aot.pt2``) run in torch.

    Args:
        path: path of the file, with its ``.cases.npz`` beside it.
        check: whether to compare the file with the digest of the export, ``.sha256`` beside it, if there is one.

    Returns:
        A :class:`Report`. Errors above the tolerance do not raise; read :attr:`Report.passed`.

    Raises:
        TypeError: ``path`` is not a path, or ``check`` is not a bool.
        ValueError: the file is missing, unreadable, of an unknown format or without reference cases; or its inputs or outputs do not match
            the cases; or it is not the file that was exported.
    """
    path = as_path("path", path)
    if not path.is_file():
        raise ValueError(f"path: expected an exported file, found nothing at {path}")
    format = format_of(path)
    if format is None:
        raise ValueError(f"path: expected a file ending in {', '.join(ENDINGS)}, got {path}")
    if flag("check", check):
        check_digests(path)
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
    checks = format.checks(path, cases)
    if random:
        checks["distribution of random outputs"] = _distribution_outcome(run, cases)
    return Report(path, _size(path), list(cases), compared(cases, answers), random, checks)


def _distribution_outcome(run: Callable[..., Any], cases: Mapping[str, Case]) -> str:
    """Compares samples of the random outputs with those of eager mode. Returns ``"passed"``, what differs, or why it did not run."""
    sampled = [case for case in cases.values() if case.samples]
    if not sampled:
        return "not run: exported without samples, by an earlier version"
    wrong: List[str] = []
    with torch.random.fork_rng():
        torch.manual_seed(1)
        for case in sampled:
            drawn = samples(lambda case=case: _answer(run, case), set(case.samples))  # type: ignore[misc]
            wrong += [name for name, rows in case.samples.items() if not same_distribution(rows, drawn[name])]
    return f"differs in {', '.join(wrong)}" if wrong else PASSED


@torch.no_grad()
def _answer(run: Callable[..., Any], case: Case) -> Dict[str, np.ndarray]:
    """Returns the outputs of a loaded file by name, for the inputs of ``case``."""
    outputs = named_outputs(run(**{name: torch.from_numpy(array) for name, array in case.inputs.items()}))
    # Detached, because an output may be a parameter.
    return {name: np.asarray(output.detach() if isinstance(output, Tensor) else output) for name, output in outputs.items()}


def _size(path: Path) -> int:
    """Returns the bytes of a file and of the files with its weights."""
    return sum(file.stat().st_size for file in (path, *path.parent.glob(f"{path.name}.*.data")))
