"""A masked loss: its outputs and gradients are those of the data without the steps that the mask excludes, whatever they hold."""

import pytest
import torch
from cases import weights
from loss_cases import (
    CHOICES,
    ESTIMATORS,
    FEATURES,
    INSIDE,
    LossSteps,
    assert_same,
    losses_of,
    make_loss,
    make_loss_steps,
    of,
    present,
    traced,
)
from torch import nn

from a2c_compiled import A2CLoss, distributions
from a2c_compiled.losses.a2c import LOSSES
from a2c_compiled.recurrent import Recurrent

T, N = 8, 5
NAN, INFINITY = float("nan"), float("inf")
ENTRIES = (*INSIDE, "state_value")


def padding(shape=(T, N)):
    """Each environment counts its first steps: 0 of the first environment, all of the last."""
    lengths = torch.tensor([0, 1, 5, 7, 8])[: shape[1]]
    return torch.arange(shape[0]).unsqueeze(-1) < lengths


def holes(shape=(T, N)):
    return torch.rand(shape, generator=torch.Generator().manual_seed(3)) < 0.6


MASKS = {"padding": padding, "holes": holes}


def filled(steps, mask, value):
    """``value`` in every floating tensor, and True in every flag, at the excluded steps."""

    def fill(tensor):
        where = ~mask.reshape(*mask.shape, *[1] * (tensor.dim() - 2))
        if tensor.dtype == torch.bool:
            return tensor | where
        return tensor.masked_fill(where, value) if tensor.is_floating_point() else tensor

    return LossSteps(*map(fill, steps))._replace(mask=mask)


def runs_of(mask, skip_masked):
    """Yields the environment and the steps of each run of steps that count."""
    for env in range(mask.size(1)):
        steps = torch.where(mask[:, env])[0].tolist()
        run = []
        for t in steps:
            if run and not skip_masked and t > run[-1] + 1:
                yield env, run
                run = []
            run.append(t)
        if run:
            yield env, run


def alone(loss, steps, mask, skip_masked=False):
    """The losses of each run alone, put where its steps are, and the gradients of their weighted sum."""
    losses = {}
    for env, run in runs_of(mask, skip_masked):
        part = LossSteps(*(tensor[run, env : env + 1] for tensor in steps))
        for name, value in losses_of(loss(**of(part, *ENTRIES))).items():
            whole = losses.setdefault(name, torch.zeros(mask.shape, dtype=value.dtype))
            losses[name] = whole.index_put((torch.tensor(run), torch.tensor(env)), value.squeeze(-1))
    return losses, gradients_of(losses, loss)


def gradients_of(losses, loss):
    names, parameters = zip(*loss.named_parameters(), strict=True)
    outputs = list(losses.values())
    found = torch.autograd.grad(outputs, parameters, [weights(x) for x in outputs], allow_unused=True, materialize_grads=True)
    return dict(zip(names, found, strict=True))


def assert_equals_data_without(loss, mask, junk=NAN, module=None, skip_masked=False):
    steps = make_loss_steps((T, N), dtype=torch.float64, column=False)
    expected, expected_gradients = alone(loss, steps, mask, skip_masked)
    module = loss if module is None else module
    losses = losses_of(module(**of(filled(steps, mask, junk), *ENTRIES, "mask")))
    assert_same(losses, expected, 1e-10)
    assert_same(gradients_of(losses, loss), expected_gradients, 1e-10)


@pytest.mark.parametrize("junk", [NAN, INFINITY, -1.0])
@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_equals_the_data_without_the_excluded_steps_whatever_they_hold(estimator, kind, junk):
    loss = make_loss(dtype=torch.float64, value_estimator=estimator, clip_value=0.2, reduction="none")
    assert_equals_data_without(loss, MASKS[kind](), junk)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_skip_masked_equals_the_data_with_the_excluded_steps_deleted(estimator):
    loss = make_loss(dtype=torch.float64, clip_value=0.2, reduction="none")
    loss.make_value_estimator(estimator, skip_masked=True)
    assert_equals_data_without(loss, holes(), skip_masked=True)


@pytest.mark.parametrize("estimator", ["GAE", "VTrace"])
def test_scripted_equals_the_data_without_the_excluded_steps(estimator):
    loss = make_loss(dtype=torch.float64, value_estimator=estimator, reduction="none")
    assert_equals_data_without(loss, holes(), module=torch.jit.script(loss))


@pytest.mark.slow
def test_traced_equals_the_data_without_the_excluded_steps():
    loss = make_loss(dtype=torch.float64, value_estimator="gae", reduction="none")
    assert_equals_data_without(loss, holes(), module=traced(loss, "aot_eager"))


@pytest.mark.parametrize("estimator", ["GAE", "TDLambda", "VTrace"])
def test_shifted_equals_the_data_without_the_padding(estimator):
    """The last step that counts reads its own next observation, not that of the padding."""
    mask = padding()
    steps = make_loss_steps((T, N), dtype=torch.float64, column=False)
    # One pass: the next observation of a step is the observation of the next one, except at an end.
    next_observation = torch.cat([steps.observation[1:], steps.next_observation[-1:]])
    last = ~torch.cat([mask[1:], torch.zeros_like(mask[:1])])
    ended = (steps.done | last).unsqueeze(-1)
    steps = steps._replace(next_observation=torch.where(ended, steps.next_observation, next_observation), terminated=steps.done)
    options = {"dtype": torch.float64, "value_estimator": estimator, "reduction": "none"}
    two_passes, one_pass = make_loss(**options), make_loss(**options, shifted=True)
    expected = losses_of(two_passes(**of(filled(steps, mask, NAN), *INSIDE, "mask")))
    losses = losses_of(one_pass(**of(filled(steps, mask, NAN), *INSIDE, "mask")))
    assert_same(losses, expected, 1e-10)
    assert_same(gradients_of(losses, one_pass), gradients_of(expected, two_passes), 1e-10)


def test_means_are_over_the_steps_that_count():
    steps = make_loss_steps((T, N), dtype=torch.float64, column=False)
    outputs = {
        reduction: present(
            make_loss(dtype=torch.float64, clip_value=0.2, reduction=reduction, diagnostics=True)(
                **of(filled(steps, holes(), NAN), *ENTRIES, "mask")
            )
        )
        for reduction in ("none", "mean", "sum")
    }
    for name in LOSSES:
        total = outputs["none"][name].sum()
        torch.testing.assert_close(outputs["sum"][name], total)
        torch.testing.assert_close(outputs["mean"][name], total / holes().sum())
    assert all(value.isfinite().all() for value in outputs["mean"].values())


def test_rewards_in_the_padding_have_no_effect_without_a_flag():
    """No step is done, and the padding holds large rewards."""
    steps = make_loss_steps((6, 1), dtype=torch.float64, column=False)
    never = torch.zeros(6, 1, dtype=torch.bool)
    mask = torch.arange(6).unsqueeze(-1) < 4
    loss = make_loss(dtype=torch.float64, reduction="none")
    cut = loss(**of(LossSteps(*(x[:4] for x in steps._replace(done=never, terminated=never))), *INSIDE))
    steps = steps._replace(done=never, terminated=never, reward=torch.where(mask, steps.reward, 100.0), mask=mask)
    masked = loss(**of(steps, *INSIDE, "mask"))
    for name, value in losses_of(cut).items():
        torch.testing.assert_close(getattr(masked, name)[:4], value, rtol=0, atol=1e-12)
        assert not getattr(masked, name)[4:].any()


def make_recurrent_loss(**options):
    trunk = Recurrent(nn.GRUCell(FEATURES, 4))
    networks = nn.Sequential(trunk, nn.Linear(4, CHOICES)).double(), nn.Sequential(trunk, nn.Linear(4, 1)).double()
    return A2CLoss(*networks, distributions.Categorical(CHOICES), reduction="none", **options)


@pytest.mark.parametrize("shifted", [False, True])
def test_a_recurrent_policy_does_not_remember_excluded_steps(shifted):
    loss = make_recurrent_loss(shifted=shifted, shifted_budget=T)
    steps = make_loss_steps((T, N), dtype=torch.float64, column=False)
    hidden, mask = torch.randn(T, N, 4).double(), holes()
    start = steps.done.roll(1, 0)

    def losses_with(junk):
        x = torch.where(mask.unsqueeze(-1), steps.observation, junk)
        observation = x, torch.where(mask.unsqueeze(-1), hidden, junk), start
        after = torch.where(mask.unsqueeze(-1), steps.next_observation, junk)
        next_observation = after, hidden.roll(-1, 0), torch.ones_like(start)
        masked = filled(steps, mask, junk)
        return losses_of(
            loss(observation, steps.action, masked.reward, next_observation, masked.done, masked.terminated, mask=mask)
        )

    clean = losses_with(0.0)
    clean_gradients = gradients_of(clean, loss)
    for junk in (NAN, 7.0):
        losses = losses_with(junk)
        assert_same(losses, clean, 1e-12)
        assert_same(gradients_of(losses, loss), clean_gradients, 1e-12)


# Packed sequences


STARTS = (0, 3, 4)


def packed_alone(loss, steps):
    """The losses of each sequence alone, one after the other."""
    parts = []
    for start, end in zip(STARTS, (*STARTS[1:], T), strict=True):
        part = LossSteps(*(tensor[start:end] for tensor in steps))
        parts.append(losses_of(loss(**of(part, *ENTRIES))))
    losses = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    return losses, gradients_of(losses, loss)


@pytest.mark.parametrize("mode", ["eager", "scripted", pytest.param("traced", marks=pytest.mark.slow)])
@pytest.mark.parametrize("estimator", ["GAE", "TDLambda", "VTrace"])
def test_packed_sequences_equal_each_sequence_alone(estimator, mode):
    loss = make_loss(dtype=torch.float64, value_estimator=estimator, clip_value=0.2, reduction="none")
    module = {"eager": lambda x: x, "scripted": torch.jit.script, "traced": lambda x: traced(x, "aot_eager")}[mode](loss)
    steps = make_loss_steps((T, N), dtype=torch.float64, column=False)
    expected, expected_gradients = packed_alone(loss, steps)
    losses = losses_of(module(**of(steps, *ENTRIES), cu_seqlens=torch.tensor([*STARTS, T])))
    assert_same(losses, expected, 1e-10)
    assert_same(gradients_of(losses, loss), expected_gradients, 1e-10)


def test_shifted_packed_sequences_equal_two_passes():
    steps = make_loss_steps((T, N), dtype=torch.float64, column=False)
    ends = torch.zeros(T, 1, dtype=torch.bool)
    ends[[start - 1 for start in (*STARTS[1:], T)]] = True
    following = torch.cat([steps.observation[1:], steps.next_observation[-1:]])
    keeps_own = (ends | steps.done).unsqueeze(-1)
    steps = steps._replace(next_observation=torch.where(keeps_own, steps.next_observation, following), terminated=steps.done)
    options = {"dtype": torch.float64, "reduction": "none"}
    two_passes, one_pass = make_loss(**options), make_loss(**options, shifted=True, shifted_budget=len(STARTS))
    arguments = {**of(steps, *INSIDE), "cu_seqlens": torch.tensor([*STARTS, T])}
    expected, losses = losses_of(two_passes(**arguments)), losses_of(one_pass(**arguments))
    assert_same(losses, expected, 1e-10)
    assert_same(gradients_of(losses, one_pass), gradients_of(expected, two_passes), 1e-10)


def test_a_recurrent_policy_starts_each_packed_sequence_from_the_recorded_state():
    loss = make_recurrent_loss()
    steps = make_loss_steps((T, N), dtype=torch.float64, column=False)
    hidden, start = torch.randn(T, N, 4).double(), steps.done.roll(1, 0)

    def losses_of_steps(part, **options):
        def cut(tensor):
            return tensor[part]

        observation = cut(steps.observation), cut(hidden), cut(start)
        after = cut(steps.next_observation), cut(hidden.roll(-1, 0)), torch.ones_like(cut(start))
        flags = cut(steps.done), cut(steps.terminated)
        return losses_of(loss(observation, cut(steps.action), cut(steps.reward), after, *flags, **options))

    parts = [losses_of_steps(slice(a, b)) for a, b in zip(STARTS, (*STARTS[1:], T), strict=True)]
    packed = losses_of_steps(slice(None), cu_seqlens=torch.tensor([*STARTS, T]))
    assert_same(packed, {name: torch.cat([part[name] for part in parts]) for name in packed}, 1e-12)


@pytest.mark.slow
def test_an_exported_loss_of_packed_sequences_with_a_mask_serves_other_sizes(tmp_path):
    pytest.importorskip("onnxruntime")
    from export_cases import assert_same_outputs, load_onnx, named

    from a2c_compiled import export

    loss = make_loss(value_estimator="gae", reduction="none")

    def arguments(shape, starts):
        steps = make_loss_steps(shape, column=False)
        return {**of(filled(steps, steps.mask, -1.0), *INSIDE[:4], "mask"), "cu_seqlens": torch.tensor(starts)}

    example = arguments((T, N), [*STARTS, T])
    axes = {name: ("S",) if name == "cu_seqlens" else ("T", "N") for name in example}
    run = load_onnx(export.export_onnx(loss, example, tmp_path / "loss.onnx", axes))
    for given in (example, arguments((12, 3), [0, 5, 12])):
        with torch.no_grad():
            expected = named(loss(**given))
        assert_same_outputs(run(given), expected, "onnx")
