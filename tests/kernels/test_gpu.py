"""The library on a GPU: results, gradients, transforms, compiled and captured graphs, streams, no synchronisation.

Without a GPU, ``A2C_TEST_DEVICE=cpu`` runs these tests on the CPU, except those about CUDA. test_triton_interpreter.py tests each kernel.
The reference is computed on the CPU in float64: the oracle's loops, or functions that other tests compare with these loops.
"""

import contextlib
import copy
import os

import oracle
import pytest
import torch
from cases import (
    COEFFICIENTS,
    EMPTY_LAYOUTS,
    ENDS,
    FUNCTIONS,
    LAYOUTS,
    VARIANT_IDS,
    VARIANTS,
    VIEWS,
    argument_names,
    as_tuple,
    assert_equals,
    call_arguments,
    evaluate,
    function_in_mode,
    in_double,
    inputs,
    make_steps,
    on,
    operands,
    per_step,
    poisoned,
)
from loss_cases import (
    DISTRIBUTIONS,
    MASKED,
    MODES,
    assert_same,
    gradients,
    make_loss,
    make_loss_steps,
    make_networks,
    make_rollout,
    of,
)
from tolerances import assert_close

from a2c_compiled import functional
from a2c_compiled.kernels import scan_forms
from a2c_compiled.update import TrainStep

DEVICE = os.environ.get("A2C_TEST_DEVICE", "cuda")
ON_CUDA = DEVICE.startswith("cuda")
if ON_CUDA and not torch.cuda.is_available():
    pytest.skip("torch finds no GPU here", allow_module_level=True)

pytestmark = [
    pytest.mark.gpu,
    # Torch's warnings differ between GPUs, for example about TF32 and prototypes.
    pytest.mark.filterwarnings("default", "ignore::DeprecationWarning"),
]
about_cuda = pytest.mark.skipif(not ON_CUDA, reason="about CUDA itself")
each_function = pytest.mark.parametrize("name", FUNCTIONS)

WITH_DONE = tuple(name for name in FUNCTIONS if "done" in argument_names(name))
WITH_CU_SEQLENS = tuple(name for name in FUNCTIONS if "cu_seqlens" in argument_names(name))
WITH_NEXT_VALUE = tuple(name for name in FUNCTIONS if "next_state_value" in argument_names(name))
WITH_ROLLING_GAMMA = tuple(name for name in FUNCTIONS if "rolling_gamma" in argument_names(name))
# One for each pair of fused kernels.
FUSED = (
    "generalized_advantage_estimate",
    "td_lambda_return_estimate",
    "vtrace_advantage_estimate",
    "reward2go",
    "eligibility_trace",
)
each_fused = pytest.mark.parametrize("name", FUSED)


def assert_equals_oracle(name, arguments, mode="eager"):
    # The backward of V-trace reads the value targets, which are rounded and may be large.
    gradient_roundings = dict.fromkeys(arguments, 8) if name.startswith("vtrace") else None
    assert_equals(function_in_mode(name, mode), getattr(oracle, name), arguments, gradient_roundings)


def arguments_of(name, shape, time_dim=-2, dtype=torch.float32, seed=0, ends="some", **options):
    """Arguments of ``functional.<name>`` on the device. Coefficients are numbers unless ``options`` contains others."""
    return call_arguments(name, on(DEVICE, make_steps(shape, dtype, seed, ends)), time_dim, **options)


# -- The functions against the oracle: numbers as coefficients, so that backwards are the kernels' own ---------------------------


@pytest.mark.parametrize(("shape", "time_dim"), LAYOUTS)
@each_function
def test_equals_the_oracle_in_every_layout(name, shape, time_dim):
    assert_equals_oracle(name, arguments_of(name, shape, time_dim))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("shape", "time_dim"), [((13, 17), -2), ((6, 40), -1), ((2, 5, 3, 4), 1)], ids=str)
@each_function
def test_equals_the_oracle_in_every_dtype(name, shape, time_dim, dtype):
    assert_equals_oracle(name, arguments_of(name, shape, time_dim, dtype))


@pytest.mark.parametrize(("shape", "time_dim"), EMPTY_LAYOUTS)
@each_function
def test_empty_data_gives_empty_results_and_gradients(name, shape, time_dim):
    assert_equals_oracle(name, arguments_of(name, shape, time_dim))


@pytest.mark.parametrize("terminated", [True, False], ids=["terminated", "done_alone"])
@pytest.mark.parametrize("ends", ENDS)
@each_function
def test_equals_the_oracle_wherever_episodes_end(name, ends, terminated):
    arguments = arguments_of(name, (9, 4), ends=ends)
    if not terminated and name in WITH_DONE:
        arguments.pop("terminated", None)
    assert_equals_oracle(name, arguments)


@pytest.mark.parametrize("view", VIEWS)
@each_function
def test_equals_the_oracle_on_views(name, view):
    steps = on(DEVICE, make_steps((10, 7), torch.float32))
    assert_equals_oracle(name, call_arguments(name, type(steps)(*map(view, steps)), 0))


@pytest.mark.parametrize("place", [DEVICE, "cpu"])
@pytest.mark.parametrize("kind", COEFFICIENTS)
@each_function
def test_equals_the_oracle_for_every_kind_of_coefficient(name, kind, place):
    """With gradients to those that are tensors, wherever they are."""
    gamma, lmbda = on(place, COEFFICIENTS[kind]((40, 3)))
    assert_equals_oracle(name, arguments_of(name, (40, 3), gamma=gamma, lmbda=lmbda))


@pytest.mark.parametrize(
    ("rho_thresh", "c_thresh"),
    [(0.5, 1.5), (float("inf"), 1), (torch.tensor(0.8), torch.tensor([0.9])), (per_step((9, 4)), per_step((1, 4)))],
    ids=["numbers", "infinite", "tensors", "per_step"],
)
def test_vtrace_equals_the_oracle_for_every_threshold(rho_thresh, c_thresh):
    thresholds = on(DEVICE, {"rho_thresh": rho_thresh, "c_thresh": c_thresh})
    assert_equals_oracle("vtrace_advantage_estimate", arguments_of("vtrace_advantage_estimate", (9, 4), **thresholds))


@pytest.mark.parametrize("name", WITH_ROLLING_GAMMA)
def test_equals_the_oracle_without_rolling_gamma(name):
    gamma = per_step((9, 4), dtype=torch.float32).to(DEVICE)
    assert_equals_oracle(name, arguments_of(name, (9, 4), gamma=gamma, rolling_gamma=False))


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64], ids=str)
@pytest.mark.parametrize("name", WITH_CU_SEQLENS)
def test_packed_sequences_equal_those_on_the_cpu(name, dtype):
    arguments = arguments_of(name, (13, 3))
    arguments["cu_seqlens"] = torch.tensor([0, 3, 3, 4, 11, 13], dtype=dtype, device=DEVICE)
    assert_equals(getattr(functional, name), getattr(functional, name), arguments)


@pytest.mark.parametrize("coefficient", ["number", "per_step"])
@pytest.mark.parametrize("name", WITH_DONE)
def test_nan_after_the_end_of_an_episode_does_not_reach_earlier_steps(name, coefficient):
    """NaN in the next episode and in the next value of a terminated step reaches neither results nor gradients."""
    shape, end = (40, 3), 20
    arguments = arguments_of(name, shape)
    if coefficient == "per_step":
        arguments |= on(DEVICE, {"gamma": per_step(shape).float(), "lmbda": per_step(shape, seed=2).float()})
    arguments = {key: value for key, value in arguments.items() if key in argument_names(name)}
    arguments["done"][end] = True
    if "terminated" in arguments:
        arguments["terminated"][end] = torch.tensor([True, False, True])
    beyond = (torch.arange(shape[0], device=DEVICE) > end).unsqueeze(-1).expand(shape)
    floating = {key for key, value in arguments.items() if torch.is_tensor(value) and value.is_floating_point()}
    dirty = poisoned(arguments, beyond, floating)
    if name in WITH_NEXT_VALUE:
        dirty = poisoned(dirty, arguments["terminated"], {"next_state_value"})

    def before(**tensors):
        return tuple(result[: end + 1] for result in as_tuple(getattr(functional, name)(**tensors)))

    (results, found), (clean, expected) = evaluate(before, dirty), evaluate(before, arguments)
    for result, truth in zip(results, clean, strict=True):
        assert torch.equal(result, truth)
    for key, truth in expected.items():
        assert_close(found[key][: end + 1], truth[: end + 1], what=f"gradient to {key}")


# Shapes with different entries in the tuning table: many rows and few, splits of a long time, time first and time contiguous.
@pytest.mark.parametrize(
    ("shape", "time_dim"), [((2048, 300), -2), ((300, 2048), -1), ((3, 70000), -1), ((70000, 3), -2), ((8, 33000), -1)], ids=str
)
@each_fused
def test_large_data_equals_float64_on_the_cpu(name, shape, time_dim):
    """Long episodes, so that the value passed from one part of time to the next matters. The discounts are exact in float32."""
    arguments = arguments_of(name, shape, time_dim, ends="rare", gamma=1 - 2**-8, lmbda=1 - 2**-9)
    if "log_pi" in arguments:  # clipped or nearly on-policy, so that the trace decays slowly
        arguments["log_pi"] = torch.where(arguments["log_pi"] > 0, 0.3, -0.001)
        arguments["log_mu"] = torch.zeros_like(arguments["log_pi"])
    assert_equals(getattr(functional, name), getattr(functional, name), arguments)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("shape", "dim"), [((40, 3), -2), ((3, 300), -1), ((2, 5, 3), 1)], ids=str)
def test_reverse_scan_equals_the_oracle(shape, dim, dtype):
    x, decay = make_steps(shape, dtype).reward, per_step(shape, -1.0, 1.0, dtype)
    tensors = {"x": x, "decay": decay.masked_fill(make_steps(shape, seed=2).done, 0.0), "dim": dim}
    assert_equals(functional.reverse_scan, oracle.reverse_scan, on(DEVICE, tensors), {"x": 3, "decay": 3})


def test_standardize_equals_the_cpu():
    x = 3 + 5 * make_steps((60, 50), torch.float32).reward
    assert_close(functional.standardize(x.to(DEVICE), 1e-4).cpu(), functional.standardize(x.double(), 1e-4))
    equal, group = torch.full((8192, 1), 0.1, device=DEVICE), torch.zeros(8192, dtype=torch.int64, device=DEVICE)
    for options in ({}, {"group": group}, {"mask": torch.ones_like(equal, dtype=torch.bool)}):
        assert (functional.standardize(equal, 1e-5, **options) == 0).all()


# -- Derivatives, operators, transforms ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("check", [torch.autograd.gradcheck, torch.autograd.gradgradcheck], ids=["first", "second"])
@pytest.mark.parametrize("coefficients", ["numbers", "learnt", "per_step"])
@each_fused
def test_derivatives_equal_finite_differences(name, coefficients, check):
    arguments = arguments_of(name, (4, 2), dtype=torch.float64)
    if coefficients != "numbers":
        gamma, lmbda = COEFFICIENTS["per_step" if coefficients == "per_step" else "scalar_tensor"]((4, 2))
        arguments |= on(DEVICE, {"gamma": gamma, "lmbda": lmbda} if "lmbda" in arguments else {"gamma": gamma})
    variables = {
        key: value.requires_grad_() for key, value in arguments.items() if torch.is_tensor(value) and value.is_floating_point()
    }

    def function(*tensors):
        return getattr(functional, name)(**{**arguments, **dict(zip(variables, tensors, strict=True))})

    assert check(function, tuple(variables.values()))


@pytest.mark.parametrize("form", scan_forms.FORMS, ids=lambda form: form.name)
def test_operator_passes_opcheck(form):
    tensors = on(DEVICE, tuple(operands(form, (6, 9)).values()))
    outcome = torch.library.opcheck(getattr(torch.ops.a2c_compiled, form.name).default, (*tensors, -2))
    assert set(outcome.values()) == {"SUCCESS"}


@each_fused
def test_vmap_and_func_grad_equal_one_call_each(name):
    batched = arguments_of(name, (3, 5, 4), dtype=torch.float64)
    tensors = {key: value for key, value in batched.items() if torch.is_tensor(value)}
    numbers = {key: value for key, value in batched.items() if key not in tensors}

    first = next(key for key, value in tensors.items() if value.is_floating_point())

    def total(leaf, others):
        return sum(
            result.square().sum() for result in as_tuple(getattr(functional, name)(**{first: leaf}, **others, **numbers))
        )

    leaves = tensors.pop(first)
    per_sample = torch.vmap(total)(leaves, tensors)
    found = torch.vmap(torch.func.grad(total))(leaves, tensors)
    for i in range(3):
        leaf, others = leaves[i].clone().requires_grad_(), {key: value[i] for key, value in tensors.items()}
        value = total(leaf, others)
        assert_close(per_sample[i], value)
        assert_close(found[i], torch.autograd.grad(value, leaf)[0])
        assert_close(torch.func.grad(total)(leaves[i], others), found[i])


# -- Compiled ------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def fresh_dynamo():
    """Starts the test without compiled graphs, so that it runs no graph of another test and does not reach Dynamo's limit."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    function_in_mode.cache_clear()


@pytest.mark.slow
@pytest.mark.usefixtures("fresh_dynamo")
@pytest.mark.parametrize(("name", "learnt"), [*((name, False) for name in FUNCTIONS), (FUSED[0], True), (FUSED[2], True)])
def test_compiled_equals_the_oracle_and_compiles_once_for_all_shapes(name, learnt):
    """Torch operations compute the gradient of a learnt coefficient. Kernels compute the other gradients."""
    gamma = torch.tensor(0.97, device=DEVICE) if learnt else 0.97
    assert_equals_oracle(name, arguments_of(name, (7, 5), gamma=gamma), "compiled")
    with torch._dynamo.config.patch(error_on_recompile=True):
        for shape in ((4, 9), (128, 3)):
            assert_equals_oracle(name, arguments_of(name, shape, gamma=gamma), "compiled")


@pytest.mark.slow
@pytest.mark.usefixtures("fresh_dynamo")
def test_gae_in_cuda_graphs_of_the_compiler_equals_eager():
    name = "generalized_advantage_estimate"
    compiled = torch.compile(getattr(functional, name), fullgraph=True, mode="reduce-overhead")
    for seed in range(4):  # warmed up, recorded, replayed
        torch.compiler.cudagraph_mark_step_begin()
        assert_equals(compiled, getattr(oracle, name), arguments_of(name, (16, 8), seed=seed))
    assert torch._dynamo.utils.counters["inductor"]["cudagraph_skips"] == 0 or not ON_CUDA


@pytest.mark.slow
@pytest.mark.usefixtures("fresh_dynamo")
def test_loss_in_cuda_graphs_of_the_compiler_equals_eager():
    loss = make_loss(shared=True, clip_value=0.2).to(DEVICE)
    compiled = torch.compile(loss, fullgraph=True, mode="reduce-overhead")
    for seed in range(4):
        torch.compiler.cudagraph_mark_step_begin()
        arguments = on(DEVICE, of(make_loss_steps(seed=seed), *MASKED))
        outputs, expected = compiled(**arguments), loss(**arguments)
        assert_same(outputs, expected)
        assert_same(gradients(outputs, loss), gradients(expected, loss))
    assert torch._dynamo.utils.counters["inductor"]["cudagraph_skips"] == 0 or not ON_CUDA


# -- CUDA itself: captured graphs, no synchronisation, streams, devices ----------------------------------------------------------------

# Coefficients, and whether there is a backward. "learnt": one is a tensor that requires a gradient, the others are numbers.
CALLS = [("numbers", False), ("tensors", False), ("numbers", True), ("tensors", True), ("learnt", True)]
each_call = pytest.mark.parametrize(("coefficients", "backward"), CALLS, ids=lambda value: {True: "backward"}.get(value, value))


def prepared(name, coefficients, backward, seed=0, shape=(16, 8)):
    """Arguments for :func:`outcome`, on the device."""
    found = {"gamma": 0.97, "lmbda": 0.9}
    if coefficients != "numbers":
        found["gamma"] = torch.tensor(0.97 - 0.1 * seed, device=DEVICE).requires_grad_(coefficients == "learnt")
    if coefficients == "tensors":
        found["lmbda"] = torch.tensor(0.9, device=DEVICE)
    steps = on(DEVICE, make_steps(shape, torch.float32, seed))
    steps = type(steps)(*(step.requires_grad_(backward and step.is_floating_point()) for step in steps))
    return call_arguments(name, steps, **found)


def outcome(name, arguments):
    """Results, and gradients to all that requires them: no more than the device can do alone."""
    results = as_tuple(getattr(functional, name)(**arguments))
    leaves = [value for value in arguments.values() if torch.is_tensor(value) and value.requires_grad]
    if not leaves:
        return results
    found = torch.autograd.grad(results, leaves, [torch.ones_like(result) for result in results])
    return (*(result.detach() for result in results), *found)


def captured(call):
    """``call`` as a CUDA graph: what replays it, and the results, which every replay writes anew."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        call()  # compiles and loads the kernels
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = call()
    return graph.replay, results


@contextlib.contextmanager
def waiting_refused():
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@about_cuda
@each_call
@each_function
def test_captured_graph_equals_eager_on_new_data(name, coefficients, backward):
    """A call before the capture compiles and loads the kernels, which a capture does not allow."""
    static = prepared(name, coefficients, backward)
    replay, results = captured(lambda: outcome(name, static))
    for seed in (1, 2):
        new = prepared(name, coefficients, backward, seed)
        with torch.no_grad():
            for key, value in new.items():
                if torch.is_tensor(value):
                    static[key].copy_(value)
        replay()
        for result, expected in zip(results, outcome(name, new), strict=True):
            assert torch.equal(result, expected)


@about_cuda
@each_call
@each_function
def test_eager_calls_never_synchronise(name, coefficients, backward):
    arguments = prepared(name, coefficients, backward)
    outcome(name, arguments)
    with waiting_refused():
        outcome(name, arguments)


@about_cuda
@pytest.mark.parametrize("mode", MODES)
def test_the_loss_never_synchronises(mode):
    """Nor does what is in it: distributions and estimators."""
    distribution, options, shared, names = MODES[mode]
    loss = make_loss(distribution, shared, **options).to(DEVICE)
    arguments = on(DEVICE, of(make_loss_steps(distribution=distribution), *names))

    def total():
        return sum(value.sum() for value in loss(**arguments) if value is not None and value.requires_grad)

    torch.autograd.grad(total(), list(loss.parameters()), allow_unused=True)
    with waiting_refused():
        torch.autograd.grad(total(), list(loss.parameters()), allow_unused=True)


@about_cuda
@each_fused
def test_runs_on_the_current_stream(name):
    arguments = prepared(name, "numbers", True)
    expected = outcome(name, arguments)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        late = {key: torch.zeros_like(value) if torch.is_tensor(value) else value for key, value in arguments.items()}
        torch.cuda._sleep(50_000_000)  # on another stream the zeros would be read
        for key, value in arguments.items():
            if torch.is_tensor(value):
                late[key].copy_(value.detach()).requires_grad_(value.requires_grad)
        results = outcome(name, late)
    stream.synchronize()
    for result, truth in zip(results, expected, strict=True):
        assert torch.equal(result, truth)


@pytest.mark.skipif(not ON_CUDA or torch.cuda.device_count() < 2, reason="needs two GPUs")
@each_function
def test_data_may_be_on_another_device_than_the_current_one(name):
    arguments = {key: on("cuda:1", value) for key, value in arguments_of(name, (9, 4)).items()}
    for _ in range(2):  # the second call takes the direct launch
        assert torch.cuda.current_device() == 0
        assert_equals_oracle(name, arguments)


@pytest.mark.skipif(not ON_CUDA or torch.cuda.device_count() < 2, reason="needs two GPUs")
@each_fused
def test_runs_on_the_current_stream_of_the_device_of_the_data(name):
    arguments = {key: on("cuda:1", value) for key, value in prepared(name, "numbers", False).items()}
    expected = outcome(name, arguments)
    stream = torch.cuda.Stream("cuda:1")
    stream.wait_stream(torch.cuda.current_stream("cuda:1"))
    torch.cuda.synchronize("cuda:1")
    with torch.cuda.stream(stream):
        torch.cuda.set_device(0)  # keeps the stream of cuda:1
        late = {key: torch.zeros_like(value) if torch.is_tensor(value) else value for key, value in arguments.items()}
        with torch.cuda.device(1):
            torch.cuda._sleep(50_000_000)  # on another stream the zeros would be read
        for key, value in arguments.items():
            if torch.is_tensor(value):
                late[key].copy_(value)
        results = outcome(name, late)
    stream.synchronize()
    for result, truth in zip(results, expected, strict=True):
        assert torch.equal(result, truth)


@about_cuda
def test_triton_starts_kernels_here():
    """Without a compiler for Triton's launcher, the other tests would test plain torch."""
    from a2c_compiled.kernels import triton_scan

    assert triton_scan.is_available()


@pytest.mark.parametrize("coefficients", ["numbers", "learnt"])
@each_fused
def test_two_runs_give_bitwise_equal_results(name, coefficients):
    arguments = prepared(name, coefficients, True, shape=(2048, 30))
    for result, again in zip(outcome(name, arguments), outcome(name, arguments), strict=True):
        assert torch.equal(result, again)


# -- Modules -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["eager", "scripted"])
@pytest.mark.parametrize(("kind", "options"), VARIANTS, ids=VARIANT_IDS)
def test_estimator_equals_the_cpu(kind, options, mode):
    reference = kind(**options, differentiable=True)
    module = copy.deepcopy(reference).to(DEVICE)
    module = torch.jit.script(module) if mode == "scripted" else module
    for shape in ((9, 4), (3, 6, 1)):  # a script is optimised after its first run
        assert_equals(module, reference, on(DEVICE, inputs(kind, make_steps(shape))))


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_distribution_equals_float64_on_the_cpu(name):
    kind, size = DISTRIBUTIONS[name]
    steps = make_loss_steps((4, 5), name)
    params, action = make_networks(name)[0](steps.observation).detach(), steps.action

    def scored(distribution, params, action):
        entropy = [distribution.entropy(params)] if distribution.has_entropy else []
        return (distribution.log_prob(params, action), *entropy, distribution.mode(params))

    leaf, wide = params.to(DEVICE).requires_grad_(), in_double({"params": params, "action": action})
    results = scored(kind(size).to(DEVICE), leaf, action.to(DEVICE))
    expected = scored(kind(size), wide["params"].requires_grad_(), wide["action"])
    for result, truth in zip(results, expected, strict=True):
        assert_close(result.cpu(), truth, torch.float32)
    (found,), (truth,) = (
        torch.autograd.grad(values[0].sum(), p) for values, p in ((results, leaf), (expected, wide["params"]))
    )
    assert_close(found.cpu(), truth, what="gradient")


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_samples_equal_those_of_the_cpu_for_the_same_noise(name):
    kind, size = DISTRIBUTIONS[name]
    distribution = kind(size).to(DEVICE)
    steps = make_loss_steps((400, 50), name, torch.float64)
    params = make_networks(name, dtype=torch.float64)[0](steps.observation).detach()
    there = params.to(DEVICE)
    noise = distribution.noise(there)
    assert noise.device == there.device
    assert_close(distribution.sample_from(there, noise).cpu(), kind(size).sample_from(params, noise.cpu()), torch.float64)
    sample = distribution.sample(there)
    assert (sample.shape, sample.device) == (steps.action.shape, there.device)
    log_prob = distribution.log_prob(there, sample)
    assert log_prob.isfinite().all()
    # Minus its mean is the entropy, which says that the noise is what it should be; five standard errors of it.
    surplus = log_prob.cpu() + kind(size).entropy_estimate(params, 100)
    assert surplus.mean().abs() < 5 * surplus.std() / surplus.numel() ** 0.5


@pytest.mark.parametrize("form", ["eager", "scripted"])
@pytest.mark.parametrize("mode", MODES)
def test_loss_and_its_gradients_equal_float64_on_the_cpu(mode, form):
    distribution, options, shared, names = MODES[mode]
    if distribution == "TanhNormal":  # its entropy is sampled, and each device draws its own numbers
        options = {**options, "entropy_bonus": False}
    reference = make_loss(distribution, shared, dtype=torch.float64, **options)
    loss = make_loss(distribution, shared, **options).to(DEVICE)
    module = torch.jit.script(loss) if form == "scripted" else loss
    for shape in ((4, 5), (3, 7)):
        steps = of(make_loss_steps(shape, distribution), *names)
        outputs, expected = module(**on(DEVICE, steps)), reference(**in_double(steps))
        found = (outputs._asdict(), gradients(outputs, loss))
        for actual, truth in zip(found, (expected._asdict(), gradients(expected, reference)), strict=True):
            assert_same(in_double(on("cpu", actual)), truth, 1e-5)


# -- The training step ---------------------------------------------------------------------------------------------------------


def make_step(optimizer, compile=False):
    # float64: RMSprop's first step divides by the gradient itself, which blows the rounding of a small one up.
    loss = make_loss(shared=True, dtype=torch.float64, value_estimator="vtrace", clip_value=0.2)
    return TrainStep(loss, optimizer, lr=0.05, compile=compile, dynamic=True if compile else None)


def train(step, device, seeds):
    """Metrics of one update for each seed, on the host."""
    options = ("log_prob", "state_value", "mask")
    rollouts = [on(device, make_rollout(seed=seed, dtype=torch.float64, options=options)) for seed in seeds]
    return [on("cpu", step(rollout)) for rollout in rollouts]


def assert_same_training(step, reference, seeds):
    for metrics, expected in zip(train(step, DEVICE, seeds), train(reference, "cpu", seeds), strict=True):
        assert_same(metrics, expected, 1e-9)
    assert_same(on("cpu", dict(step.state_dict())), dict(reference.state_dict()), 1e-9)


@pytest.mark.parametrize("optimizer", ["sgd", "rmsprop", "adam", "adamw"])
def test_training_step_equals_the_cpu_and_moves_with_its_state(optimizer):
    step, reference = make_step(optimizer), make_step(optimizer)
    for one in (step, reference):  # what is moved is not the state before the first step
        train(one, "cpu", [0])
    step.to(DEVICE)
    assert {tensor.device.type for tensor in step.state_dict().values()} == {torch.device(DEVICE).type}
    assert_same_training(step, reference, [1, 2, 3])
    step.lr = reference.lr = 0.01
    assert_same_training(step, reference, [4])
    back = make_step(optimizer)
    back.load_state_dict(step.state_dict())
    assert_same(train(back, "cpu", [5])[0], train(reference, "cpu", [5])[0], 1e-9)


@pytest.mark.slow
@pytest.mark.usefixtures("fresh_dynamo")
def test_compiled_training_step_equals_the_cpu():
    step, reference = make_step("rmsprop", compile=True).to(DEVICE), make_step("rmsprop")
    assert_same_training(step, reference, range(3))
    with torch._dynamo.config.patch(error_on_recompile=True):
        step.lr = reference.lr = 0.01
        assert_same_training(step, reference, range(3, 5))


@about_cuda
@pytest.mark.slow
@pytest.mark.usefixtures("fresh_dynamo")
def test_training_step_as_a_cuda_graph_equals_the_cpu():
    """The first calls record; later ones replay what was recorded on data at other addresses, with another learning rate."""
    reference = make_step("rmsprop")
    step = TrainStep(make_step("rmsprop").loss.to(DEVICE), "rmsprop", lr=0.05, cuda_graph=True)
    assert_same_training(step, reference, range(5))
    step.lr = reference.lr = 0.01
    assert_same_training(step, reference, range(5, 8))
    assert torch._dynamo.utils.counters["inductor"]["cudagraph_skips"] == 0
