"""From Stable-Baselines3 to ONNX: trains a model there, with faster advantages, and exports it with its normalisation inside.

Run:    python examples/sb3_to_onnx.py
Prints: 1000 of 1000 actions equal model.predict; mean return in onnxruntime 500.0 over 20 episodes (16 s)
"""

import gymnasium
import numpy as np
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize

from a2c_compiled import export
from a2c_compiled.export.on_device.runtime import Policy
from a2c_compiled.integrations.stable_baselines3 import accelerate, from_sb3

TIMESTEPS = 60_000

envs = VecNormalize(make_vec_env("CartPole-v1", n_envs=8, seed=0), norm_reward=False)
model = PPO("MlpPolicy", envs, n_steps=128, batch_size=256, n_epochs=10, learning_rate=1e-3, seed=0, device="cpu")
with accelerate() as acceleration:  # advantages of SB3's rollout buffer in one kernel
    model.learn(TIMESTEPS)
print(acceleration)

# The policy shares the model's parameters. It takes the environment's own observations: VecNormalize is part of it.
policy, loss = from_sb3(model)
export.export_onnx(policy, {"observation": torch.zeros(8, 4)}, "sb3_policy.onnx", dynamic_axes=("N",))
print(export.verify("sb3_policy.onnx"))

runtime = Policy.load("sb3_policy.onnx")  # needs numpy and onnxruntime alone; the file runtime.py can be copied
observations = np.random.default_rng(0).normal(scale=0.1, size=(1000, 4)).astype(np.float32)
predicted, _ = model.predict(envs.normalize_obs(observations), deterministic=True)
equal = int((runtime.act(observations) == predicted).sum())

returns = []
env = gymnasium.make("CartPole-v1")
for episode in range(20):
    observation, _ = env.reset(seed=episode)
    total, done = 0.0, False
    while not done:
        observation, reward, terminated, truncated, _ = env.step(int(runtime.act(observation)))
        total, done = total + float(reward), terminated or truncated
    returns.append(total)
print(f"{equal} of 1000 actions equal model.predict; mean return in onnxruntime {np.mean(returns):.1f} over 20 episodes")
