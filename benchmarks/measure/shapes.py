"""The table of benchmark shapes, (environments, steps), and the time spent on each."""

from typing import NamedTuple, Tuple

import torch

Shape = Tuple[int, int]
Shapes = Tuple[Shape, ...]

# From a small update (8 environments, 5 steps) to a single long trajectory.
CPU_SHAPES: Shapes = ((8, 5), (16, 128), (64, 128), (256, 128), (4096, 32), (4096, 128), (16, 2048), (1, 100_000))
# Adds the shapes of simulators with thousands of environments on the GPU, and the shapes of the results that rl-triton publishes.
GPU_SHAPES: Shapes = (
    *CPU_SHAPES,
    (64, 512),
    (4096, 2048),
    (16384, 512),
    (8192, 4096),
    (32768, 8),
    (16, 65_536),
    (1, 1_000_000),
)
# The shapes of benchmarks/gpu/smoke.py. The most informative come first, because the GPU may be available for minutes only.
SMOKE_SHAPES: Shapes = (
    (8, 5),
    (64, 512),
    (4096, 128),
    (32768, 8),
    (32768, 16),
    (4096, 2048),
    (16384, 512),
    (8192, 4096),
    (16, 65_536),
    (1, 1_000_000),
    (16, 2048),
)


class Plan(NamedTuple):
    """The shapes to measure, and the time spent on each contender (one implementation of a computation).

    Attributes:
        device: device of the data.
        estimators: shapes of forward GAE over ``[T, N]``, and of the integrations' GAE functions.
        others: shapes of every other combination of estimator, layout and direction.
        over_steps: shapes of the sweep over steps, with a fixed number of environments.
        over_envs: shapes of the sweep over environments, with a fixed number of steps.
        packed: (sequences, mean length) of the packed sequences.
        updates: shapes of the loss and of the whole update.
        images: shapes of the whole update with Atari's images.
        policies: (observations, 1) of the policy.
        startups: shapes of the first training step in a new process.
        trainings: shapes of a rollout of CartPole-v1 and its update.
        samples: largest number of samples per contender.
        sample_seconds: shortest duration of a sample.
        budget_seconds: time for all samples of one contender.
        compiling: whether contenders that use ``torch.compile`` or AOTInductor are measured.
        compiled_peers: shapes at which peers (other libraries) are also compiled. Few, because compiling the peers takes long.
        layouts: layouts of the estimators' data.
        longest_loop: largest number of steps for contenders that loop over the steps. With gradients, a tenth of this.
    """

    device: torch.device
    estimators: Shapes
    others: Shapes
    over_steps: Shapes
    over_envs: Shapes
    packed: Shapes
    updates: Shapes
    images: Shapes
    policies: Shapes
    startups: Shapes
    trainings: Shapes
    samples: int = 20
    sample_seconds: float = 0.005
    budget_seconds: float = 0.3
    compiling: bool = True
    compiled_peers: Shapes = ((64, 128),)
    layouts: Tuple[str, ...] = ("[T, N]", "[N, T]")
    longest_loop: int = 100_000

    @property
    def sweeps(self) -> Shapes:
        """The shapes of both sweeps."""
        return (*self.over_steps, *self.over_envs)


def full(device: torch.device) -> Plan:
    """Returns the full plan: a run takes about ten minutes on two CPU cores, under eight minutes with a GPU."""
    if device.type == "cuda":
        return Plan(
            device,
            estimators=GPU_SHAPES,
            others=((64, 512), (4096, 128), (4096, 2048), (8192, 4096)),
            over_steps=_sweep_shapes(4096, 8, 8192, by_steps=True),
            over_envs=_sweep_shapes(512, 16, 65_536, by_steps=False),
            packed=((64, 512), (4096, 512)),
            updates=((8, 5), (256, 128), (4096, 128)),
            images=((8, 5), (16, 16), (256, 16)),
            policies=((1, 1), (4096, 1)),
            startups=(),
            trainings=((1024, 16), (16384, 16)),
            samples=15,
            sample_seconds=0.002,
            budget_seconds=0.12,
            compiled_peers=((64, 512), (4096, 128), (4096, 2048)),
            longest_loop=4096,
        )
    return Plan(
        device,
        estimators=CPU_SHAPES,
        others=((8, 5), (4096, 5), (64, 128), (4096, 128), (16, 2048)),
        over_steps=_sweep_shapes(64, 8, 8192, by_steps=True),
        over_envs=_sweep_shapes(128, 1, 4096, by_steps=False),
        packed=((64, 128), (1024, 128)),
        updates=((8, 5), (64, 128), (256, 128)),
        images=((8, 5), (16, 16)),
        policies=((1, 1), (1024, 1)),
        startups=((8, 5),),
        trainings=((1024, 16),),
    )


def quick(device: torch.device) -> Plan:
    """Returns a plan with few shapes and samples: a run takes about two minutes. The sweeps are empty."""
    shape = (64, 128)
    return full(device)._replace(
        estimators=((8, 5), shape),
        others=(shape,),
        over_steps=(),
        over_envs=(),
        packed=((64, 16),),
        updates=((8, 5),),
        images=((8, 5),),
        policies=((1, 1),),
        startups=(),
        trainings=((8, 16),),
        samples=10,
        sample_seconds=0.002,
        budget_seconds=0.1,
        compiled_peers=(),
        layouts=("[T, N]",),
    )


def _sweep_shapes(fixed: int, first: int, last: int, by_steps: bool) -> Shapes:
    """Returns shapes with one fixed size. The other size starts at ``first`` and grows by factors of four up to ``last``.

    ``by_steps``: the number of environments is ``fixed`` and the steps grow; otherwise the reverse.
    """
    sizes = []
    while first <= last:
        sizes.append(first)
        first *= 4
    return tuple((fixed, size) if by_steps else (size, fixed) for size in sizes)
