"""The loss compiled whole and scripted: the same outputs and gradients as in eager mode, whatever is computed inside."""

import functools

import pytest
import torch
from cases import run_without_the_library, weights
from loss_cases import (
    DISTRIBUTIONS,
    ESTIMATORS,
    INSIDE,
    MASKED,
    MODES,
    TupleNetwork,
    assert_same,
    gradients,
    losses_of,
    make_clipped_loss,
    make_loss,
    make_loss_steps,
    make_networks,
    of,
    parameter_names,
    traced,
)
from torch.distributions import Categorical

from a2c_compiled import A2CLoss
from a2c_compiled.distributions import TorchDistribution

NO_RECOMPILE = torch._dynamo.config.patch(error_on_recompile=True)


def test_every_estimator_and_distribution_is_among_the_modes():
    assert {distribution for distribution, *_ in MODES.values()} == set(DISTRIBUTIONS)
    named = {options["value_estimator"].replace("_", "") for _, options, *_ in MODES.values() if "value_estimator" in options}
    assert named == {name.lower() for name in ESTIMATORS}


def assert_same_as_eager(module, loss, arguments, tolerance=1e-5):
    """``module`` is ``loss`` in another mode. Both draw the same noise."""
    torch.manual_seed(0)
    outputs = module(**arguments)
    torch.manual_seed(0)
    expected = loss(**arguments)
    assert tuple(outputs._fields) == tuple(expected._fields)
    assert_same(outputs, expected, tolerance)
    assert_same(gradients(outputs, loss), gradients(expected, loss), tolerance)


# Compiled


@pytest.mark.slow
def test_one_compiled_graph_serves_all_shapes_and_coefficients():
    """GAE, value clipping and a mask, at first; then other shapes, other coefficients."""
    loss = make_loss(value_estimator="gae", clip_value=0.2)
    module = traced(loss, "inductor")
    arguments = of(make_loss_steps((5, 6)), *MASKED)  # for fewer steps, inductor writes products another way
    assert_same_as_eager(module, loss, arguments)
    with NO_RECOMPILE:
        for shape in ((5, 7), (16, 33)):
            assert_same_as_eager(module, loss, of(make_loss_steps(shape), *MASKED))
        before = module(**arguments)
        loss.entropy_coef, loss.critic_coef, loss.clip_value = 0.5, 2.0, 0.05
        loss.value_estimator.gamma, loss.value_estimator.lmbda = 0.5, 0.25
        assert_same_as_eager(module, loss, arguments)
        after = module(**arguments)
    assert all(getattr(before, name) != value for name, value in losses_of(after).items())


@pytest.mark.slow
def test_compiled_vtrace_with_separate_losses_over_a_shared_trunk_equals_eager():
    loss = make_loss("Normal", shared=True, value_estimator="vtrace", separate_losses=True, clip_value=0.2, reduction="none")
    module = traced(loss, "inductor")
    assert_same_as_eager(module, loss, of(make_loss_steps((4, 5), "Normal", column=False), *INSIDE))
    with NO_RECOMPILE:
        assert_same_as_eager(module, loss, of(make_loss_steps((7, 3), "Normal", column=False), *INSIDE))


# Only traced from here on: the code that inductor generates for these losses is the same.


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_traced_equals_eager_and_serves_another_shape(mode):
    distribution, options, shared, names = MODES[mode]
    loss = make_loss(distribution, shared, **options)
    # AOTAutograd has to keep the order in which random numbers are drawn.
    module = traced(loss, "aot_eager" if "samples_mc_entropy" in options else "eager")
    assert_same_as_eager(module, loss, of(make_loss_steps((5, 6), distribution), *names))
    with NO_RECOMPILE:
        assert_same_as_eager(module, loss, of(make_loss_steps((7, 9), distribution), *names))


@pytest.mark.slow
def test_traced_takes_a_tuple_of_observations():
    loss = make_loss(networks=[TupleNetwork(4), TupleNetwork(1)])

    def in_pairs(shape):
        arguments = of(make_loss_steps(shape), *INSIDE, "mask")
        pairs = {name: (arguments[name], arguments[name][..., :2]) for name in ("observation", "next_observation")}
        return {**arguments, **pairs}

    module = traced(loss)
    assert_same_as_eager(module, loss, in_pairs((4, 5)))
    with NO_RECOMPILE:
        assert_same_as_eager(module, loss, in_pairs((3, 7)))


@pytest.mark.slow
def test_traced_takes_a_torch_distribution():
    loss = A2CLoss(*make_networks(), TorchDistribution(lambda logits: Categorical(logits=logits, validate_args=False)))
    assert_same_as_eager(traced(loss), loss, of(make_loss_steps(), *INSIDE))


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(0, 3), (4, 0)], ids=str)
def test_traced_gives_empty_losses_for_no_steps(shape):
    loss = make_loss(clip_value=0.2, reduction="none")
    assert_same_as_eager(traced(loss, "aot_eager"), loss, of(make_loss_steps(shape), *INSIDE))


@pytest.mark.slow
def test_func_grad_of_the_loss_traces_whole_and_equals_autograd():
    loss = make_loss(shared=True, separate_losses=True, clip_value=0.2)
    arguments = of(make_loss_steps(), *INSIDE)

    def total(parameters):
        return sum(losses_of(torch.func.functional_call(loss, parameters, (), arguments, tie_weights=False)).values())

    parameters = {name: parameter.detach() for name, parameter in loss.named_parameters()}
    module = traced(torch.func.grad(total), "aot_eager", dynamic=None)
    expected = torch.autograd.grad(sum(losses_of(loss(**arguments)).values()), list(loss.parameters()))
    assert_same(module(parameters), dict(zip(parameters, expected, strict=True)))


# Scripted


@functools.cache
def scripted(mode):
    """The loss of ``mode`` and its script, which share their parameters."""
    distribution, options, shared, _ = MODES[mode]
    loss = make_loss(distribution, shared, **options)
    return loss, torch.jit.script(loss)


@pytest.mark.parametrize("mode", MODES)
def test_scripted_equals_eager(mode):
    distribution, _, _, names = MODES[mode]
    loss, module = scripted(mode)
    for shape in ((4, 5), (3, 7), (4, 0), (0, 3)):
        assert_same_as_eager(module, loss, of(make_loss_steps(shape, distribution), *names))


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_scripted_estimators_and_distributions_combine(distribution, estimator):
    loss = make_loss(distribution, value_estimator=estimator, clip_value=0.2)
    assert_same_as_eager(torch.jit.script(loss), loss, of(make_loss_steps(distribution=distribution), *INSIDE))


def test_scripting_leaves_the_loss_as_it_was():
    loss = make_loss(shared=True, separate_losses=True)
    critic = loss.critic_network
    scripted = torch.jit.script(loss)
    assert loss.critic_network is critic
    # The same tensors: training one trains the other.
    storage = {parameter.data_ptr() for parameter in loss.parameters()}
    assert {parameter.data_ptr() for parameter in scripted.parameters()} == storage


def test_scripted_out_keys_and_coefficients():
    loss = make_loss(clip_value=0.2)
    loss.out_keys = ("loss_critic", "entropy")
    scripted = torch.jit.script(loss)
    arguments = of(make_loss_steps(), *INSIDE)
    assert_same_as_eager(scripted, loss, arguments)
    scripted.critic_coef.fill_(0.25)
    assert loss.critic_coef.item() == 0.25
    assert_same_as_eager(scripted, loss, arguments)


def test_scripted_half_precision_equals_eager():
    loss = make_loss("Normal", dtype=torch.bfloat16)
    arguments = of(make_loss_steps(distribution="Normal", dtype=torch.bfloat16), *INSIDE)
    assert_same_as_eager(torch.jit.script(loss), loss, {**arguments, "reward": arguments["reward"].float()}, 1e-2)


@pytest.mark.parametrize("missing", ["reward", "next_observation", "done"])
def test_a_scripted_loss_names_the_argument_that_is_missing(missing):
    arguments = of(make_loss_steps(), *INSIDE)
    with pytest.raises(torch.jit.Error, match=f"{missing}: expected a tensor if no advantage is given, got None"):
        torch.jit.script(make_loss())(**{**arguments, missing: None})


def test_scripting_a_torch_distribution_is_refused_with_the_way_out():
    loss = A2CLoss(*make_networks(), TorchDistribution(lambda logits: Categorical(logits=logits)))
    with pytest.raises(TypeError, match=r"distribution: expected another class of a2c_compiled\.distributions"):
        torch.jit.script(loss)


def test_scripting_separate_losses_with_a_critic_that_cannot_be_traced_is_refused_by_name():
    class Branching(torch.nn.Module):
        def __init__(self, trunk):
            super().__init__()
            self.trunk = trunk

        def forward(self, observation):
            if observation.sum() > 0:
                return self.trunk(observation).sum(-1)
            return self.trunk(observation).mean(-1)

    trunk = torch.nn.Linear(3, 4)
    with pytest.raises(TypeError, match=r"critic_network: expected a network that torch\.fx can trace"):
        torch.jit.script(make_loss(networks=[trunk, Branching(trunk)], separate_losses=True))


@pytest.mark.slow
def test_saved_scripts_load_where_the_library_is_absent(tmp_path):
    """Those of all modes, and one of a subclass with another objective."""
    order = parameter_names(A2CLoss.forward)[1:]
    saved = {}
    clipped = make_clipped_loss()
    cases = {mode: (*scripted(mode), distribution, names) for mode, (distribution, _, _, names) in MODES.items()}
    cases["clipped_ratio"] = (clipped, torch.jit.script(clipped), "Categorical", MASKED)
    for mode, (loss, module, distribution, names) in cases.items():
        arguments = of(make_loss_steps(distribution=distribution), *names)
        torch.manual_seed(0)
        outputs = loss(**arguments)
        saved[mode] = {
            "arguments": [arguments.get(name) for name in order],
            "outputs": [None if value is None else value.detach() for value in outputs],
            "weights": [weights(value) if value is not None and value.requires_grad else None for value in outputs],
            "gradients": gradients(outputs, loss),
        }
        module.save(tmp_path / f"{mode}.pt")
    torch.save(saved, tmp_path / "data.pt")
    run_without_the_library(
        tmp_path,
        """
        for mode, data in torch.load("data.pt").items():
            loss = torch.jit.load(mode + ".pt")
            torch.manual_seed(0)
            outputs = loss(*data["arguments"])
            total = 0.0
            for output, expected, weight in zip(outputs, data["outputs"], data["weights"], strict=True):
                assert (output is None) == (expected is None)
                if output is not None:
                    torch.testing.assert_close(output.detach(), expected)
                if weight is not None:
                    total = total + (output * weight).sum()
            total.backward()
            for name, parameter in loss.named_parameters():
                expected = data["gradients"][name]
                found = torch.zeros_like(expected) if parameter.grad is None else parameter.grad
                torch.testing.assert_close(found, expected)
        """,
    )
