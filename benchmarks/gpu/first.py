"""Runs the checks and benchmarks on a machine with a GPU, from the folder that prepare.py created.

``python3 .gpu/first.py [--device cpu|cuda] [--out DIR] [STEP ...]`` runs the named steps, by default all. Each step has a time limit, so a
step that hangs does not stop the others. ``results.tgz`` contains all results and is rewritten after every step. With ``--device cpu`` the
same steps run at small sizes, to test the folder itself. README.md in ``benchmarks/gpu`` lists the packages that the machine needs.
"""

import argparse
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import time
import zipfile
from pathlib import Path
from typing import Dict, List, NamedTuple, Optional, Sequence

HERE = Path(__file__).resolve().parent
_CPU_FACTOR = 10  # a CPU is slower even at small sizes


class Step(NamedTuple):
    """One step: a Python module to run.

    Attributes:
        name: name of the step.
        seconds: time limit on a GPU; on a CPU the limit is ``_CPU_FACTOR`` times as long.
        arguments: the module and its command-line arguments.
    """

    name: str
    seconds: int
    arguments: List[str]


def steps(device: str, out: Path) -> List[Step]:
    """Returns the steps, most informative first, because a GPU may be available for minutes only.

    Args:
        device: "cpu" or "cuda".
        out: folder of the steps' results.
    """
    common = ["--device", device, "--out"]
    tests = ["pytest", str(HERE / "tests/kernels/test_gpu.py"), "-c", str(HERE / "pyproject.toml"), "--rootdir", str(HERE)]

    def sized(on_gpu: str, on_cpu: str) -> List[str]:
        """Returns the arguments for the device, split at spaces."""
        return (on_gpu if device == "cuda" else on_cpu).split()

    return [
        Step("smoke", 100, ["a2c_compiled.benchmarks.gpu.smoke", *common, f"{out}/smoke.json", *sized("", "--shapes 1")]),
        Step(
            "bench",
            170,
            ["a2c_compiled.cli", "bench", *common, f"{out}/bench", "--subject"]
            + sized("estimators,sweep,packed", "packed --quick"),
        ),
        # -v: the log names each test as it ends, also if the time limit ends the run.
        Step("tests", 160, [*tests, *sized("-m gpu -v --tb=short -n 12 --maxfail 30", "-m gpu -q -k wherever_episodes_end")]),
        Step(
            "update",
            60,
            ["a2c_compiled.cli", "bench", *common, f"{out}/update", "--subject"]
            + sized("loss,update,policy", "policy --quick"),
        ),
        Step(
            "training",
            50,
            ["a2c_compiled.benchmarks.subjects.bench_training", *common, f"{out}/training", "--seeds", "0", "--num-envs"]
            + sized("1024 4096 65536", "65 --samples 1 --eager"),
        ),
    ]


def run(step: Step, seconds: int, environment: Dict[str, str], log: Path) -> int:
    """Runs a step. If it still runs after ``seconds``, kills it and its child processes.

    Args:
        step: the step.
        seconds: time limit.
        environment: environment variables of the process.
        log: file for the step's output.

    Returns:
        The exit status; 124 if the time limit was reached.
    """
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", *step.arguments],
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            process_group=0,  # its own group, so that its child processes can be killed too
        )
        try:
            return process.wait(seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            return 124


def missing_for_triton() -> List[str]:
    """Returns a sentence for each thing that the machine lacks and that Triton up to 3.6 needs for its launcher."""
    headers = Path(sysconfig.get_paths()["include"]) / "Python.h"
    found = {
        "a C compiler (gcc, clang or the variable CC)": os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang"),
        f"Python's headers ({headers})": headers.is_file(),
    }
    return [f"missing: {name}; Triton up to 3.6 cannot start kernels without\n" for name, there in found.items() if not there]


def unpack(site: Path) -> None:
    """Unpacks the wheels into ``site``. ``main`` adds this folder to ``PYTHONPATH``."""
    for wheel in sorted((HERE / "wheels").glob("*.whl")):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(site)


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Runs the command line. Returns 1 if a step failed or reached its time limit, else 0."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    names = [step.name for step in steps("cuda", HERE)]
    parser.add_argument("step", nargs="*", help=f"steps to run: any of {', '.join(names)} (default: all)")
    parser.add_argument(
        "--device",
        choices=("cpu", "cuda"),
        default="cuda",
        help="device of the steps; on a CPU they run at small sizes (default: cuda)",
    )
    parser.add_argument(
        "--out", type=Path, default=Path(), metavar="DIR", help="folder for results.tgz (default: current folder)"
    )
    arguments = parser.parse_args(argv)
    for name in arguments.step:
        if name not in names:
            parser.error(f"step: expected any of {', '.join(names)}, got {name!r}")
    arguments.out.mkdir(parents=True, exist_ok=True)
    begun = time.monotonic()
    failed = []
    with tempfile.TemporaryDirectory() as work:
        site, results = Path(work) / "site", Path(work) / "results"
        results.mkdir()
        unpack(site)
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(site), str(HERE / "peers")]),
            "PYTHONUNBUFFERED": "1",
            "PYTHONWARNINGS": "ignore",
            "TRITON_CACHE_DIR": f"{work}/triton",
            "TORCHINDUCTOR_CACHE_DIR": f"{work}/inductor",
            "A2C_TEST_DEVICE": arguments.device,
            "XLA_PYTHON_CLIENT_PREALLOCATE": "false",  # jax would reserve most of the GPU's memory
        }
        print(*missing_for_triton(), sep="", end="", flush=True)
        if shutil.which("nvidia-smi"):
            query = "--query-gpu=name,driver_version,clocks.sm,clocks.mem,memory.total"
            subprocess.run(["nvidia-smi", query, "--format=csv,noheader"], check=False)
        for step in steps(arguments.device, results):
            if arguments.step and step.name not in arguments.step:
                continue
            log = results / f"{step.name}.log"
            status = run(step, step.seconds * (1 if arguments.device == "cuda" else _CPU_FACTOR), environment, log)
            if status:
                failed.append(step.name)
            print(f"=== {step.name}", *log.read_text(errors="replace").splitlines()[-40:], sep="\n")
            print(f"=== {step.name}: exit status {status}, {time.monotonic() - begun:.0f} s since the start", flush=True)
            with tarfile.open(arguments.out / "results.tgz", "w:gz") as archive:
                archive.add(results, ".")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
