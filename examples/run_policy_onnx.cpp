// Runs an exported policy in C++ with onnxruntime alone: plays CartPole with policy.onnx. O is the folder of an unpacked release of onnxruntime.
// Run:    python examples/export_and_verify.py
//         g++ -O1 -std=c++20 examples/run_policy_onnx.cpp -o run_policy_onnx -I$O/include -L$O/lib -Wl,-rpath,$O/lib -lonnxruntime \
//           && ./run_policy_onnx exported/policy.onnx
// Prints: 100 episodes: mean return 497.65
#include <onnxruntime_cxx_api.h>

#include <iostream>
#include <memory>

#include "cartpole.h"

// Loads a greedy policy with the input observation, float32 [N, 4], and the output action, int64 [N].
Policy load(const char* path) {
  auto environment = std::make_shared<Ort::Env>(ORT_LOGGING_LEVEL_WARNING);
  Ort::SessionOptions options;
  options.SetIntraOpNumThreads(1);  // more threads slow a small network down
  auto session = std::make_shared<Ort::Session>(*environment, path, options);
  return [environment, session](const std::vector<float>& observations) {
    const std::array<std::int64_t, 2> shape{static_cast<std::int64_t>(observations.size()) / 4, 4};
    const auto memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
    const Ort::Value input = Ort::Value::CreateTensor<float>(
        memory, const_cast<float*>(observations.data()), observations.size(), shape.data(), shape.size());
    const char *names[] = {"observation"}, *outputs[] = {"action"};
    const auto results = session->Run(Ort::RunOptions(nullptr), names, &input, 1, outputs, 1);
    const auto* action = results[0].GetTensorData<std::int64_t>();
    return std::vector<std::int64_t>(action, action + shape[0]);
  };
}

int main(int argc, char** argv) {
  if (argc != 2) {
    std::cerr << "usage: run_policy_onnx FILE, a greedy policy that export_onnx wrote\n";
    return 2;
  }
  constexpr int episodes = 100;
  std::cout << episodes << " episodes: mean return " << mean_return(load(argv[1]), episodes) << '\n';
}
