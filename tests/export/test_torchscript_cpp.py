"""``run_torchscript.cpp`` runs exported files with libtorch only: TorchScript with gradients, and an AOTInductor package.

All tests read the output of one run, because compiling the program takes 14 s of CPU time.
"""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from export_cases import gae_inputs, loss_inputs, named
from loss_cases import losses_of, make_loss
from tolerances import assert_close

from a2c_compiled import estimators, export

COMPILER = os.environ.get("CXX") or shutil.which("g++") or shutil.which("c++")
TORCH = Path(torch.__file__).parent
SOURCE = Path(__file__).with_name("run_torchscript.cpp")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.xdist_group("gae_files"),
    pytest.mark.skipif(COMPILER is None, reason="there is no C++ compiler"),
    pytest.mark.skipif(not (TORCH / "include/torch/script.h").is_file(), reason="this torch is without its headers"),
]


@pytest.fixture(scope="module")
def graphs():
    """A module and its inputs for each file, by name."""
    loss = make_loss(separate_losses=True, shared=True, clip_value=0.2)
    return {
        "policy": (export.GreedyPolicy(loss.actor_network, loss.distribution), {"observation": torch.randn(50, 3)}),
        "estimator": (estimators.GAE(gamma=0.97), gae_inputs((13, 7))),
        "loss": (loss, loss_inputs(13, 7, inputs=("reward", "next_observation", "done", "terminated", "state_value"))),
    }


@pytest.fixture(scope="module")
def printed(graphs, gae_files, tmp_path_factory):
    """The tensors that the program prints, by name."""
    folder = tmp_path_factory.mktemp("cpp")
    for name, (module, inputs) in graphs.items():
        example = {key: tensor[:5] for key, tensor in inputs.items()}
        export.export_torchscript(module, example, folder / f"{name}.pt", ("N",) if name == "policy" else ("T", "N"))
        torch.save(inputs, folder / f"{name}.inputs")
    shutil.copy(gae_files.files[".aot.pt2"], folder / "estimator.aot.pt2")
    compile_program(folder / "run")
    done = subprocess.run([folder / "run", folder], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    lines = [line.partition(":") for line in done.stdout.splitlines()]
    return {name: torch.tensor([float(number) for number in numbers.split()]) for name, _, numbers in lines}


def compile_program(path):
    command = [
        *(
            COMPILER,
            "-O0",
            "-std=c++20",
            SOURCE,
            "-o",
            path,
            f"-D_GLIBCXX_USE_CXX11_ABI={int(torch._C._GLIBCXX_USE_CXX11_ABI)}",
        ),
        *(f"-I{TORCH / 'include'}", f"-I{TORCH / 'include/torch/csrc/api/include'}"),
        *(f"-L{TORCH / 'lib'}", f"-Wl,-rpath,{TORCH / 'lib'}", "-ltorch", "-ltorch_cpu", "-lc10"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


def test_a_policy_acts_in_cpp(graphs, printed):
    module, inputs = graphs["policy"]
    action = module(**inputs).action
    assert len(action.unique()) > 1
    assert printed["action"].tolist() == action.tolist()


@pytest.mark.parametrize("name", ["advantage", "value_target"])
def test_an_estimator_runs_in_cpp(graphs, printed, name):
    module, inputs = graphs["estimator"]
    assert_close(printed[name], getattr(module(**inputs), name).flatten())


def test_a_package_runs_in_cpp(graphs, printed):
    module, inputs = graphs["estimator"]
    assert_close(printed["advantage of the package"], module(**inputs).advantage.flatten())


def test_losses_in_cpp_equal_eager(graphs, printed):
    module, inputs = graphs["loss"]
    for name, value in named(module(**inputs)).items():
        assert_close(printed[name], value.reshape(1), what=name)


def test_gradients_of_a_loss_in_cpp_equal_eager(graphs, printed):
    module, inputs = graphs["loss"]
    names, parameters = zip(*module.named_parameters(), strict=True)
    expected = torch.autograd.grad(sum(losses_of(module(**inputs)).values()), parameters)
    actual = {name.removeprefix("gradient of "): value for name, value in printed.items() if name.startswith("gradient of ")}
    assert set(actual) == {name for name, _ in module.named_parameters(remove_duplicate=False)}, (
        "shared parameters appear under both names"
    )
    for name, gradient in zip(names, expected, strict=True):
        assert gradient.norm() > 0
        torch.testing.assert_close(
            actual[name], gradient.flatten(), rtol=1e-4, atol=1e-6, msg=lambda text, n=name: f"{n}: {text}"
        )
