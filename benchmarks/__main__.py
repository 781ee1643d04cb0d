"""``python -m benchmarks``: everything, printed and kept in ``benchmarks/results/``."""

import argparse
from pathlib import Path

import torch

from benchmarks import bench_estimators, bench_update
from benchmarks.harness import default_path, save
from benchmarks.shapes import ESTIMATOR_SHAPES, UPDATE_SHAPES


def main() -> None:
    """Run the benchmarks that the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="the two smallest shapes of each subject, and nothing is kept")
    parser.add_argument("--threads", type=int, default=1, help="of torch (default: %(default)s, since shared cores stall more)")
    parser.add_argument("--out", type=Path, default=default_path(), help="results (default: %(default)s)")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    shapes, samples = (2, 10) if arguments.quick else (None, 30)
    rows = bench_estimators.run(ESTIMATOR_SHAPES[:shapes], samples) + bench_update.run(UPDATE_SHAPES[:shapes], samples)
    if not arguments.quick:
        save(rows, arguments.out)
        print(f"results: {arguments.out}")


if __name__ == "__main__":
    main()
