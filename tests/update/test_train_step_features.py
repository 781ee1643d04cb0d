"""What a training step does beside the update itself: it skips, cuts, repeats and averages updates, and runs networks in half precision."""

import copy

import pytest
import torch
import torch.multiprocessing
from loss_cases import assert_same, compile_backend, graphs_compiled, make_loss, make_networks, make_rollout
from torch import nn
from torch_step import LR, parameters_of

from a2c_compiled import estimators
from a2c_compiled.losses import PopArt, RunningNorm
from a2c_compiled.update import Rollout, TrainStep

MODES = (False, True)
modes = pytest.mark.parametrize("compile", [False, pytest.param(True, marks=pytest.mark.slow)])


def make_step(loss=None, name="adam", compile=False, **options):
    return TrainStep(make_loss() if loss is None else loss, name, lr=LR, compile=compile, **options)


@pytest.fixture
def traced():
    """Compiled steps are only traced; see ``compile_backend``."""
    with compile_backend():
        yield


@pytest.fixture
def traced_with_gradients():
    """As ``traced``, through autograd's graphs: these steps add up gradients of several passes."""
    with compile_backend("aot_eager"):
        yield


@pytest.fixture
def requires_grad_refused(monkeypatch):
    """Lets Dynamo trace no ``requires_grad_``, as in torch 2.11."""

    def refuse(*arguments):
        raise NotImplementedError("requires_grad_")

    monkeypatch.setattr(torch._dynamo.variables.tensor.TensorVariable, "method_requires_grad_", refuse)


def stacked(rollouts):
    return Rollout(*(None if entries[0] is None else torch.stack(entries) for entries in zip(*rollouts, strict=True)))


# Gradients that are not finite


@pytest.mark.usefixtures("traced")
@modes
def test_an_update_that_is_not_finite_changes_nothing_and_is_counted(compile):
    step = make_step(compile=compile)
    step(make_rollout())
    before = copy.deepcopy(step.state_dict())
    broken = make_rollout(seed=1)
    for skipped, bad in enumerate([float("nan"), float("nan"), float("inf"), -float("inf")], 1):
        broken.reward[2, 3] = bad
        assert not step(broken).grad_norm.isfinite()
        assert (step.skipped, step.skipped_in_a_row) == (skipped, skipped)
    after = dict(step.state_dict())
    for counter in ("skipped", "skipped_in_a_row"):
        del before[counter], after[counter]
    assert_same(after, dict(before), 0)
    step(make_rollout(seed=2))
    assert (step.step_count, step.skipped, step.skipped_in_a_row) == (2, 4, 0)


def test_without_skip_nonfinite_parameters_become_nan():
    step = make_step(skip_nonfinite=False)
    broken = make_rollout()
    broken.reward[0, 0] = float("nan")
    step(broken)
    assert step.skipped == 0
    assert any(value.isnan().any() for value in parameters_of(step.loss).values())


def test_the_counts_are_saved_and_earlier_states_still_load():
    step = make_step()
    step.skipped.fill_(3)
    saved = step.state_dict()
    other = make_step()
    other.load_state_dict(saved)
    assert other.skipped == 3
    earlier = {name: value for name, value in saved.items() if not name.startswith("skipped")}
    other.load_state_dict(earlier)
    assert other.skipped == 0


# Minibatches


@pytest.mark.parametrize(
    ("options", "entries"),
    [
        ({"value_estimator": estimators.GAE(average_gae=True)}, ()),
        ({"value_estimator": "vtrace", "clip_value": 0.2, "diagnostics": True}, ("log_prob", "state_value", "mask")),
        ({"reduction": "sum", "shifted": True}, ("mask",)),
    ],
    ids=["standardized", "vtrace_masked", "sum_shifted"],
)
def test_the_gradients_of_minibatches_add_up_to_that_of_the_whole_rollout(options, entries):
    loss = make_loss(dtype=torch.float64, **options)
    rollout = make_rollout((5, 6), dtype=torch.float64, options=entries)
    whole = make_step(copy.deepcopy(loss), "sgd")
    expected = whole(rollout)
    for minibatches in (2, 6):
        step = make_step(copy.deepcopy(loss), "sgd", minibatches=minibatches)
        metrics = step(rollout)
        assert_same(metrics._replace(explained_variance=None), expected._replace(explained_variance=None), 1e-12)
        assert_same(parameters_of(step.loss), parameters_of(whole.loss), 1e-12)


@pytest.mark.slow
@pytest.mark.usefixtures("traced_with_gradients")
def test_traced_minibatches_of_environments_first_equal_eager():
    loss = make_loss(value_estimator=estimators.GAE(average_gae=True, time_dim=-1), shared=True, separate_losses=True)
    data = Rollout(*(None if entry is None else entry.transpose(0, 1) for entry in make_rollout((5, 6))))
    step, expected = make_step(copy.deepcopy(loss), "sgd", True, minibatches=3), make_step(loss, "sgd")
    for _ in range(2):
        assert_same(step(data), expected(data), 1e-5)
        assert_same(parameters_of(step.loss), parameters_of(expected.loss), 1e-5)


def test_minibatches_must_be_of_one_size():
    with pytest.raises(ValueError, match=r"^minibatches: expected a number that divides the 6 environments, got 4"):
        make_step(minibatches=4)(make_rollout((5, 6)))
    with pytest.raises(ValueError, match=r"^minibatches: expected at least 1, got 0"):
        make_step(minibatches=0)


# Several updates in one call


@pytest.mark.usefixtures("traced_with_gradients", "requires_grad_refused")
@modes
def test_many_updates_in_one_call_equal_one_call_each(compile):
    rollouts = [make_rollout(seed=seed) for seed in range(3)]
    rollouts[1].reward[0, 0] = float("nan")
    loss = make_loss()
    one_by_one, at_once = make_step(copy.deepcopy(loss)), make_step(copy.deepcopy(loss), compile=compile)
    expected = [one_by_one(rollout) for rollout in rollouts]
    metrics = at_once.many(stacked(rollouts))
    for k in (0, 2):
        assert_same(type(metrics)(*(None if part is None else part[k] for part in metrics)), expected[k], 1e-5)
    assert_same(dict(at_once.state_dict()), dict(one_by_one.state_dict()), 1e-5)
    assert at_once.skipped == 1
    if compile:
        assert graphs_compiled() == 1


# Half-precision networks


@modes
def test_autocast_runs_networks_in_half_precision_and_the_loss_in_float32(compile):
    seen = []

    class Watching(nn.Linear):
        def forward(self, observation):
            output = super().forward(observation)
            seen.append(output.dtype)
            return output

    torch.manual_seed(0)
    loss = make_loss(networks=[Watching(3, 4), Watching(3, 1)])
    exact = make_step(copy.deepcopy(loss), "sgd")
    expected = exact(make_rollout())
    seen.clear()
    with compile_backend("aot_eager"):  # autocast casts in the backward pass too
        half = make_step(loss, "sgd", compile, autocast=torch.bfloat16)
        metrics = half(make_rollout())
    assert set(seen) == {torch.bfloat16}
    assert all(value.dtype == torch.float32 for value in metrics if value is not None)
    assert all(value.dtype == torch.float32 for value in parameters_of(loss).values())
    assert_same(metrics, expected, 0.03)
    assert_same(parameters_of(loss), parameters_of(exact.loss), 0.01)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int8, "bfloat16"])
def test_autocast_to_something_else_is_refused(dtype):
    with pytest.raises(ValueError, match=rf"^autocast: expected torch.bfloat16, torch.float16 or None, got {dtype!r}$"):
        make_step(autocast=dtype)


def test_a_cuda_graph_of_a_cpu_is_refused():
    with pytest.raises(ValueError, match=r"^cuda_graph: expected False unless compiled for a CUDA device, got True on cpu"):
        make_step(compile=True, cuda_graph=True)


# Several processes


def process(rank, folder):
    """One of two, each with half of the environments."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"file://{folder}/rendezvous", rank=rank, world_size=2)
    group = torch.distributed.group.WORLD
    for compile in MODES:
        for name, (options, entries) in DISTRIBUTED.items():
            rollout = make_rollout((5, 6), options=entries)
            half = Rollout(*(None if entry is None else entry[:, 3 * rank : 3 * rank + 3] for entry in rollout))
            # AOTAutograd has to keep the collective operations and the order they run in.
            with compile_backend("eager" if name == "sum" else "aot_eager"):
                step = make_step(distributed_loss(options, True, name == "norms"), "sgd", compile, process_group=group)
                step(half)
                if compile:
                    metrics = step(half)
                else:  # one minibatch of all is the same update
                    metrics = step.epochs(half, 1, 3, "environments")
                    metrics = type(metrics)(*(None if part is None else part[0] for part in metrics))
            if rank == 0:
                torch.save((metrics._asdict(), parameters_of(step.loss)), folder / f"{name}-{compile}.pt")
    with pytest.raises(
        ValueError, match=r"^process_group: expected None unless the loss's value_norm has across_processes=True"
    ):
        make_step(distributed_loss({}, False, norms=True), process_group=group)
    torch.distributed.destroy_process_group()


DISTRIBUTED = {"standardized_masked": ({}, ("mask",)), "sum": ({"reduction": "sum"}, ()), "norms": ({}, ("mask",))}


def distributed_loss(options, across_processes, norms=False):
    estimator = estimators.GAE(average_gae=not norms, across_processes=across_processes)
    actor, critic = make_networks()
    if norms:
        value_norm = PopArt(critic[-1], across_processes=across_processes)
        critic = nn.Sequential(*critic[:-1], value_norm)
        options = {"value_norm": value_norm, "advantage_norm": RunningNorm(across_processes=across_processes)}
    return make_loss(networks=(actor, critic), value_estimator=estimator, **options)


@pytest.mark.slow
def test_two_processes_with_half_of_the_environments_equal_one_with_all(tmp_path):
    torch.multiprocessing.spawn(process, (tmp_path,), nprocs=2)
    for name, (options, entries) in DISTRIBUTED.items():
        step = make_step(distributed_loss(options, False, name == "norms"), "sgd")
        expected = [step(make_rollout((5, 6), options=entries)) for _ in range(2)][-1]
        for compile in MODES:
            metrics, parameters = torch.load(tmp_path / f"{name}-{compile}.pt")
            assert_same(metrics, expected._asdict(), 1e-5)
            assert_same(parameters, parameters_of(step.loss), 1e-5)


def test_something_other_than_a_process_group_is_refused():
    with pytest.raises(TypeError, match=r"^process_group: expected a torch.distributed.ProcessGroup or None, got int"):
        make_step(process_group=1)


def test_minibatches_autocast_and_loss_may_be_assigned():
    rollout = make_rollout()
    assigned, made = (TrainStep(make_loss(), lr=0.1, compile=False) for _ in range(2))
    assigned.minibatches, assigned.autocast = 3, torch.bfloat16
    made = TrainStep(make_loss(), lr=0.1, compile=False, minibatches=3, autocast=torch.bfloat16)
    assert_same(assigned(rollout), made(rollout), 0)
    assigned.minibatches = 4
    with pytest.raises(ValueError, match=r"^minibatches: expected a number that divides the 6 environments, got 4"):
        assigned(rollout)
