"""What the loss does to advantages: scales them, standardises them in part, reckons with n-step data and several agents."""

import copy
import math

import pytest
import torch
from loss_cases import (
    FEATURES,
    INSIDE,
    assert_same,
    copies,
    gradients,
    losses_of,
    make_loss,
    make_loss_steps,
    make_networks,
    make_rollout,
    of,
    present,
    traced,
)
from torch.utils._python_dispatch import TorchDispatchMode

from a2c_compiled import TrainStep
from a2c_compiled.losses import PercentileNorm, RunningNorm, a2c_loss
from a2c_compiled.losses.moving_moments import overwrite

EXACT = 1e-12
NAN, INF = float("nan"), float("inf")


norm_kind = pytest.mark.parametrize("kind", [PercentileNorm, RunningNorm])


def statistics(norm):
    return torch.cat(list(norm.buffers()))


def scaled_steps(shape=(4, 6), seed=0, dtype=torch.float64, **options):
    """With rewards large enough for the scale to leave its smallest."""
    steps = make_loss_steps(shape, seed=seed, dtype=dtype, **options)
    return steps._replace(reward=10.0 * steps.reward)


# The scale of the returns


@pytest.mark.parametrize("quantiles", [(0.05, 0.95), (0.0, 1.0), (0.3, 0.31)], ids=str)
@pytest.mark.parametrize("size", [1, 2, 5, 100])
def test_a_rate_of_one_gives_the_quantiles_themselves(size, quantiles):
    returns = torch.randn(size, dtype=torch.float64)
    norm = PercentileNorm(quantiles, rate=1.0, min_scale=1e-9)
    norm.update(returns)
    expected = torch.quantile(returns, torch.tensor(quantiles, dtype=torch.float64))
    torch.testing.assert_close(statistics(norm), expected, rtol=EXACT, atol=EXACT)
    torch.testing.assert_close(norm.scale(), (expected[1] - expected[0]).clamp_min(1e-9), rtol=EXACT, atol=EXACT)


@pytest.mark.parametrize("filler", [NAN, INF, -INF, 1e30])
def test_quantiles_are_those_of_the_steps_that_count(filler):
    returns, mask = torch.randn(4, 5, dtype=torch.float64), torch.rand(4, 5) < 0.6
    norm = PercentileNorm((0.1, 0.8), rate=1.0)
    norm.update(returns.masked_fill(~mask, filler), mask)
    expected = torch.quantile(returns[mask], torch.tensor([0.1, 0.8], dtype=torch.float64))
    torch.testing.assert_close(statistics(norm), expected, rtol=EXACT, atol=EXACT)


def test_quantiles_move_by_the_rate():
    norm = PercentileNorm(rate=0.25)
    low = high = 0.0
    for seed in range(5):
        returns = torch.randn(7, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 5
        norm.update(returns)
        low += 0.25 * (returns.quantile(0.05).item() - low)
        high += 0.25 * (returns.quantile(0.95).item() - high)
        torch.testing.assert_close(statistics(norm), torch.tensor([low, high], dtype=torch.float64), rtol=EXACT, atol=EXACT)
        assert norm.scale() == pytest.approx(max(1.0, high - low), rel=EXACT)


@pytest.mark.parametrize(
    ("returns", "mask"),
    [(torch.full((3, 2), NAN), torch.zeros(3, 2).bool()), (torch.zeros(0, 3), None), (torch.zeros(0), None)],
)
@norm_kind
def test_no_returns_leave_the_statistics(kind, returns, mask):
    norm = kind(rate=1.0)
    norm.update(torch.tensor([-3.0, 4.0]))
    before = statistics(norm)
    norm.update(returns, mask)
    assert torch.equal(statistics(norm), before)


def test_small_returns_are_not_blown_up():
    norm = PercentileNorm(rate=1.0, min_scale=2.0)
    norm.update(torch.tensor([0.0, 0.1]))
    assert norm.scale() == 2.0


def test_half_precision_returns_move_exact_statistics():
    """A mean in bfloat16 would stand still where a step is less than its last digit."""
    returns = (torch.randn(50) * 5).bfloat16()
    norm, expected = PercentileNorm().to(torch.bfloat16), PercentileNorm()
    for _ in range(20):
        norm.update(returns)
        expected.update(returns.double())
    torch.testing.assert_close(statistics(norm), statistics(expected), rtol=1e-6, atol=1e-6)
    assert norm.high > 0.15 * returns.float().quantile(0.95)


@norm_kind
def test_an_update_reads_nothing_from_the_device(kind):
    class Watching(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            assert "_local_scalar_dense" not in str(func)
            return func(*args, **(kwargs or {}))

    norm, returns, mask = kind(rate=1.0), torch.randn(4, 5), torch.rand(4, 5) < 0.5
    with Watching():
        norm.update(returns, mask)
        norm.scale()
    assert statistics(norm)[-1] > 0


# The mean and the deviation of the advantages


def moments_by_hand(batches, rate):
    """Mean and variance of all numbers, each with the weight of its batch divided by the size of the batch."""
    weights = [len(x) if rate is None else rate * (1 - rate) ** (len(batches) - 1 - i) for i, x in enumerate(batches)]
    shares = [weight / sum(weights) for weight in weights]
    mean = sum(share * x.mean() for share, x in zip(shares, batches, strict=True))
    return mean, sum(share * (x - mean).square().mean() for share, x in zip(shares, batches, strict=True))


@pytest.mark.parametrize("offset", [0.0, 1e6])
@pytest.mark.parametrize("rate", [None, 0.3, 1.0])
def test_advantages_are_normalised_by_their_mean_and_deviation_over_time(rate, offset):
    generator = torch.Generator().manual_seed(0)
    norm, batches = RunningNorm(rate), []
    for size in (1, 7, 30):
        advantage = offset + 3.0 * torch.randn(size, 2, generator=generator, dtype=torch.float64)
        mask = torch.rand(size, 2, generator=generator) < 0.7
        mask[0] = True
        norm.update(advantage.masked_fill(~mask, NAN), mask)
        batches.append(advantage[mask])
        mean, var = moments_by_hand(batches, rate)
        torch.testing.assert_close(
            norm.normalize(advantage), (advantage - mean) / var.sqrt(), rtol=1e-9, atol=1e-9 + 1e-15 * offset
        )
        torch.testing.assert_close(norm.scale(), var.sqrt(), rtol=1e-9, atol=0.0)


@pytest.mark.parametrize(("rate", "name"), [(None, "RunningValueNorm"), (0.2, "PopArtValueNorm")])
def test_the_moments_equal_torchrl(rate, name):
    modules = pytest.importorskip("torchrl.modules")
    norm, theirs = RunningNorm(rate), getattr(modules, name)(**({} if rate is None else {"beta": 1 - rate})).double()
    for seed in range(4):
        x = scaled_steps(seed=seed).reward.reshape(-1, 1)
        norm.update(x)
        theirs.update(x)
        torch.testing.assert_close(norm.normalize(x), theirs.normalize(x), rtol=1e-6, atol=1e-6)


def test_advantages_stay_unchanged_before_the_first_update_and_small_ones_are_not_blown_up():
    norm, advantage = RunningNorm(min_scale=0.5), torch.tensor([-3.0, 4.0])
    assert torch.equal(norm.normalize(advantage), advantage)
    norm.update(torch.tensor([0.0, 0.1]))
    assert norm.scale() == 0.5
    with pytest.raises(ValueError, match=r"^rate: expected a number above 0 and up to 1, or None, got 0"):
        RunningNorm(rate=0)
    with pytest.raises(ValueError, match=r"^min_scale: expected a positive number, got -1"):
        RunningNorm(min_scale=-1)


@pytest.mark.parametrize("names", [INSIDE, (*INSIDE, "mask")], ids=["whole", "masked"])
def test_the_loss_normalises_advantages_by_their_running_mean_and_deviation(names):
    loss = make_loss(dtype=torch.float64, advantage_norm=RunningNorm(rate=0.4))
    batches = []
    for seed in range(3):
        steps = scaled_steps(seed=seed)
        estimate = by_hand(loss, steps, mask=steps.mask if "mask" in names else None)
        batches.append(estimate["advantage"][steps.mask] if "mask" in names else estimate["advantage"])
        mean, var = moments_by_hand(batches, 0.4)
        outputs = loss(**of(steps, *names))
        expected = make_loss(networks=(loss.actor_network, loss.critic_network))(
            **of(steps, *names[5:]), **{**estimate, "advantage": (estimate["advantage"] - mean) / var.sqrt()}
        )
        assert_same(outputs, expected, EXACT)
        assert_same(gradients(outputs, loss), gradients(expected, loss), EXACT)


@pytest.mark.slow
def test_the_backward_of_a_compiled_graph_reads_statistics_as_its_forward_wrote_them():
    """A backward that computed the scale again would read the statistics after the update, and update them once more."""

    class Scaled(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("scale", torch.ones(1, dtype=torch.float64))

        def forward(self, x):
            with torch.no_grad():
                overwrite(self.scale, 0.5 * self.scale + 3.0)
            return (x.tanh() * self.scale.float() - 1.0).square().sum()

    x = torch.randn(5, requires_grad=True)
    results = []
    for module in (Scaled(), torch.compile(Scaled(), fullgraph=True)):
        results += [torch.autograd.grad(module(x), x)[0] for _ in range(2)]
    torch.testing.assert_close(results[2:], results[:2])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"quantiles": (0.9, 0.1)}, "quantiles: expected two ascending numbers from 0 to 1"),
        ({"quantiles": (-0.1, 0.5)}, "quantiles: expected two ascending numbers from 0 to 1"),
        ({"quantiles": (0.5, 1.5)}, "quantiles: expected two ascending numbers from 0 to 1"),
        ({"rate": 1.1}, "rate: expected a number from 0 to 1, got 1.1"),
        ({"rate": NAN}, "rate: expected a number from 0 to 1, got nan"),
        ({"min_scale": 0.0}, "min_scale: expected a positive number, got 0.0"),
    ],
)
def test_a_wrong_number_is_refused_by_name(options, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        PercentileNorm(**options)


def test_the_loss_refuses_another_kind_of_norm():
    with pytest.raises(TypeError, match=r"^advantage_norm: expected a module of type AdvantageNorm, got LayerNorm"):
        make_loss(advantage_norm=torch.nn.LayerNorm(3))


# The scale in the loss


@pytest.mark.parametrize("names", [INSIDE, (*INSIDE, "mask")], ids=["whole", "masked"])
def test_advantages_are_divided_by_the_scale_of_the_returns(names):
    steps = scaled_steps()
    mine, theirs = copies(make_networks(dtype=torch.float64))
    loss = make_loss(networks=mine, advantage_norm=PercentileNorm(rate=0.5))
    outputs = loss(**of(steps, *names))
    with torch.no_grad():
        values = theirs[1](steps.observation), theirs[1](steps.next_observation)
    mask = steps.mask if "mask" in names else None
    estimate = loss.value_estimator(*values, steps.reward, steps.done, steps.terminated, mask=mask)
    counted = estimate.value_target[steps.mask] if "mask" in names else estimate.value_target.flatten()
    scale = 0.5 * (counted.quantile(0.95) - counted.quantile(0.05))
    assert scale > 1
    given = {**of(steps, *names[5:]), "advantage": estimate.advantage / scale, "value_target": estimate.value_target}
    expected = make_loss(networks=theirs)(**given)
    assert_same(outputs, expected, EXACT)
    assert_same(gradients(outputs, mine), gradients(expected, theirs), EXACT)


def test_scaled_losses_and_statistics_equal_torchrl_call_by_call():
    pytest.importorskip("torchrl")
    from torchrl.modules import PercentileValueNorm
    from torchrl_cases import torchrl_data, torchrl_loss

    mine, theirs = copies(make_networks())
    loss = make_loss(networks=mine, advantage_norm=PercentileNorm((0.1, 0.9), rate=0.3))
    norm = PercentileValueNorm(quantiles=(0.1, 0.9), rate=0.3)
    expected_loss = torchrl_loss(theirs, estimator="GAE", advantage_norm=norm)

    def assert_equal(steps, names=INSIDE):
        outputs, expected = loss(**of(steps, *names)), expected_loss(torchrl_data(steps, *names))
        for name, value in losses_of(outputs).items():
            torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-5)
        assert_same(gradients(outputs, mine), gradients(expected, theirs))
        torch.testing.assert_close(statistics(loss.advantage_norm).float(), torch.cat([norm.low, norm.high]))

    for seed in range(4):
        before = statistics(loss.advantage_norm)
        assert_equal(scaled_steps(seed=seed, dtype=torch.float32))
        assert not torch.equal(statistics(loss.advantage_norm), before)
    before = statistics(loss.advantage_norm)
    assert_equal(scaled_steps(seed=5, dtype=torch.float32), ("advantage", "value_target", "mask"))
    loss.eval()
    expected_loss.eval()
    assert_equal(scaled_steps(seed=6, dtype=torch.float32))
    assert torch.equal(statistics(loss.advantage_norm), before)
    assert loss.advantage_norm.scale() > 1


@norm_kind
def test_statistics_rest_in_evaluation_mode_of_the_loss_or_of_the_norm_alone(kind):
    loss = make_loss(advantage_norm=kind(rate=1.0))
    arguments = of(make_loss_steps(), *INSIDE)
    loss(**arguments)
    before = statistics(loss.advantage_norm)
    others = of(make_loss_steps(seed=1), *INSIDE)
    for module in (loss, loss.advantage_norm):
        module.eval()
        loss(**others)
        assert torch.equal(statistics(loss.advantage_norm), before)
        module.train()
    loss(**{**others, "mask": torch.zeros(4, 5, dtype=torch.bool)})
    assert torch.equal(statistics(loss.advantage_norm), before)
    loss(**others)
    assert not torch.equal(statistics(loss.advantage_norm), before)


@norm_kind
def test_statistics_are_saved_copied_and_kept_exact_in_another_dtype(kind):
    loss = make_loss(advantage_norm=kind(rate=0.1))
    loss(**of(make_loss_steps(), *INSIDE))
    before = statistics(loss.advantage_norm)
    other = make_loss(advantage_norm=kind(rate=0.1))
    other.load_state_dict(copy.deepcopy(loss).to(torch.bfloat16).float().state_dict())
    assert torch.equal(statistics(other.advantage_norm), before)
    double = loss.double()
    double(**of(make_loss_steps(dtype=torch.float64), *INSIDE))
    assert statistics(double.advantage_norm).dtype == torch.float64
    assert not torch.equal(statistics(double.advantage_norm), before)


@pytest.mark.parametrize("shape", [(0, 3), (4, 0)], ids=str)
@norm_kind
def test_no_steps_leave_the_statistics(kind, shape):
    loss = make_loss(advantage_norm=kind(rate=1.0))
    loss(**of(make_loss_steps(), *INSIDE))
    before = statistics(loss.advantage_norm)
    outputs = loss(**of(make_loss_steps(shape), *INSIDE))
    assert outputs.loss_objective == 0
    assert torch.equal(statistics(loss.advantage_norm), before)


@norm_kind
def test_a_half_precision_advantage_is_scaled_in_float32(kind):
    loss = make_loss(networks=make_networks(), advantage_norm=kind(rate=1.0), reduction="none")
    loss.advantage_norm.update(torch.tensor([0.0, 3.0]))
    steps = make_loss_steps()
    half = steps.advantage.bfloat16()
    outputs = [loss(**{**of(steps, "value_target"), "advantage": given}) for given in (half, half.float())]
    assert torch.equal(outputs[0].loss_objective, outputs[1].loss_objective)


@pytest.mark.slow
@norm_kind
def test_the_statistics_move_in_scripted_and_traced_losses_as_in_eager(kind):
    losses = {name: make_loss(advantage_norm=kind(rate=0.5)) for name in ("eager", "scripted", "traced")}
    modules = {
        **losses,
        "scripted": torch.jit.script(losses["scripted"]),
        # AOTAutograd takes the mutation of the statistics out of the graph.
        "traced": traced(losses["traced"], "aot_eager"),
    }
    for count, shape in enumerate([(4, 6), (5, 7), (9, 3)]):
        arguments = of(scaled_steps(shape, seed=count, dtype=torch.float32), *INSIDE, "mask")
        with torch._dynamo.config.patch(error_on_recompile=count > 0):
            outputs = {name: module(**arguments) for name, module in modules.items()}
        expected = gradients(outputs["eager"], losses["eager"])
        for name in ("scripted", "traced"):
            assert_same(outputs[name], outputs["eager"])
            assert_same(gradients(outputs[name], losses[name]), expected)
            torch.testing.assert_close(statistics(losses[name].advantage_norm), statistics(losses["eager"].advantage_norm))
    modules["scripted"].eval()
    before = statistics(losses["scripted"].advantage_norm)
    modules["scripted"](**of(make_loss_steps(), *INSIDE))
    assert torch.equal(statistics(losses["scripted"].advantage_norm), before)


# In the training step


def full_rollout(seed):
    rollout = make_rollout((5, 6), seed=seed, options=("log_prob", "mask"))
    generator = torch.Generator().manual_seed(seed)
    return rollout._replace(
        reward=10.0 * rollout.reward,
        steps_to_next_obs=torch.randint(1, 4, (5, 6), generator=generator),
        group=torch.randint(3, (5, 6), generator=generator),
    )


def as_arguments(rollout):
    arguments = {name: value for name, value in rollout._asdict().items() if value is not None}
    if "log_prob" in arguments:
        arguments["sample_log_prob"] = arguments.pop("log_prob")
    return arguments


@pytest.mark.slow
@norm_kind
def test_a_training_step_reads_steps_groups_and_mask_and_moves_the_statistics_in_eager_and_compiled_mode(kind):
    loss = make_loss(advantage_norm=kind(rate=0.5), diagnostics=True)
    loss.make_value_estimator("gae", average_gae=True)
    eager = TrainStep(loss, compile=False)
    compiled = TrainStep(copy.deepcopy(loss))
    torch._dynamo.reset()
    for seed in range(3):
        rollout = full_rollout(seed)
        alone = copy.deepcopy(eager.loss)
        expected = alone(**as_arguments(rollout))
        metrics = eager(rollout)
        for name, value in present(expected).items():
            torch.testing.assert_close(getattr(metrics, name), value)
        assert torch.equal(statistics(eager.loss.advantage_norm), statistics(alone.advantage_norm))
        assert_same(compiled(rollout), metrics)
        assert_same(compiled.loss.state_dict(), eager.loss.state_dict())
    assert (eager.loss.advantage_norm.scale() - 1).abs() > 0.01
    for entry, other in {
        "steps_to_next_obs": torch.ones(5, 6).long(),
        "group": torch.zeros(5, 6).long(),
        "mask": ~rollout.mask,
    }.items():
        changed = copy.deepcopy(eager)(rollout._replace(**{entry: other}))
        assert changed.loss_objective != copy.deepcopy(eager)(rollout).loss_objective, entry


# Exported


@pytest.mark.slow
@norm_kind
def test_exported_losses_divide_by_the_scale_at_the_time_of_export(kind, tmp_path):
    pytest.importorskip("onnxruntime")
    from a2c_compiled import export

    loss = make_loss(advantage_norm=kind(rate=0.5))
    arguments = of(scaled_steps((6, 4), dtype=torch.float32, column=False), *INSIDE[:-1])
    loss(**arguments)
    before = statistics(loss.advantage_norm)
    for ending, write in {".onnx": export.export_onnx, ".pt": export.export_torchscript, ".pt2": export.export_pt2}.items():
        path = tmp_path / f"loss{ending}"
        write(loss, arguments, path)
        assert all(output.passed for output in export.verify(path).outputs.values()), ending
    assert loss.training
    assert torch.equal(statistics(loss.advantage_norm), before)
    loss.eval()
    scaled = torch.jit.load(tmp_path / "loss.pt")(**arguments)
    torch.testing.assert_close(scaled.loss_objective, loss(**arguments).loss_objective)
    loss.advantage_norm = None
    assert (scaled.loss_objective - loss(**arguments).loss_objective).abs() > 0.1


@pytest.mark.slow
@norm_kind
def test_a_training_step_that_moves_statistics_is_not_exported(kind, tmp_path):
    """One that does not is exported in test_loss_export.py."""
    pytest.importorskip("onnxruntime")
    from a2c_compiled import export

    loss = make_loss(advantage_norm=kind(rate=0.5))
    step, rollout = TrainStep(loss, "sgd", compile=False), make_rollout((5, 6))
    before = statistics(loss.advantage_norm)
    with pytest.raises(export.ExportError, match=r"buffer advantage_norm\.\S+, .* Call \.eval\(\) on the module"):
        export.export_train_step(step, rollout, tmp_path / "step.onnx")
    assert torch.equal(statistics(loss.advantage_norm), before)
    assert not list(tmp_path.iterdir())


# n-step data, groups, masks


def by_hand(loss, steps, **options):
    """The same loss of an advantage that the estimator computes outside."""
    with torch.no_grad():
        values = loss.critic_network(steps.observation), loss.critic_network(steps.next_observation)
        shape = steps.reward.shape
        estimate = loss.value_estimator(
            *(value.reshape(shape) for value in values), steps.reward, steps.done, steps.terminated, **options
        )
    return {"advantage": estimate.advantage, "value_target": estimate.value_target}


@pytest.mark.parametrize("column", [True, False])
@pytest.mark.parametrize("estimator", ["td0", "td_lambda", "gae"])
def test_n_step_data_is_discounted_by_its_steps(estimator, column):
    loss = make_loss(dtype=torch.float64, value_estimator=estimator)
    steps = make_loss_steps(dtype=torch.float64, column=column)
    steps_to_next = torch.randint(1, 5, steps.reward.shape)
    outputs = loss(**of(steps, *INSIDE), steps_to_next_obs=steps_to_next)
    # To the estimator, that is a discount of its own for each step.
    other = copy.deepcopy(loss)
    other.make_value_estimator(type(loss.value_estimator)(gamma=loss.value_estimator.gamma**steps_to_next))
    expected = other(**of(steps), **by_hand(other, steps))
    assert_same(outputs, expected, EXACT)
    assert_same(gradients(outputs, loss), gradients(expected, other), EXACT)
    assert outputs.loss_critic != loss(**of(steps, *INSIDE)).loss_critic
    if column:
        flat = loss(**of(steps, *INSIDE), steps_to_next_obs=steps_to_next.squeeze(-1))
        assert_same(flat, outputs, 0)


@pytest.mark.parametrize(
    ("estimator", "standardizes"), [("GAE", "average_gae"), ("TDLambda", "average_rewards"), ("TD0", "average_rewards")]
)
def test_steps_and_groups_equal_torchrl(estimator, standardizes):
    pytest.importorskip("torchrl")
    from torchrl.objectives import ValueEstimators
    from torchrl_cases import torchrl_data, torchrl_loss

    steps = make_loss_steps((4, 6))
    mine, theirs = copies(make_networks())
    loss = make_loss(networks=mine).make_value_estimator(estimator, **{standardizes: True})
    expected_loss = torchrl_loss(theirs)
    options = {"group_key": "group", standardizes: True}
    expected_loss.make_value_estimator(ValueEstimators[estimator], **options)
    extra = {"group": torch.randint(3, (4, 6, 1)), "steps_to_next_obs": torch.randint(1, 4, (4, 6, 1))}
    data = torchrl_data(steps, *INSIDE)
    for name, tensor in extra.items():
        data[name] = tensor
    outputs, expected = loss(**of(steps, *INSIDE), **extra), expected_loss(data)
    assert_same(losses_of(outputs), losses_of(expected))
    assert_same(gradients(outputs, mine), gradients(expected, theirs))
    assert_same(loss(**of(steps, *INSIDE), **{**extra, "group": extra["group"].squeeze(-1)}), outputs, 0)


def standardized(x):
    return (x - x.mean()) / x.std()


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("column", [True, False])
def test_advantages_are_standardised_over_what_counts(column, grouped):
    loss = make_loss(dtype=torch.float64)
    steps = make_loss_steps((6, 7), dtype=torch.float64, column=column)
    group = torch.randint(2, steps.reward.shape) if grouped else torch.zeros(steps.reward.shape).long()
    raw = by_hand(loss, steps, mask=steps.mask)
    advantage = torch.zeros_like(raw["advantage"])
    for number in range(2):
        counted = steps.mask & (group == number)
        if counted.any():
            advantage[counted] = standardized(raw["advantage"][counted])
    expected = loss(**of(steps, "mask"), **{**raw, "advantage": advantage})
    loss.value_estimator.average_gae = True
    options = {"group": group} if grouped else {}
    outputs = loss(**of(steps, *INSIDE, "mask"), **options)
    assert_same(outputs, expected, EXACT)
    assert_same(gradients(outputs, loss), gradients(expected, loss), EXACT)


def test_rewards_are_standardised_over_what_counts():
    loss = make_loss(dtype=torch.float64, value_estimator="td0")
    steps = make_loss_steps((6, 7), dtype=torch.float64)
    rewards = steps.reward.clone()
    rewards[steps.mask] = standardized(steps.reward[steps.mask])
    expected = loss(**of(steps._replace(reward=rewards), *INSIDE, "mask"))
    loss.value_estimator.average_rewards = True
    unknown = steps._replace(reward=steps.reward.masked_fill(~steps.mask, 1e6))
    assert_same(loss(**of(unknown, *INSIDE, "mask")), expected, EXACT)


# Several agents


AGENTS = 3


def team_steps(dtype=torch.float64, seed=0, shape=(4, 5)):
    """Observations and actions of each agent ``[N, T, agents, ...]``, rewards and ends of the team ``[N, T, 1]``."""
    steps = make_loss_steps(shape, dtype=dtype, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    observation, next_observation = torch.randn((2, *shape, AGENTS, FEATURES), generator=generator, dtype=dtype)
    action = torch.randint(4, (*shape, AGENTS), generator=generator)
    return steps._replace(observation=observation, next_observation=next_observation, action=action)


TEAM = ("reward", "next_observation", "done", "terminated")


@pytest.mark.parametrize("average_gae", [False, True])
@pytest.mark.parametrize("per_agent", [False, True])
def test_several_agents_inside_the_loss_equal_torchrl(per_agent, average_gae):
    pytest.importorskip("torchrl")
    from torchrl.objectives import ValueEstimators
    from torchrl_cases import torchrl_data, torchrl_loss

    steps = team_steps(torch.float32)
    if per_agent:
        rewards = torch.randn(4, 5, AGENTS, 1)
        flags = {name: getattr(steps, name).unsqueeze(-2).expand(rewards.shape) for name in ("done", "terminated")}
        steps = steps._replace(reward=rewards, **flags)
    mine, theirs = copies(make_networks())
    loss = make_loss(networks=mine, value_estimator="magae", reduction="none")
    loss.value_estimator.average_gae = average_gae
    expected_loss = torchrl_loss(theirs, reduction="none")
    expected_loss.make_value_estimator(ValueEstimators.MAGAE, average_gae=average_gae)
    outputs, expected = loss(**of(steps, *TEAM)), expected_loss(torchrl_data(steps, *TEAM))
    assert outputs.loss_critic.shape == (4, 5, AGENTS)
    assert_same(losses_of(outputs), losses_of(expected))
    assert_same(gradients(outputs, mine), gradients(expected, theirs))


@pytest.mark.parametrize("extra", [(), ("mask", "group"), ("steps_to_next_obs", "mask")], ids=str)
def test_several_agents_inside_the_loss_equal_the_estimator_and_the_function(extra):
    steps = team_steps()
    loss = make_loss(dtype=torch.float64, value_estimator="magae")
    loss.value_estimator.average_gae = True
    given = {
        "mask": torch.rand(4, 5, AGENTS) < 0.7,
        "group": torch.randint(2, (4, 5)),
        "steps_to_next_obs": torch.randint(1, 4, (4, 5, 1)),
    }
    given = {name: given[name] for name in extra}
    outputs = loss(**of(steps, *TEAM), **given)
    value = loss.critic_network(steps.observation)
    columns = {name: tensor.unsqueeze(-1) if name == "mask" else tensor for name, tensor in given.items()}
    with torch.no_grad():
        next_value = loss.critic_network(steps.next_observation)
        estimate = loss.value_estimator(value, next_value, steps.reward, steps.done, steps.terminated, **columns)
    params = loss.actor_network(steps.observation)
    expected = a2c_loss(
        loss.distribution.log_prob(params, steps.action),
        estimate.advantage.squeeze(-1),
        loss.distribution.entropy(params),
        value.squeeze(-1),
        estimate.value_target.squeeze(-1),
        entropy_coef=loss.entropy_coef,
        mask=given.get("mask"),
    )
    assert_same(outputs, expected, EXACT)
    assert_same(gradients(outputs, loss), gradients(expected, loss), EXACT)


@pytest.mark.slow
def test_time_major_agents_give_the_transposed_result_in_every_mode():
    steps = team_steps(torch.float32)
    swapped = {name: getattr(steps, name).transpose(0, 1) for name in ("observation", "action", *TEAM)}
    loss = make_loss(value_estimator="magae", reduction="none")
    expected = loss(**of(steps, *TEAM))
    loss.make_value_estimator("magae", time_dim=-4)
    for module in (loss, torch.jit.script(loss), traced(loss)):
        outputs = module(**swapped)
        for name, value in losses_of(outputs).items():
            torch.testing.assert_close(value.transpose(0, 1), getattr(expected, name), rtol=1e-5, atol=1e-5)
        assert math.isclose(outputs.entropy, expected.entropy, rel_tol=1e-5)
