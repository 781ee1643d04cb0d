"""Exported files against eager."""

from pathlib import Path
from typing import Union

from a2c_compiled.export.checking.comparison import compared
from a2c_compiled.export.checking.reference_cases import load_cases
from a2c_compiled.export.checking.report import Report, summary
from a2c_compiled.export.formats import ENDINGS, format_of


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
        answers = {label: run(case.inputs) for label, case in cases.items()}
    except Exception as error:
        raise ValueError(f"{path}: does not run ({summary(error)})") from error
    for label, case in cases.items():
        if sorted(answers[label]) != sorted({**case.outputs, **case.random}):
            raise ValueError(f"{path}: expected outputs {[*case.outputs, *case.random]}, got {list(answers[label])}")
    random = sorted({name for case in cases.values() for name in case.random})
    return Report(path, _size(path), list(cases), compared(cases, answers), random, format.checks(path, cases))


def _size(path: Path) -> int:
    return sum(file.stat().st_size for file in (path, *path.parent.glob(f"{path.name}.*.data")))
