"""Standardisation over a batch, within groups, separately along a dimension, within a mask, and across processes."""

import oracle
import pytest
import torch
from cases import assert_equals, evaluate, inputs, make_steps, weights
from tolerances import assert_close

from a2c_compiled.estimators import GAE
from a2c_compiled.functional import standardize

EPS = 1e-4
HUGE = 2**62
SHAPE = (4, 5, 3)


def data(shape=SHAPE, dtype=torch.float64, seed=0):
    return (3 + 5 * make_steps(shape, seed=seed).reward).to(dtype)


def mask_of(shape=SHAPE):
    return torch.rand(shape, generator=torch.Generator().manual_seed(1)) < 0.7


def groups_of(shape, ids=(0, 1, 2)):
    generator = torch.Generator().manual_seed(2)
    return torch.tensor(ids)[torch.randint(len(ids), shape, generator=generator)]


OPTIONS = {
    "plain": {},
    "mask": {"mask": mask_of()},
    "nothing_counts": {"mask": torch.zeros(SHAPE).bool()},
    "one_counts": {"mask": (torch.arange(60) == 17).reshape(SHAPE)},
    "group_of_each": {"group": groups_of(SHAPE)},
    "group_of_leading_dim": {"group": groups_of((4,))},
    "group_of_leading_dims": {"group": groups_of((4, 5))},
    "group_with_ones": {"group": groups_of((4, 1, 3))},
    "negative_and_huge_ids": {"group": groups_of(SHAPE, (-HUGE, -1, 0, HUGE, HUGE + 1))},
    "int32_ids": {"group": groups_of(SHAPE).int()},
    "int8_ids": {"group": groups_of(SHAPE, (-128, 127)).to(torch.int8)},
    "groups_of_one": {"group": torch.arange(60).reshape(SHAPE)},
    "separate_first": {"separate_dim": 0},
    "separate_last": {"separate_dim": -1},
    "group_and_mask": {"group": groups_of((4, 5)), "mask": mask_of()},
    "separate_and_mask": {"separate_dim": 1, "mask": mask_of()},
    "group_and_separate": {"group": groups_of(SHAPE), "separate_dim": 2},
    # Twice 2^63 and twice 0 are the same in 64 bits.
    "huge_groups_and_separate": {"group": groups_of(SHAPE, (-(2**63), 0, HUGE, 2**63 - 1)), "separate_dim": 0},
    "all": {"group": groups_of((4,), (-5, HUGE)), "separate_dim": -1, "mask": mask_of()},
}
each_option = pytest.mark.parametrize("options", list(OPTIONS.values()), ids=list(OPTIONS))


@pytest.mark.parametrize("mode", ["eager", "scripted"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@each_option
def test_equals_the_oracle_with_gradient(options, dtype, mode):
    function = torch.jit.script(standardize) if mode == "scripted" else standardize
    arguments = {"x": data(dtype=dtype), "eps": EPS, **options}
    (result,), gradients = evaluate(function, arguments)
    (truth,), true_gradients = evaluate(oracle.standardize, {**arguments, "x": arguments["x"].double()})
    assert result.dtype == dtype
    assert_close(result, truth)
    # In narrower dtypes, the gradient of a group of one is a rounding error divided by eps.
    if dtype == torch.float64:
        assert_close(gradients["x"], true_gradients["x"])


@each_option
def test_gradient_equals_finite_differences(options):
    eps = 0.5  # a group of one has deviation 0, so its gradient is 1 / eps: finite differences need a large eps
    x = data().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: standardize(x, eps, **options), x)


@pytest.mark.parametrize("shape", [(6, 5), (40,), (1, 1), (1, 2), ()], ids=str)
def test_gives_mean_0_and_deviation_1(shape):
    x = data(shape)
    expected = (x - x.mean()) / x.std().clamp_min(EPS) if x.numel() > 1 else x
    assert_close(standardize(x, EPS), expected)


@pytest.mark.parametrize("mode", ["eager", "scripted"])
def test_a_single_element_of_the_whole_batch_stays_unchanged(mode):
    function = torch.jit.script(standardize) if mode == "scripted" else standardize
    x = torch.full((1, 1), 7.0)
    for options in ({}, {"mask": torch.ones(1, 1).bool()}, {"across_processes": True}):
        (result,), gradients = evaluate(function, {"x": x, "eps": EPS, **options})
        assert torch.equal(result, x)
        assert torch.equal(gradients["x"], weights(x))
    one_of_three = torch.tensor([torch.nan, 7.0, torch.nan])
    (result,), gradients = evaluate(function, {"x": one_of_three, "eps": EPS, "mask": ~one_of_three.isnan()})
    assert result.tolist() == [0.0, 7.0, 0.0]
    assert (gradients["x"] != 0).tolist() == [False, True, False]


def test_a_single_element_of_a_group_or_of_an_index_along_separate_dim_is_0():
    x = torch.full((1, 1), 7.0)
    for options in ({"group": torch.zeros(1).long()}, {"separate_dim": 0}):
        assert torch.equal(standardize(x, EPS, **options), torch.zeros(1, 1))


def test_each_index_of_the_only_dimension_is_a_single_element():
    x = torch.tensor([1.0, 2.0, 4.0])
    for function in (standardize, torch.jit.script(standardize)):
        for options in ({}, {"mask": torch.tensor([True, True, False])}):
            assert torch.equal(function(x, EPS, separate_dim=0, **options), torch.zeros(3))


# Sums. In float32, the mean of equal numbers can differ from the numbers, and their standard deviation is then this rounding error.

LARGE = (8192, 1)
LARGE_OPTIONS = {
    "plain": {},
    "mask": {"mask": mask_of(LARGE)},
    "group": {"group": torch.zeros(LARGE, dtype=torch.int64)},
    "separate": {"separate_dim": 1},
    "across_processes": {"across_processes": True},
}
each_large_option = pytest.mark.parametrize("options", list(LARGE_OPTIONS.values()), ids=list(LARGE_OPTIONS))


@pytest.mark.parametrize("mode", ["eager", "scripted"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@each_large_option
def test_equal_elements_give_exactly_0(options, dtype, mode):
    function = torch.jit.script(standardize) if mode == "scripted" else standardize
    for number in (0.1, 0.95, 100.1):
        assert (function(torch.full(LARGE, number, dtype=dtype), 1e-5, **options) == 0).all()


@pytest.mark.parametrize("mode", ["eager", "scripted"])
@each_large_option
def test_numbers_far_from_zero_keep_their_precision_with_gradients(options, mode):
    function = torch.jit.script(standardize) if mode == "scripted" else standardize
    x = (1e4 + torch.randn(LARGE, generator=torch.Generator().manual_seed(0))).float()
    assert_equals(
        function, oracle.standardize, {"x": x, "eps": EPS, **{k: v for k, v in options.items() if k != "across_processes"}}
    )


@pytest.mark.parametrize(
    "options", [{}, {"group": torch.zeros(2).long()}, {"mask": torch.ones(2).bool()}], ids=["", "group", "mask"]
)
def test_divides_by_eps_if_the_deviation_is_smaller(options):
    assert torch.equal(standardize(torch.full((2,), 7.0), EPS, **options), torch.zeros(2))
    spread = torch.tensor([-1e-6, 1e-6], dtype=torch.float64)
    assert_close(standardize(spread, EPS, **options), spread / EPS)


@pytest.mark.parametrize("options", ["", "mask", "group", "separate", "all"])
@pytest.mark.parametrize("shape", [(0,), (0, 3), (3, 0)], ids=str)
def test_empty_data_gives_an_empty_result(shape, options):
    arguments = {
        **({"mask": torch.ones(shape).bool()} if options in ("mask", "all") else {}),
        **({"group": torch.zeros(shape).long()} if options in ("group", "all") else {}),
        **({"separate_dim": 0} if options in ("separate", "all") else {}),
    }
    assert standardize(torch.zeros(shape), EPS, **arguments).shape == shape


def test_elements_outside_the_mask_are_0_and_their_nan_reaches_neither_results_nor_gradients():
    x, mask = data(), mask_of()
    for options in ({}, {"group": groups_of((4,))}, {"separate_dim": 1}):
        outcomes = []
        for left_out in (0.0, torch.nan, torch.inf):
            (result,), gradients = evaluate(
                lambda x: standardize(x, EPS, mask, **options),  # noqa: B023
                {"x": x.masked_fill(~mask, left_out)},
            )
            assert (result[~mask] == 0).all()
            assert (gradients["x"][~mask] == 0).all()
            outcomes.append((result, gradients["x"]))
        assert all(torch.equal(a, b) for pair in outcomes[1:] for a, b in zip(pair, outcomes[0], strict=True))


def test_writes_to_neither_data_nor_groups():
    x, group = data(), groups_of(SHAPE)
    before = x.clone(), group.clone()
    standardize(x, EPS, mask_of(), group, 0)
    assert torch.equal(x, before[0])
    assert torch.equal(group, before[1])


@pytest.mark.slow
def test_compiled_equals_the_oracle_in_other_shapes():
    torch._dynamo.reset()
    compiled = torch.compile(standardize, fullgraph=True, dynamic=True)
    for shape in ((6, 5), (17, 3)):
        options = {"mask": mask_of(shape), "group": groups_of(shape[:1]), "separate_dim": 1}
        with torch._dynamo.config.patch(error_on_recompile=shape != (6, 5)):
            assert_equals(compiled, oracle.standardize, {"x": data(shape), "eps": EPS, **options})


@pytest.mark.slow
def test_compiled_sums_are_as_exact():
    """The graph of inductor sums in its own order."""
    torch._dynamo.reset()

    def all_ways(x, mask, group):
        return standardize(x, 1e-5), standardize(x, 1e-5, mask), standardize(x, 1e-5, None, group)

    compiled = torch.compile(all_ways, fullgraph=True, dynamic=True)
    mask, group = mask_of(LARGE), torch.arange(LARGE[0]) % 2
    for result in compiled(torch.full(LARGE, 0.95), mask, group):
        assert (result == 0).all()
    x = 1e4 + torch.randn(LARGE)
    truths = (oracle.standardize(x, 1e-5, **options) for options in ({}, {"mask": mask}, {"group": group}))
    for result, truth in zip(compiled(x, mask, group), truths, strict=True):
        assert_close(result, truth)


@pytest.mark.parametrize("mode", ["eager", "scripted"])
@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"mask": torch.ones(SHAPE)}, TypeError, "mask: expected dtype torch.bool, got"),
        ({"mask": mask_of()[:1]}, ValueError, r"mask: expected the shape of the data, \[4, 5, 3\], got \[1, 5, 3\]"),
        ({"mask": mask_of().to("meta")}, ValueError, "mask: expected the device of the data, cpu, got meta"),
        ({"group": torch.zeros(4)}, TypeError, "group: expected an integer dtype, got"),
        ({"group": mask_of()}, TypeError, "group: expected an integer dtype, got"),
        ({"group": groups_of((5,))}, ValueError, r"group: expected the shape of the data, \[4, 5, 3\], .* got \[5, 1, 1\]"),
        ({"group": groups_of((4, 5, 3, 1))}, ValueError, r"group: expected the shape of the data, .* got \[4, 5, 3, 1\]"),
        ({"group": groups_of((4,)).to("meta")}, ValueError, "group: expected the device of the data, cpu, got meta"),
        ({"separate_dim": 3}, ValueError, r"separate_dim: expected a dimension of a tensor with shape \[4, 5, 3\], got 3"),
        ({"separate_dim": -4}, ValueError, "separate_dim: expected a dimension"),
        ({"group": groups_of((4,)), "across_processes": True}, ValueError, "across_processes: expected False with groups"),
    ],
)
def test_a_wrong_argument_raises_an_error_that_names_it(options, error, message, mode):
    function = torch.jit.script(standardize) if mode == "scripted" else standardize
    with pytest.raises(torch.jit.Error if mode == "scripted" else error, match=message):
        function(data(), EPS, **options)


# Across processes

ACROSS = {
    "plain": {},
    "mask": {"mask": mask_of()},
    "separate": {"separate_dim": -1},
    "separate_and_mask": {"separate_dim": -1, "mask": mask_of()},
}
# The rows of each process. Their numbers differ.
ROWS = (slice(0, 1), slice(1, 4))


@pytest.mark.parametrize("mode", ["eager", "scripted"])
@pytest.mark.parametrize("name", ACROSS)
def test_across_processes_without_a_process_group_equals_the_plain_result(name, mode):
    function = torch.jit.script(standardize) if mode == "scripted" else standardize
    plain, plain_gradients = evaluate(standardize, {"x": data(), "eps": EPS, **ACROSS[name]})
    across, gradients = evaluate(function, {"x": data(), "eps": EPS, **ACROSS[name], "across_processes": True})
    assert_close(across[0], plain[0])
    assert_close(gradients["x"], plain_gradients["x"])


def gae_inputs():
    return inputs(GAE, make_steps((4, 6, 1)))


def in_one_of_two_processes(rank, folder):
    """Saves this process' rows of every result. The standardisation is over the rows of both processes."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"file://{folder}/rendezvous", rank=rank, world_size=2)
    rows = ROWS[rank]
    saved = {}
    for name, options in ACROSS.items():
        own = {key: value[rows] if key == "mask" else value for key, value in options.items()}
        (result,), gradients = evaluate(standardize, {"x": data()[rows], "eps": EPS, **own, "across_processes": True})
        saved[name] = result.detach(), gradients["x"]
    module = GAE(average_gae=True, across_processes=True)
    own = {name: value[rows] for name, value in gae_inputs().items()}
    saved["gae"] = tuple(module(**own))
    saved["compiled"] = tuple(torch.compile(module, fullgraph=True, backend="aot_eager")(**own))
    torch.save(saved, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


uses_processes = [pytest.mark.slow, pytest.mark.xdist_group("standardization-processes")]


@pytest.fixture(scope="module", params=[pytest.param(None, id="two_processes", marks=uses_processes)])
def both_processes(tmp_path_factory):
    """The results of each of two processes, by name."""
    if not torch.distributed.is_gloo_available():
        pytest.skip("no gloo")
    folder = tmp_path_factory.mktemp("processes")
    torch.multiprocessing.spawn(in_one_of_two_processes, (str(folder),), nprocs=2)
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("name", ACROSS)
def test_two_processes_equal_one_on_all_their_data(both_processes, name):
    together = torch.cat([saved[name][0] for saved in both_processes])
    assert_close(together, oracle.standardize(data(), EPS, **ACROSS[name]))


@pytest.mark.parametrize("name", ["plain", "mask"])
def test_across_processes_no_gradient_passes_through_mean_and_deviation(both_processes, name):
    counts = ACROSS[name].get("mask", torch.ones(SHAPE).bool())
    deviation = data()[counts].std()
    for rows, saved in zip(ROWS, both_processes, strict=True):
        result, gradient = saved[name]
        assert_close(gradient, weights(result).masked_fill(~counts[rows], 0.0) / deviation)


@pytest.mark.parametrize("name", ["gae", "compiled"])
def test_gae_of_two_processes_equals_one_on_all_their_data(both_processes, name):
    expected = GAE(average_gae=True)(**gae_inputs())
    for i, truth in enumerate(expected):
        assert_close(torch.cat([saved[name][i] for saved in both_processes]), truth)
