"""An entropy coefficient for each head of a composite action."""

import copy
from types import SimpleNamespace

import pytest
import torch
from loss_cases import FEATURES, INSIDE, assert_same, gradients, make_loss_steps, of, traced
from torch import nn

from a2c_compiled import A2CLoss, Rollout, TrainStep, distributions
from a2c_compiled.losses import a2c_loss

COEFS = (0.3, 0.0, 0.02)
HEADS = {
    "closed_form": (distributions.Categorical(3), distributions.Normal(2), distributions.Bernoulli(2)),
    "sampled": (distributions.Categorical(3), distributions.TanhNormal(2), distributions.Normal(1)),
}
heads_kind = pytest.mark.parametrize("kind", HEADS)


def make(kind, entropy_coef=COEFS, **options):
    torch.manual_seed(0)
    composite = distributions.Composite(*copy.deepcopy(HEADS[kind]))
    actor, critic = nn.Linear(FEATURES, composite.num_params), nn.Linear(FEATURES, 1)
    return A2CLoss(actor, critic, composite, entropy_coef=entropy_coef, **options)


def arguments_of(loss, *names, seed=0, dtype=torch.float32):
    steps = make_loss_steps((4, 5), seed=seed, dtype=dtype, column=False)
    with torch.no_grad():
        action = loss.distribution.mode(loss.actor_network(steps.observation))
    arguments = {**of(steps, *INSIDE, *names), "action": action}
    noise = loss.entropy_noise(steps.observation)
    return arguments if noise is None else {**arguments, "noise": noise}


def entropies_by_hand(loss, arguments):
    """The entropy of each head, from the head alone."""
    params = loss.actor_network(arguments["observation"])
    parts = params.split(loss.distribution.param_sizes, -1)
    noises = arguments["noise"].split(loss.distribution.noise_sizes, -1) if "noise" in arguments else [None] * len(parts)
    return [h.entropy_estimate(p, 1, n) for h, p, n in zip(loss.distribution.heads, parts, noises, strict=True)]


@heads_kind
@pytest.mark.parametrize("names", [(), ("mask",)], ids=["whole", "masked"])
def test_the_entropy_loss_weighs_each_head_and_the_reported_entropy_is_that_of_the_action(kind, names):
    loss = make(kind).double()
    arguments = arguments_of(loss, *names, dtype=torch.float64)
    outputs = loss(**arguments)
    counted = arguments.get("mask", torch.ones(4, 5).bool())
    entropies = [entropy[counted].mean() for entropy in entropies_by_hand(loss, arguments)]
    weighted = sum(coef * entropy for coef, entropy in zip(COEFS, entropies, strict=True))
    torch.testing.assert_close(outputs.entropy, sum(entropies).detach())
    torch.testing.assert_close(outputs.loss_entropy, -weighted)
    bias = loss.actor_network.bias
    found, expected = (torch.autograd.grad(x, bias, retain_graph=True)[0] for x in (outputs.loss_entropy, -weighted))
    torch.testing.assert_close(found, expected)
    if "mask" in names:
        odd = {**arguments, "observation": arguments["observation"].masked_fill(~counted.unsqueeze(-1), torch.nan)}
        assert_same(gradients(loss(**odd), loss), gradients(loss(**arguments), loss))


@heads_kind
def test_equal_coefficients_equal_one_number(kind):
    one, each = make(kind, 0.1), make(kind, [0.1, 0.1, 0.1])
    arguments = arguments_of(one)
    outputs, expected = each(**arguments), one(**arguments)
    assert_same(outputs, expected)
    assert_same(gradients(outputs, each), gradients(expected, one))


def test_coefficients_equal_torchrls_mapping():
    """TorchRL's PPOLoss takes a mapping from heads to coefficients; its A2CLoss takes one number."""
    objectives = pytest.importorskip("torchrl.objectives")
    from tensordict import TensorDict

    loss = make("closed_form", reduction="none")
    arguments = arguments_of(loss)
    names = ("first", "second", "third")
    entropies = TensorDict(dict(zip(names, entropies_by_hand(loss, arguments), strict=True)), (4, 5))
    holder = SimpleNamespace(_entropy_coeff_map=dict(zip(names, COEFS, strict=True)))
    expected = objectives.PPOLoss._weighted_loss_entropy(holder, entropies)
    torch.testing.assert_close(loss(**arguments).loss_entropy, expected)


def test_coefficients_are_assigned_saved_and_checked():
    loss = make("closed_form")
    loss.entropy_coef = (0.5, 0.25, 0.0)
    assert loss.entropy_coef.tolist() == [0.5, 0.25, 0.0]
    other = make("closed_form")
    other.load_state_dict(loss.bfloat16().state_dict())
    assert other.entropy_coef.tolist() == [0.5, 0.25, 0.0]
    loss.entropy_coef = 0.1
    assert loss.entropy_coef.tolist() == [0.1, 0.1, 0.1]
    assert "entropy" in make("closed_form", (0.0, 0.0, 0.1)).out_keys
    assert "entropy" not in make("closed_form", (0.0, 0.0, 0.0)).out_keys
    with pytest.raises(ValueError, match=r"^entropy_coef: expected a number or one for each head of the distribution, 3, got"):
        make("closed_form", (0.1, 0.2))
    with pytest.raises(ValueError, match=r"^entropy_coef: expected a number or one for each head of the distribution, 3, got"):
        loss.entropy_coef = torch.tensor([0.1, 0.2])
    with pytest.raises(ValueError, match=r"^entropy_coef: expected a number, as at construction, got \(0.1, 0.2, 0.3\)"):
        make("closed_form", 0.1).entropy_coef = (0.1, 0.2, 0.3)
    single = distributions.Categorical(2)
    with pytest.raises(ValueError, match=r"^entropy_coef: expected a number or one for each head of the distribution, 1, got"):
        A2CLoss(nn.Linear(3, 2), nn.Linear(3, 1), single, entropy_coef=(0.1, 0.2))


def test_the_function_takes_entropies_of_each_head_with_a_coefficient_for_each():
    log_prob, entropy, coefs = torch.randn(4), torch.rand(4, 2), torch.tensor([0.5, 2.0])
    mask = torch.tensor([True, True, False, True])
    outputs = a2c_loss(log_prob, log_prob, entropy.masked_fill(~mask.unsqueeze(-1), torch.nan), entropy_coef=coefs, mask=mask)
    torch.testing.assert_close(outputs.loss_entropy, -(entropy[mask] * coefs).sum(-1).mean())
    torch.testing.assert_close(outputs.entropy, entropy[mask].sum(-1).mean())
    with pytest.raises(ValueError, match=r"^entropy: expected \[4, 2\], with an entry for each entropy_coef, got \[4\]"):
        a2c_loss(log_prob, log_prob, entropy[:, 0], entropy_coef=coefs)


def test_a_distribution_of_one_part_has_one_head():
    params = torch.randn(4, 3)
    head = distributions.Categorical(3)
    assert torch.equal(head.head_entropies(params, 1), head.entropy(params).unsqueeze(-1))


@pytest.mark.slow
@heads_kind
def test_scripted_compiled_and_exported_losses_and_training_steps_equal_eager_ones(kind, tmp_path):
    pytest.importorskip("onnxruntime")
    from a2c_compiled import export

    loss = make(kind)
    arguments = arguments_of(loss, "mask")
    expected = loss(**arguments)
    for module in (torch.jit.script(loss), traced(loss, "aot_eager")):
        outputs = module(**arguments)
        assert_same(outputs, expected)
        assert_same(gradients(outputs, loss), gradients(loss(**arguments), loss))
    steps = [arguments[name] for name in ("reward", "next_observation", "done", "terminated")]
    rollout = Rollout(arguments["observation"], arguments["action"], *steps)
    for step in (TrainStep(copy.deepcopy(loss), "sgd", compile=False), TrainStep(copy.deepcopy(loss), "sgd")):
        assert step(rollout).loss_entropy.isfinite()
    path = export.export_train_step(TrainStep(loss, "sgd", lr=0.1, compile=False), rollout, tmp_path / "step.onnx")
    assert all(output.passed for output in export.verify(path).outputs.values())
