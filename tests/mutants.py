"""Checks that the tests notice faults: plants small faults one at a time in a copy of the tree and runs the tests of the fault's layer.

``make mutants`` runs all of ``FAULTS``; ``python tests/mutants.py NAME ...`` runs the faults whose names contain a NAME. For each fault
the report names the test that failed. The exit status is 1 unless a test failed for every fault.
"""

import argparse
import os
import queue
import re
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from a2c_compiled.kernels import cpu_scan

ROOT = Path(__file__).parents[1]
COPIES = 2  # number of faults that are tested at the same time, each in its own copy of the tree
PASSED, FAILED, NO_TESTS = 0, 1, 5  # pytest's exit codes


class Fault(NamedTuple):
    """A replacement in a source file, and the tests of which one must then fail."""

    name: str
    file: str
    before: str  # occurs in the file exactly once
    after: str
    tests: tuple[str, ...]


FAULTS = (
    Fault(
        "a compiled step has no value of a number that changes",
        "a2c_compiled/_torch_internals.py",
        'if any(node.target == "item" for node in nodes):',
        "if False:",
        ("tests/update/test_compilation.py",),
    ),
    Fault(
        "a graph that torch has dropped is called",
        "a2c_compiled/_torch_internals.py",
        "self.guards.cache_entry is not None and ",
        "",
        ("tests/update/test_compiled_graphs.py",),
    ),
    Fault(
        "loaded code is used for another function",
        "a2c_compiled/update/saved_code.py",
        "if found is not value and (",
        "if False and (",
        ("tests/update/test_saved_code.py",),
    ),
    Fault(
        "code of other functions is loaded",
        "a2c_compiled/update/saved_code.py",
        "if _definition_digest(definition) != digest:",
        "if False:",
        ("tests/update/test_saved_code.py",),
    ),
    Fault(
        "code is loaded for other values of global variables",
        "a2c_compiled/update/saved_code.py",
        "if here != there:",
        "if False:",
        ("tests/update/test_saved_code.py",),
    ),
    Fault(
        "code is loaded for another processor",
        "a2c_compiled/update/saved_code.py",
        'missing = sorted(set(about["features"]) - _processor_features())',
        "missing = []",
        ("tests/update/test_saved_code.py",),
    ),
    Fault(
        "a graph is called although torch.compiler.set_stance says otherwise",
        "a2c_compiled/_torch_internals.py",
        ' or getattr(stance, "stance", None) != "default"',
        "",
        ("tests/update/test_compiled_graphs.py",),
    ),
    Fault(
        "compiled code does not check a global variable of a script",
        "a2c_compiled/_torch_internals.py",
        r"(?!_\d|__)",
        "",
        ("tests/project/test_torch_internals.py",),
    ),
    Fault(
        "tanh of compiled code exceeds 1",
        "a2c_compiled/update/cpu_fusion_pass.py",
        "(x * numerator / denominator).clamp(-1.0, 1.0)",
        "x * numerator / denominator",
        ("tests/update/test_compilation.py",),
    ),
    Fault(
        "a reshape moves in front of an operation with an operand of another shape",
        "a2c_compiled/update/reshapes.py",
        "if not is_elementwise or {_shape(operand) for operand in operands} != {_shape(node)}:",
        "if not is_elementwise:",
        ("tests/update/test_compilation.py",),
    ),
    Fault(
        "the gradient of a weight is not transposed back",
        "a2c_compiled/update/cpu_fusion_pass.py",
        "return torch.mm(right.t(), left.t()).t()",
        "return torch.mm(right.t(), left.t()).view(left.size(0), -1)",
        ("tests/update/test_compilation.py",),
    ),
    Fault(
        "a GPU without a compiler for Triton raises Triton's error",
        "a2c_compiled/ops/registration.py",
        "if not triton_scan.is_available():",
        "if False:",
        ("tests/kernels/test_kernels.py",),
    ),
    Fault(
        "the gradient of a grouped convolution mixes the groups",
        "export/tracing/backward_operations.py",
        "if groups > 1:",
        "if groups > 9:",
        ("tests/export/test_export_train_step_layers.py",),
    ),
    Fault(
        "the gradient of a transposed convolution keeps its roles",
        "export/tracing/backward_operations.py",
        "(grad_output, input) if transposed else",
        "(input, grad_output) if transposed else",
        ("tests/export/test_export_train_step_layers.py",),
    ),
    Fault(
        "the gradient of average pooling counts the padding",
        "export/tracing/backward_operations.py",
        "(pad, 0), ceil_mode, count_include_pad, divisor",
        "(pad, 0), ceil_mode, True, divisor",
        ("tests/export/test_export_train_step_layers.py",),
    ),
    Fault(
        "the gradient of padding swaps the dimensions",
        "export/tracing/backward_operations.py",
        "for pair in reversed(pairs)",
        "for pair in pairs",
        ("tests/export/test_export_train_step_layers.py",),
    ),
    Fault(
        "the gradient of a weight norm keeps the part along the direction",
        "export/tracing/backward_operations.py",
        "(grad_weight - direction * (grad_magnitude / norm))",
        "grad_weight",
        ("tests/export/test_export_train_step_layers.py",),
    ),
    Fault(
        "the gradient of attention drops the mask",
        "export/tracing/backward_operations.py",
        "scores = scores + attn_mask",
        "scores = scores + 0",
        ("tests/export/test_export_train_step_layers.py",),
    ),
    Fault(
        "initializers keep a declared shape, which tools that transpose weights contradict",
        "export/onnx_model/model_file.py",
        "value.shape = value.type = None",
        "pass",
        ("tests/export/test_smaller_files.py",),
    ),
    Fault(
        "n-step windows cut the bootstrap at done",
        "a2c_compiled/functional/n_step.py",
        "_windows(steps.bootstrap_cut, n, dim)",
        "_windows(steps.done, n, dim)",
        ("tests/functional",),
    ),
    Fault(
        "separate losses train the trunk with the critic loss",
        "a2c_compiled/losses/actor_critic.py",
        "features.detach() if self.separate_losses else features",
        "features",
        ("tests/losses/test_shared_trunk.py",),
    ),
    Fault(
        "a trunk with hooks is shared",
        "a2c_compiled/shared_trunk.py",
        "not (is_declared or call_is_plain(layer))",
        "False",
        ("tests/losses/test_shared_trunk.py",),
    ),
    Fault(
        "the standard deviation of masked data is biased",
        "a2c_compiled/functional/standardization.py",
        "(count - 1.0).clamp_min(1.0)",
        "count.clamp_min(1.0)",
        ("tests/functional",),
    ),
    Fault(
        "standardisation sums in the dtype of the data",
        "a2c_compiled/functional/standardization.py",
        "wide = x.double()",
        "wide = x.clone()",
        ("tests/functional",),
    ),
    Fault(
        "C++: GAE's trace continues over a truncated step",
        "a2c_compiled/kernels/cpu/forms.h",
        "return {s.v(kReward) + bootstrap - s.v(kValue), unless(ends(s), s.c(kGamma) * s.c(kLmbda))};",
        "return {s.v(kReward) + bootstrap - s.v(kValue), unless(s.f(kTerminated), s.c(kGamma) * s.c(kLmbda))};",
        ("tests/kernels", "tests/ops"),
    ),
    Fault(
        "C++: the value after a tile's last step is lost",
        "a2c_compiled/kernels/cpu/scan.h",
        "y[count] = carried[n];",
        "y[count] = T(0);",
        ("tests/kernels", "tests/ops"),
    ),
    Fault(
        "C++: the trace passes from a short sequence to the next one",
        "a2c_compiled/kernels/cpu/scan.h",
        "link.decay = unless(step.last, link.decay);",
        "(void)0;",
        ("tests/kernels", "tests/ops"),
    ),
    Fault(
        "C++: the last piece of a divided scan has no remainder",
        "a2c_compiled/kernels/cpu/scan.h",
        "(last == in_lane ? lane.size : last * plan.piece)",
        "last * plan.piece",
        ("tests/kernels/test_threads.py",),
    ),
    Fault(
        "operators read coefficients of another dtype",
        "a2c_compiled/ops/registration.py",
        "if actual != expected:",
        "if False:",
        ("tests/ops/test_fused.py",),
    ),
    Fault(
        "Triton: a split skips the aggregate next to it",
        "a2c_compiled/kernels/triton/kernel.py",
        "(index >= split)",
        "(index > split)",
        ("tests/kernels",),
    ),
    Fault(
        "Triton: V-trace's gradient stops at the threshold itself",
        "a2c_compiled/kernels/triton/forms.py",
        "ratio <= c_thresh",
        "ratio < c_thresh",
        ("tests/kernels",),
    ),
    Fault(
        "C++: parts of a row lose NaN where a product of decays underflows",
        "a2c_compiled/kernels/cpu/scan.h",
        "!are_finite(tile.x, count) || !are_finite(&carry, 1)",
        "false",
        ("tests/kernels/test_not_finite.py",),
    ),
    Fault(
        "C++: the trace passes into an excluded step",
        "a2c_compiled/kernels/cpu/scan.h",
        "if (k == kDone) flag = flag | (excluded(has_after) & (last == Mask{}));",
        "",
        ("tests/kernels/test_masked_forms.py",),
    ),
    Fault(
        "Triton: results that are not finite are not computed again",
        "a2c_compiled/kernels/triton/kernel.py",
        "elif tl.max((zero_if_finite != 0).to(tl.int32)) != 0:",
        "elif tl.max((zero_if_finite != 0).to(tl.int32)) == 2:",
        ("tests/kernels/test_triton_interpreter.py", "tests/kernels/test_not_finite.py"),
    ),
    Fault(
        "Triton: the last step is only looked for at the end of a tile",
        "a2c_compiled/kernels/triton/kernel.py",
        "ENDS: tl.constexpr = REVERSE or LAYOUT[DIVIDED]",
        "ENDS: tl.constexpr = True",
        ("tests/kernels/test_triton_interpreter.py",),
    ),
    Fault(
        "torch: doubling lets NaN pass a zero decay",
        "a2c_compiled/kernels/torch_scan.py",
        "torch.where(passes & (a_far != 0), product, 0.0), y",
        "torch.where(passes, product, 0.0), y",
        ("tests/kernels", "tests/ops"),
    ),
    Fault(
        "the fast path reads a negated view as it lies in memory",
        "a2c_compiled/ops/registration.py",
        "            and not any(map(Tensor.is_neg, arguments[first_value:first_flag]))\n",
        "",
        ("tests/ops",),
    ),
    Fault(
        "the estimator standardises advantages that the mask leaves out",
        "a2c_compiled/estimators/base.py",
        "advantage = self.standardized(advantage, group, mask)",
        "advantage = self.standardized(advantage, group, None)",
        ("tests/estimators", "tests/losses"),
    ),
    Fault(
        "the clipped value loss takes the smaller distance",
        "a2c_compiled/losses/a2c.py",
        "torch.maximum(distance, clipped)",
        "torch.minimum(distance, clipped)",
        ("tests/losses",),
    ),
    Fault(
        "a trace runs on into the padding",
        "a2c_compiled/functional/steps.py",
        "trace_cut = done | excluded | excluded.roll(-1, dim)",
        "trace_cut = done | excluded",
        ("tests/functional",),
    ),
    Fault(
        "Triton: the trace continues after a step that is terminated but not done",
        "a2c_compiled/kernels/triton/forms.py",
        "return flags[0] | flags[1]",
        "return flags[0]",
        ("tests/kernels",),
    ),
    Fault(
        "the shifted critic keeps a step beyond its budget",
        "a2c_compiled/losses/shifted.py",
        "kept = included & (next_observation < slots)",
        "kept = included & (next_observation <= slots)",
        ("tests/losses",),
    ),
    Fault(
        "an impossible action makes the entropy NaN",
        "a2c_compiled/distributions/categorical.py",
        "log_probs.masked_fill(probs == 0, 0.0)",
        "log_probs",
        ("tests/distributions",),
    ),
    Fault(
        "a wrong action is scored as the nearest one",
        "a2c_compiled/distributions/base.py",
        'log_prob * torch.ones_like(log_prob).masked_fill(~is_valid, float("nan"))',
        "log_prob",
        ("tests/distributions", "tests/losses"),
    ),
    Fault(
        "an ONNX weight keeps the name of an input",
        "export/onnx_model/names.py",
        "if name in {*inputs, *outputs}",
        "if name in {*outputs}",
        ("tests/export/test_export_names.py",),
    ),
    Fault(
        "inputs named as flags are flags in every dtype",
        "export/checking/reference_cases.py",
        "if tensor.dtype == torch.bool}",
        "if tensor.dtype != torch.int64}",
        ("tests/export/test_export_names.py",),
    ),
    Fault(
        "the runtime takes a mapping in the order of its keys",
        "export/on_device/runtime.py",
        '_parts(f"{prefix}{key}", value[key], names, label)',
        '_parts(f"{prefix}{key}", list(value.values())[keys.index(key)], names, label)',
        ("tests/export/test_several_inputs.py",),
    ),
    Fault(
        "an exported scan's gradient reaches from the first step to the last",
        "a2c_compiled/ops/linear_scan.py",
        "later.roll(-1, dim)).masked_fill(is_last, 0.0)",
        "later.roll(-1, dim))",
        ("tests/ops/test_linear_scan.py",),
    ),
    Fault(
        "runtime.py feeds renamed inputs under their old names",
        "export/on_device/runtime.py",
        "return self._names_in_file.get(name, name)",
        "return name",
        ("tests/export/test_interfaces.py",),
    ),
    Fault(
        "an exported policy scores the sample before tanh",
        "export/graphs/policies.py",
        "        log_prob = self.distribution.log_prob(params, action)\n        value = match_dims(self",
        "        log_prob = self.distribution.sample_and_log_prob(params, noise)[1]\n        value = match_dims(self",
        ("tests/export/test_policy_scores.py",),
    ),
    Fault(
        "an environment gets the action that was drawn",
        "a2c_compiled/_environment_action.py",
        "return self.clips and (bounds is None",
        "return self.clips and (bounds is not None",
        ("tests/environments/test_action_spaces.py",),
    ),
    Fault(
        "the runtime steps an environment with the action that was drawn",
        "export/on_device/runtime.py",
        "return self.action if self._environment_action is None else self._environment_action",
        "return self.action",
        ("tests/export/test_action_space_files.py",),
    ),
    Fault(
        "masked observations enter the running mean",
        "a2c_compiled/networks/observation_norm.py",
        "rows.masked_fill(ignored, 0.0).sum(0).flatten()",
        "rows.sum(0).flatten()",
        ("tests/networks",),
    ),
    Fault(
        "small gradients are scaled up to max_grad_norm",
        "a2c_compiled/update/train_step.py",
        ".clamp_max(1.0)",
        "",
        ("tests/update",),
    ),
    Fault(
        "the steps that fill up the last minibatch of an epoch count",
        "a2c_compiled/update/epochs.py",
        "    if counted is not None:",
        "    if counted is None:",
        ("tests/update/test_epochs.py",),
    ),
    Fault(
        "a restored generator draws other orders",
        "a2c_compiled/update/train_step.py",
        "                generator.set_state(self._generator_state)",
        "                pass",
        ("tests/update/test_epochs.py",),
    ),
    Fault(
        "a convolutional network gets its leading dimensions in another order",
        "a2c_compiled/networks/batch_apply.py",
        "output.reshape(leading + ",
        "output.reshape(leading[::-1] + ",
        ("tests/networks/test_batch_apply.py",),
    ),
    Fault(
        "a recurrent layer reports the state before the step",
        "a2c_compiled/recurrent.py",
        "states.append((self, state))",
        "states.append((self, starting_states[0]))",
        ("tests/networks",),
    ),
    Fault(
        "the hidden state is kept after an episode",
        "a2c_compiled/rollouts/hidden_state.py",
        "hidden.masked_fill(is_last.unsqueeze(-1), 0.0)",
        "hidden",
        ("tests/networks",),
    ),
    Fault(
        "the runtime forgets the hidden state after each action",
        "export/on_device/runtime.py",
        "if self.hidden is None:\n            return np.zeros_like",
        "if True:\n            return np.zeros_like",
        ("tests/export/test_runtime_memory.py",),
    ),
    Fault(
        "the collector takes the observation after the reset for the next observation",
        "a2c_compiled/rollouts/collector.py",
        "step.observation if step.final_observation is None else step.final_observation",
        "step.observation",
        ("tests/rollouts",),
    ),
    Fault(
        "an episode is truncated one step late",
        "a2c_compiled/environments/tensor.py",
        "steps >= self.time_limit",
        "steps > self.time_limit",
        ("tests/environments",),
    ),
    Fault(
        "a resumed run draws other random numbers",
        "a2c_compiled/training/checkpoint.py",
        'torch.set_rng_state(state["cpu"])',
        "pass",
        ("tests/training",),
    ),
    Fault(
        "ONNX: NaN passes the end of an episode",
        "export/onnx_model/onnx_scan.py",
        "step.Where(cut_t, self.zero, step.Mul(decay_t, y_t))",
        "step.Mul(decay_t, y_t)",
        ("tests/export/test_onnx_scan.py",),
    ),
    Fault(
        "ONNX: blocks whose results are not finite are not computed again",
        "export/onnx_model/onnx_scan.py",
        "self._step_by_step(again)",
        "again.Identity(y)",
        ("tests/export/test_onnx_scan.py",),
    ),
    Fault(
        "TorchScript: results that are not finite are not computed again",
        "a2c_compiled/ops/scripted_scan.py",
        "if y.detach().sum().isfinite():",
        "if True:",
        ("tests/ops", "tests/kernels/test_not_finite.py"),
    ),
    Fault(
        "TorchScript: NaN in a gradient passes a zero decay",
        "a2c_compiled/ops/scripted_scan.py",
        "torch.where(weights[i] == 0, y.detach().nan_to_num(0.0, 0.0, 0.0), y)",
        "y.masked_fill((weights[i] == 0) & ~y.isfinite(), 0.0)",
        ("tests/ops/test_linear_scan.py",),
    ),
    Fault(
        "ONNX: Bernoulli draws 1 - p",
        "export/onnx_model/random_numbers.py",
        "op.Less(_uniform_like(self),",
        "op.GreaterOrEqual(_uniform_like(self),",
        ("tests/export/test_verify_right_and_wrong.py",),
    ),
    Fault(
        "verify does not look at the weighted sum of random outputs",
        "export/checking/randomness.py",
        "(1 / scale, direction / scale)",
        "()",
        ("tests/export/test_verify_right_and_wrong.py",),
    ),
    Fault(
        "verify passes a file when one case of several is right",
        "export/checking/comparison.py",
        "one.passed and other.passed",
        "one.passed or other.passed",
        ("tests/export/test_export_verify.py",),
    ),
    Fault(
        "the device's learner accepts an action one beyond the last",
        "export/on_device/runtime.py",
        "(action >= choices)",
        "(action > choices)",
        ("tests/export/test_runtime.py",),
    ),
)


class Outcome(NamedTuple):
    """The result of the tests for one fault."""

    fault: Fault
    noticed_by: str  # the test that failed; empty if all passed
    seconds: float
    trouble: str = ""  # why there is no verdict


def copy_of_the_tree(folder: Path) -> Path:
    """Copies every file that git tracks or would track, and the built kernels, to ``folder``; returns ``folder``."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, check=True
    )
    names = [os.fsdecode(name) for name in listed.stdout.split(b"\0") if name]
    for name in [*names, *(str(path.relative_to(ROOT)) for path in ROOT.glob("a2c_compiled/kernels/_cpu*.so"))]:
        if os.path.lexists(ROOT / name):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name, follow_symlinks=False)
    return folder


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs Python in ``folder`` with the package and the compile caches of this folder."""
    caches = {"TORCHINDUCTOR_CACHE_DIR": str(folder / ".inductor"), "TRITON_CACHE_DIR": str(folder / ".triton")}
    environment = {**os.environ, **caches, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True)


# It would notice every fault in C++, because the builds for other instruction sets stay as they were.
COMPARES_BUILDS = "tests/kernels/test_kernels.py::test_every_build_that_this_processor_can_run_gives_the_same_results"


def build_kernels(folder: Path) -> str:
    """Compiles the C++ kernels of ``folder`` for the instruction set of this processor, in place.

    Returns the compiler's message if it fails, else an empty string.
    """
    built = run(folder, "-c", BUILD, "build_ext", "--inplace")
    return built.stderr if built.returncode else ""


BUILD = f"""
from setuptools import setup
from setuptools.command.build_ext import build_ext

class InUse(build_ext):
    def finalize_options(self):
        super().finalize_options()
        self.extensions = [extension for extension in self.extensions if extension.name.endswith(".{cpu_scan.build_in_use()}")]

setup(cmdclass={{"build_ext": InUse}})
"""


def tested(fault: Fault, folder: Path) -> Outcome:
    """Plants ``fault`` in ``folder``, runs its tests until one fails, and restores the file."""
    place, start = folder / fault.file, time.monotonic()
    source = place.read_text()
    if source.count(fault.before) != 1:
        return Outcome(fault, "", 0.0, f"{fault.file} holds {source.count(fault.before)} times: {fault.before}")
    kernels = {path: path.read_bytes() for path in folder.glob("a2c_compiled/kernels/_cpu*.so")}
    place.write_text(source.replace(fault.before, fault.after))
    try:
        if place.suffix == ".h" and (message := build_kernels(folder)):
            return Outcome(fault, "", time.monotonic() - start, f"does not compile: {message}")
        # The tests of `make test`. The quick ones run first, because one of them fails for most faults.
        for mark in ("not slow", "slow and not extended"):
            options = ("-x", "-q", "-p", "no:cacheprovider", "--deselect", COMPARES_BUILDS)
            pytest = run(folder, "-m", "pytest", *options, "-m", mark, *fault.tests)
            if pytest.returncode not in (PASSED, NO_TESTS):
                break
    finally:
        place.write_text(source)
        for path, binary in kernels.items():
            path.write_bytes(binary)
    seconds = time.monotonic() - start
    failed = re.search(r"^FAILED (.+?)( - |$)", pytest.stdout, re.MULTILINE)
    if pytest.returncode == FAILED and failed:
        return Outcome(fault, failed[1], seconds)
    if pytest.returncode in (PASSED, NO_TESTS):
        return Outcome(fault, "", seconds)
    output = pytest.stdout[-2000:] + pytest.stderr[-2000:]
    return Outcome(fault, "", seconds, f"pytest ended with {pytest.returncode}:\n{output}")


def main() -> int:
    """Tests the chosen faults, prints a line for each, and returns 1 unless the tests noticed all of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="part of a fault's name; all faults by default")
    names = parser.parse_args().names
    chosen = [fault for fault in FAULTS if not names or any(name in fault.name for name in names)]
    if not chosen:
        parser.error(f"no fault has a name that contains {' or '.join(names)}")
    copies: queue.Queue[Path] = queue.Queue()

    def in_a_copy(fault: Fault) -> Outcome:
        folder = copies.get()
        try:
            outcome = tested(fault, folder)
        finally:
            copies.put(folder)
        verdict = outcome.trouble or (f"noticed by {outcome.noticed_by}" if outcome.noticed_by else "NOT NOTICED")
        print(f"{outcome.seconds:5.0f} s  {fault.name}: {verdict}", flush=True)
        return outcome

    with tempfile.TemporaryDirectory() as place:
        for number in range(COPIES):
            copies.put(copy_of_the_tree(Path(place) / str(number)))
        with ThreadPoolExecutor(COPIES) as pool:
            outcomes = list(pool.map(in_a_copy, chosen))
    noticed = sum(bool(outcome.noticed_by) for outcome in outcomes)
    print(f"{noticed} of {len(outcomes)} faults noticed")
    return 0 if noticed == len(outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
