"""Describes the machine and the package versions that results belong to."""

import importlib.metadata
import os
import platform
import shutil
import subprocess
from pathlib import Path
from typing import Any, Dict, Mapping, Sequence

import torch


def machine(device: torch.device) -> Dict[str, Any]:
    """Returns processor, cores, torch threads and system by name; on a CUDA device also GPU, driver and CUDA version."""
    described: Dict[str, Any] = {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.machine()}",
    }
    if device.type == "cuda":
        described |= {"gpu": torch.cuda.get_device_name(device), "driver": _driver(), "cuda": torch.version.cuda}
    return described


def versions(packages: Sequence[str]) -> Dict[str, str]:
    """Returns the versions of Python and of those ``packages`` that are installed, by name."""
    found = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def in_words(found: Mapping[str, Any], packages: Mapping[str, str]) -> str:
    """Formats the results of :func:`machine` and :func:`versions` as one sentence."""
    threads = "1 thread" if found["threads"] == 1 else f"{found['threads']} threads"
    gpu = f", {found['gpu']} (driver {found['driver']}, CUDA {found['cuda']})" if "gpu" in found else ""
    listed = ", ".join(f"{name} {version}" for name, version in packages.items())
    return f"{found['processor']}, {found['cores']} cores, {threads} of torch{gpu}, {found['system']}; {listed}."


def _processor() -> str:
    """Returns the model name of the processor, or its architecture if Linux does not report a name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _driver() -> str:
    """Returns the version of the NVIDIA driver, or "unknown"."""
    if shutil.which("nvidia-smi") is None:
        return "unknown"
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    answer = subprocess.run(query, capture_output=True, text=True).stdout.split()
    return answer[0] if answer else "unknown"
