"""PopArt: the critic loss in the scale of the value targets' running mean and deviation, with values that an update does not change."""

import copy

import pytest
import torch
from loss_cases import (
    FEATURES,
    INSIDE,
    assert_same,
    compile_backend,
    gradients,
    make_loss,
    make_loss_steps,
    make_rollout,
    of,
    traced,
)
from torch import nn

from a2c_compiled import Rollout, TrainStep
from a2c_compiled.losses import PopArt, RunningNorm, a2c_loss

RATE = 0.3
NAN = float("nan")
EPS = {torch.float32: 1e-6, torch.float64: 1e-14}
VARIANTS = {
    "plain": {},
    "shared": {"shared": True},
    "separate": {"shared": True, "separate_losses": True},
    "clipped": {"clip_value": 0.2},
    "shifted": {"shifted": True, "shifted_budget": 2, "diagnostics": True},
}
variants = pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)


def networks(shared=False, dtype=torch.float32, **options):
    """An actor and a critic whose last layer is a PopArt."""
    torch.manual_seed(0)
    bodies = [nn.Sequential(nn.Linear(FEATURES, 8), nn.Tanh()) for _ in range(2)]
    if shared:
        bodies[1] = bodies[0]
    critic = nn.Sequential(bodies[1], PopArt(nn.Linear(8, 1), **{"rate": RATE, **options}))
    return nn.Sequential(bodies[0], nn.Linear(8, 4)).to(dtype), critic.to(dtype)


def make(shared=False, dtype=torch.float32, norm=None, **options):
    actor, critic = networks(shared, dtype, **(norm or {}))
    return make_loss(networks=(actor, critic), value_norm=critic[1], **options)


def steps_of(seed=0, dtype=torch.float32, shape=(4, 6), **options):
    """With rewards of scale 1e4 whose mean is not 0."""
    steps = make_loss_steps(shape, seed=seed, dtype=dtype, **options)
    return steps._replace(reward=1e4 * (steps.reward + 2.0))


def rollout_of(seed=0, shape=(5, 6)):
    rollout = make_rollout(shape, seed=seed)
    return rollout._replace(reward=1e4 * (rollout.reward + 2.0))


# The layer


@pytest.mark.parametrize("dtype", EPS, ids=str)
def test_an_update_of_the_statistics_preserves_the_values_to_rounding(dtype):
    _, critic = networks(dtype=dtype)
    norm, observation = critic[1], torch.randn(50, FEATURES, dtype=dtype)
    for scale, offset in ((1.0, 0.0), (1e4, 5e4), (1e4, -3e6), (1e-2, 1.0), (7.0, 0.0)):
        before = critic(observation)
        weight = norm.layer.weight.clone()
        norm.update(offset + scale * torch.randn(30, dtype=dtype))
        assert not torch.equal(norm.layer.weight, weight)
        magnitude = max(norm.moments.mean.abs().item(), norm.moments.deviation().item(), before.abs().max().item())
        assert (critic(observation) - before).abs().max() <= 4 * EPS[dtype] * magnitude


def test_values_follow_the_formula_and_statistics_those_of_the_value_targets():
    norm = PopArt(nn.Linear(FEATURES, 1), rate=RATE).double()
    features, batches, weights = torch.randn(9, FEATURES).double(), [], []
    for size in (2, 6, 11):
        target, mask = 1e4 * torch.rand(size, 3).double(), torch.ones(size, 3).bool()
        mask[0, 1] = False
        norm.update(target.masked_fill(~mask, NAN), mask)
        batches.append(target[mask])
        weights = [RATE, *[(1 - RATE) * weight for weight in weights]]
    shares = [weight / sum(weights) for weight in reversed(weights)]
    mean = sum(share * x.mean() for share, x in zip(shares, batches, strict=True))
    deviation = sum(share * (x - mean).square().mean() for share, x in zip(shares, batches, strict=True)).sqrt()
    torch.testing.assert_close(norm(features), norm.layer(features) * deviation + mean)
    torch.testing.assert_close(norm.normalize(target), (target - mean) / deviation)
    torch.testing.assert_close(norm.normalize(norm(features)), norm.layer(features))


@pytest.mark.parametrize(
    ("target", "mask"), [([], None), ([1.0, NAN], None), ([1.0, float("inf")], None), ([1.0, 2.0], [False, False])], ids=str
)
def test_value_targets_that_do_not_count_change_nothing(target, mask):
    norm = PopArt(nn.Linear(FEATURES, 1))
    norm.update(torch.tensor([3.0, 8.0]))
    before = copy.deepcopy(norm.state_dict())
    norm.update(torch.tensor(target), None if mask is None else torch.tensor(mask))
    assert_same(norm.state_dict(), before, 1e-6)


def test_a_layer_of_half_precision_gives_values_in_float32():
    norm = PopArt(nn.Linear(FEATURES, 1)).bfloat16()
    norm.update(1e6 + torch.randn(100))
    nn.init.normal_(norm.layer.weight)
    nn.init.zeros_(norm.layer.bias)
    values = norm(torch.randn(200, FEATURES).bfloat16())
    assert values.dtype == torch.float32
    assert norm.moments.mean.dtype == torch.float64
    assert len(values.unique()) > 10, "bfloat16 would round values around 1e6 to a few numbers"


def test_wrong_layers_norms_and_numbers_are_refused_by_name():
    with pytest.raises(TypeError, match=r"^layer: expected an nn.Linear, got .*Tanh"):
        PopArt(nn.Tanh())
    for layer in (nn.Linear(3, 2), nn.Linear(3, 1, bias=False)):
        with pytest.raises(ValueError, match=r"^layer: expected one output and a bias, got Linear"):
            PopArt(layer)
    with pytest.raises(ValueError, match=r"^rate: expected a number above 0 and up to 1, or None, got 2"):
        PopArt(nn.Linear(3, 1), rate=2)
    actor, critic = networks()
    with pytest.raises(ValueError, match=r"^value_norm: expected the PopArt of critic_network, got None"):
        make_loss(networks=(actor, critic))
    with pytest.raises(ValueError, match=r"^value_norm: expected the one PopArt of critic_network, got another one \(1 in"):
        make_loss(networks=(actor, critic), value_norm=PopArt(nn.Linear(8, 1)))
    with pytest.raises(TypeError, match=r"^value_norm: expected a module of type PopArt, got RunningNorm"):
        make_loss(networks=(actor, critic), value_norm=RunningNorm())
    with pytest.raises(ValueError, match=r"^value_norm: expected None with a target_critic_network"):
        make_loss(networks=(actor, critic), value_norm=critic[1], target_critic_network=networks()[1])
    shared = nn.ModuleList([actor, critic[1].layer])
    with pytest.raises(ValueError, match=r"^value_norm: expected a layer that actor_network does not share"):
        make_loss(networks=(shared, critic), value_norm=critic[1])


# The loss


def by_hand(loss, steps, norm):
    """The loss of ``loss``, whose PopArt has the statistics (mean, deviation) of ``norm``, as a loss of plain networks."""
    mean, deviation = norm
    values = loss.critic_network(steps.observation).squeeze(-1), loss.critic_network(steps.next_observation).squeeze(-1)
    flags = steps.done, steps.terminated
    estimate = loss.value_estimator(*(value.detach() for value in values), steps.reward, *flags, mask=steps.mask)
    params = loss.actor_network(steps.observation)
    normalized = [(x - mean) / deviation for x in (values[0], estimate.value_target)]
    entropy = loss.distribution.entropy(params)
    log_prob = loss.distribution.log_prob(params, steps.action)
    coefficients = {"entropy_coef": loss.entropy_coef, "critic_coef": loss.critic_coef, "mask": steps.mask}
    return a2c_loss(log_prob, estimate.advantage, entropy, *normalized, **coefficients), estimate


def test_the_loss_equals_one_by_hand_with_statistics_of_all_rollouts_so_far():
    loss = make(dtype=torch.float64)
    mean, second, count = 0.0, 0.0, 0.0
    for seed in range(3):
        steps = steps_of(seed, torch.float64, column=False)
        _, estimate = by_hand(loss, steps, (0.0, 1.0))
        counted = estimate.value_target[steps.mask]
        mean, second = (1 - RATE) * mean + RATE * counted.mean(), (1 - RATE) * second + RATE * counted.square().mean()
        count = (1 - RATE) * count + RATE
        deviation = (second / count - (mean / count).square()).sqrt()
        outputs = loss(**of(steps, *INSIDE, "mask"))
        assert 0.01 < outputs.loss_critic < 10
        expected, _ = by_hand(loss, steps, (mean / count, deviation))
        assert_same(outputs, expected, 1e-9)
        assert_same(gradients(outputs, loss), gradients(expected, loss), 1e-9)


def test_statistics_and_layer_rest_in_evaluation_mode_and_where_advantages_are_passed():
    loss = make()
    loss(**of(steps_of(), *INSIDE))
    before = copy.deepcopy(loss.state_dict())
    loss(**of(steps_of(1), "advantage", "value_target"))
    assert_same(loss.state_dict(), before, 0)
    for module in (loss, loss.value_norm):
        module.eval()
        loss(**of(steps_of(1), *INSIDE))
        assert_same(loss.state_dict(), before, 0)
        module.train()
    loss.estimates(**of(steps_of(1), *INSIDE))
    assert not torch.equal(loss.value_norm.moments.mean, before["value_norm.moments.mean"])


def test_a_rollout_equals_its_estimates_and_advantages():
    loss, other = make(clip_value=0.2), make(clip_value=0.2)
    for seed in range(2):
        arguments = of(steps_of(seed, column=False), *INSIDE)
        estimates = other.estimates(**arguments)
        given = {name: getattr(estimates, name) for name in ("advantage", "value_target", "state_value")}
        expected = other(arguments["observation"], arguments["action"], **given)
        outputs = loss(**arguments)
        assert_same(outputs, expected)
        assert_same(gradients(outputs, loss), gradients(expected, other))


def test_statistics_are_saved_copied_and_kept_exact_in_another_dtype():
    loss = make()
    loss(**of(steps_of(), *INSIDE))
    other = make()
    other.load_state_dict(copy.deepcopy(loss).state_dict())
    assert other.value_norm is other.critic_network[1]
    observation = steps_of(1).observation
    assert torch.equal(other.critic_network(observation), loss.critic_network(observation))
    assert copy.deepcopy(loss).bfloat16().value_norm.moments.var.dtype == torch.float64
    assert len(list(loss.parameters())) == len({id(parameter) for parameter in loss.parameters()}) == 8


@pytest.mark.slow
@variants
def test_scripted_and_compiled_losses_equal_eager_ones(options):
    modules = {name: make(**options) for name in ("eager", "scripted", "compiled")}
    compiled = traced(modules["compiled"], "inductor", dynamic=False)
    calls = {"eager": modules["eager"], "scripted": torch.jit.script(modules["scripted"]), "compiled": compiled}
    for seed in range(3):
        arguments = of(steps_of(seed), *INSIDE, "mask")
        outputs = {name: call(**arguments) for name, call in calls.items()}
        expected = gradients(outputs["eager"], modules["eager"])
        for name in ("scripted", "compiled"):
            assert_same(outputs[name], outputs["eager"])
            assert_same(gradients(outputs[name], modules[name]), expected, 1e-4)
            assert_same(modules[name].state_dict(), modules["eager"].state_dict())


# The training step


@pytest.mark.slow
@pytest.mark.parametrize("minibatches", [1, 3])
def test_compiled_training_steps_equal_eager_ones_and_are_resumed(minibatches):
    options = {"optimizer": "sgd", "lr": 1e-2, "minibatches": minibatches}
    rollouts = [rollout_of(seed) for seed in range(3)]
    with compile_backend("aot_eager"):
        eager, compiled, many = (TrainStep(make(), compile=compile, **options) for compile in (False, True, True))
        stacked = zip(*rollouts, strict=True)
        many.many(Rollout(*(None if entries[0] is None else torch.stack(entries) for entries in stacked)))
        assert_same(compiled(rollouts[0]), eager(rollouts[0]), 1e-4)
        resumed = TrainStep(make(), compile=False, **options)
        resumed.load_state_dict(copy.deepcopy(eager.state_dict()))
        for rollout in rollouts[1:]:
            metrics = eager(rollout)
            assert_same(compiled(rollout), metrics, 1e-4)
            assert_same(resumed(rollout), metrics, 0)
    for other in (compiled, many):
        assert_same(other.loss.state_dict(), eager.loss.state_dict(), 1e-4)


def test_a_training_step_equals_a_loop_with_torchs_optimizer():
    loss, step = make(), TrainStep(make(), "sgd", lr=1e-2, compile=False)
    optimizer = torch.optim.SGD(loss.parameters(), lr=1e-2)
    for seed in range(3):
        rollout = rollout_of(seed)
        losses = loss(rollout.observation, rollout.action, *rollout[2:6])
        optimizer.zero_grad()
        (losses.loss_objective + losses.loss_critic + losses.loss_entropy).backward()
        nn.utils.clip_grad_norm_(loss.parameters(), 0.5)
        optimizer.step()
        assert_same({"loss_critic": step(rollout).loss_critic}, {"loss_critic": losses.loss_critic.detach()})
    assert_same(step.loss.state_dict(), loss.state_dict())


def test_a_skipped_update_keeps_values_and_statistics_together():
    step = TrainStep(make(), compile=False)
    step(rollout_of())
    observation = rollout_of(1).observation
    broken = rollout_of(1)
    broken.reward[2, 3] = NAN
    before = step.loss.critic_network(observation)
    step(broken)
    assert step.skipped == 1
    torch.testing.assert_close(step.loss.critic_network(observation), before)


def explained_after_training(value_norm):
    """Trains on rewards of scale 1e4 in episodes of one step, and returns the explained variance of the critic."""
    torch.manual_seed(0)
    last = nn.Linear(16, 1)
    last = PopArt(last, rate=0.1) if value_norm else last
    critic, actor = nn.Sequential(nn.Linear(FEATURES, 16), nn.Tanh(), last), nn.Linear(FEATURES, 4)
    options = {"value_norm": last} if value_norm else {}
    loss = make_loss(networks=(actor, critic), diagnostics=True, advantage_norm=RunningNorm(), **options)
    step = TrainStep(loss, "rmsprop", lr=3e-3, compile=False)
    for seed in range(150):
        rollout = make_rollout((8, 8), seed=seed)
        ends = torch.ones_like(rollout.done)
        metrics = step(rollout._replace(reward=1e4 * (3.0 + rollout.observation.sum(-1)), done=ends, terminated=ends))
    return metrics.explained_variance


def test_a_critic_learns_rewards_of_scale_10000_with_value_normalisation_and_not_without():
    assert explained_after_training(True) > 0.9
    assert explained_after_training(False) < 0.1


# Exported


@pytest.mark.slow
def test_exported_losses_equal_eager_ones_and_keep_the_statistics_at_the_time_of_export(tmp_path):
    pytest.importorskip("onnxruntime")
    from a2c_compiled import export

    loss = make(clip_value=0.2)
    arguments = of(steps_of(column=False), *INSIDE[:-1], "state_value")
    loss(**arguments)
    before = copy.deepcopy(loss.state_dict())
    for ending, write in {".onnx": export.export_onnx, ".pt": export.export_torchscript, ".pt2": export.export_pt2}.items():
        path = tmp_path / f"loss{ending}"
        write(loss, arguments, path)
        assert all(output.passed for output in export.verify(path).outputs.values()), ending
    assert loss.training
    assert_same(loss.state_dict(), before, 0)


@pytest.mark.slow
def test_a_training_step_is_exported_with_fixed_statistics_and_refused_with_moving_ones(tmp_path):
    pytest.importorskip("onnxruntime")
    from a2c_compiled import export

    loss = make()
    step, rollout = TrainStep(loss, "sgd", lr=0.1, compile=False), rollout_of()
    step(rollout)
    before = copy.deepcopy(loss.state_dict())
    with pytest.raises(export.ExportError, match=r"moments\.\S+, .* Call \.eval\(\) on the module"):
        export.export_train_step(step, rollout, tmp_path / "step.onnx")
    assert_same(loss.state_dict(), before, 0)
    loss.value_norm.eval()
    report = export.verify(export.export_train_step(step, rollout, tmp_path / "step.onnx"))
    assert all(output.passed for output in report.outputs.values())
    assert_same(loss.state_dict(), before, 0)
