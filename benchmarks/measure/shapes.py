"""The one table of shapes, (environments, steps), and how much time each of them gets."""

from typing import NamedTuple, Tuple

import torch

Shape = Tuple[int, int]
Shapes = Tuple[Shape, ...]

# From the smallest update that anyone does to one endless trajectory.
CPU_SHAPES: Shapes = ((8, 5), (16, 128), (64, 128), (256, 128), (4096, 32), (4096, 128), (16, 2048), (1, 100_000))
# The simulators that run by the thousand on the GPU itself, and the shapes that rl-triton publishes.
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
# In the order of what is to be known first on a GPU that is there for minutes.
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
    """What is measured, and for how long.

    Attributes:
        device: where the data is.
        estimators: shapes of generalized advantage estimation.
        others: shapes of every other estimator, layout and direction: enough to see where they differ.
        over_steps, over_envs: shapes of the two sweeps, one number of environments and one of steps.
        packed: sequences of different lengths: how many, and their mean length.
        updates: shapes of the loss and of the whole update.
        policies: of the policy, (observations, 1).
        samples: of each contender.
        sample_seconds: least length of a sample.
        budget_seconds: for all samples of one contender.
        compiling: with ``torch.compile``.
        compiled_peers: shapes at which peers are compiled too, which takes longest and tells least.
        layouts: of the estimators' data.
        longest_loop: steps that a contender may have which loops over them in Python or one kernel at a time; a tenth of it with gradients.
    """

    device: torch.device
    estimators: Shapes
    others: Shapes
    over_steps: Shapes
    over_envs: Shapes
    packed: Shapes
    updates: Shapes
    policies: Shapes
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
    """Under ten minutes on two CPU cores, under eight with a GPU."""
    if device.type == "cuda":
        return Plan(
            device,
            estimators=GPU_SHAPES,
            others=((64, 512), (4096, 128), (4096, 2048), (8192, 4096)),
            over_steps=_doublings(4096, 8, 8192, by_steps=True),
            over_envs=_doublings(512, 16, 65_536, by_steps=False),
            packed=((64, 512), (4096, 512)),
            updates=((8, 5), (256, 128), (4096, 128)),
            policies=((1, 1), (4096, 1)),
            samples=15,
            sample_seconds=0.002,
            budget_seconds=0.12,
            compiled_peers=((64, 512), (4096, 128), (4096, 2048)),
            longest_loop=4096,
        )
    return Plan(
        device,
        estimators=CPU_SHAPES,
        others=((8, 5), (64, 128), (4096, 128), (16, 2048)),
        over_steps=_doublings(64, 8, 8192, by_steps=True),
        over_envs=_doublings(128, 1, 4096, by_steps=False),
        packed=((64, 128), (1024, 128)),
        updates=((8, 5), (64, 128), (256, 128)),
        policies=((1, 1), (1024, 1)),
    )


def quick(device: torch.device) -> Plan:
    """Under two minutes, to see that all of it works and roughly where things stand."""
    shape = (64, 128)
    return full(device)._replace(
        estimators=((8, 5), shape),
        others=(shape,),
        over_steps=(),
        over_envs=(),
        packed=((64, 16),),
        updates=((8, 5),),
        policies=((1, 1),),
        samples=10,
        sample_seconds=0.002,
        budget_seconds=0.1,
        compiled_peers=(),
        layouts=("[T, N]",),
    )


def _doublings(fixed: int, first: int, last: int, by_steps: bool) -> Shapes:
    """From ``first`` to ``last``, each four times the one before it."""
    sizes = []
    while first <= last:
        sizes.append(first)
        first *= 4
    return tuple((fixed, size) if by_steps else (size, fixed) for size in sizes)
