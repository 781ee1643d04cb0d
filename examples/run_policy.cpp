// Runs an exported policy in C++ with libtorch alone: plays CartPole with policy.pt (TorchScript) or policy.aot.pt2 (AOTInductor).
// Run:    python examples/export_and_verify.py; T=$(python -c 'import torch; print(torch.__path__[0])')
//         g++ -O1 -std=c++20 examples/run_policy.cpp -o run_policy -I$T/include -I$T/include/torch/csrc/api/include -L$T/lib \
//           -Wl,-rpath,$T/lib -ltorch -ltorch_cpu -lc10 && ./run_policy exported/policy.pt
// Prints: 100 episodes: mean return 497.65
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>
#include <torch/script.h>

#include <array>
#include <cmath>
#include <functional>
#include <iostream>
#include <random>
#include <string>

using Policy = std::function<torch::Tensor(const torch::Tensor&)>;  // observations [N, 4] to actions [N]

Policy load(const std::string& path) {
  if (path.ends_with(".aot.pt2")) {  // inputs and outputs in order; the package does not check its inputs
    auto package = std::make_shared<torch::inductor::AOTIModelPackageLoader>(path);
    return [package](const torch::Tensor& observation) { return package->run({observation})[0]; };
  }
  auto module = std::make_shared<torch::jit::Module>(torch::jit::load(path));
  return [module](const torch::Tensor& observation) {
    return module->forward({observation}).toTuple()->elements()[0].toTensor();
  };
}

// gymnasium's CartPole-v1: position, velocity, angle, angular velocity.
struct CartPole {
  std::array<double, 4> state{};

  void reset(std::mt19937& random) {
    for (double& number : state) number = std::uniform_real_distribution<>(-0.05, 0.05)(random);
  }

  // Returns whether the pole still stands.
  bool step(long action) {
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

int main(int argc, char** argv) {
  if (argc != 2) {
    std::cerr << "usage: run_policy FILE, a greedy policy that export_torchscript or export_aot wrote\n";
    return 2;
  }
  const torch::InferenceMode guard;
  const Policy policy = load(argv[1]);
  constexpr int episodes = 100;
  std::mt19937 random(0);
  std::array<CartPole, episodes> environments;
  for (CartPole& environment : environments) environment.reset(random);

  std::array<bool, episodes> ended{};
  long steps = 0;
  for (int t = 0; t < 500; ++t) {  // all environments in one call of the policy
    torch::Tensor observation = torch::empty({episodes, 4});
    for (int i = 0; i < episodes; ++i)
      for (int j = 0; j < 4; ++j) observation[i][j] = environments[i].state[j];
    const torch::Tensor action = policy(observation);
    for (int i = 0; i < episodes; ++i) {
      if (ended[i]) continue;
      ++steps;  // the reward of each step is 1
      ended[i] = !environments[i].step(action[i].item<long>());
    }
  }
  std::cout << episodes << " episodes: mean return " << double(steps) / episodes << '\n';
}
