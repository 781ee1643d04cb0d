// Runs files of export_torchscript and export_aot with libtorch alone. Usage: run_torchscript FOLDER
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>
#include <torch/script.h>

#include <fstream>
#include <iostream>
#include <iterator>

using Inputs = std::unordered_map<std::string, torch::IValue>;  // by name

Inputs read(const std::string& path) {  // what torch.save wrote
  std::ifstream file(path, std::ios::binary);
  const std::vector<char> bytes{std::istreambuf_iterator<char>(file), {}};
  Inputs inputs;
  for (const auto& entry : torch::jit::pickle_load(bytes).toGenericDict()) inputs[entry.key().toStringRef()] = entry.value();
  return inputs;
}

void print(const std::string& name, const torch::Tensor& tensor) {
  std::cout << name << ":";
  for (const auto& number : tensor.flatten().unbind()) std::cout << ' ' << number.item<double>();
  std::cout << '\n';
}

int main(int, char** argv) {
  const std::string folder = std::string(argv[1]) + "/";
  std::cout.precision(9);

  auto policy = torch::jit::load(folder + "policy.pt");
  const torch::Tensor observation = read(folder + "policy.inputs").at("observation").toTensor();
  print("action", policy.forward({observation}).toTuple()->elements()[0].toTensor());

  auto estimator = torch::jit::load(folder + "estimator.pt");
  const Inputs steps = read(folder + "estimator.inputs");
  const auto estimates = estimator.forward({}, steps).toTuple();
  print("advantage", estimates->elements()[0].toTensor());
  print("value_target", estimates->elements()[1].toTensor());

  auto loss = torch::jit::load(folder + "loss.pt");
  const auto losses = loss.forward({}, read(folder + "loss.inputs")).toTuple();
  const auto names = losses->type()->schema()->arguments();
  torch::Tensor total = torch::zeros({});
  for (size_t i = 0; i < names.size(); ++i) {
    if (losses->elements()[i].isNone()) continue;  // switched off
    print(names[i].name(), losses->elements()[i].toTensor());
    if (names[i].name().rfind("loss_", 0) == 0) total = total + losses->elements()[i].toTensor();
  }
  total.backward();
  for (const auto& parameter : loss.named_parameters()) print("gradient of " + parameter.name, parameter.value.grad());

  torch::inductor::AOTIModelPackageLoader package(folder + "estimator.aot.pt2");  // tensors in order, contiguous
  std::vector<torch::Tensor> inputs;
  for (const auto name : {"state_value", "next_state_value", "reward", "done", "terminated"})
    inputs.push_back(steps.at(name).toTensor());
  print("advantage of the package", package.run(inputs)[0]);
}
