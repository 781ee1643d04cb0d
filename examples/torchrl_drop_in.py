"""TorchRL's own A2C training with this library's kernels inside, which is one more line, and its policy as an ONNX file.

Run:    python examples/torchrl_drop_in.py
Prints: 120 calls served, 0 left to TorchRL; mean return of the last 20 episodes 194.3 (18 s)
"""

import torch
from tensordict.nn import TensorDictModule
from torch import nn
from torchrl.collectors import Collector
from torchrl.envs import Compose, GymEnv, InitTracker, RewardSum, TransformedEnv
from torchrl.modules import ProbabilisticActor, ValueOperator
from torchrl.objectives import A2CLoss

from a2c_compiled import export
from a2c_compiled.integrations.torchrl import accelerate, from_torchrl, restore

FRAMES_PER_BATCH, BATCHES = 512, 60

torch.manual_seed(0)
env = TransformedEnv(GymEnv("CartPole-v1", categorical_action_encoding=True), Compose(RewardSum(), InitTracker()))
env.set_seed(0)


def mlp(outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 64), nn.Tanh(), nn.Linear(64, outputs))


actor = ProbabilisticActor(
    TensorDictModule(mlp(2), ["observation"], ["logits"]), ["logits"], distribution_class=torch.distributions.Categorical
)
critic = ValueOperator(mlp(1), in_keys=["observation"])
loss = A2CLoss(actor, critic, entropy_coeff=0.01, critic_coeff=0.5)
loss.make_value_estimator(gamma=0.99, lmbda=0.95)
optimizer = torch.optim.Adam(loss.parameters(), lr=3e-3)
collector = Collector(env, actor, frames_per_batch=FRAMES_PER_BATCH, total_frames=FRAMES_PER_BATCH * BATCHES)

acceleration = accelerate()  # the one line; restore() ends it. Or: with accelerate() as acceleration:
returns: list[float] = []
for batch in collector:
    losses = loss(batch)
    optimizer.zero_grad()
    (losses["loss_objective"] + losses["loss_critic"] + losses["loss_entropy"]).backward()
    nn.utils.clip_grad_norm_(loss.parameters(), 0.5)
    optimizer.step()
    returns += batch["next", "episode_reward"][batch["next", "done"]].tolist()
collector.shutdown()
calls, left = acceleration.calls, sum(acceleration.fallbacks.values())
restore()

# The loss converts to this library's, over the same parameters. It compiles as one graph, trains in TrainStep and exports.
converted = from_torchrl(loss)
policy = export.GreedyPolicy(converted.actor_network, converted.distribution)
export.export_onnx(policy, {"observation": torch.zeros(8, 4)}, "torchrl_policy.onnx", dynamic_axes=("N",))
print(export.verify("torchrl_policy.onnx"))
print(f"{calls} calls served, {left} left to TorchRL; mean return of the last 20 episodes {sum(returns[-20:]) / 20:.1f}")
