"""Contenders side by side: checked against the first, timed, printed and kept."""

import json
import platform
import time
from pathlib import Path
from typing import Any, Callable, Dict, List, NamedTuple, Tuple

import torch

from a2c_compiled._files import written_whole
from a2c_compiled.timing import Timing, time_call

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")

Contender = Callable[[], Any]


class Row(NamedTuple):
    """One contender at one shape; ``first_call`` are the seconds of its first call, compilation included."""

    subject: str
    shape: Tuple[int, int]
    name: str
    first_call: float
    timing: Timing


def compare(subject: str, shape: Tuple[int, int], contenders: Dict[str, Contender], samples: int) -> List[Row]:
    """Time contenders that compute the same; their answers are held against the first one's before anything is timed.

    Raises:
        AssertionError: an answer is another one.
    """
    first_calls: Dict[str, float] = {}
    expected: Any = None
    for name, contender in contenders.items():
        start = time.perf_counter()
        answer = contender()
        first_calls[name] = time.perf_counter() - start
        expected = answer if expected is None else expected
        torch.testing.assert_close(answer, expected, rtol=1e-3, atol=1e-4, msg=f"{subject} {shape}: {name} answers otherwise")
    rows = [
        Row(subject, shape, name, first_calls[name], time_call(contender, samples)) for name, contender in contenders.items()
    ]
    print_rows(rows)
    return rows


def print_rows(rows: List[Row]) -> None:
    """A line per contender, with its time as a multiple of the first one's."""
    print(f"{rows[0].subject}, {rows[0].shape[0]} environments x {rows[0].shape[1]} steps")
    for row in rows:
        low, median, high = (1e6 * seconds for seconds in (row.timing.low, row.timing.median, row.timing.high))
        ratio = row.timing.median / rows[0].timing.median
        print(
            f"  {row.name:<28} {median:10.1f} us ({low:.1f}-{high:.1f})  x{ratio:<6.2f} first call {row.first_call:.2f} s",
            flush=True,
        )


def save(rows: List[Row], path: Path) -> None:
    """Keep results with the machine and the versions that they were measured with."""
    contents = {
        "machine": {"processor": _processor(), "threads": torch.get_num_threads(), "cuda": _cuda()},
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "rows": [{**row._asdict(), "timing": row.timing._asdict()} for row in rows],
    }
    with written_whole(path) as temporary:
        temporary.write_text(json.dumps(contents, indent=1) + "\n")


def default_path() -> Path:
    """A file named after the processor or the GPU."""
    slug = "".join(c if c.isalnum() else "_" for c in (_cuda() or _processor()).lower())
    return Path(__file__).parent / "results" / f"{'_'.join(filter(None, slug.split('_')))}.json"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _cuda() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else ""
