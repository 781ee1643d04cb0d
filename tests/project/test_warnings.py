"""No warning at import, while a training step compiles, while files are exported and verified, and while a run trains.

Each case is a process in which every warning is an error.
"""

import subprocess
import sys

import pytest

STEP = """
import torch
from torch import nn
from a2c_compiled import A2CLoss, Rollout, TrainStep, compile_options, distributions, estimators

loss = A2CLoss(nn.Linear(3, 2), nn.Linear(3, 1), distributions.Categorical(2), estimators.GAE(gamma=0.99, lmbda=0.95))
done = torch.rand(2, 4, 3) < 0.2
rollouts = Rollout(
    torch.randn(2, 4, 3, 3), torch.randint(2, (2, 4, 3)), torch.randn(2, 4, 3), torch.randn(2, 4, 3, 3), done, done
)
rollout = Rollout(*(None if part is None else part[0] for part in rollouts))
inputs = {name: part for name, part in rollout._asdict().items() if part is not None}
"""
TRAIN = """
from a2c_compiled.cli import main

options = "--num-envs 2 --num-steps 4 --total-steps 32 --hidden 4 --out run".split()
assert main(["train", *options]) == 0
"""


def exporting(exporter, file):
    """The code that exports the loss with ``exporter`` and verifies the file."""
    return f"{STEP}from a2c_compiled import export\nexport.{exporter}(loss, inputs, {file!r})\nassert export.verify({file!r}).passed"


SCRIPTS = {
    "import": "import a2c_compiled",
    "step": STEP + "TrainStep(loss)(rollout)",
    "many": STEP + "TrainStep(loss).many(rollouts)",
    "epochs": STEP + "TrainStep(loss).epochs(rollout, epochs=1, minibatch_size=6)",
    "compiled loss": STEP
    + "compiled = torch.compile(loss, fullgraph=True, options=compile_options())\n"
    + "compiled(inputs.pop('observation'), inputs.pop('action'), **inputs).total.backward()",
    "onnx": exporting("export_onnx", "loss.onnx"),
    "torchscript": exporting("export_torchscript", "loss.pt"),
    "pt2": exporting("export_pt2", "loss.pt2"),
    "aot": exporting("export_aot", "loss.aot.pt2"),
    "train": TRAIN,
}


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS)
def test_no_warning(script, tmp_path):
    # Of Python 3.13.0 alone, torch says that later ones are faster.
    command = [sys.executable, "-W", "error", "-W", "ignore:Guards may run slower:RuntimeWarning", "-c", SCRIPTS[script]]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-5000:]
    assert "Warning" not in done.stderr
