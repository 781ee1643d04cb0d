"""The modes of a module of this package: eager, compiled, CUDA graph, TorchScript and onnxruntime."""

import copy
import tempfile
from functools import cached_property
from pathlib import Path
from typing import Any, Callable, Dict, Mapping, Optional, Sequence

import torch
from torch import Tensor, nn

from a2c_compiled._extras import needs
from a2c_compiled.benchmarks.measure import cuda
from a2c_compiled.benchmarks.measure.harness import OURS, Contender, Make
from a2c_compiled.benchmarks.measure.shapes import Plan
from a2c_compiled.export import export_onnx
from a2c_compiled.export.formats.torchscript import script

with needs(__name__, "train", "export"):
    import onnxruntime

EAGER, COMPILED, GRAPH = f"{OURS} eager", f"{OURS} compiled", f"{OURS} CUDA graph"
TORCHSCRIPT, ONNX = f"{OURS} TorchScript", f"{OURS} onnxruntime"
RUNTIME, AOT = f"{OURS} runtime.py", f"{OURS} AOTInductor"


class Modes:
    """One module in every mode. Each mode is created on first use and is used for every shape.

    The module in one mode is a contender, see :mod:`a2c_compiled.benchmarks.measure.harness`.

    Args:
        module: maps tensors to a tensor or a sequence of tensors.
        example: small inputs by name, for the export.
        dynamic_axes: names of the leading dimensions that vary.
        dynamic: whether to compile once for all shapes; False compiles for each shape.
    """

    def __init__(self, module: nn.Module, example: Mapping[str, Tensor], dynamic_axes: Sequence[str], dynamic: bool) -> None:
        self.module = module
        self._example, self._axes, self._dynamic = example, dynamic_axes, dynamic

    @cached_property
    def compiled(self) -> Callable[..., Any]:
        """The module compiled by ``torch.compile`` as one graph."""
        return torch.compile(self.module, fullgraph=True, dynamic=self._dynamic)

    @cached_property
    def scripted(self) -> torch.jit.ScriptModule:
        """The module in TorchScript, without operators of this package."""
        return script(self.module)

    @cached_property
    def session(self) -> onnxruntime.InferenceSession:
        """An onnxruntime session of the exported module, with torch's number of threads.

        The session runs on the GPU if the example inputs are there and onnxruntime supports CUDA.

        Raises:
            RuntimeError: onnxruntime offers CUDA, but the session fell back to another provider.
        """
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3  # log errors, but not warnings
        providers = ["CPUExecutionProvider"]
        if self._on_gpu():
            providers.insert(0, "CUDAExecutionProvider")
        with tempfile.TemporaryDirectory() as folder:
            example = {name: tensor.cpu() for name, tensor in self._example.items()}
            path = export_onnx(copy.deepcopy(self.module).cpu(), example, Path(folder) / "module.onnx", self._axes)
            session = onnxruntime.InferenceSession(path, options, providers=providers)
        if session.get_providers()[0] != providers[0]:
            raise RuntimeError(f"onnxruntime: expected {providers[0]} to start, got a fallback to another provider")
        return session

    def oracle(self) -> nn.Module:
        """Returns a float64 copy of the module, which computes the expected results in eager mode.

        The tests compare the module with plain loops.
        """
        return copy.deepcopy(self.module).double()

    def contenders(
        self, inputs: Mapping[str, Tensor], plan: Plan, finish: Optional[Callable[[Any], Any]] = None, loop_steps: int = 0
    ) -> Dict[str, Make]:
        """Returns functions that create the contenders of all available modes, by contender name.

        Args:
            inputs: the inputs by name, in the order of the module's arguments.
            plan: device, and which modes to run.
            finish: computes gradients from the module's result; onnxruntime, which has no gradients, is then left out. None: forward only.
            loop_steps: number of steps over which the exported graphs loop. Above the plan's limit, these graphs are left out.
        """
        values = list(inputs.values())

        def running(function: Callable[[], Callable[..., Any]]) -> Make:
            def make() -> Contender:
                module = function()
                call = (lambda: module(*values)) if finish is None else (lambda: finish(module(*values)))
                return Contender(call)

            return make

        def graph() -> Contender:
            return Contender(cuda.captured(running(lambda: self.module)().call))

        made: Dict[str, Make] = {EAGER: running(lambda: self.module)}
        if plan.compiling:
            made[COMPILED] = running(lambda: self.compiled)
        if plan.device.type == "cuda":
            made[GRAPH] = graph
        if loop_steps <= (plan.longest_loop if finish is None else plan.longest_loop // 10):
            made[TORCHSCRIPT] = running(lambda: self.scripted)
            if finish is None and (plan.device.type == "cpu" or self._on_gpu()):
                made[ONNX] = lambda: self._in_onnxruntime(inputs)
        return made

    def _on_gpu(self) -> bool:
        """Returns whether onnxruntime runs on the GPU: the example inputs are on a GPU, and onnxruntime supports CUDA."""
        on_gpu = next(iter(self._example.values())).is_cuda
        return on_gpu and "CUDAExecutionProvider" in onnxruntime.get_available_providers()

    def _in_onnxruntime(self, inputs: Mapping[str, Tensor]) -> Contender:
        """Creates a contender whose inputs and outputs are bound to the session's device."""
        device = "cuda" if self._on_gpu() else "cpu"
        binding = self.session.io_binding()
        for needed in self.session.get_inputs():
            array = inputs[needed.name].detach().cpu().numpy()
            binding.bind_ortvalue_input(needed.name, onnxruntime.OrtValue.ortvalue_from_numpy(array, device, 0))
        for output in self.session.get_outputs():
            binding.bind_output(output.name, device)
        return Contender(
            lambda: self.session.run_with_iobinding(binding),
            lambda _: [torch.from_numpy(array) for array in binding.copy_outputs_to_cpu()],
        )


def widened(inputs: Mapping[str, Tensor]) -> Dict[str, Tensor]:
    """Returns ``inputs`` with the floating-point tensors detached and converted to float64."""
    return {name: tensor.detach().double() if tensor.is_floating_point() else tensor for name, tensor in inputs.items()}
