"""Shared by the tests of export: the modules that are exported, their example inputs, and functions that run a file of each format."""

import copy
import functools
from pathlib import Path
from typing import Any, Callable, Dict, NamedTuple, Tuple

import numpy as np
import onnxruntime
import pytest
import torch
from cases import inputs, make_steps, per_step
from loss_cases import INSIDE, make_loss, make_loss_steps, of
from tolerances import assert_close
from torch import nn
from torch.onnx._internal.exporter._registration import ONNXRegistry

from a2c_compiled import estimators, export
from a2c_compiled.export.formats import FORMATS

# The size of the example inputs. The tests run the exported files at other sizes.
STEPS, ENVS = 6, 4
AXES = {"TN": ("T", "N"), "NT": ("N", "T"), "NT1": ("N", "T")}
EXPORTERS = {format.ending: format.export for format in FORMATS.values()}
# All formats but AOTInductor packages: compiling one takes 8 s of CPU time. A package holds the same program as a .pt2 file.
UNCOMPILED = (".onnx", ".pt", ".pt2")
PLAIN = ("reward", "next_observation", "done", "terminated")
GAE_INPUTS = ("state_value", "next_state_value", "reward", "done", "terminated")


@pytest.fixture(autouse=True, scope="session")
def one_operator_table():
    """Builds torch's table of ONNX operators once: each export would parse the source of 500 operators, which takes 0.4 s."""
    build = functools.cache(ONNXRegistry.from_torchlib)

    def copied_table(*arguments, **options):
        registry = copy.copy(build(*arguments, **options))
        registry.functions = {operator: list(entries) for operator, entries in registry.functions.items()}
        return registry

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ONNXRegistry, "from_torchlib", staticmethod(copied_table))
        yield


def shape_of(layout, steps=STEPS, envs=ENVS):
    return {"TN": (steps, envs), "NT": (envs, steps), "NT1": (envs, steps, 1)}[layout]


def gae_inputs(shape=(STEPS, ENVS), ends="some", dtype=torch.float32, seed=0):
    steps = make_steps(shape, dtype, seed, ends)._asdict()
    return {name: steps[name] for name in GAE_INPUTS}


def scan_arguments(shape, dtype=torch.float64, seed=0):
    """Returns values, and decays in [-1, 1], of which about a quarter are zero."""
    decay = per_step(shape, -1.0, 1.0, dtype, seed + 1).masked_fill(make_steps(shape, seed=seed + 2).done, 0.0)
    return make_steps(shape, dtype, seed).reward, decay


def loss_inputs(steps=STEPS, envs=ENVS, distribution="Categorical", inputs=PLAIN, dtype=torch.float32, seed=0):
    return of(make_loss_steps((steps, envs), distribution, dtype, seed, column=False), *inputs)


# Each loader uses only the framework of the format. A loader returns a function from inputs by name to outputs by name, without Nones.


def load_onnx(path):
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    read = [value.name for value in session.get_inputs()]

    def run(inputs):
        outputs = session.run(names, {name: inputs[name].numpy() for name in read})
        return {name: torch.from_numpy(np.asarray(output)) for name, output in zip(names, outputs, strict=True)}

    return run


def load_torchscript(path):
    return without_gradients(torch.jit.load(str(path)))


def load_pt2(path):
    return without_gradients(torch.export.load(path).module())


def load_aot(path):
    return without_gradients(torch._inductor.aoti_load_package(str(path)))


def without_gradients(module):
    @torch.no_grad()
    def run(inputs):
        return named(module(**{name.replace(".", "__"): tensor for name, tensor in inputs.items()}))

    return run


LOADERS = {".onnx": load_onnx, ".pt": load_torchscript, ".pt2": load_pt2, ".aot.pt2": load_aot}


def named(outputs):
    """Returns a module's outputs by name, without Nones."""
    outputs = {"output": outputs} if isinstance(outputs, torch.Tensor) else outputs
    if type(outputs) is tuple:
        outputs = {f"output_{i}" if i else "output": value for i, value in enumerate(outputs)}
    outputs = outputs if isinstance(outputs, dict) else outputs._asdict()
    return {name: value for name, value in outputs.items() if value is not None}


def assert_same_outputs(outputs, expected, what, **tolerance):
    """Asserts that names, their order, dtypes and values are equal, within the tolerance of the module's dtype."""
    assert list(outputs) == list(expected), what
    real = next((value.dtype for value in expected.values() if value.is_floating_point()), torch.float32)
    for name, value in expected.items():
        assert outputs[name].dtype == value.dtype, f"{name} in {what}"
        assert_close(outputs[name].to(real), value.to(real), what=f"{name} in {what}", **tolerance)


def assert_passes_verification(files, output_names):
    """Asserts that ``verify`` passes each file, and that an ONNX file passed all three further checks."""
    for ending, path in files.items():
        report = export.verify(path)
        assert report.passed, str(report)
        assert (list(report.outputs), report.random) == (list(output_names), [])
        assert list(report.checks.values()) == ["passed"] * (3 if ending == ".onnx" else 0)


class Exported:
    """A module and its exported files, by file ending.

    ``make_inputs(steps, envs, ends)`` makes inputs of a size. ``ends``: how episodes end, such as "some" or "none".
    """

    def __init__(self, module: nn.Module, files: Dict[str, Path], make_inputs: Callable[..., Dict[str, torch.Tensor]]) -> None:
        self.module, self.files, self.make_inputs = module, files, make_inputs

    @functools.cached_property
    def runners(self):
        """The loaded files, by ending."""
        return {ending: LOADERS[ending](path) for ending, path in self.files.items()}

    def outputs(self, inputs):
        """The outputs of every file, by ending."""
        return {ending: run(inputs) for ending, run in self.runners.items()}

    def assert_equals_eager(self, inputs, **tolerance):
        """Asserts that every file has the outputs of the module in eager mode."""
        with torch.no_grad():
            expected = named(self.module(**inputs))
        for ending, outputs in self.outputs(inputs).items():
            assert_same_outputs(outputs, expected, ending, **tolerance)

    def assert_ignores_nan_after_an_end(self, **tolerance):
        """Asserts that NaN after a terminated step, in all values, rewards and log-probabilities, does not change earlier outputs."""
        steps, last = 12, 5
        clean = self.make_inputs(steps, 3, "none")
        time = clean["reward"].shape.index(steps)
        for name in ("done", "terminated"):
            clean[name].select(time, last).fill_(True)
        inputs = {name: tensor.clone() for name, tensor in clean.items()}
        for name in inputs.keys() - {"done", "terminated"}:
            inputs[name].narrow(time, last + 1, steps - last - 1).fill_(float("nan"))
        inputs["next_state_value"].select(time, last).fill_(float("nan"))
        with torch.no_grad():
            expected = named(self.module(**clean))
        for outputs in self.outputs(inputs).values():
            for name, value in expected.items():
                assert_close(outputs[name].narrow(time, 0, last + 1), value.narrow(time, 0, last + 1), what=name, **tolerance)

    def assert_ignores_excluded_steps(self, **tolerance):
        """Every file has the outputs of the module, whatever excluded steps hold: NaN in all values, True in all flags."""
        inputs = self.make_inputs(12, 3, "some")
        with torch.no_grad():
            expected = named(self.module(**inputs))
        for name, tensor in inputs.items():
            if tensor.shape == inputs["mask"].shape and name != "mask":
                inputs[name] = tensor.masked_fill(~inputs["mask"], True if tensor.dtype == torch.bool else float("nan"))
        for ending, outputs in self.outputs(inputs).items():
            assert_same_outputs(outputs, expected, ending, **tolerance)

    def reads(self, name):
        """Returns whether the module reads the input ``name``. TD(0) does not read ``done`` if ``terminated`` is given."""
        estimator = getattr(self.module, "value_estimator", self.module)
        return not (isinstance(estimator, estimators.TD0Estimator) and name == "done")


def export_as(endings, folder, module, make_inputs, axes) -> Exported:
    """Exports ``module`` to a file for each ending."""
    inputs = make_inputs(STEPS, ENVS, "some")
    files = {ending: EXPORTERS[ending](module, inputs, folder / f"graph{ending}", axes) for ending in endings}
    return Exported(module, files, make_inputs)


def grouped(prefix, cases):
    """Returns parameters of a module-scoped fixture. The tests of one case run in one process, which exports the case once."""
    return [pytest.param(case, id=str(case), marks=pytest.mark.xdist_group(f"{prefix}-{case}")) for case in cases]


class EstimatorCase(NamedTuple):
    """A value estimator to export. ``options``: arguments of its constructor. ``layout``: a key of ``AXES``."""

    kind: type
    dtype: torch.dtype
    layout: str
    options: Dict[str, Any] = {}
    takes: Tuple[str, ...] = ()  # inputs in addition to values, rewards and flags

    def __str__(self):
        dtype = str(self.dtype).removeprefix("torch.")
        return "-".join([self.kind.__name__, dtype, self.layout, *self.options, *self.takes])

    def export(self, folder, endings=(".onnx", ".pt")) -> Exported:
        options = dict(self.options)
        if self.layout == "NT":
            options["time_dim"] = -1
        module = self.kind(gamma=0.97, **options)
        return export_as(endings, folder, module, self.make_inputs, AXES[self.layout])

    def make_inputs(self, steps, envs, ends):
        shape = shape_of(self.layout, steps, envs)
        if not self.kind.several_agents:
            return inputs(self.kind, make_steps(shape, self.dtype, steps, ends)) | self.extra(shape, steps)
        made = inputs(self.kind, make_steps((*shape[:2], 3, 1), self.dtype, steps, ends))
        team = {name: made[name][:, :, 0] for name in ("reward", "done", "terminated")}
        return made | team | self.extra(shape, steps)

    def extra(self, shape, seed):
        """Returns ``group`` and ``mask``, or only the one of them that the case takes."""
        generator = torch.Generator().manual_seed(seed)
        group = torch.randint(-2, 3, shape[:1], generator=generator)
        made = {"group": group, "mask": torch.rand(shape, generator=generator) < 0.8}
        return {name: made[name] for name in self.takes}


# Every estimator, dtype, layout and option occurs, but not every combination: exporting a case takes 2 s of CPU time.
ESTIMATOR_CASES = (
    EstimatorCase(estimators.GAE, torch.float32, "TN"),
    EstimatorCase(estimators.GAE, torch.float64, "NT1", {"auto_reset_env": True}),
    EstimatorCase(estimators.TD0Estimator, torch.float64, "TN"),
    EstimatorCase(estimators.TD1Estimator, torch.float32, "NT"),
    EstimatorCase(estimators.TDLambdaEstimator, torch.float64, "NT", {"auto_reset_env": True}),
    EstimatorCase(
        estimators.VTrace, torch.float64, "NT1", {"pg_rho_thresh": 1.3, "lmbda": 0.9, "c_thresh": None, "auto_reset_env": True}
    ),
    EstimatorCase(estimators.NStepEstimator, torch.float32, "NT1", {"n": 3}),
    EstimatorCase(estimators.UPGO, torch.float64, "TN"),
)
STANDARDIZING_CASES = (
    EstimatorCase(estimators.TDLambdaEstimator, torch.float32, "TN", {"average_rewards": True}),
    EstimatorCase(estimators.VTrace, torch.float32, "TN", {"average_adv": True}),
    EstimatorCase(estimators.GAE, torch.float64, "NT", {"average_gae": True}, ("group", "mask")),
    EstimatorCase(estimators.MultiAgentGAE, torch.float32, "NT1", {"average_gae": True}),
)
MASKED_CASES = (
    EstimatorCase(estimators.GAE, torch.float32, "TN", {}, ("mask",)),
    EstimatorCase(estimators.VTrace, torch.float64, "NT", {"skip_masked": True}, ("mask",)),
    EstimatorCase(estimators.NStepEstimator, torch.float32, "TN", {"n": 3, "skip_masked": True}, ("mask",)),
)


class LossCase(NamedTuple):
    """A loss to export. ``inputs``: names of its inputs besides observation and action. ``column``: as in ``make_loss_steps``."""

    name: str
    distribution: str
    estimator: str
    inputs: tuple
    options: Dict[str, Any] = {}
    dtype: torch.dtype = torch.float32
    column: bool = False

    def __str__(self):
        return self.name

    def export(self, folder, endings=(".onnx", ".pt")) -> Exported:
        options = {"value_estimator": self.estimator, **self.options}
        module = make_loss(self.distribution, dtype=self.dtype, **options)
        layout = "NT" if self.column else "TN"

        def make_inputs(steps, envs, ends):
            shape = shape_of(layout, steps, envs)
            made = make_loss_steps(shape, self.distribution, self.dtype, seed=steps, column=self.column)
            done = {"some": made.done, "none": torch.zeros_like(made.done), "all": torch.ones_like(made.done)}[ends]
            return of(made._replace(done=done, terminated=made.terminated & done), *self.inputs)

        return export_as(endings, folder, module, make_inputs, AXES[layout])


# Every distribution, estimator, dtype, layout and option occurs, but not every combination: exporting a case takes 5 s of CPU time.
LOSS_CASES = (
    LossCase(
        "Categorical-GAE-clipped-shared",
        "Categorical",
        "GAE",
        (*PLAIN, "state_value"),
        {"clip_value": 0.2, "separate_losses": True, "shared": True},
    ),
    LossCase(
        "OneHotCategorical-TD0-NT1-masked",
        "OneHotCategorical",
        "TD0",
        (*PLAIN, "mask"),
        {"reduction": "mean", "loss_critic_type": "l1"},
        column=True,
    ),
    LossCase("MaskedCategorical-TD1-none", "MaskedCategorical", "TD1", PLAIN, {"reduction": "none"}),
    LossCase(
        "Normal-TDLambda-float64-in_chunks",
        "Normal",
        "TDLambda",
        PLAIN,
        {"loss_critic_type": "l2", "value_chunk_size": 5},
        torch.float64,
    ),
    LossCase("TanhNormal-VTrace-no_critic", "TanhNormal", "VTrace", INSIDE, {"entropy_coef": 0.0, "critic_coef": None}),
    LossCase(
        "Categorical-advantage_given",
        "Categorical",
        "GAE",
        ("advantage", "value_target", "state_value"),
        {"clip_value": 0.2, "shared": True},
    ),
    LossCase(
        "Categorical-GAE-NT1-shifted-sum",
        "Categorical",
        "GAE",
        PLAIN,
        {"shifted": True, "shifted_budget": 2, "reduction": "sum"},
        column=True,
    ),
)


def loss_case(name) -> LossCase:
    return next(case for case in LOSS_CASES if case.name == name)


# Extreme logits


# Observations of the actors below. In each row the first action is possible.
EXTREME_LOGITS = torch.tensor(
    [
        [1e4, -1e4, 0.0, 1.0],
        [-1e4, 1e4, 0.0, 1e4],
        [-1e4, -1e4, -1e4, -1e4],
        [0.0, 0.0, 0.0, 0.0],
        [1e30, -1e30, 0.0, 2e30],
        [0.0, -float("inf"), -float("inf"), 1.0],
        [5.0, -float("inf"), -float("inf"), -float("inf")],
        [-1e4, 0.0, -float("inf"), 1e4],
    ]
)


class Shifted(nn.Module):
    """An actor whose logits are the observation plus a parameter."""

    def __init__(self):
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(4))

    def forward(self, observation: torch.Tensor) -> torch.Tensor:
        return observation + self.shift


class Masking(Shifted):
    """An actor like ``Shifted``, with a mask that forbids impossible actions and the last action."""

    def forward(self, observation: torch.Tensor) -> torch.Tensor:
        allowed = torch.ones_like(observation).masked_fill(observation == -float("inf"), 0.0)
        allowed[..., 3] = 0.0
        return torch.cat([observation + self.shift, allowed], -1)


EXTREME_ACTORS = {"Categorical": Shifted, "OneHotCategorical": Shifted, "MaskedCategorical": Masking}
