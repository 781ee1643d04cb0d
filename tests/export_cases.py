"""What the tests of export draw from: modules with the files that are made of them, and how a file is run."""

import functools
from pathlib import Path
from typing import Any, Callable, Dict, NamedTuple, Tuple

import numpy as np
import onnxruntime
import torch
from cases import inputs, make_steps
from loss_cases import INSIDE, make_loss, make_loss_steps, of
from tolerances import assert_close
from torch import nn

from a2c_compiled import estimators
from a2c_compiled.export.formats import FORMATS

# Examples have 6 steps of 4 environments; no test runs them again at that size.
STEPS, ENVS = 6, 4
AXES = {"TN": ("T", "N"), "NT": ("N", "T"), "NT1": ("N", "T")}
EXPORTERS = {format.ending: format.export for format in FORMATS.values()}
# An AOTInductor package takes ten seconds; what holds for a .pt2 file is shown there.
QUICK = (".onnx", ".pt", ".pt2")
PLAIN = ("reward", "next_observation", "done", "terminated")
GAE_INPUTS = ("state_value", "next_state_value", "reward", "done", "terminated")


def shape_of(layout, steps=STEPS, envs=ENVS):
    return {"TN": (steps, envs), "NT": (envs, steps), "NT1": (envs, steps, 1)}[layout]


def gae_inputs(shape=(STEPS, ENVS), ends="some", dtype=torch.float32, seed=0):
    steps = make_steps(shape, dtype, seed, ends)._asdict()
    return {name: steps[name] for name in GAE_INPUTS}


def loss_inputs(steps=STEPS, envs=ENVS, distribution="Categorical", inputs=PLAIN, dtype=torch.float32, seed=0):
    return of(make_loss_steps((steps, envs), distribution, dtype, seed, column=False), *inputs)


# Loading a file as anyone would who has it: what takes inputs by name, and gives outputs by name, those that are None left out.


def load_onnx(path):
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    read = [value.name for value in session.get_inputs()]

    def run(inputs):
        answers = session.run(names, {name: inputs[name].numpy() for name in read})
        return {name: torch.from_numpy(np.asarray(answer)) for name, answer in zip(names, answers, strict=True)}

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
    """A module's outputs by name, those that are None left out."""
    outputs = {"output": outputs} if isinstance(outputs, torch.Tensor) else outputs
    outputs = outputs if isinstance(outputs, dict) else outputs._asdict()
    return {name: value for name, value in outputs.items() if value is not None}


def assert_same_answers(answers, expected, what, **tolerance):
    """Names in order, dtypes, and values to the tolerance of the module's dtype."""
    assert list(answers) == list(expected), what
    real = next((value.dtype for value in expected.values() if value.is_floating_point()), torch.float32)
    for name, value in expected.items():
        assert answers[name].dtype == value.dtype, f"{name} in {what}"
        assert_close(answers[name].to(real), value.to(real), what=f"{name} in {what}", **tolerance)


class Exported:
    """A module and its files, by their endings.

    ``make_inputs`` makes its inputs from number of steps, number of environments, and how episodes end.
    """

    def __init__(self, module: nn.Module, files: Dict[str, Path], make_inputs: Callable[..., Dict[str, torch.Tensor]]) -> None:
        self.module, self.files, self.make_inputs = module, files, make_inputs

    @functools.cached_property
    def runners(self):
        """Every file, loaded."""
        return {ending: LOADERS[ending](path) for ending, path in self.files.items()}

    def answers(self, inputs):
        """Of every file, by ending."""
        return {ending: run(inputs) for ending, run in self.runners.items()}

    def check(self, inputs, **tolerance):
        """Every file answers as eager does."""
        with torch.no_grad():
            expected = named(self.module(**inputs))
        for ending, answers in self.answers(inputs).items():
            assert_same_answers(answers, expected, ending, **tolerance)

    def reads(self, name):
        """Whether the module has a use for that argument: TD(0) has none for ``done`` where it is given ``terminated``."""
        estimator = getattr(self.module, "value_estimator", self.module)
        return not (isinstance(estimator, estimators.TD0Estimator) and name == "done")


def export_as(endings, folder, module, make_inputs, axes) -> Exported:
    inputs = make_inputs(STEPS, ENVS, "some")
    files = {ending: EXPORTERS[ending](module, inputs, folder / f"graph{ending}", axes) for ending in endings}
    return Exported(module, files, make_inputs)


class EstimatorCase(NamedTuple):
    kind: type
    dtype: torch.dtype
    layout: str
    options: Dict[str, Any] = {}
    takes: Tuple[str, ...] = ()  # besides values, rewards and flags

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
        """Those of group and mask that the case takes."""
        generator = torch.Generator().manual_seed(seed)
        group = torch.randint(-2, 3, shape[:1], generator=generator)
        made = {"group": group, "mask": torch.rand(shape, generator=generator) < 0.8}
        return {name: made[name] for name in self.takes}


ESTIMATOR_CASES = (
    EstimatorCase(estimators.GAE, torch.float32, "TN"),
    EstimatorCase(estimators.GAE, torch.float64, "NT1", {"auto_reset_env": True}),
    EstimatorCase(estimators.GAE, torch.float64, "NT"),
    EstimatorCase(estimators.TD0Estimator, torch.float32, "NT1"),
    EstimatorCase(estimators.TD0Estimator, torch.float64, "TN"),
    EstimatorCase(estimators.TD1Estimator, torch.float32, "NT"),
    EstimatorCase(estimators.TD1Estimator, torch.float64, "TN"),
    EstimatorCase(estimators.TDLambdaEstimator, torch.float32, "NT1"),
    EstimatorCase(estimators.TDLambdaEstimator, torch.float64, "NT"),
    EstimatorCase(estimators.VTrace, torch.float32, "TN"),
    EstimatorCase(estimators.VTrace, torch.float64, "NT1", {"pg_rho_thresh": 1.3, "lmbda": 0.9}),
    EstimatorCase(estimators.NStepEstimator, torch.float32, "NT1", {"n": 3}),
    EstimatorCase(estimators.UPGO, torch.float64, "TN"),
)
STANDARDIZING_CASES = (
    EstimatorCase(estimators.GAE, torch.float32, "NT", {"average_gae": True}),
    EstimatorCase(estimators.TDLambdaEstimator, torch.float64, "TN", {"average_rewards": True}),
    EstimatorCase(estimators.VTrace, torch.float64, "TN", {"average_adv": True}),
    EstimatorCase(estimators.GAE, torch.float64, "NT", {"average_gae": True}, ("group", "mask")),
    EstimatorCase(estimators.MultiAgentGAE, torch.float32, "NT1", {"average_gae": True}),
)


class LossCase(NamedTuple):
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
        # A value function some way from the data, so that both sides of the clipping occur.
        options = {"value_estimator": self.estimator, **self.options}
        module = make_loss(self.distribution, dtype=self.dtype, **options)
        layout = "NT" if self.column else "TN"

        def make_inputs(steps, envs, ends):
            shape = shape_of(layout, steps, envs)
            made = make_loss_steps(shape, self.distribution, self.dtype, seed=steps, column=self.column)
            done = {"some": made.done, "none": torch.zeros_like(made.done), "all": torch.ones_like(made.done)}[ends]
            return of(made._replace(done=done, terminated=made.terminated & done), *self.inputs)

        return export_as(endings, folder, module, make_inputs, AXES[layout])


LOSS_CASES = (
    LossCase(
        "Categorical-GAE-clipped-shared",
        "Categorical",
        "GAE",
        (*PLAIN, "state_value"),
        {"clip_value": 0.2, "separate_losses": True, "shared": True},
    ),
    LossCase("OneHotCategorical-TD0-sum", "OneHotCategorical", "TD0", PLAIN, {"reduction": "sum", "loss_critic_type": "l1"}),
    LossCase("MaskedCategorical-TD1-none", "MaskedCategorical", "TD1", PLAIN, {"reduction": "none"}),
    LossCase("Normal-TDLambda-float64", "Normal", "TDLambda", PLAIN, {"loss_critic_type": "l2"}, torch.float64),
    LossCase("TanhNormal-VTrace", "TanhNormal", "VTrace", INSIDE, {"entropy_coef": 0.0}),
    LossCase("Categorical-GAE-NT1-masked", "Categorical", "GAE", (*PLAIN, "mask"), {"reduction": "mean"}, column=True),
    LossCase(
        "Categorical-advantage_given",
        "Categorical",
        "GAE",
        ("advantage", "value_target", "state_value"),
        {"clip_value": 0.2, "shared": True},
    ),
    LossCase("Categorical-GAE-NT1-shifted", "Categorical", "GAE", PLAIN, {"shifted": True, "shifted_budget": 2}, column=True),
    LossCase("Normal-TDLambda-in_chunks", "Normal", "TDLambda", PLAIN, {"value_chunk_size": 5}),
    LossCase("Categorical-no_critic", "Categorical", "GAE", PLAIN, {"critic_coef": None, "reduction": "none"}),
)


def loss_case(name) -> LossCase:
    return next(case for case in LOSS_CASES if case.name == name)
