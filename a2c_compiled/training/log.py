"""Logs of a training run: ``progress.csv``, TensorBoard scalars, and a progress bar on the terminal."""

import csv
import logging
import math
import sys
import threading
import warnings
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any, Dict, Iterator, List, Mapping, NamedTuple, Optional, TextIO, Tuple, Type

from tqdm import tqdm

from a2c_compiled._files import AnyPath, as_path, atomic_file

PROGRESS = "progress.csv"
TENSORBOARD = "tensorboard"


class Column(NamedTuple):
    """How a column of ``progress.csv`` is displayed.

    Attributes:
        tag: tag of the scalar in TensorBoard.
        short: label on the progress bar; None: the bar does not show the column.
        axis: label of the y axis in plots; None: plots have no panel for the column.
        logarithmic: whether the y axis is logarithmic.
    """

    tag: str
    short: Optional[str] = None
    axis: Optional[str] = None
    logarithmic: bool = False


COLUMNS: Dict[str, Column] = {
    "return": Column("episode/return", "return", "return, mean of 100 episodes"),
    "episode_length": Column("episode/length", "length", "episode length, steps"),
    "episodes": Column("episode/count"),
    "greedy_return": Column("greedy/return", "greedy"),
    "greedy_return_std": Column("greedy/return_std"),
    "greedy_episodes": Column("greedy/episodes"),
    "loss_objective": Column("loss/objective", "actor"),
    "entropy": Column("loss/entropy", "entropy", "entropy, nats"),
    "loss_critic": Column("loss/critic", "critic", "critic loss", logarithmic=True),
    "loss_entropy": Column("loss/entropy_bonus"),
    "explained_variance": Column("loss/explained_variance", None, "explained variance"),
    "kl_approx": Column("loss/kl_approx", None, "KL divergence, nats"),
    "grad_norm": Column("optimizer/grad_norm", None, "gradient norm", logarithmic=True),
    "lr": Column("optimizer/lr", None, "learning rate"),
    "updates": Column("optimizer/updates"),
    "skipped": Column("optimizer/skipped_updates"),
    "seconds": Column("speed/seconds"),
    "steps_per_second": Column("speed/steps_per_second", None, "steps a second"),
}
"""Columns with a display of their own, in the order of the panels in plots. Every other column except
``steps`` is an output of the loss."""


class RunLog:
    """Writes rows of numbers to ``progress.csv``, to TensorBoard, and to a progress bar.

    >>> with RunLog(Path("runs/cartpole"), total_steps=1_000_000) as log:
    ...     log.write({"steps": 1024, "seconds": 0.5, "return": 21.3, "loss_critic": 8.2})

    Each row is in the file when :meth:`write` returns. A row may have columns that earlier rows lack. A row with the ``steps`` of the
    last row adds its columns to that row: a policy is evaluated after the row of its training step. If a row cannot be written, for
    example because the disk is full, the log issues a warning, once, and training continues. The next :meth:`write` then rewrites the
    file, which removes the incomplete row.

    Args:
        folder: folder of the run. A new run removes the logs of an earlier run. None writes no files.
        total_steps: number of environment steps at which the bar is full.
        resume_at: number of environment steps at which the run in ``folder`` is resumed; later rows are
            removed. None starts a new run.
        progress: whether to show the progress bar.
        tensorboard: whether to write scalars for TensorBoard, if it is installed.
        config: options of the run, which TensorBoard shows as a table.
        enabled: False disables all output. Pass False in all processes but the first.

    Raises:
        OSError: the folder or the file cannot be created.
        ValueError: the ``progress.csv`` of the resumed run cannot be read.
    """

    def __init__(
        self,
        folder: Optional[AnyPath],
        total_steps: int,
        resume_at: Optional[int] = None,
        progress: bool = True,
        tensorboard: bool = True,
        enabled: bool = True,
        config: Optional[Mapping[str, Any]] = None,
    ) -> None:
        self._warned = False
        self._last_row: Mapping[str, float] = {}
        self._table: Optional[_Table] = None
        self._scalars: Optional[_Scalars] = None
        self._until_close = ExitStack()
        folder = None if folder is None else as_path("folder", folder)
        if enabled and folder is not None:
            self._table = _Table(folder / PROGRESS, resume_at)
            if tensorboard and find_spec("tensorboard") is not None:
                self._until_close.enter_context(_errors_without_traceback())
                try:
                    self._scalars = _Scalars(folder / TENSORBOARD, resume_at, config or {})
                except OSError as error:
                    self._warn(error)
        options = {"unit": "step", "unit_scale": True, "dynamic_ncols": True, "desc": None if folder is None else folder.name}
        self._bar: Optional[tqdm] = None
        with self._showing():
            shown = progress and enabled and sys.stderr is not None
            # With a delay, tqdm writes nothing before the bar is complete. Of an incomplete bar, tqdm prints an error when it is deleted.
            self._bar = tqdm(total=total_steps, initial=resume_at or 0, disable=not shown, delay=1e-9, **options)
            self._bar.refresh()

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(
        self, kind: Optional[Type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        self.close()

    def write(self, row: Mapping[str, float]) -> None:
        """Logs ``row``, numbers by column. The column ``steps``, the number of environment steps so far, is required."""
        try:
            if self._table is not None:
                self._table.append(row)
        except (OSError, ValueError) as error:
            self._warn(error)
        try:
            if self._scalars is not None:
                self._scalars.write(row)
        except OSError as error:
            self._scalars = None  # after an error, TensorBoard's writer thread has ended
            self._warn(error)
        added = row["steps"] == self._last_row.get("steps")
        self._last_row = {**self._last_row, **row} if added else row
        shown = {_column(name).short: _brief(value) for name, value in self._last_row.items()}
        with self._showing():
            if self._bar is not None:
                self._bar.set_postfix({short: value for short, value in shown.items() if short is not None}, refresh=False)
                self._bar.update(int(row["steps"]) - self._bar.n)

    def say(self, text: str) -> None:
        """Shows ``text`` on the progress bar until the next row."""
        with self._showing():
            if self._bar is not None:
                self._bar.set_postfix_str(text)

    def tell(self, text: str) -> None:
        """Prints ``text`` above the progress bar, where it stays."""
        with self._showing():
            if self._bar is not None and not self._bar.disable:
                self._bar.write(text, file=sys.stderr)

    def close(self) -> None:
        """Closes the files and the progress bar, which stays visible."""
        with self._showing():
            if self._bar is not None:
                self._bar.close()
        try:
            if self._scalars is not None:
                self._scalars.close()
        except OSError as error:
            self._warn(error)
        self._until_close.close()

    @contextmanager
    def _showing(self) -> Iterator[None]:
        """Context in which the bar writes to stderr. If stderr is closed or its reader has gone, the run continues without the bar."""
        try:
            yield
        except (OSError, ValueError) as error:  # ValueError: stderr is closed
            if self._bar is not None:
                self._bar.disable = True
                self._bar = None
            logging.getLogger(__name__).warning("training goes on without its progress bar: %s", error)

    def _warn(self, error: Exception) -> None:
        """Issues the warning, unless an earlier error has already issued it."""
        if not self._warned:
            self._warned = True
            warnings.warn(f"training goes on, but its log is incomplete: {error}", RuntimeWarning, stacklevel=3)


def load_progress(folder: AnyPath) -> Dict[str, List[float]]:
    """Reads the columns of a run's ``progress.csv``. A missing cell is NaN. A last line that is still being written is ignored.

    Raises:
        ValueError: the file is missing, or is not a table of numbers.
        TypeError: ``folder`` is not a path.
    """
    columns, rows = _read(as_path("folder", folder) / PROGRESS)
    return {name: [row.get(name, math.nan) for row in rows] for name in columns}


class _Table:
    """A CSV file to which rows are appended. A row may add columns."""

    def __init__(self, path: Path, resume_at: Optional[int]) -> None:
        self._path = path
        self._has_incomplete_row = False
        columns, rows = _read(path) if resume_at is not None and path.is_file() else ([], [])
        self._write(columns, [row for row in rows if row.get("steps", math.nan) <= (resume_at or 0)])

    def append(self, row: Mapping[str, float]) -> None:
        """Appends a row, or adds the columns to the last row if both have equal ``steps``.

        Rewrites the whole file if the row has new columns or adds to the last row, or if writing the last row failed.
        """
        columns = [*self._columns, *(name for name in row if name not in self._columns)]
        if self._rows and self._rows[-1]["steps"] == row["steps"]:
            self._write(columns, [*self._rows[:-1], {**self._rows[-1], **row}])
            return
        if self._has_incomplete_row or len(columns) > len(self._columns):
            self._write(columns, [*self._rows, row])
            return
        self._has_incomplete_row = True
        with self._path.open("a", newline="") as file:
            _writer(file, columns).writerow(_cells(row))
        self._has_incomplete_row = False
        self._rows.append(row)

    def _write(self, columns: List[str], rows: List[Mapping[str, float]]) -> None:
        with atomic_file(self._path) as temporary, temporary.open("w", newline="") as file:
            writer = _writer(file, columns)
            if columns:
                writer.writeheader()
            writer.writerows(map(_cells, rows))
        self._columns, self._rows, self._has_incomplete_row = columns, rows, False


def _writer(file: TextIO, columns: List[str]) -> "csv.DictWriter[str]":
    return csv.DictWriter(file, columns, restval="", lineterminator="\n")


def _cells(row: Mapping[str, float]) -> Dict[str, float]:
    """Converts floats with integer values to int, so that they are written without a decimal point."""
    return {name: int(x) if isinstance(x, float) and x.is_integer() else x for name, x in row.items()}


def _column(name: str) -> Column:
    """Returns the display of a column. A column without a display of its own has only a TensorBoard tag."""
    return COLUMNS.get(name, Column(f"loss/{name}"))


def _brief(value: float) -> str:
    """Formats a number for the progress bar: without decimals from 100 on, otherwise with three significant digits."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _read(path: Path) -> Tuple[List[str], List[Dict[str, float]]]:
    """Reads columns and rows of a CSV file. Ignores a last line without a newline, and leaves empty cells out of the rows."""
    if not path.is_file():
        raise ValueError(f"run: expected a folder that training wrote, found no {path}")
    try:
        whole, _, _ = path.read_bytes().decode().rpartition("\n")
        lines = list(csv.reader(whole.splitlines()))
        columns, rows = (lines[0], lines[1:]) if lines else ([], [])
        return columns, [{name: float(cell) for name, cell in zip(columns, row, strict=True) if cell} for row in rows]
    except (ValueError, csv.Error) as error:
        raise ValueError(f"run: {path} is not readable ({error})") from error


@contextmanager
def _errors_without_traceback() -> Iterator[None]:
    """Context in which Python prints no traceback if TensorBoard's writer thread cannot write. The writer raises the error itself."""
    before = threading.excepthook

    def hook(error: "threading.ExceptHookArgs") -> None:
        if not (isinstance(error.exc_value, OSError) and type(error.thread).__module__.startswith("tensorboard.")):
            before(error)

    threading.excepthook = hook
    try:
        yield
    finally:
        threading.excepthook = before


class _Scalars:
    """Writes TensorBoard's event file."""

    def __init__(self, folder: Path, resume_at: Optional[int], config: Mapping[str, Any]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        if resume_at is None:
            for older in folder.glob("events.out.tfevents.*"):
                older.unlink()
        purge_step = None if resume_at is None else resume_at + 1
        self._writer = SummaryWriter(str(folder), purge_step=purge_step, flush_secs=10)
        if config:
            rows = "\n".join(f"| {name} | {value} |" for name, value in config.items())
            self._writer.add_text("config", f"| option | value |\n| --- | --- |\n{rows}", resume_at or 0)

    def write(self, row: Mapping[str, float]) -> None:
        from tensorboard.compat.proto.summary_pb2 import Summary  # type: ignore[import-untyped]

        known = {name: value for name, value in row.items() if name != "steps" and not math.isnan(value)}
        values = [Summary.Value(tag=_column(name).tag, simple_value=value) for name, value in known.items()]
        # One event for the whole row is several times as fast as one add_scalar call for each number.
        self._writer._get_file_writer().add_summary(Summary(value=values), int(row["steps"]))

    def close(self) -> None:
        self._writer.close()
