"""What a training run says while it runs: ``progress.csv``, TensorBoard, and a bar on the terminal."""

import csv
import errno
import io
import math
import os
import warnings
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Dict, List, Mapping, Optional, Sequence, Tuple, Type

from tqdm import tqdm

from a2c_compiled._files import written_whole

PROGRESS = "progress.csv"
TENSORBOARD = "tensorboard"

_TAGS = {
    "return": "episode/return",
    "episode_length": "episode/length",
    "episodes": "episode/count",
    "loss_objective": "loss/objective",
    "loss_critic": "loss/critic",
    "loss_entropy": "loss/entropy_bonus",
    "lr": "optimizer/lr",
    "grad_norm": "optimizer/grad_norm",
    "updates": "optimizer/updates",
    "skipped": "optimizer/skipped_updates",
    "seconds": "speed/seconds",
    "steps_per_second": "speed/steps_per_second",
}
"""TensorBoard's names of the columns; what is not here, the loss reports."""

_SHORT = {
    "return": "return",
    "episode_length": "length",
    "loss_objective": "actor",
    "loss_critic": "critic",
    "entropy": "entropy",
}
"""What the bar shows, and its words for it."""


class RunLog:
    """Rows of numbers, one for an update or several, as a run's ``progress.csv``, as TensorBoard's scalars and on a progress bar.

    >>> with RunLog(Path("runs/cartpole"), total_steps=1_000_000) as log:
    ...     log.write({"steps": 1024, "seconds": 0.5, "return": 21.3, "loss_critic": 8.2})

    Each row is in the file as soon as :meth:`write` returns, whole or not at all. A row may have columns that those before it lack. Where
    nothing can be written, because the disk is full, a warning says so once and training goes on.

    Args:
        folder: of the run; what another run logged there is removed. None writes no files.
        total_steps: environment steps at which the bar is full.
        resume_at: environment steps after which the run in ``folder`` goes on: later rows are dropped. None begins anew.
        progress: show the bar.
        tensorboard: write for TensorBoard, where it is installed.
        enabled: False does nothing at all, as all processes but the first should.

    Raises:
        OSError: the folder or the file cannot be made.
        ValueError: what is to be resumed cannot be read.
    """

    def __init__(
        self,
        folder: Optional[Path],
        total_steps: int,
        resume_at: Optional[int] = None,
        progress: bool = True,
        tensorboard: bool = True,
        enabled: bool = True,
    ) -> None:
        self._warned = False
        self._table: Optional[_Table] = None
        self._scalars: Optional[_Scalars] = None
        if enabled and folder is not None:
            self._table = _Table(folder / PROGRESS, resume_at)
            if tensorboard and find_spec("tensorboard") is not None:
                self._scalars = _Scalars(folder / TENSORBOARD, resume_at)
        self._bar = tqdm(
            total=total_steps,
            initial=resume_at or 0,
            desc=None if folder is None else folder.name,
            unit="step",
            unit_scale=True,
            dynamic_ncols=True,
            disable=not (progress and enabled),
        )

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(
        self, kind: Optional[Type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        self.close()

    def write(self, row: Mapping[str, float]) -> None:
        """Log a row; its ``steps`` say where in the run it belongs."""
        try:
            if self._table is not None:
                self._table.append(row)
        except (OSError, ValueError) as error:
            self._warn(error)
        try:
            if self._scalars is not None:
                self._scalars.write(row)
        except OSError as error:
            self._scalars = None  # its thread has ended
            self._warn(error)
        self._bar.set_postfix({short: _brief(row[name]) for name, short in _SHORT.items() if name in row}, refresh=False)
        self._bar.update(int(row["steps"]) - self._bar.n)

    def say(self, text: str) -> None:
        """Show ``text`` on the bar until the next row."""
        self._bar.set_postfix_str(text)

    def close(self) -> None:
        """Close the files and leave the bar as it stands."""
        self._bar.close()
        if self._table is not None:
            self._table.close()
        try:
            if self._scalars is not None:
                self._scalars.close()
        except OSError as error:
            self._warn(error)

    def _warn(self, error: Exception) -> None:
        if not self._warned:
            self._warned = True
            warnings.warn(f"training goes on, but its log is incomplete: {error}", RuntimeWarning, stacklevel=3)


def load_progress(folder: Path) -> Dict[str, List[float]]:
    """Columns of a run's ``progress.csv``, NaN where a row lacks one; a line that is just being written is left out.

    Raises:
        ValueError: there is no such file, or it holds something else.
    """
    columns, rows = _read(folder / PROGRESS)
    return {name: [row.get(name, math.nan) for row in rows] for name in columns}


class _Table:
    """A CSV file that grows by whole lines."""

    def __init__(self, path: Path, resume_at: Optional[int]) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self.columns: List[str] = []
        rows: List[Dict[str, float]] = []
        if resume_at is not None and path.is_file():
            self.columns, rows = _read(path)
        self._file = self._written([row for row in rows if row.get("steps", math.nan) <= (resume_at or 0)])

    def append(self, row: Mapping[str, float]) -> None:
        """Write a row, and the whole file anew where the row has new columns."""
        new = [name for name in row if name not in self.columns]
        if new:
            before = self.columns
            self.columns = before + new
            try:
                file = self._written([*_read(self.path)[1], row])
            except (OSError, ValueError):
                self.columns = before
                raise
            os.close(self._file)
            self._file = file
            return
        line = _line([_cell(row, name) for name in self.columns])
        end = os.fstat(self._file).st_size
        if os.write(self._file, line) < len(line):
            os.ftruncate(self._file, end)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))

    def close(self) -> None:
        os.close(self._file)

    def _written(self, rows: Sequence[Mapping[str, float]]) -> int:
        """Write the whole file anew, and open it to append to."""
        lines = [self.columns] if self.columns else []
        lines = lines + [[_cell(row, name) for name in self.columns] for row in rows]
        with written_whole(self.path) as temporary:
            temporary.write_bytes(b"".join(map(_line, lines)))
        return os.open(self.path, os.O_WRONLY | os.O_APPEND)


def _brief(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _cell(row: Mapping[str, float], name: str) -> str:
    """Of a whole number without a point, whether it has been counted or read."""
    value = row.get(name, "")
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _line(cells: Sequence[str]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(cells)
    return text.getvalue().encode()


def _read(path: Path) -> Tuple[List[str], List[Dict[str, float]]]:
    """Columns and rows of a CSV file, without a last line that has no end; empty cells are left out of the rows."""
    if not path.is_file():
        raise ValueError(f"run: expected a folder that training wrote, found no {path}")
    try:
        whole, _, _ = path.read_bytes().decode().rpartition("\n")
        lines = list(csv.reader(whole.splitlines()))
        columns, rows = (lines[0], lines[1:]) if lines else ([], [])
        return columns, [{name: float(cell) for name, cell in zip(columns, row, strict=True) if cell} for row in rows]
    except (ValueError, csv.Error) as error:
        raise ValueError(f"run: {path} is not readable ({error})") from error


class _Scalars:
    """TensorBoard's event file."""

    def __init__(self, folder: Path, resume_at: Optional[int]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        if resume_at is None:
            for older in folder.glob("events.out.tfevents.*"):
                older.unlink()
        purge_step = None if resume_at is None else resume_at + 1
        self._writer = SummaryWriter(str(folder), purge_step=purge_step, flush_secs=10)

    def write(self, row: Mapping[str, float]) -> None:
        from tensorboard.compat.proto.summary_pb2 import Summary  # type: ignore[import-untyped]

        known = {name: value for name, value in row.items() if name != "steps" and not math.isnan(value)}
        values = [Summary.Value(tag=_TAGS.get(name, f"loss/{name}"), simple_value=value) for name, value in known.items()]
        # One event for the row: an add_scalar for each number takes several times as long.
        self._writer._get_file_writer().add_summary(Summary(value=values), int(row["steps"]))

    def close(self) -> None:
        self._writer.close()
