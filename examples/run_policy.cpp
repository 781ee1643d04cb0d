// Runs an exported policy in C++ with libtorch alone: plays CartPole with policy.pt (TorchScript) or policy.aot.pt2 (AOTInductor).
// Run:    python examples/export_and_verify.py; T=$(python -c 'import torch; print(torch.__path__[0])')
//         g++ -O1 -std=c++20 examples/run_policy.cpp -o run_policy -I$T/include -I$T/include/torch/csrc/api/include -L$T/lib \
//           -Wl,-rpath,$T/lib -ltorch -ltorch_cpu -lc10 && ./run_policy exported/policy.pt
// Prints: 100 episodes: mean return 497.65
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>
#include <torch/script.h>

#include <functional>
#include <iostream>
#include <string>

#include "cartpole.h"

// Returns a function that maps observations [N, 4] to actions [N].
std::function<torch::Tensor(const torch::Tensor&)> load(const std::string& path) {
  if (path.ends_with(".aot.pt2")) {  // inputs and outputs in order; the package does not check its inputs
    auto package = std::make_shared<torch::inductor::AOTIModelPackageLoader>(path);
    return [package](const torch::Tensor& observation) { return package->run({observation})[0]; };
  }
  auto module = std::make_shared<torch::jit::Module>(torch::jit::load(path));
  return [module](const torch::Tensor& observation) {
    return module->forward({observation}).toTuple()->elements()[0].toTensor();
  };
}

int main(int argc, char** argv) {
  if (argc != 2) {
    std::cerr << "usage: run_policy FILE, a greedy policy that export_torchscript or export_aot wrote\n";
    return 2;
  }
  const torch::InferenceMode guard;
  const auto loaded = load(argv[1]);
  const Policy policy = [&](const std::vector<float>& observations) {
    const torch::Tensor action = loaded(torch::tensor(observations).view({-1, 4}));
    return std::vector<std::int64_t>(action.data_ptr<std::int64_t>(), action.data_ptr<std::int64_t>() + action.numel());
  };
  constexpr int episodes = 100;
  std::cout << episodes << " episodes: mean return " << mean_return(policy, episodes) << '\n';
}
