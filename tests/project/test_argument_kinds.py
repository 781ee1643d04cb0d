"""Every public entry point takes numbers of every kind alike, and refuses other kinds by a TypeError that names the argument.

``CALLS`` is the table, with a row for each entry point. What kind a parameter has follows from its annotation, see :func:`kind_of`.
"""

import copy
import inspect
import re
from typing import Any, Callable, Iterator, NamedTuple, Optional, Tuple

import numpy as np
import pytest
import torch
from cases import CLASSES, make_steps
from loops import loop_over
from loss_cases import compile_backend, graphs_compiled, make_loss_steps, make_networks, make_rollout, present
from project.test_docstrings import exported, function_of
from torch import Tensor, nn

from a2c_compiled import (
    A2CLoss,
    ActorCritic,
    TrainStep,
    distributions,
    environments,
    estimators,
    export,
    functional,
    losses,
    ops,
    rollouts,
)
from a2c_compiled.networks import BatchApply
from a2c_compiled.networks.observation_norm import ObservationNorm, RunningMoments, update_norms
from a2c_compiled.recurrent import MinGRU, Recurrent
from a2c_compiled.rollouts.reward_scale import RewardScale
from a2c_compiled.training import TrainConfig
from a2c_compiled.update import Rollout
from a2c_compiled.update.optimizers import FunctionalOptimizer

# -- The table --------------------------------------------------------------------------------------------------------------

SHAPE = (4, 3)
STEPS = make_steps(SHAPE, torch.float32)
COUNTS = torch.arange(12).reshape(SHAPE) % 2
# Arguments by name. A test passes those that a call requires, those that its row names, and the one that it tests.
VALUES: dict[str, Any] = {
    **STEPS._asdict(),
    "x": STEPS.reward,
    "decay": STEPS.reward,
    "value_target": STEPS.reward,
    "dim": -2,
    "time_dim": -2,
    "n": 2,
    "mask": ~STEPS.done,
    "cu_seqlens": torch.tensor([0, 1, 4]),
    "group": COUNTS,
    "steps_to_next_obs": COUNTS + 1,
    "num_samples": 2,
    "num_envs": 2,
    "differentiable": True,
    "hidden": torch.zeros(4, 2),
    "hidden_size": 2,
    "input_size": 2,
}


class Call(NamedTuple):
    """An entry point, and arguments that its tests always pass."""

    function: Callable[..., Any]
    arguments: dict[str, Any] = {}


LOSS = A2CLoss(*make_networks()[:2], distributions.Categorical(4), diagnostics=True)
CARTPOLE_LOSS = A2CLoss(nn.Linear(4, 2), nn.Linear(4, 1), distributions.Categorical(2))
NETWORKS = {"actor_network": LOSS.actor_network, "critic_network": LOSS.critic_network, "distribution": LOSS.distribution}
LOSS_STEPS = make_loss_steps(SHAPE, column=False)._asdict()
TRANSITIONS = {name: LOSS_STEPS[name] for name in ("observation", "action", "reward", "next_observation", "done")}
A2C_TERMS = {"log_prob": STEPS.log_pi, "advantage": STEPS.reward, "entropy": STEPS.reward, "new_state_value": STEPS.state_value}
A2C_TERMS |= {"value_target": STEPS.reward, "state_value": STEPS.next_state_value, "diagnostics": True}


def sgd(momentum: float, nesterov: bool = False, weight_decay: float = 0.0) -> FunctionalOptimizer:
    return FunctionalOptimizer("sgd", momentum=momentum, nesterov=nesterov, weight_decay=weight_decay)


def rmsprop(alpha: float, eps: float = 1e-5, centered: bool = False) -> FunctionalOptimizer:
    return FunctionalOptimizer("rmsprop", alpha=alpha, eps=eps, centered=centered)


DISTRIBUTIONS = {
    **{
        name: getattr(distributions, name)(2)
        for name in distributions.__all__
        if name not in ("Distribution", "MultiCategorical") and name not in ("Composite", "TorchDistribution")
    },
    "MultiCategorical": distributions.MultiCategorical([2, 2]),
    "Composite": distributions.Composite(distributions.Categorical(2), distributions.TanhNormal(2)),
    "TorchDistribution": distributions.TorchDistribution(torch.distributions.Bernoulli, 2, has_entropy=False),
    "Distribution": distributions.TanhNormal(2),
}


def distribution_calls() -> Iterator[tuple[str, Call]]:
    """A row for the constructor of each distribution and for each method that its class defines."""
    for name, distribution in DISTRIBUTIONS.items():
        prefix = f"a2c_compiled.distributions.{name}"
        bounds = {"low": -2.0, "high": 2.0} if "low" in inspect.signature(type(distribution)).parameters else {}
        factory = {"factory": torch.distributions.Bernoulli} if name == "TorchDistribution" else {}
        if name not in ("Distribution", "Composite", "MultiCategorical"):  # these three take no number
            yield prefix, Call(type(distribution), {"dim": 2, "scale_mapping": "exp", **bounds, **factory})
        values: dict[str, Any] = {"loc": torch.ones(3, 2)}
        if isinstance(distribution, distributions.Distribution):
            params = torch.ones(3, distribution.num_params)
            values = {
                "loc": params,
                "params": params,
                "action": distribution.action_of_ones(torch.ones(1, distribution.num_params)),
            }
            values["action"] = values["action"].expand(3, *values["action"].shape)
        if name not in ("TorchDistribution", "AddStateIndependentNormalScale"):
            values["noise"] = distribution.noise(params)
        for method in exported():
            if method.startswith(f"{prefix}."):
                own = dict(values)
                if method.endswith(("entropy_estimate", "repeated", "head_entropies")) and "noise" in values:
                    own["noise"] = distribution.noise(params.expand(2, 3, -1))
                elif method.endswith("Beta.rsample"):
                    own["noise"] = None  # draws its own
                yield method, Call(getattr(distribution, method.rpartition(".")[2]), own)


CALLS: dict[str, Call] = {
    **{f"a2c_compiled.functional.{name}": Call(getattr(functional, name)) for name in functional.__all__ if name.islower()},
    "a2c_compiled.functional.reward2go": Call(functional.reward2go, {"next_state_value": STEPS.next_state_value}),
    **{f"a2c_compiled.estimators.{kind.__name__}": Call(kind) for kind in (*CLASSES, estimators.MultiAgentGAE)},
    "a2c_compiled.estimators.ValueEstimator": Call(estimators.ValueEstimator),
    "a2c_compiled.estimators.ValueEstimator.forward": Call(
        estimators.VTrace(average_adv=True).forward, {"log_pi": STEPS.log_pi, "log_mu": STEPS.log_mu}
    ),
    "MultiAgentGAE.forward": Call(estimators.MultiAgentGAE(time_dim=-2).forward),
    **dict(distribution_calls()),
    "a2c_compiled.A2CLoss": Call(A2CLoss, NETWORKS),
    "a2c_compiled.A2CLoss.forward": Call(LOSS.forward, TRANSITIONS),
    "a2c_compiled.A2CLoss.entropy_noise": Call(LOSS.entropy_noise, TRANSITIONS),
    "A2CLoss.estimates": Call(LOSS.estimates, TRANSITIONS),
    "a2c_compiled.ActorCritic.forward": Call(
        ActorCritic(nn.Identity(), *make_networks()[:2]).forward, {"observation": TRANSITIONS["observation"]}
    ),
    "a2c_compiled.losses.a2c_loss": Call(losses.a2c_loss, A2C_TERMS),
    "a2c_compiled.losses.PercentileNorm": Call(losses.PercentileNorm),
    "a2c_compiled.losses.PercentileNorm.update": Call(losses.PercentileNorm().update),
    "a2c_compiled.losses.RunningNorm": Call(losses.RunningNorm),
    **{
        f"a2c_compiled.losses.RunningNorm.{method}": Call(getattr(losses.RunningNorm(), method), {"advantage": STEPS.reward})
        for method in ("update", "observe", "normalize")
    },
    "a2c_compiled.losses.PopArt": Call(losses.PopArt, {"layer": nn.Linear(3, 1)}),
    **{
        f"a2c_compiled.losses.PopArt.{method}": Call(
            getattr(losses.PopArt(nn.Linear(3, 1)), method), {"features": STEPS.reward.float(), "value": STEPS.reward}
        )
        for method in ("forward", "normalize", "update")
    },
    "a2c_compiled.ops.linear_scan": Call(ops.linear_scan),
    "a2c_compiled.TrainStep": Call(TrainStep, {"loss": LOSS, "compile": False}),
    "a2c_compiled.TrainStep.epochs": Call(
        TrainStep(copy.deepcopy(LOSS), lr=0.0, compile=False).epochs,
        {
            "rollout": make_rollout(SHAPE),
            "epochs": 1,
            "minibatch_size": 6,
            "advantage": STEPS.reward,
            "value_target": STEPS.reward,
        },
    ),
    "sgd": Call(sgd),
    "rmsprop": Call(rmsprop),
    "a2c_compiled.rollouts.RolloutCollector": Call(
        rollouts.RolloutCollector, {"envs": environments.CartPole(2), "loss": CARTPOLE_LOSS, "num_steps": 2}
    ),
    "a2c_compiled.networks.BatchApply": Call(BatchApply, {"network": nn.Linear(3, 1), "event_dims": 1}),
    "a2c_compiled.networks.BatchApply.forward": Call(
        BatchApply(nn.Linear(3, 1), 1).forward, {"observation": TRANSITIONS["observation"]}
    ),
    "a2c_compiled.environments.CartPole": Call(environments.CartPole),
    "a2c_compiled.environments.Pendulum": Call(environments.Pendulum),
    "a2c_compiled.environments.TensorEnvironments": Call(environments.TensorEnvironments),
    "a2c_compiled.environments.make_environments": Call(environments.make_environments, {"env_id": "CartPole-v1"}),
    "a2c_compiled.environments.make_vector": Call(environments.make_vector, {"env_id": "CartPole-v1", "frame_stack": 2}),
    "a2c_compiled.training.TrainConfig": Call(TrainConfig),
    # Not in an __all__, but documented for users.
    "RewardScale": Call(RewardScale),
    "RewardScale.scale": Call(RewardScale(3).scale),
    "ObservationNorm": Call(ObservationNorm, {"shape": (3,)}),
    "ObservationNorm.forward": Call(ObservationNorm((3,)).forward),
    "RunningMoments.update": Call(RunningMoments((3,)).update, {"mask": ~STEPS.done[:, 0]}),
    "update_norms": Call(
        update_norms, {"network": ObservationNorm((3,)), "observation": STEPS.reward, "mask": ~STEPS.done[:, 0]}
    ),
    "MinGRU": Call(MinGRU),
    "MinGRU.forward": Call(MinGRU(3, 2).forward),
    "Recurrent": Call(Recurrent, {"cell": nn.GRUCell(3, 2), "offset": 2}),
    "Recurrent.step": Call(Recurrent(nn.GRUCell(3, 2)).step),
}

# Exported names without a row, as patterns, with the reason.
WITHOUT_ROW = {
    r"estimators\.(?!ValueEstimator\.forward).*\.\w+$": "forward has checked the arguments",
    r"A2CLoss\.objective|losses\.AdvantageNorm\.\w+": "overridden by users; the loss calls it with tensors",
    r"TrainStep\.pure": "tested below, with the rollout",
    r"environments\.\w+\.\w+$": "the environments' own functions, which get their arguments from the collector",
    r"environments\.goal_of": "takes an option of TrainConfig, which has checked it",
    r"training\.TrainResult|training\.Trainer\.": "numbers that the trainer computes",
    r"RolloutCollector\.": "restores what state_dict returned; begins episodes for Trainer",
    r"export\.": "example inputs are tested below; the modules call networks and distributions, which check",
    r"integrations\.|benchmarks\.": "adapters, whose numbers come from TorchRL's and Stable-Baselines3's objects",
}


# -- What a parameter takes -------------------------------------------------------------------------------------------------


def kind_of(parameter: inspect.Parameter) -> Optional[str]:
    """What the annotation says: ``tensor``, ``coefficient`` (also a number), ``number``, ``bound``, ``integer``, ``flag``, or None."""
    text = str(parameter.annotation)
    if "Sequence[float]" in text and "Union[float" in text:
        return "bound"
    if re.search("Tuple|List|Dict|Sequence|Mapping|Iterable|Callable", text):
        return None
    if "Tensor" in text:
        return "coefficient" if "float" in text else "tensor"
    return next(
        (kind for word, kind in (("float", "number"), ("int", "integer"), ("bool", "flag")) if re.search(rf"\b{word}\b", text)),
        None,
    )


def parameters(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """The parameters that are tested: those of a kind. ``functional`` of A2CLoss is ignored by design."""
    found = inspect.signature(function).parameters.items()
    return {name: parameter for name, parameter in found if kind_of(parameter) and name != "functional"}


NO_NUMBERS = [True, np.True_, torch.tensor(True), torch.tensor(1j), "x", np.array([0.5])]
WRONG = {
    "coefficient": [*NO_NUMBERS, [0.5]],
    "number": [*NO_NUMBERS, [0.5]],
    "bound": [True, np.True_, torch.tensor(True), "x"],
    "integer": [True, np.True_, torch.tensor(True), 1.5, "x", [1]],
    "flag": ["x", 1.0, [True]],
}
HALVES = [0.5, np.float32(0.5), np.float64(0.5), torch.tensor(0.5), torch.tensor([0.5]), torch.tensor(0.5, dtype=torch.float64)]
ONES = [1, 1.0, np.int64(1), np.float32(1), torch.tensor(1), torch.tensor([1.0])]


def wrong_values(kind: str, right: Any, parameter: inspect.Parameter) -> list[Any]:
    may_be_none = parameter.default is None or re.search("Optional|None", str(parameter.annotation))
    if kind == "tensor":
        array = right.numpy() if isinstance(right, Tensor) else np.zeros(3)
        wrong = [array, array.tolist(), "x", 1.0]
    else:
        wrong = WRONG[kind]
    return wrong if may_be_none else [*wrong, None]


def arguments_of(call: Call, tested: str, value: Any) -> dict[str, Any]:
    """The arguments of a call: what it requires, what its row names, and ``value`` for the parameter ``tested``."""
    arguments = {}
    for name, parameter in inspect.signature(call.function).parameters.items():
        if name in call.arguments:
            arguments[name] = call.arguments[name]
        elif parameter.default is parameter.empty and parameter.kind is not parameter.VAR_KEYWORD:
            arguments[name] = 0.5 if kind_of(parameter) in ("coefficient", "number") else VALUES[name]
    return {**arguments, tested: value}


def described(result: Any) -> Any:
    """What a call returned, in a form that can be compared: tensors as lists, objects by their numbers and tensors."""
    if isinstance(result, Tensor):
        return result.item() if result.numel() == 1 else result.tolist()
    if isinstance(result, (tuple, list)):
        return [described(part) for part in result]
    if isinstance(result, dict):
        return {name: described(part) for name, part in result.items()}
    if isinstance(result, nn.Module):
        tensors = {} if isinstance(result, (MinGRU, Recurrent)) else result.state_dict()  # their weights are random
        return {**described(tensors), **numbers(result)}
    return result if result is None or isinstance(result, (int, float, str)) else numbers(result)


def numbers(value: Any) -> dict[str, Any]:
    options = {**vars(value), **vars(value).get("options", {})}
    return {name: (type(option), option) for name, option in options.items() if isinstance(option, (bool, int, float))}


def rows() -> Iterator[Tuple[Call, str, inspect.Parameter]]:
    """The call, the name of the parameter, the parameter."""
    for call in CALLS.values():
        for name, parameter in parameters(call.function).items():
            yield call, name, parameter


# -- The tests --------------------------------------------------------------------------------------------------------------


@loop_over(("call", "name", "parameter"), rows())
def test_a_wrong_kind_raises_a_type_error_that_names_the_argument(call, name, parameter):
    kind = kind_of(parameter)
    right = call.arguments.get(name, VALUES.get(name))
    for wrong in wrong_values(kind, right, parameter):
        with pytest.raises((TypeError, ValueError, NotImplementedError)) as raised:
            call.function(**arguments_of(call, name, wrong))
        message = str(raised.value)
        if isinstance(raised.value, NotImplementedError):
            continue  # the method does not exist for this distribution
        assert re.match(rf"{name}(\[0\])?: expected", message), message
        assert isinstance(raised.value, TypeError) or "expected None" in message, message
        if kind == "tensor" and isinstance(raised.value, TypeError):
            assert "torch.Tensor" in message
            assert isinstance(wrong, np.ndarray) == message.endswith("got numpy.ndarray")


@loop_over(("call", "name", "parameter"), [case for case in rows() if kind_of(case[2]) in ("coefficient", "number", "bound")])
def test_numbers_of_every_kind_give_the_same_result(call, name, parameter):
    for alike in (HALVES, ONES):
        torch.manual_seed(0)
        expected = described(call.function(**arguments_of(call, name, alike[0])))
        for value in alike[1:]:
            torch.manual_seed(0)
            assert described(call.function(**arguments_of(call, name, value))) == expected, repr(value)


@loop_over(("call", "name", "parameter"), [case for case in rows() if kind_of(case[2]) == "integer"])
def test_integers_of_every_kind_give_the_same_result(call, name, parameter):
    right = call.arguments.get(name, VALUES.get(name, parameter.default))
    right = 1 if right is None or right is parameter.empty else right

    def result(value):
        torch.manual_seed(0)
        try:
            return described(call.function(**arguments_of(call, name, value)))
        except NotImplementedError as error:
            return str(error)

    for value in (np.int64(right), np.int32(right), torch.tensor(right)):
        assert result(value) == result(right), repr(value)


def is_public_argument(name: str) -> bool:
    return not any(re.search(pattern, name) for pattern in WITHOUT_ROW)


def test_every_public_function_with_a_tensor_or_a_number_is_in_the_table():
    known = {id(entry.value) for name, entry in exported().items() if name in CALLS}
    missing = []
    for name, entry in exported().items():
        is_class = inspect.isclass(entry.value)
        function = entry.value if is_class else function_of(entry.value)
        if (
            id(entry.value) in known
            or (is_class and issubclass(entry.value, (tuple, BaseException)))
            or not is_public_argument(name)
        ):
            continue
        kinds = {kind_of(parameter) for parameter in inspect.signature(function).parameters.values()}
        if kinds & {"tensor", "coefficient", "number", "integer", "bound"}:
            missing.append(name)
    assert missing == []


def test_the_check_finds_a_function_that_is_missing(monkeypatch):
    monkeypatch.delitem(CALLS, "a2c_compiled.functional.reward2go")
    with pytest.raises(AssertionError, match="reward2go"):
        test_every_public_function_with_a_tensor_or_a_number_is_in_the_table()


@pytest.mark.parametrize(
    ("module", "name"),
    [
        (lambda: A2CLoss(**NETWORKS, clip_value=0.2), "entropy_coef"),
        (lambda: A2CLoss(**NETWORKS, clip_value=0.2), "critic_coef"),
        (lambda: A2CLoss(**NETWORKS, clip_value=0.2), "clip_value"),
        (lambda: TrainStep(LOSS, compile=False), "lr"),
        (lambda: estimators.GAE(), "gamma"),
        (lambda: estimators.VTrace(), "rho_thresh"),
    ],
)
def test_an_assigned_attribute_is_checked_as_the_argument_is(module, name):
    module = module()
    for value in (*HALVES, *ONES):
        setattr(module, name, value)
        assert getattr(module, name).item() == value
    for wrong in WRONG["coefficient"]:
        with pytest.raises(TypeError, match=f"^{name}: expected a number"):
            setattr(module, name, wrong)
    if name in ("entropy_coef", "critic_coef", "clip_value", "lr"):
        with pytest.raises(
            ValueError, match=rf"^{name}: expected a number or a one-element tensor, got shape \[2\]|one for each head"
        ):
            setattr(module, name, torch.tensor([1.0, 2.0]))
    else:
        with pytest.raises(TypeError, match=f"^{name}: expected a number or a tensor, got None"):
            setattr(module, name, None)


@pytest.mark.parametrize("name", Rollout._fields)
def test_a_training_step_refuses_what_is_not_a_tensor_in_each_entry_of_a_rollout(name):
    rollout = make_rollout(SHAPE)
    step = TrainStep(LOSS, compile=False)
    for wrong in (np.zeros(SHAPE), [1.0], "x"):
        for call in (step, step.many):
            with pytest.raises(TypeError, match=rf"^{name}: expected a torch.Tensor.*, got"):
                call(rollout._replace(**{name: wrong}))
    for lr in (True, "x", np.ones(1)):
        with pytest.raises(TypeError, match=r"^lr: expected a number or a tensor"):
            step.pure(step.state(), rollout, lr)
    with pytest.raises(TypeError, match=r"^noise: expected a torch.Tensor, got numpy.ndarray"):
        step.pure(step.state(), rollout, step.lr, np.zeros(3))


def test_a_training_step_needs_at_least_one_rollout():
    rollout = make_rollout(SHAPE)
    none = Rollout(*(None if entry is None else entry.new_empty((0, *entry.shape)) for entry in rollout))
    with pytest.raises(ValueError, match=r"^rollouts: expected at least one rollout, got a reward of shape \[0, 4, 3\]"):
        TrainStep(LOSS, compile=False).many(none)


def test_vector_environments_refuse_an_unknown_vectorization():
    with pytest.raises(ValueError, match=r"^vectorization: expected one of 'auto', 'gymnasium', 'sync', 'async', got 'bogus'"):
        environments.make_vector("CartPole-v1", 2, "bogus")


@pytest.mark.parametrize("write", [export.export_onnx, export.export_pt2, export.export_aot, export.export_torchscript])
def test_exports_refuse_example_inputs_that_are_not_tensors(write, tmp_path):
    path = tmp_path / ("gae.aot.pt2" if write is export.export_aot else "gae.pt2")
    for wrong in (np.zeros(SHAPE), [0.0], "x", None):
        with pytest.raises(TypeError, match=r"^example_inputs: expected a torch.Tensor for state_value, got"):
            write(estimators.GAE(), {"state_value": wrong}, path)
    for wrong in (None, 1.0, "x", STEPS.reward.numpy()):
        with pytest.raises(
            TypeError, match=r"^example_inputs: expected a mapping of names to tensors or a sequence of tensors, got"
        ):
            write(estimators.GAE(), wrong, path)


# -- Compiled and in TorchScript --------------------------------------------------------------------------------------------


def gae(gamma):
    steps = STEPS.state_value, STEPS.next_state_value, STEPS.reward, STEPS.done
    return functional.generalized_advantage_estimate(gamma, 0.5, *steps)


def weighted(entropy_coef):
    return present(losses.a2c_loss(**A2C_TERMS, entropy_coef=entropy_coef))


@pytest.mark.slow
@pytest.mark.parametrize("function", [gae, weighted])
def test_compiled_functions_take_numbers_of_every_kind_and_refuse_the_others(function):
    compiled = torch.compile(function, fullgraph=True, backend="eager")
    for value in (*HALVES, *ONES):
        torch._dynamo.reset()  # each number is a constant of its graph
        torch.testing.assert_close(compiled(value), function(value))
    for wrong in (True, np.True_, torch.tensor(True), "x", [0.5], np.array([0.5])):
        torch._dynamo.reset()
        name = "gamma" if function is gae else "entropy_coef"
        with pytest.raises(torch._dynamo.exc.Unsupported, match=rf"TypeError\(.*{name}: expected a number or a tensor"):
            compiled(wrong)


@pytest.mark.slow
def test_the_checks_cause_no_recompilation():
    module = A2CLoss(**NETWORKS)
    with compile_backend():
        compiled = torch.compile(module, fullgraph=True)
        for coefficient in (0.5, np.float32(0.25), 1):
            module.entropy_coef = coefficient
            compiled(**TRANSITIONS)
    assert graphs_compiled() == 1


@pytest.mark.slow
def test_scripted_functions_take_numbers_and_one_element_tensors_and_refuse_bools():
    steps = STEPS.state_value, STEPS.next_state_value, STEPS.reward, STEPS.done
    scripted = torch.jit.script(functional.generalized_advantage_estimate)
    for value in (0.5, 1, np.float64(0.5), torch.tensor(0.5), torch.tensor([0.5]), torch.tensor(1)):
        torch.testing.assert_close(scripted(value, 0.5, *steps), gae(value))
    for wrong in (True, torch.tensor(True), torch.tensor(1j), "x", np.True_):
        with pytest.raises((RuntimeError, torch.jit.Error), match=r"gamma|infer type"):
            scripted(wrong, 0.5, *steps)
    scripted_loss = torch.jit.script(losses.a2c_loss)
    for value in (0.5, 1, torch.tensor(0.5), torch.tensor([0.5])):
        torch.testing.assert_close(present(scripted_loss(**A2C_TERMS, entropy_coef=value)), weighted(value))
    with pytest.raises(torch.jit.Error, match="entropy_coef: expected a number or a tensor of real numbers"):
        scripted_loss(**A2C_TERMS, entropy_coef=torch.tensor(True))
