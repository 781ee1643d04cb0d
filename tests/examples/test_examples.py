"""The files in examples/ run in a short form, and what they print is what their first lines and the table in README.md say."""

import json
import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
TORCH = Path(torch.__file__).parent
COMPILER = os.environ.get("CXX") or shutil.which("g++") or shutil.which("c++")

# For each script: what a short run replaces, and the package that it needs.
SHORT = {
    "cartpole_a2c.py": ({"64, 16, 300": "4, 8, 2"}, "gymnasium"),
    "continuous_control.py": ({"128, 8, 1000": "8, 4, 2"}, "gymnasium"),
    "export_and_verify.py": ({"UPDATES = 300": "UPDATES = 2", '    "aot.pt2"': '    # "aot.pt2"'}, "onnxruntime"),
    "onnxruntime_loop.py": ({"300, 64, 16": "2, 4, 8"}, "onnxruntime"),
    "own_distribution.py": ({"UPDATES = 300": "UPDATES = 2"}, "onnxruntime"),
    "own_environment.py": ({"UPDATES = 400": "UPDATES = 2"}, "gymnasium"),
    "packed_sequences.py": ({"600, 256": "2, 16"}, None),
    "recurrent_memory.py": ({"300, 64, 10": "2, 8, 5"}, "gymnasium"),
    "sb3_to_onnx.py": ({"60_000": "1_024", "n_epochs=10": "n_epochs=1"}, "stable_baselines3"),
    "several_agents.py": ({"400, 64, 8": "2, 8, 4"}, None),
    "torchrl_drop_in.py": ({"512, 60": "32, 2"}, "torchrl"),
}
# An environment that records how many of it each process of torchrun makes.
RECORDED_CARTPOLE = """
import os
from a2c_compiled import environments

class CartPole(environments.CartPole):
    def __init__(self, num_envs, *arguments):
        super().__init__(num_envs, *arguments)
        with open(f"of_rank_{os.environ['RANK']}", "a") as file:
            print(num_envs, file=file)
"""
# Scripts that read files that another one writes, which runs before them.
AFTER = {"onnxruntime_loop.py": "export_and_verify.py"}


def head(path: Path) -> list[str]:
    """The lines before the first line of code, without the marks of comments: what the file shows, how to run it, what it prints."""
    text = path.read_text().removeprefix("#!/usr/bin/env bash\n")
    if path.suffix == ".py":
        return text.split('"""')[1].splitlines()
    return [line.lstrip("/# ") for line in text.split("\n#include")[0].split("\nset ")[0].splitlines()]


def short(name: str) -> str:
    text = (EXAMPLES / name).read_text()
    for full, fewer in SHORT[name][0].items():
        assert text.count(full) == 1, full
        text = text.replace(full, fewer)
    return text


def without_numbers(text: str) -> str:
    return re.sub(r"-?\d[\d.,]*(e[+-]\d+)?", "#", text)


def run(name: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """Runs the short form of an example in ``folder``, the current folder, and returns what it prints."""
    (folder / name).write_text(short(name))
    if name in AFTER:  # in a process of its own, because it says whether it imports torch
        done = subprocess.run([sys.executable, name], cwd=folder, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        return done.stdout
    runpy.run_path(str(folder / name), run_name="__main__")
    return capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Creating .* which inherits from WeightUpdaterBase:DeprecationWarning")  # TorchRL's own
@pytest.mark.parametrize("name", [name for name in SHORT if name not in AFTER.values()])
def test_an_example_runs_and_prints_what_its_head_says(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    package = SHORT[name][1]
    if package is not None:
        pytest.importorskip(package)
    monkeypatch.chdir(tmp_path)
    for each in (AFTER[name], name) if name in AFTER else (name,):
        printed = run(each, tmp_path, capsys)
        promised = head(EXAMPLES / each)[-1].removeprefix("Prints: ").split(" (")[0]
        assert without_numbers(promised) in without_numbers(printed)


def test_every_example_is_short_and_begins_with_three_lines_and_is_in_the_table() -> None:
    table = (EXAMPLES / "README.md").read_text()
    files = {path for path in EXAMPLES.iterdir() if path.suffix in (".py", ".cpp", ".sh")}
    assert {path.name for path in files if path.suffix == ".py"} == set(SHORT)
    for path in files:
        assert len(path.read_text().splitlines()) < 120, path.name
        lines = head(path)
        assert lines[0].endswith((".", ":")), path.name
        assert any(line.startswith("Run:    ") and f"examples/{path.name}" in " ".join(lines) for line in lines), path.name
        assert lines[-1].startswith("Prints: "), path.name
        assert f"[{path.name}]({path.name})" in table
    assert set(re.findall(r"\]\((\w+\.\w+)\)", table)) == {path.name for path in files} | {"cartpole_a2c.ipynb", "cartpole.h"}


def test_the_notebook_has_the_code_of_the_script() -> None:
    notebook = runpy.run_path(str(ROOT / "docs" / "make_notebook.py"))["notebook"]
    cells = json.loads((EXAMPLES / "cartpole_a2c.ipynb").read_text())
    assert cells == notebook((EXAMPLES / "cartpole_a2c.py").read_text()), "run python docs/make_notebook.py"
    code = "".join("".join(cell["source"]) for cell in cells["cells"] if cell["cell_type"] == "code")
    script = (EXAMPLES / "cartpole_a2c.py").read_text().split('"""\n', 1)[1]
    lines = [line for line in script.splitlines() if not line.startswith("# ")]
    assert "".join(code.split()) == "".join("".join(lines).split())


@pytest.mark.slow
def test_the_cells_of_the_notebook_run_one_after_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("gymnasium")
    monkeypatch.chdir(tmp_path)
    session: dict[str, object] = {"__name__": "__main__"}
    for cell in json.loads((EXAMPLES / "cartpole_a2c.ipynb").read_text())["cells"]:
        if cell["cell_type"] == "code":
            source = "".join(cell["source"])
            for full, fewer in SHORT["cartpole_a2c.py"][0].items():
                source = source.replace(full, fewer)
            exec(compile(source, cell["id"], "exec"), session)
    assert "equal to eager" in capsys.readouterr().out


# C++ and several processes


# For each program: how its first lines name a folder, that folder, a header in it, the ending of the policy's file and its exporter.
PROGRAMS = {
    "run_policy": ("$T", TORCH, "torch/script.h", "pt", "export_torchscript"),
    "run_policy_onnx": ("$O", os.environ.get("ONNXRUNTIME"), "onnxruntime_cxx_api.h", "onnx", "export_onnx"),
}


@pytest.mark.slow
@pytest.mark.skipif(COMPILER is None, reason="there is no C++ compiler")
@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_in_cpp_plays_as_the_policy_does_in_torch(name: str, tmp_path: Path) -> None:
    """A policy that always pushes to one side loses after 8 to 11 steps. One that follows the angular velocity balances longer."""
    from a2c_compiled import distributions, export

    variable, folder, header, ending, exporter = PROGRAMS[name]
    if folder is None:
        pytest.skip(
            "set ONNXRUNTIME to the folder of an unpacked release of onnxruntime, whose headers are in no package of pip"
        )
    if not (Path(folder) / "include" / header).is_file():
        pytest.skip(f"{folder} is without headers: found no include/{header}")
    source = EXAMPLES / f"{name}.cpp"
    command = " ".join(head(source)[1:-1]).replace("\\", " ").split("&& ./")[0].partition("g++ ")[2]
    command = command.replace(variable, str(folder)).replace("-O1", "-O0").replace(f"examples/{name}.cpp", str(source))
    abi = f"-D_GLIBCXX_USE_CXX11_ABI={int(torch._C._GLIBCXX_USE_CXX11_ABI)}"
    subprocess.run([COMPILER, abi, *command.split()], cwd=tmp_path, check=True, timeout=300)
    lengths = {}
    for kind, weight in {"one_side": [0.0, 0.0, 0.0, 0.0], "angular_velocity": [0.0, 0.0, 0.0, 1.0]}.items():
        actor = torch.nn.Linear(4, 2)
        with torch.no_grad():
            actor.weight.copy_(torch.tensor([[0.0] * 4, weight]))
            actor.bias.zero_()
        policy, file = export.GreedyPolicy(actor, distributions.Categorical(2)), f"{kind}.{ending}"
        getattr(export, exporter)(policy, {"observation": torch.zeros(8, 4)}, tmp_path / file, ("N",))
        done = subprocess.run([tmp_path / name, file], cwd=tmp_path, capture_output=True, text=True, timeout=100)
        promised = head(source)[-1].removeprefix("Prints: ").split(" (")[0]
        assert without_numbers(done.stdout.strip()) == without_numbers(promised), done.stderr
        lengths[kind] = float(done.stdout.split()[-1])
    assert 8.0 <= lengths["one_side"] <= 11.0
    assert 100.0 <= lengths["angular_velocity"] <= 500.0


@pytest.mark.slow
@pytest.mark.xdist_group("processes")
@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch.distributed is not built in")
def test_the_script_for_several_gpus_trains_in_two_processes_on_a_cpu(tmp_path: Path) -> None:
    pytest.importorskip("gymnasium")
    (tmp_path / "recorded.py").write_text(RECORDED_CARTPOLE)
    environment = {**os.environ, "PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
    command = ["bash", EXAMPLES / "multi_gpu.sh", "--dry", "--hidden", "8", "--env", "recorded:CartPole"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    promised = head(EXAMPLES / "multi_gpu.sh")[-1].removeprefix("Prints: ").split(" (")[0]
    assert without_numbers(promised) in without_numbers(done.stdout + done.stderr)
    assert [(tmp_path / f"of_rank_{rank}").read_text().split()[0] for rank in range(2)] == ["4", "4"]
    assert not (tmp_path / "of_rank_2").exists()
