"""The training step: torch.optim's updates with clipped gradients, as one pure function, eager and compiled."""

import copy
import operator
import pickle

import pytest
import torch
from loss_cases import assert_same, compile_backend, graphs_compiled, make_loss, make_networks, make_rollout
from torch import nn
from torch.nn.modules.module import register_module_forward_hook
from torch_step import LR, OPTIMIZERS, TorchStep, parameters_of

from a2c_compiled import A2CLosses, estimators
from a2c_compiled.update import Rollout, TrainMetrics, TrainState, TrainStep


def make_step(loss=None, name="rmsprop", compile=False, **options):
    loss = make_loss() if loss is None else loss
    return TrainStep(loss, name.partition("-")[0], **{"lr": LR, "compile": compile, **OPTIMIZERS.get(name, {}), **options})


def assert_same_training(step, expected, rollouts, tolerance=1e-6):
    """Both report and become the same, rollout after rollout."""
    for rollout in rollouts:
        assert_same(step(rollout), expected(rollout), tolerance)
        assert_same(parameters_of(step.loss), parameters_of(expected.loss), tolerance)


def rollouts(count=5, **options):
    return [make_rollout(seed=seed, **options) for seed in range(count)]


# Against torch.optim


@pytest.mark.parametrize("max_grad_norm", [0.05, None])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_step_equals_torch_optim_over_several_updates(name, max_grad_norm):
    loss = make_loss()
    expected = TorchStep(copy.deepcopy(loss), name, max_grad_norm)
    assert_same_training(make_step(loss, name, max_grad_norm=max_grad_norm), expected, rollouts())


@pytest.mark.parametrize("name", ["sgd", "rmsprop", "adam", "adamw"])
def test_step_equals_torch_optim_to_the_last_digits_in_float64(name):
    loss = make_loss(dtype=torch.float64)
    expected = TorchStep(copy.deepcopy(loss), name)
    assert_same_training(make_step(loss, name), expected, rollouts(20, dtype=torch.float64), 1e-12)


@pytest.mark.parametrize("name", ["sgd", "rmsprop", "adam", "adamw"])
def test_a_step_is_the_same_while_another_thread_compiles(name, monkeypatch):
    """Torch says that something is compiled in one flag for all threads."""
    step, other = (make_step(name=name) for _ in range(2))
    for rollout in rollouts(3):
        step(rollout)
        with monkeypatch.context() as patch:
            patch.setattr(torch.compiler, "_is_compiling_flag", True)
            other(rollout)
    assert_same(parameters_of(other.loss), parameters_of(step.loss), 1e-7)


@pytest.mark.parametrize("separate_losses", [False, True])
def test_step_over_a_shared_trunk_equals_torch_optim(separate_losses):
    loss = make_loss(shared=True, separate_losses=separate_losses)
    assert_same_training(make_step(loss), TorchStep(copy.deepcopy(loss)), rollouts())


@pytest.mark.parametrize(
    ("distribution", "options", "entries"),
    [
        ("Categorical", {"value_estimator": "vtrace"}, ("log_prob",)),
        ("Normal", {"clip_value": 0.2}, ("state_value",)),
        ("Categorical", {"reduction": "sum"}, ("mask",)),
        ("OneHotCategorical", {"value_estimator": "vtrace", "clip_value": 0.2}, ("log_prob", "state_value", "mask")),
        ("Normal", {"entropy_coef": 0.0, "loss_critic_type": "l2"}, ()),
    ],
)
def test_step_reads_every_entry_of_the_rollout(distribution, options, entries):
    loss = make_loss(distribution, **options)
    data = rollouts(3, distribution=distribution, options=entries)
    assert_same_training(make_step(loss), TorchStep(copy.deepcopy(loss)), data)
    for entry in entries:
        with_another = make_step(copy.deepcopy(loss)), make_step(copy.deepcopy(loss))
        changed = ~data[0].mask if entry == "mask" else getattr(data[0], entry) - 1.0
        metrics = [
            step(rollout) for step, rollout in zip(with_another, (data[0], data[0]._replace(**{entry: changed})), strict=True)
        ]
        assert metrics[0].loss_critic != metrics[1].loss_critic, entry


def test_step_with_a_sampled_entropy_equals_torch_optim():
    loss = make_loss("TanhNormal", entropy_coef=0.1, samples_mc_entropy=2)
    step, expected = make_step(loss), TorchStep(copy.deepcopy(loss))
    for rollout in rollouts(3, distribution="TanhNormal"):
        torch.manual_seed(1)
        metrics = step(rollout)
        torch.manual_seed(1)
        assert_same(metrics, expected(rollout), 1e-6)
        assert_same(parameters_of(step.loss), parameters_of(expected.loss), 1e-6)


# What it reports and what it leaves alone


@pytest.mark.parametrize(
    ("options", "missing"),
    [
        ({}, {"value_clip_fraction"}),
        ({"clip_value": 0.2}, set()),
        ({"entropy_coef": 0.0}, {"entropy", "loss_entropy", "value_clip_fraction"}),
        ({"critic_coef": None}, {"loss_critic", "value_clip_fraction"}),
    ],
)
def test_metrics_are_detached_scalars_and_none_where_switched_off(options, missing):
    metrics = make_step(make_loss(**options))(make_rollout())
    assert {name for name, value in metrics._asdict().items() if value is None} == missing | {"explained_variance", "kl_approx"}
    assert all(value.shape == () and not value.requires_grad for value in metrics if value is not None)
    assert metrics.grad_norm > 0


def test_the_reported_norm_is_that_before_clipping():
    first = make_step(max_grad_norm=1e-3)(make_rollout())
    assert torch.equal(first.grad_norm, make_step(max_grad_norm=None)(make_rollout()).grad_norm)
    assert first.grad_norm > 1e-2


def test_clipping_bounds_the_update():
    loss = make_loss()
    before = parameters_of(copy.deepcopy(loss))
    make_step(loss, "sgd", max_grad_norm=0.01)(make_rollout())
    moved = torch.cat([(value - before[name]).flatten() for name, value in parameters_of(loss).items()])
    torch.testing.assert_close(moved.norm(), torch.tensor(0.01 * LR), rtol=1e-3, atol=0)


def test_frozen_parameters_stay_and_have_no_state():
    loss = make_loss()
    loss.critic_network.requires_grad_(False)
    before = parameters_of(copy.deepcopy(loss))
    step = make_step(loss, "adamw")
    assert all(name.startswith("actor_network") for name in step.parameter_names)
    assert not any("critic_network" in name for name in step.state_dict() if name.startswith("optimizer_state"))
    step(make_rollout())
    for name, value in parameters_of(loss).items():
        assert torch.equal(value, before[name]) == name.startswith("critic_network")


@pytest.mark.parametrize("name", ["sgd-momentum", "rmsprop-momentum", "adam"])
def test_parameters_that_the_loss_does_not_use_stay(name):
    actor, critic = make_networks()
    critic.register_parameter("unused", nn.Parameter(torch.ones(3)))
    loss = make_loss(networks=[actor, critic])
    step = make_step(loss, name)
    assert "critic_network.unused" in step.parameter_names
    step(make_rollout())
    assert torch.equal(critic.unused, torch.ones(3))
    assert all(value.isfinite().all() for value in parameters_of(loss).values())


def test_weight_decay_leaves_an_unused_parameter_alone():
    actor, critic = make_networks()
    critic.register_parameter("unused", nn.Parameter(torch.ones(3)))
    step = make_step(make_loss(networks=[actor, critic]), "adamw", weight_decay=0.5)
    step(make_rollout())
    assert torch.equal(critic.unused, torch.ones(3))


@pytest.mark.parametrize(
    ("name", "compile"),
    [("rmsprop", False), pytest.param("rmsprop", True, marks=pytest.mark.slow), ("adam", False), ("sgd-momentum", False)],
)
@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda step: pickle.loads(pickle.dumps(step))], ids=["copy", "pickle"])
def test_a_copy_trains_itself_and_not_the_original(name, compile, duplicate):
    with compile_backend():
        step = make_step(name=name, compile=compile)
        before = parameters_of(copy.deepcopy(step.loss))
        twin = duplicate(step)
        twin(make_rollout())
        assert_same(parameters_of(step.loss), before, 0)
        step(make_rollout())
    assert_same(parameters_of(step.loss), parameters_of(twin.loss), 1e-6)


def test_under_autocast_every_update_sees_the_last_one():
    steps = {"outside": make_step(), "inside": make_step()}
    steps["inside"].loss.load_state_dict(steps["outside"].loss.state_dict())
    for _ in range(3):
        with torch.autocast("cpu", torch.bfloat16):
            outside = steps["outside"](make_rollout())
    with torch.autocast("cpu", torch.bfloat16):
        for _ in range(3):
            inside = steps["inside"](make_rollout())
    assert inside.grad_norm == outside.grad_norm


def test_the_count_of_updates_outlives_a_low_precision():
    step = make_step(name="adam")
    step.step_count.fill_(256)
    step.to(torch.bfloat16)
    step(make_rollout(dtype=torch.bfloat16))
    assert step.step_count == 257


def test_a_loss_without_a_loss_is_refused():
    loss = make_loss()
    loss.out_keys = ("entropy",)
    with pytest.raises(ValueError, match="loss: expected out_keys with a loss_"):
        make_step(loss)(make_rollout())


def test_something_other_than_a_rollout_is_refused():
    with pytest.raises(TypeError, match="rollout: expected a Rollout, got tuple"):
        make_step()(tuple(make_rollout()))


def test_no_steps_leave_the_parameters():
    for shape in ((0, 6), (5, 0)):
        loss = make_loss()
        before = parameters_of(copy.deepcopy(loss))
        metrics = make_step(loss)(make_rollout(shape))
        assert metrics.grad_norm == 0
        assert_same(parameters_of(loss), before, 0)


def test_parameters_may_have_any_name():
    class Odd(nn.Module):
        """Children and parameters named as methods of modules and containers are."""

        def __init__(self, outputs):
            super().__init__()
            self.add = nn.Linear(3, 4)
            self.get = nn.Module()
            self.get.step = nn.Linear(4, outputs)

        def forward(self, observation):
            return self.get.step(self.add(observation))

    loss = make_loss(networks=[Odd(4), Odd(1)])
    assert_same_training(make_step(loss, "adam"), TorchStep(copy.deepcopy(loss), "adam"), rollouts(2))


# The pure function


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("name", ["sgd-momentum", "rmsprop-all", "adam"])
def test_the_pure_function_equals_the_call_and_writes_nothing_in_place(name, shared):
    step = make_step(make_loss(shared=shared, separate_losses=shared), name)
    step(make_rollout())
    rollout = make_rollout(seed=1)
    held = step.state()
    objects = list(step.loss.parameters())
    # A state of its own, as an exported step has it.
    state = TrainState(
        [param.detach().clone().requires_grad_() for param in held.params],
        {slot: [tensor.clone() for tensor in tensors] for slot, tensors in held.slots.items()},
        held.step.clone(),
    )
    before = copy.deepcopy(step.state_dict())
    state_before, rollout_before = copy.deepcopy(state), copy.deepcopy(rollout)
    new_state, metrics = step.pure(state, rollout, step.lr)

    assert all(now is then for now, then in zip(step.loss.parameters(), objects, strict=True))
    assert_same(dict(step.state_dict()), dict(before), 0)
    assert_same(rollout._asdict(), rollout_before._asdict(), 0)
    for kept, then in zip(flat(state), flat(state_before), strict=True):
        assert torch.equal(kept, then)
    assert_same(step(rollout), metrics, 0)
    for held_now, new in zip(flat(step.state()), flat(new_state), strict=True):
        assert torch.equal(held_now, new)
        assert not new.requires_grad


def flat(state):
    return [*state.params, *(tensor for slot in state.slots.values() for tensor in slot), state.step]


def test_the_state_is_listed_in_the_order_of_parameter_names():
    step = make_step(name="rmsprop-all")
    assert set(step.state().slots) == {"square_avg", "momentum_buffer", "grad_avg"}
    named = dict(step.loss.named_parameters())
    assert all(param is named[name] for name, param in zip(step.parameter_names, step.state().params, strict=True))
    for tensors in step.state().slots.values():
        assert [tensor.shape for tensor in tensors] == [param.shape for param in step.state().params]


# Saving


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_restored_step_continues_identically(name):
    step = make_step(name=name)
    for rollout in rollouts(3):
        step(rollout)
    step.lr = 0.01
    other = make_step(make_loss(networks=make_networks(seed=1), entropy_coef=0.5), name, lr=1.0)
    other.load_state_dict(copy.deepcopy(step.state_dict()))
    for rollout in rollouts(3):
        assert_same(other(rollout), step(rollout), 0)
    assert_same(dict(other.state_dict()), dict(step.state_dict()), 0)
    assert other.lr.item() == 0.01


def test_the_saved_state_has_the_names_of_the_loss():
    step = make_step(name="adam")
    keys = set(step.state_dict())
    for name in step.parameter_names:
        assert {f"loss.{name}", f"optimizer_state.exp_avg.{name}", f"optimizer_state.exp_avg_sq.{name}"} <= keys
    assert {"lr", "step_count", "loss.entropy_coef", "loss.value_estimator.gamma"} <= keys


def test_the_learning_rate_acts_at_the_next_update():
    loss = make_loss()
    step = make_step(loss, "sgd")
    step.lr = 0.0
    before = parameters_of(copy.deepcopy(loss))
    step(make_rollout())
    assert_same(parameters_of(loss), before, 0)
    step.lr = LR
    expected = TorchStep(copy.deepcopy(loss), "sgd")
    assert_same_training(step, expected, rollouts(2))


# Compiled


@pytest.mark.slow
def test_compiled_step_equals_eager_and_compiles_once_for_all_shapes_and_learning_rates():
    """A shared trunk with separate losses, V-trace and value clipping, a mask, RMSprop with clipping."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    loss = make_loss(shared=True, separate_losses=True, value_estimator="vtrace", clip_value=0.2).double()
    step, eager = make_step(loss, compile=True, dynamic=True), make_step(copy.deepcopy(loss))

    def data(**shape):
        # float64: RMSprop's first step divides by the gradient itself, which blows the rounding of a small one up.
        for rollout in rollouts(2, options=("log_prob", "state_value", "mask"), **shape):
            yield Rollout(*(part.double() if part is not None and part.is_floating_point() else part for part in rollout))

    assert_same_training(step, eager, data(), 1e-10)
    for changed in (step, eager):
        changed.lr = 0.01
        changed.loss.entropy_coef = 0.1
        changed.loss.value_estimator.gamma = 0.5
    with torch._dynamo.config.patch(error_on_recompile=True):
        assert_same_training(step, eager, data(), 1e-10)
        assert_same_training(step, eager, data(shape=(7, 9)), 1e-10)
    assert graphs_compiled() == 1
    assert not torch._dynamo.utils.counters["graph_break"]


# Only traced from here on: the code that inductor generates for these steps is the same.
@pytest.fixture
def traced():
    with compile_backend():
        yield


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sgd-nesterov", "rmsprop-all", "adam-all", "adamw"])
def test_traced_optimizers_equal_eager(name):
    loss = make_loss()
    # AOTAutograd turns updates in place into new tensors: once, with the optimizer that has the most of them.
    with compile_backend("aot_eager" if name == "rmsprop-all" else "eager"):
        assert_same_training(make_step(loss, name, compile=True), make_step(copy.deepcopy(loss), name), rollouts(4), 1e-5)
        assert graphs_compiled() == 1


@pytest.mark.slow
@pytest.mark.usefixtures("traced")
def test_by_default_a_second_shape_compiles_once_more_and_serves_all_further_ones():
    loss = make_loss()
    step, eager = make_step(loss, compile=True), make_step(copy.deepcopy(loss))
    for count, shape in (
        (1, (5, 6)),
        (2, (7, 6)),
        (2, (7, 9)),
        (2, (10, 11)),
        (2, (5, 6)),
        (3, (1, 6)),
        (3, (1, 9)),
        (4, (4, 1)),
    ):
        assert_same_training(step, eager, rollouts(1, shape=shape), 1e-5)
        assert graphs_compiled() == count


class Adjustable(nn.Module):
    """Has everything that a network may read: an attribute, a global variable, training mode, a child that may be replaced."""

    factor = 1.0

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, observation):
        output = self.network(observation) * self.factor * GLOBAL_FACTOR
        return output if self.training else output / 2


GLOBAL_FACTOR = 1.0


def double(step):
    step.double()
    return lambda rollout: Rollout(*(x.double() if x is not None and x.is_floating_point() else x for x in rollout))


def columns_first(rollout):
    return Rollout(*(x if x is None else x.transpose(0, 1).contiguous().transpose(0, 1) for x in rollout))


def set_factor(step):
    step.loss.actor_network.factor = 3.0


def set_global(step):
    globals()["GLOBAL_FACTOR"] = 3.0


def replace_child(step):
    step.loss.critic_network.network = nn.Sequential(*step.loss.critic_network.network, nn.Tanh())


def set_on(path, value):
    """Assigns to an attribute of the step, such as ``loss.clip_value``."""

    def change(step):
        owner, _, name = path.rpartition(".")
        setattr(operator.attrgetter(owner)(step) if owner else step, name, value)

    return change


GLOBAL_HOOKS = []  # to be removed after the test


def doubled_output(module, inputs, output):
    return 2 * output if isinstance(module, Adjustable) else None


CHANGES = {
    "nothing": lambda step: None,
    "dtype": double,
    "strides": lambda step: columns_first,
    "no mask": lambda step: lambda rollout: rollout._replace(mask=None),
    "evaluation mode": lambda step: step.eval() and None,
    "attribute": set_factor,
    "global variable": set_global,
    "replaced layer": replace_child,
    "clipping": set_on("max_grad_norm", None),
    "minibatches": set_on("minibatches", 2),
    "autocast": set_on("autocast", torch.bfloat16),
    "nonfinite": set_on("skip_nonfinite", False),
    "no critic": set_on("loss.critic_coef", None),
    "no clipped value": set_on("loss.clip_value", None),
    "separate losses": set_on("loss.separate_losses", True),
    "coefficient": set_on("loss.value_estimator.gamma", 0.5),
    "estimator": set_on("loss.value_estimator", estimators.TDLambdaEstimator(0.9, 0.8)),
    "numerics": lambda step: torch.set_float32_matmul_precision("medium"),
    "added hook": lambda step: step.loss.actor_network.register_forward_hook(doubled_output) and None,
    "added hook of all modules": lambda step: GLOBAL_HOOKS.append(register_module_forward_hook(doubled_output)),
    "grad mode": lambda step: torch.set_grad_enabled(False) and None,
    "threads": lambda step: torch.set_num_threads(2),
}


@pytest.fixture
def restored(monkeypatch):
    monkeypatch.setitem(globals(), "GLOBAL_FACTOR", 1.0)
    before = torch.is_grad_enabled(), torch.get_num_threads(), torch.get_float32_matmul_precision()
    yield
    while GLOBAL_HOOKS:
        GLOBAL_HOOKS.pop().remove()
    for restore, value in zip(
        (torch.set_grad_enabled, torch.set_num_threads, torch.set_float32_matmul_precision), before, strict=True
    ):
        restore(value)


def adjustable_steps(number):
    """Returns a compiled training step and an eager one, and rollouts."""
    loss = make_loss(networks=[Adjustable(network) for network in make_networks()], clip_value=0.2)
    data = rollouts(number, options=("log_prob", "state_value", "mask"))
    return make_step(loss, compile=True), make_step(copy.deepcopy(loss)), data


@pytest.fixture(scope="module", params=["compiled", pytest.param("loaded", marks=pytest.mark.xdist_group("saved code"))])
def code(request, tmp_path_factory):
    """The file of the compiled code of an adjustable training step. None if it is to be compiled."""
    if request.param == "compiled":
        return None
    torch._dynamo.reset()  # torch remembers shapes and numbers of earlier tests
    path = tmp_path_factory.mktemp("code") / "step.code"
    step, _, (rollout,) = adjustable_steps(1)
    step(rollout)
    step.save_compiled(path)
    return path


@pytest.mark.slow
@pytest.mark.usefixtures("traced", "restored")
@pytest.mark.filterwarnings("ignore:a2c_compiled. no loaded code fits:RuntimeWarning")
@pytest.mark.parametrize("change", CHANGES)
def test_a_traced_step_notices_what_changes_between_two_calls(code, change):
    step, eager, data = adjustable_steps(3)
    if code is not None:
        step.load_compiled(code)
    assert_same_training(step, eager, data[:1], 1e-5)
    assert graphs_compiled() == (code is None)
    changed_rollout, expected_rollout = CHANGES[change](step), CHANGES[change](eager)
    for rollout in data[1:]:
        actual, expected = (
            which(rollout if changed is None else changed(rollout))
            for which, changed in ((step, changed_rollout), (eager, expected_rollout))
        )
        assert_same(actual, expected, 2e-2 if change == "autocast" else 1e-5)


@pytest.mark.slow
@pytest.mark.usefixtures("traced")
def test_traced_step_without_clipping_critic_or_entropy_equals_eager():
    loss = make_loss("Normal", critic_coef=None, entropy_coef=0.0)
    options = {"max_grad_norm": None}
    data = rollouts(3, distribution="Normal")
    assert_same_training(
        make_step(loss, "sgd", compile=True, **options), make_step(copy.deepcopy(loss), "sgd", **options), data, 1e-5
    )


@pytest.mark.slow
@pytest.mark.usefixtures("traced")
def test_a_restored_traced_step_continues_without_compiling_again():
    step = make_step(name="adam", compile=True)
    step(make_rollout())
    saved = copy.deepcopy(step.state_dict())
    expected = step(make_rollout(seed=1))
    step(make_rollout(seed=2))
    step.load_state_dict(saved)
    with torch._dynamo.config.patch(error_on_recompile=True):
        assert_same(step(make_rollout(seed=1)), expected, 0)


# Errors


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: TrainStep(nn.Linear(1, 1)), TypeError, "loss: expected an A2CLoss, got Linear"),
        (
            lambda: make_step(make_loss(reduction="none")),
            ValueError,
            "loss: expected reduction 'mean' or 'sum', .*, got 'none'",
        ),
        (lambda: make_step(lr=-1.0), ValueError, "lr: expected a number of at least 0, got -1.0"),
        (lambda: make_step(lr=float("nan")), ValueError, "lr: expected a number of at least 0, got nan"),
        (lambda: make_step(lr=True), TypeError, "lr: expected a number or a tensor, got True"),
        (lambda: make_step(lr=None), TypeError, "lr: expected a number or a tensor, got None"),
        (lambda: make_step(max_grad_norm=0.0), ValueError, "max_grad_norm: expected a positive number, got 0.0"),
        (lambda: make_step(max_grad_norm=-1), ValueError, "max_grad_norm: expected a positive number, got -1.0"),
        (
            lambda: make_step(name="lion"),
            ValueError,
            "optimizer: expected one of 'sgd', 'rmsprop', 'adam', 'adamw', got 'lion'",
        ),
        (lambda: make_step(name="sgd", betas=(0.9, 0.9)), TypeError, "betas: expected one of sgd's options momentum, nesterov"),
        (lambda: make_step(name="adam", momentum=0.9), TypeError, "momentum: expected one of adam's options betas, eps"),
        (lambda: make_step(learning_rate=0.1), TypeError, "learning_rate: .*; the learning rate is lr"),
        (lambda: make_step(name="rmsprop", amsgrad=True), TypeError, "amsgrad: expected one of rmsprop's options alpha"),
        (lambda: make_step(name="sgd", nesterov=True), ValueError, "nesterov: expected a momentum above 0"),
        (lambda: make_step(name="sgd", momentum=-0.5), ValueError, "momentum: expected a number of at least 0, got -0.5"),
        (lambda: make_step(name="rmsprop", eps=-1.0), ValueError, "eps: expected a number of at least 0, got -1.0"),
        (lambda: make_step(name="rmsprop", alpha=-1.0), ValueError, "alpha: expected a number of at least 0, got -1.0"),
        (
            lambda: make_step(name="adamw", weight_decay=-1.0),
            ValueError,
            "weight_decay: expected a number of at least 0, got -1.0",
        ),
        (lambda: make_step(name="adam", betas=(0.9, 1.0)), ValueError, "betas: expected two numbers from 0 to below 1, got"),
        (lambda: make_step(name="adam", betas=0.9), TypeError, "betas: expected two numbers, got 0.9"),
    ],
)
def test_a_wrong_option_is_refused_by_name(make, error, message):
    with pytest.raises(error, match=f"^{message}"):
        make()


def test_a_loss_with_nothing_to_learn_is_refused():
    loss = make_loss()
    loss.requires_grad_(False)
    with pytest.raises(ValueError, match="loss: expected at least one parameter that requires grad, got none"):
        make_step(loss)


@pytest.mark.parametrize(
    ("loss", "rollout", "message"),
    [
        ({"value_estimator": "vtrace"}, {}, "sample_log_prob: expected a tensor"),
        ({}, {"done": torch.zeros(5, 6)}, "done: expected dtype torch.bool"),
        ({"value_estimator": estimators.GAE(time_dim=2)}, {}, "time_dim: expected a dimension"),
    ],
)
def test_a_wrong_rollout_is_refused_by_name_and_changes_nothing(loss, rollout, message):
    step = make_step(make_loss(**loss))
    before = copy.deepcopy(step.state_dict())
    with pytest.raises((ValueError, TypeError), match=f"^{message}"):
        step(make_rollout()._replace(**rollout))
    assert_same(dict(step.state_dict()), dict(before), 0)


def test_metrics_are_the_losses_and_the_gradients_norm():
    assert TrainMetrics._fields == (*A2CLosses._fields, "grad_norm")
