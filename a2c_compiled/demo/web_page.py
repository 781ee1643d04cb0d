"""Writes a web page in which a policy learns from scratch: ``python -m a2c_compiled.demo.web_page FOLDER --ort DIR``, or ``make web``."""

import argparse
import sys
from pathlib import Path
from typing import Optional

from a2c_compiled._export_names import TRAIN_STEP
from a2c_compiled._files import AnyPath
from a2c_compiled.environments import goal_of
from a2c_compiled.export.run import export_run, jobs
from a2c_compiled.export.web_page import check_page, instructions, write_page
from a2c_compiled.training import TrainConfig
from a2c_compiled.training.construction import make_loss, make_step, seed_everything

PAGES = {
    "CartPole-v1": TrainConfig(num_envs=8, lr=5e-4),
    "Acrobot-v1": TrainConfig(env="Acrobot-v1", num_envs=16, lr=1e-3),
    "Pendulum-v1": TrainConfig(
        env="Pendulum-v1", solved_return=-250.0, num_envs=32, num_steps=8, lr=3e-3, gamma=0.9, entropy_coef=0.003
    ),
}
"""The options of the networks and of the training step, by environment. They were chosen for learning in the page."""
REWARD_SCALES = {"Pendulum-v1": 0.1}
"""Numbers by which the page multiplies rewards, by environment; 1 for the others. Large rewards make large errors of the critic."""


def write_learning_page(folder: AnyPath, env_id: str = "CartPole-v1", ort: Optional[AnyPath] = None) -> Path:
    """Exports a training step with new networks, and writes the page in which they learn.

    Args:
        folder: folder for all files.
        env_id: a key of ``PAGES``.
        ort: where onnxruntime-web is, see :func:`~a2c_compiled.export.write_page`.

    Returns:
        Path of ``index.html``.

    Raises:
        ValueError: an argument is invalid.
        RuntimeError: an exported file differs from eager mode.
    """
    check_page(env_id, ort=ort)
    config = PAGES[env_id]
    seed_everything(config.seed)
    step = make_step(config, make_loss(config), compile=False)
    for exported in export_run(step, env_id, folder, jobs([TRAIN_STEP], ["onnx"])):
        if not exported.report.passed:
            raise RuntimeError(str(exported.report))
    goal = goal_of(env_id, config.solved_return)
    return write_page(folder, env_id, config.num_steps, config.num_envs, goal, REWARD_SCALES.get(env_id, 1.0), ort)


def main() -> int:
    """Runs the command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition(":")[0])
    parser.add_argument("folder", type=Path, help="folder for the page")
    parser.add_argument("--env", default="CartPole-v1", choices=PAGES, help="environment (default: %(default)s)")
    parser.add_argument("--ort", type=Path, metavar="DIR", help="as for a2c-compiled export")
    arguments = parser.parse_args()
    try:
        write_learning_page(arguments.folder, arguments.env, arguments.ort)
    except (ValueError, OSError, RuntimeError) as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
    print(instructions(arguments.folder))
    return 0


if __name__ == "__main__":
    sys.exit(main())
