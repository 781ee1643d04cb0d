// CartPole for run_policy.cpp and run_policy_onnx.cpp, and the loop that plays it.
#pragma once

#include <array>
#include <cmath>
#include <cstdint>
#include <functional>
#include <random>
#include <vector>

// Maps observations [num_envs, 4], one environment after the other, to actions [num_envs], which are 0 or 1.
using Policy = std::function<std::vector<std::int64_t>(const std::vector<float>& observations)>;

// gymnasium's CartPole-v1: position, velocity, angle, angular velocity.
struct CartPole {
  std::array<double, 4> state{};

  void reset(std::mt19937& random) {
    for (double& number : state) number = std::uniform_real_distribution<>(-0.05, 0.05)(random);
  }

  // Returns whether the pole still stands.
  bool step(std::int64_t action) {
    auto& [x, velocity, angle, angular_velocity] = state;
    const double force = action == 1 ? 10.0 : -10.0, sine = std::sin(angle), cosine = std::cos(angle);
    const double common_term = (force + 0.05 * angular_velocity * angular_velocity * sine) / 1.1;
    const double angular = (9.8 * sine - cosine * common_term) / (0.5 * (4.0 / 3.0 - 0.1 * cosine * cosine / 1.1));
    const double acceleration = common_term - 0.05 * angular * cosine / 1.1;
    x += 0.02 * velocity, velocity += 0.02 * acceleration;
    angle += 0.02 * angular_velocity, angular_velocity += 0.02 * angular;
    return std::abs(x) <= 2.4 && std::abs(angle) <= 12.0 * M_PI / 180.0;
  }
};

// Plays one episode in each of num_envs environments. Returns the mean return. The reward of each step is 1.
inline double mean_return(const Policy& policy, int num_envs) {
  std::mt19937 random(0);
  std::vector<CartPole> environments(num_envs);
  for (CartPole& environment : environments) environment.reset(random);
  std::vector<bool> ended(num_envs);
  std::vector<float> observations(4 * num_envs);
  long steps = 0;
  for (int t = 0; t < 500; ++t) {  // all environments in one call of the policy
    for (int i = 0; i < num_envs; ++i)
      for (int j = 0; j < 4; ++j) observations[4 * i + j] = static_cast<float>(environments[i].state[j]);
    const std::vector<std::int64_t> actions = policy(observations);
    for (int i = 0; i < num_envs; ++i) {
      if (ended[i]) continue;
      ++steps;
      ended[i] = !environments[i].step(actions[i]);
    }
  }
  return static_cast<double>(steps) / num_envs;
}
