"""The whole of A2C in one file: environments, networks, loss, a training loop of one's own, evaluation, export.

Run:    python examples/cartpole_a2c.py
Prints: greedy policy: mean return 500.0 over 100 episodes (after 112,640 steps, 7 s)
"""

# %% [markdown]
# # A2C on CartPole-v1
# `NUM_ENVS` environments run together. A rollout has `NUM_STEPS` steps of each, and one training step uses it once.

# %%
import gymnasium
import numpy as np
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from torch import Tensor, nn

from a2c_compiled import A2CLoss, Rollout, TrainStep, distributions, estimators, export
from a2c_compiled.training.evaluation import evaluate, greedy_policy

ENV, NUM_ENVS, NUM_STEPS, MAX_UPDATES = "CartPole-v1", 64, 16, 300
torch.manual_seed(0)

# %% [markdown]
# ## Environments and networks
# The actor maps an observation to the logits of the actions, the critic to a value.

# %%
envs = SyncVectorEnv([lambda: gymnasium.make(ENV)] * NUM_ENVS, autoreset_mode=AutoresetMode.SAME_STEP)


def mlp(outputs: int) -> nn.Sequential:
    layers = nn.Linear(4, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, outputs)
    for layer in layers[::2]:
        nn.init.orthogonal_(layer.weight)
    return nn.Sequential(*layers)


actor, critic, distribution = mlp(2), mlp(1), distributions.Categorical(2)
estimator = estimators.GAE(gamma=0.99, lmbda=0.95)
loss = A2CLoss(actor, critic, distribution, estimator, entropy_coef=0.01, critic_coef=0.5)
step = TrainStep(loss, optimizer="rmsprop", lr=5e-3, max_grad_norm=0.5, compile=False)  # True pays off in longer runs

# %% [markdown]
# ## One rollout
# `done` cuts the trace of the advantages. `terminated` also cuts the bootstrap. At a step that ends an episode, `next_observation` is the
# last observation of that episode, which gymnasium returns as `final_obs`, because `observation` is already the first of the next episode.

# %%
observation, _ = envs.reset(seed=0)
running_return, returns = np.zeros(NUM_ENVS), [0.0]


def collect() -> Rollout:
    global observation
    steps: list[list[Tensor]] = []
    for _ in range(NUM_STEPS):
        before = torch.from_numpy(observation)
        with torch.no_grad():
            action = distribution.sample(actor(before))
        observation, reward, terminated, truncated, info = envs.step(action.numpy())
        done = terminated | truncated
        after = observation.copy()
        if done.any():
            after[done] = np.stack(info["final_obs"][done])
        arrays = reward.astype(np.float32), after, done, terminated
        steps.append([before, action, *map(torch.from_numpy, arrays)])
        running_return[:] += reward
        returns.extend(running_return[done])
        running_return[done] = 0.0
    return Rollout(*(torch.stack(column) for column in zip(*steps, strict=True)))  # each tensor is [NUM_STEPS, NUM_ENVS, ...]


# %% [markdown]
# ## Training
# A longer training may end with a worse policy. So this loop evaluates the greedy policy often, on other seeds each time, and stops when it
# reaches the return at which gymnasium counts CartPole-v1 as solved.

# %%
for update in range(1, MAX_UPDATES + 1):
    metrics = step(collect())
    if update % 10 == 0:
        mean_return = evaluate(greedy_policy(loss), ENV, episodes=100, seed=100 * update).mean()
        steps = update * NUM_ENVS * NUM_STEPS
        print(
            f"{steps:,} steps: training {np.mean(returns[-100:]):.1f}, greedy {mean_return:.1f}, entropy {metrics.entropy:.2f}"
        )
        if mean_return >= 475:
            break
envs.close()

# %% [markdown]
# ## Evaluation on seeds that the loop did not use, and export
# `verify` compares the file with reference outputs that the export stored beside it.

# %%
mean_return = evaluate(greedy_policy(loss), ENV, episodes=100, seed=1_000_000).mean()
print(f"greedy policy: mean return {mean_return:.1f} over 100 episodes")
export.export_onnx(export.GreedyPolicy(actor, distribution), {"observation": torch.zeros(8, 4)}, "cartpole.onnx", ("N",))
print(export.verify("cartpole.onnx"))
