"""Masked steps whose actions the distribution lacks are never read; at a step that counts, such an action never gives a finite loss."""

import math
from typing import Any, NamedTuple

import pytest
import torch
from loss_cases import assert_same, gradients, present, traced
from torch import Tensor, nn

from a2c_compiled import A2CLoss, TrainStep, distributions
from a2c_compiled.distributions import base
from a2c_compiled.update import Rollout

NAN = float("nan")
STEPS, ENVS = 6, 3


class Case(NamedTuple):
    """A distribution, an action that it has, and actions that it lacks."""

    distribution: distributions.Distribution
    right: Any
    wrong: tuple[Any, ...]

    def __str__(self) -> str:
        return type(self.distribution).__name__


CASES = [
    Case(distributions.Categorical(2), 1, (-1, -100, 2)),
    Case(distributions.MaskedCategorical(2), 0, (-1, 1, 9)),
    Case(distributions.OneHotCategorical(2), [0, 1], ([0, 0], [-1, -1])),
    Case(distributions.MaskedOneHotCategorical(2), [1, 0], ([0, 0], [0, 1])),
    Case(distributions.MultiCategorical([2, 3]), [1, 2], ([2, 0], [-1, 0], [0, -100])),
    Case(distributions.Bernoulli(2), [1, 0], ([-1, 0], [2, 2])),
    Case(distributions.Ordinal(3), 2, (-1, 3)),
    Case(distributions.OneHotOrdinal(3), [0, 0, 1], ([0, 0, 0],)),
    Case(
        distributions.Composite(distributions.Categorical(2), distributions.TanhNormal(1)),
        [1.0, 0.5],
        ([-1.0, 0.5], [NAN, 0.5], [1.0, NAN]),
    ),
    Case(distributions.Normal(1), [0.5], ([NAN], [1e38])),
    Case(distributions.TorchDistribution(lambda logits: torch.distributions.Categorical(logits=logits)), 1, (-1, 7)),
    Case(
        distributions.TorchDistribution(  # without a mode
            lambda params: torch.distributions.RelaxedOneHotCategorical(torch.tensor(1.0), logits=params), has_entropy=False
        ),
        [0.25, 0.75],
        ([NAN, NAN],),
    ),
]
DISCRETE, SCRIPTABLE = CASES[:8], CASES[:10]
each = pytest.mark.parametrize("case", CASES, ids=str)


class Scaled(nn.Module):
    """An actor whose output is the observation times a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(1.5))

    def forward(self, observation: Tensor) -> Tensor:
        return observation * self.weight


def num_params(case: Case) -> int:
    return 2 if case.distribution.num_params < 0 else case.distribution.num_params


def make_loss(case: Case, **options: Any) -> A2CLoss:
    torch.manual_seed(0)
    return A2CLoss(Scaled(), nn.Linear(num_params(case), 1), case.distribution, **options)


def make_arguments(case: Case, masked: Any, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Steps with the right action. One step in three is masked out and has the action ``masked``."""
    torch.manual_seed(1)
    observation, next_observation = torch.randn(2, STEPS, ENVS, num_params(case), dtype=dtype)
    mask = torch.arange(STEPS * ENVS).reshape(STEPS, ENVS) % 3 != 1
    if isinstance(case.distribution, distributions.MaskedCategorical):  # the second choice is forbidden
        observation[..., 2], observation[..., 3] = 1.0, 0.0
        observation[~mask] = 0.0  # nothing is allowed
    action = torch.tensor(case.right).expand(STEPS, ENVS, *torch.tensor(case.right).shape).clone()
    if masked is not None:
        action[~mask] = torch.tensor(masked).to(action.dtype)
    reward, done = torch.randn(STEPS, ENVS, dtype=dtype), torch.rand(STEPS, ENVS) < 0.2
    return {
        "observation": observation,
        "action": action,
        "reward": reward,
        "next_observation": next_observation,
        "done": done,
        "mask": mask,
    }


def assert_masked_actions_change_nothing(module: Any, loss: A2CLoss, case: Case) -> None:
    """``module`` is ``loss`` in any mode."""

    def results(function: Any, masked: Any) -> tuple[Any, Any]:
        torch.manual_seed(2)
        outputs = function(**make_arguments(case, masked))
        return outputs, gradients(outputs, loss)

    outputs, grads = results(loss, None)
    assert all(value.isfinite().all() for value in (*present(outputs).values(), *grads.values()))
    for wrong in case.wrong:
        for actual, expected in zip(results(module, wrong), (outputs, grads), strict=True):
            assert_same(actual, expected)


@each
def test_masked_actions_are_never_read(case: Case) -> None:
    loss = make_loss(case)
    assert_masked_actions_change_nothing(loss, loss, case)


@pytest.mark.parametrize("case", SCRIPTABLE, ids=str)
def test_masked_actions_are_never_read_in_torchscript(case: Case) -> None:
    loss = make_loss(case)
    assert_masked_actions_change_nothing(torch.jit.script(loss), loss, case)


@pytest.mark.slow
@each
def test_masked_actions_are_never_read_in_a_compiled_graph(case: Case) -> None:
    if isinstance(case.distribution, distributions.TorchDistribution):
        pytest.skip("torch's validation reads the data")
    loss = make_loss(case)
    assert_masked_actions_change_nothing(traced(loss, "aot_eager"), loss, case)


@pytest.mark.slow
@pytest.mark.parametrize("case", [CASES[0], CASES[3], CASES[4], CASES[8]], ids=str)
def test_masked_actions_are_never_read_in_onnxruntime_and_counted_ones_give_nan(case: Case, tmp_path: Any) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    from a2c_compiled import export

    loss = make_loss(case, entropy_coef=0.0)
    arguments = make_arguments(case, None)
    export.export_onnx(loss, arguments, tmp_path / "loss.onnx", ("T", "N"))
    session = onnxruntime.InferenceSession(str(tmp_path / "loss.onnx"))

    def objective(arguments: dict[str, Tensor]) -> float:
        return float(session.run(["loss_objective"], {name: tensor.numpy() for name, tensor in arguments.items()})[0])

    expected = loss(**arguments).loss_objective.item()
    for wrong in case.wrong:
        masked = make_arguments(case, wrong)
        assert objective(masked) == pytest.approx(expected, rel=1e-5)
        assert math.isnan(objective({**masked, "mask": torch.ones_like(masked["mask"])}))


@pytest.mark.parametrize("case", DISCRETE, ids=str)
def test_a_wrong_action_that_counts_is_named(case: Case) -> None:
    loss = make_loss(case)
    for wrong in case.wrong:
        arguments = make_arguments(case, None)
        arguments["action"][2, 2] = torch.tensor(wrong)
        assert arguments["mask"][2, 2]
        with pytest.raises(ValueError, match=r"action: expected .*, got"):
            loss(**arguments)
        with pytest.raises(torch.jit.Error, match=r"ValueError: action: expected .*, got"):
            torch.jit.script(loss)(**arguments)


@pytest.mark.parametrize("case", DISCRETE, ids=str)
@pytest.mark.parametrize("advantage", [0.0, 1.0])
def test_a_wrong_action_that_counts_gives_nan_where_no_data_may_be_read(
    case: Case, advantage: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU: loss and gradient are NaN, whatever the advantage."""
    monkeypatch.setattr(base, "_reads_data", lambda tensor: False)
    loss = make_loss(case, critic_coef=None, entropy_coef=0.0)
    for wrong in case.wrong:
        arguments = make_arguments(case, None)
        arguments["action"][2, 2] = torch.tensor(wrong)
        given = {name: arguments[name] for name in ("observation", "action", "mask")}
        objective = loss(**given, advantage=torch.full((STEPS, ENVS), advantage)).loss_objective
        assert objective.isnan()
        assert torch.autograd.grad(objective, loss.actor_network.weight)[0].isnan()


def test_a_training_step_skips_a_wrong_action_where_no_data_may_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "_reads_data", lambda tensor: False)
    step = TrainStep(make_loss(CASES[1]), compile=False)
    arguments = make_arguments(CASES[1], None)
    before = step.loss.actor_network.weight.item()
    arguments["action"][2, 2] = 1
    step(Rollout(terminated=arguments["done"], **arguments))
    assert (step.skipped.item(), step.loss.actor_network.weight.item()) == (1, before)
