"""An action distribution of one's own, in training and in an exported policy: each action keeps a smallest probability.

Run:    python examples/own_distribution.py
Prints: greedy policy: mean return 498.0 over 100 episodes; smallest probability of an action 0.050 (6 s)
"""

import numpy as np
import torch
from torch import Tensor

from a2c_compiled import A2CLoss, TrainStep, export
from a2c_compiled.distributions import Distribution
from a2c_compiled.environments import CartPole
from a2c_compiled.export.on_device.runtime import Policy
from a2c_compiled.networks.for_spaces import mlp
from a2c_compiled.rollouts import RolloutCollector
from a2c_compiled.training.evaluation import evaluate, greedy_policy

MAX_UPDATES = 300


class ExploringCategorical(Distribution):
    """One choice among ``n`` actions: with the probability ``explore`` uniform, otherwise by the logits.

    ``p_i = (1 - explore) * softmax(params)_i + explore / n``

    A distribution is a set of pure functions of ``params``, the output of the actor network, ``[*B, num_params]``. Loss, training step,
    collector and export call only these functions. TorchScript compiles them, so they have annotated arguments.
    """

    has_entropy = True  # False: the loss estimates the entropy from samples
    noise_kind = "gumbel"  # the noise that a policy without torch draws: gumbel, logistic, normal or uniform

    def __init__(self, n: int, explore: float) -> None:
        super().__init__()
        self.num_params = n
        self.explore = explore

    def log_probs(self, params: Tensor) -> Tensor:
        self.check_params(params)
        return ((1.0 - self.explore) * params.softmax(-1) + self.explore / self.num_params).log()

    def log_prob(self, params: Tensor, action: Tensor) -> Tensor:
        return self.log_probs(params).gather(-1, action.unsqueeze(-1)).squeeze(-1)

    def entropy(self, params: Tensor) -> Tensor:
        log_probs = self.log_probs(params)
        return -(log_probs.exp() * log_probs).sum(-1)

    def mode(self, params: Tensor) -> Tensor:
        return self.log_probs(params).argmax(-1)

    def noise(self, params: Tensor) -> Tensor:
        return -torch.empty_like(params).exponential_().log()  # the standard Gumbel distribution

    def sample_from(self, params: Tensor, noise: Tensor) -> Tensor:
        return (self.log_probs(params) + noise).argmax(-1)  # has the probabilities p if the noise is Gumbel


torch.manual_seed(0)
distribution = ExploringCategorical(2, explore=0.1)
actor, critic = mlp(4, (64, 64), 2, output_gain=0.01), mlp(4, (64, 64), 1, output_gain=1.0)
loss = A2CLoss(actor, critic, distribution, entropy_coef=0.01, critic_coef=0.5)
step = TrainStep(loss, optimizer="rmsprop", lr=5e-3, compile=False)
collector = RolloutCollector(CartPole(num_envs=64), loss, num_steps=16, seed=0)
for update in range(1, MAX_UPDATES + 1):
    step(collector.collect())
    if update % 10 == 0 and evaluate(greedy_policy(loss), "CartPole-v1", seed=100 * update).mean() >= 475:
        break

policy = export.SampledPolicy(actor, critic, distribution)
example = torch.zeros(8, 4)
export.export_onnx(policy, {"observation": example, "noise": distribution.noise(actor(example))}, "exploring.onnx", ("N",))
print(export.verify("exploring.onnx"))

# Without torch: the runtime draws Gumbel noise with numpy.
log_prob = (
    Policy.load("exploring.onnx", seed=0).act(np.random.default_rng(0).normal(size=(1000, 4)).astype(np.float32)).log_prob
)
mean_return = evaluate(greedy_policy(loss), "CartPole-v1", episodes=100, seed=1_000_000).mean()
smallest = float(np.exp(log_prob.min()))
print(f"greedy policy: mean return {mean_return:.1f} over 100 episodes; smallest probability of an action {smallest:.3f}")
