"""Measures one A2C update with Atari's networks: three convolutions and 512 units, which actor and critic share; images 4 x 84 x 84, uint8.

The rollout is one of next-step autoreset, as ``a2c-compiled train`` collects it: it has the observation after the last step alone, so the
networks compute T + 1 observations of each environment. For comparison, a contender computes the same update from all next observations,
2 T. All contenders start from the same weights and use the same rollout; the check is that of the update.
"""

from typing import Dict, List

from a2c_compiled.benchmarks.contenders import update_peers
from a2c_compiled.benchmarks.contenders.modes import COMPILED, EAGER
from a2c_compiled.benchmarks.contenders.products import products
from a2c_compiled.benchmarks.measure import data
from a2c_compiled.benchmarks.measure.harness import PRODUCTS, Case, Make, PreparedCase
from a2c_compiled.benchmarks.measure.shapes import Plan, Shape
from a2c_compiled.benchmarks.subjects.bench_update import expected, make_step, timed


def cases(plan: Plan) -> List[Case]:
    """Returns one case per shape."""
    return [_case(shape, plan) for shape in plan.images]


def _case(shape: Shape, plan: Plan) -> Case:
    def prepare() -> PreparedCase:
        rollout = data.image_rollout(shape, plan.device)
        every = data.every_next_observation(rollout)
        contenders: Dict[str, Make] = {EAGER: lambda: timed(make_step(data.image_loss(plan.device), False), rollout)}
        if plan.device.type == "cpu":
            contenders[PRODUCTS] = lambda: products(make_step(data.image_loss(plan.device), False), rollout)
        if plan.compiling:
            contenders[COMPILED] = lambda: timed(make_step(data.image_loss(plan.device), True), rollout)
            contenders[f"{COMPILED}, 2 T"] = lambda: timed(make_step(data.image_loss(plan.device), True), every)
        return PreparedCase(
            expected(rollout, plan, data.image_loss), {**contenders, **update_peers.image_updates(every, shape, plan)}
        )

    return Case("A2C update, images", "whole", "[T, N]", shape, prepare, tolerance=1e-3)
