"""Trains CartPole-v1 for seconds, exports policy and training step in every format, and compares each file with eager mode.

Run:    python examples/export_and_verify.py    (writes the folder exported, which onnxruntime_loop.py and the programs in C++ read)
Prints: 6 files of 6 are equal to eager mode (28 s)
"""

from pathlib import Path

import torch

from a2c_compiled import A2CLoss, TrainStep, distributions, export
from a2c_compiled.environments import CartPole
from a2c_compiled.networks.for_spaces import mlp
from a2c_compiled.rollouts import RolloutCollector
from a2c_compiled.training.evaluation import evaluate, greedy_policy

MAX_UPDATES = 300
FOLDER = Path("exported")
EXPORTERS = {
    "onnx": export.export_onnx,  # runs in onnxruntime
    "pt": export.export_torchscript,  # in torch and libtorch
    "pt2": export.export_pt2,  # in torch
    "aot.pt2": export.export_aot,  # in torch and libtorch, compiled for this machine: takes about 10 s
}

torch.manual_seed(0)
actor, critic = mlp(4, (64, 64), 2, output_gain=0.01), mlp(4, (64, 64), 1, output_gain=1.0)
loss = A2CLoss(actor, critic, distributions.Categorical(2), entropy_coef=0.01, critic_coef=0.5)
step = TrainStep(loss, optimizer="rmsprop", lr=5e-3, compile=False)
collector = RolloutCollector(CartPole(num_envs=64), loss, num_steps=16, seed=0)

# A training step exports with its parameters and optimizer state. This one has learnt nothing yet: onnxruntime_loop.py trains it.
FOLDER.mkdir(exist_ok=True)
rollout = collector.collect()
export.export_train_step(step, rollout, FOLDER / "train_step.onnx")

for update in range(1, MAX_UPDATES + 1):
    step(collector.collect())
    if update % 10 == 0 and evaluate(greedy_policy(loss), "CartPole-v1", seed=100 * update).mean() >= 475:
        break
print(f"mean return of the greedy policy {evaluate(greedy_policy(loss), 'CartPole-v1', seed=1_000_000).mean():.1f}")

policy = export.GreedyPolicy(actor, loss.distribution)
for ending, exporter in EXPORTERS.items():
    exporter(policy, {"observation": torch.zeros(8, 4)}, FOLDER / f"policy.{ending}", dynamic_axes=("N",))
steps = {name: getattr(rollout, name) for name in ("observation", "action", "reward", "next_observation", "done", "terminated")}
export.export_onnx(loss, steps, FOLDER / "loss.onnx", dynamic_axes=("T", "N"))

# Each export stored reference outputs beside its file: at other sizes than the example's, and on extreme data.
files = [FOLDER / "train_step.onnx", *(FOLDER / f"policy.{ending}" for ending in EXPORTERS), FOLDER / "loss.onnx"]
reports = [export.verify(file) for file in files]
for file, report in zip(files, reports, strict=True):
    print(f"{file.name}: {report.size / 1024:.1f} KiB, largest relative error {report.worst:.1e} in {len(report.cases)} cases")
print(f"{sum(report.passed for report in reports)} files of {len(files)} are equal to eager mode")
