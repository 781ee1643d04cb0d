"""The benchmarks: checks of results, files, reports, and a run of all subjects at the smallest shapes. No test depends on times."""

import json

import pytest
import torch

from a2c_compiled import A2CLoss, cli
from a2c_compiled.benchmarks.contenders.products import products
from a2c_compiled.benchmarks.measure import data, results, shapes
from a2c_compiled.benchmarks.measure.harness import (
    COPY,
    OURS,
    PRODUCTS,
    Case,
    Contender,
    PreparedCase,
    Row,
    compare,
    copy_contender,
    relative_error,
)
from a2c_compiled.benchmarks.measure.results import Results
from a2c_compiled.benchmarks.measure.timing import Timing, time_interleaved
from a2c_compiled.benchmarks.report import plot, tables
from a2c_compiled.benchmarks.run import SUBJECTS, run
from a2c_compiled.benchmarks.subjects import bench_estimators, bench_startup, goals
from a2c_compiled.benchmarks.subjects.bench_update import make_step
from a2c_compiled.distributions import Categorical

CPU = torch.device("cpu")
TINY = shapes.quick(CPU)._replace(
    estimators=((3, 4), (2, 1)),
    others=((3, 4),),
    over_steps=((3, 4), (3, 2)),
    over_envs=((1, 4), (3, 4)),
    packed=((3, 4),),
    updates=((2, 3),),
    images=((2, 3),),
    policies=((5, 1),),
    trainings=((2, 3),),
    samples=3,
    sample_seconds=1e-5,
    budget_seconds=1e-3,
    compiling=False,
    layouts=("[T, N]",),
)
SHAPE = (3, 4)


def of_tiny_run(test):
    """Marks a test that uses ``tiny_run``."""
    return pytest.mark.slow(pytest.mark.xdist_group("tiny_run")(test))


@pytest.fixture(scope="module")
def tiny_run(tmp_path_factory):
    """The results of all subjects, and the folder with the files of the run."""
    out = tmp_path_factory.mktemp("bench")
    return run(TINY, out), out


# The harness


def case(contenders, tolerance=1e-4):
    return Case("sum", "forward", "[T, N]", SHAPE, lambda: PreparedCase([torch.ones(2)], contenders), 800, tolerance)


def answering(*values, expected=None):
    return lambda: Contender(lambda: torch.tensor(values), expected=expected)


@pytest.mark.parametrize(
    ("values", "error"),
    [((1.0, 1.1), "at most 1e-04, got 1.0e-01"), ((1.0, float("nan")), "got inf"), ((1.0,), "got inf")],
    ids=["wrong", "nan", "shape"],
)
def test_a_wrong_result_is_reported_and_not_timed(values, error):
    calls = []
    wrong = Contender(lambda: calls.append(1) or torch.tensor(values))
    rows = compare(case({"right": answering(1.0, 1.0), "wrong": lambda: wrong}), TINY)
    assert [row.contender for row in rows] == ["right", "wrong"]
    assert rows[0].timing is not None
    assert rows[1].timing is None
    assert error in rows[1].failure
    assert len(calls) == 1


def test_a_contender_that_raises_is_reported_and_the_others_run():
    def fails():
        raise RuntimeError("the first line\nand a long trace")

    rows = compare(case({"fails": fails, "right": answering(1.0, 1.0)}), TINY)
    assert rows[0].failure == "RuntimeError: the first line"
    assert rows[1].timing is not None


def test_a_contender_may_have_its_own_expected_result():
    (row,) = compare(case({"other": answering(5.0, expected=[torch.tensor([5.0])])}), TINY)
    assert row.timing is not None
    assert row.error == 0


def test_each_row_has_a_bandwidth_and_the_ratio_to_a_copy():
    rows = compare(case({COPY: copy_contender(800, CPU), "right": answering(1.0, 1.0)}, tolerance=1.0), TINY)
    # The expected result of the copy is its source.
    assert rows[0].times_copy == 1.0
    assert rows[1].times_copy == rows[1].seconds / rows[0].seconds
    assert rows[1].bandwidth == 800 / rows[1].seconds
    assert rows[1]._replace(device_seconds=2.0).bandwidth == 400


def test_only_the_forward_direction_runs_without_gradients():
    seen = []
    probe = {"probe": lambda: Contender(lambda: seen.append(torch.is_grad_enabled()) or torch.ones(2))}
    compare(case(probe), TINY)
    assert not any(seen)
    seen.clear()
    compare(case(probe)._replace(direction="whole"), TINY)
    assert all(seen)


def test_errors_are_relative_to_the_largest_magnitude_of_each_tensor():
    expected = [torch.tensor([0.0, 100.0], dtype=torch.float64), torch.tensor([2.0])]
    assert relative_error([torch.tensor([1.0, 100.0]), torch.tensor([2.0])], expected) == 0.01
    assert relative_error([torch.tensor([0.0, 100.0]), torch.tensor([3.0])], expected) == 0.5
    assert relative_error(expected[:1], expected) == float("inf")


def test_samples_are_taken_in_turn():
    order = []
    timings = time_interleaved({name: lambda name=name: order.append(name) for name in "ab"}, samples=4, sample_seconds=0.0)
    assert order[-8:] == ["a", "b"] * 4
    assert [timing.samples for timing in timings.values()] == [4, 4]


def test_a_slow_function_is_sampled_less_often_but_at_least_three_times():
    order = []
    functions = {"quick": lambda: order.append("quick"), "slow": lambda: order.append("slow")}
    timings = time_interleaved(functions, samples=9, sample_seconds=0.0, budget_seconds=0.0)
    assert timings["slow"].samples == 3
    assert order[-6:] == ["quick", "slow"] * 3


# A run


@of_tiny_run
def test_every_subject_runs_and_every_mode_gives_the_right_result(tiny_run):
    measured, _ = tiny_run
    assert tables.own_failures(measured.rows) == []
    assert {row.subject for row in measured.rows} >= {"GAE", "TD(lambda)", "V-trace", "reward-to-go"}
    assert {row.subject for row in measured.rows} >= {"A2C loss", "A2C update", "greedy policy"}
    modes = {row.contender for row in measured.rows if row.timing}
    assert modes >= {COPY, f"{OURS} eager", f"{OURS} TorchScript", f"{OURS} onnxruntime"}
    assert measured.copy_bandwidth > 0


@of_tiny_run
@pytest.mark.parametrize(
    ("package", "contender"),
    [
        ("torchrl", "torchrl loop"),
        ("torchrl", "torchrl vectorised"),
        ("torchrl", "torchrl A2CLoss"),
        ("numba", "numba, arrays"),
        ("numba", "numba, tensors"),
        ("stable_baselines3", "SB3 RolloutBuffer"),
        ("stable_baselines3", "SB3 A2C.train"),
        ("stable_baselines3", "SB3 predict"),
    ],
)
def test_peers_that_are_installed_take_part_and_agree(package, contender, tiny_run):
    pytest.importorskip(package)
    rows = [row for row in tiny_run[0].rows if row.contender == contender and row.shape != (2, 1)]
    assert rows
    assert [row.failure for row in rows if row.failure] == []


@pytest.mark.slow
def test_results_with_layout_n_t_are_right():
    for asked in bench_estimators.cases(TINY._replace(layouts=("[N, T]",)))[:2]:
        rows = compare(asked, TINY)
        assert {row.layout for row in rows} == {"[N, T]"}
        assert [row.failure for row in rows if row.failure] == []


@of_tiny_run
def test_a_run_leaves_results_a_report_and_pictures(tiny_run):
    measured, out = tiny_run
    names = {"results.json", "report.md", "scaling.png", "scaling.svg", "bandwidth.png", "bandwidth.svg"}
    assert {path.name for path in out.iterdir()} == names
    assert all((out / name).stat().st_size > 1000 for name in names)
    assert results.load(out / "results.json") == Results(*json_types(measured))


def json_types(measured):
    """Tuples of the plan are lists in JSON."""
    return measured._replace(plan=json.loads(json.dumps(measured.plan)))


@pytest.mark.slow
def test_the_number_of_threads_is_restored_after_the_run(tmp_path):
    before = torch.get_num_threads()
    measured = run(TINY._replace(policies=()), tmp_path, ["policy"], threads=2)
    assert measured.machine["threads"] == 2
    assert torch.get_num_threads() == before


@pytest.mark.parametrize("activation", [torch.nn.Tanh, torch.nn.ReLU])
def test_the_products_alone_are_those_of_the_update(activation):
    num_steps, num_envs, inputs, hidden = 16, 32, data.OBSERVATION, 64

    def network(outputs):
        layers = [torch.nn.Linear(inputs, hidden), activation(), torch.nn.Linear(hidden, outputs)]
        return torch.nn.Sequential(*layers)

    loss = A2CLoss(network(data.ACTIONS), network(1), Categorical(data.ACTIONS))
    rollout = data.rollout((num_envs, num_steps), CPU)
    alone = products(make_step(loss, compile=False), rollout)
    result = alone.to_result(alone.call())
    assert relative_error(result, alone.expected) < 1e-5
    # Of each layer: the product, the gradient of the weight, and that of the input unless it is the observation.
    trained = sum(2 * (2 * inputs * hidden + 3 * hidden * outputs) for outputs in (data.ACTIONS, 1))
    next_values = 2 * (inputs * hidden + hidden)
    assert alone.operations == num_steps * num_envs * (trained + next_values)
    assert len(result) == 2 * 5 + 2
    first = loss.actor_network[0](rollout.observation).flatten(0, 1)
    torch.testing.assert_close(result[0], first.tanh() if activation is torch.nn.Tanh else first)


def test_products_of_images_are_convolutions_too():
    alone = products(make_step(data.image_loss(CPU), compile=False), data.image_rollout((2, 3), CPU))
    assert relative_error(alone.to_result(alone.call()), alone.expected) < 1e-5
    forward = 2 * (400 * 32 * 256 + 81 * 64 * 512 + 49 * 64 * 576 + 3136 * 512)
    assert 3 * 6 * forward * 0.8 < alone.operations < 3 * 8 * forward


# Results and report


def stored():
    """A small run, as if it had been measured."""

    def row(contender, microseconds, shape=SHAPE, **more):
        timing = Timing(microseconds * 1e-6, microseconds * 0.9e-6, microseconds * 1.1e-6, 5)
        return Row("GAE", "forward", "[T, N]", shape, contender, 0.75, timing, 1e-7, traffic=264, **more)

    rows = [
        row(COPY, 1.0, times_copy=1.0),
        row(f"{OURS} eager", 4.0, times_copy=4.0),
        row(f"{OURS} compiled", 2.0, times_copy=2.0),
        row("torchrl loop", 1234.5),
        row("numba, arrays", 3.0),
        row(PRODUCTS, 1.6, operations=8000),
        Row("GAE", "forward", "[T, N]", SHAPE, "rl-triton", failure="ImportError: no | such name"),
        Row("GAE", "forward", "[T, N]", (1, 100), "rl-triton", failure="ImportError: no | such name"),
    ]
    machine = {"processor": "A processor", "cores": 2, "threads": 1, "system": "Linux"}
    plan = json.loads(json.dumps({**TINY._asdict(), "device": "cpu"}))
    return Results(machine, {"torch": "2.13.0"}, 2e10, plan, 12.3, rows)


def test_results_are_loaded_from_json_unchanged(tmp_path):
    results.save(stored(), tmp_path / "results.json")
    assert results.load(tmp_path / "results.json") == stored()
    kept = json.loads((tmp_path / "results.json").read_text())["rows"][1]
    assert kept["bandwidth"] == 264 / 4e-6
    assert kept["times_copy"] == 4.0


@pytest.mark.parametrize("text", ["no json", "{}", '{"rows": [1]}'])
def test_a_file_without_results_is_refused(text, tmp_path):
    (tmp_path / "results.json").write_text(text)
    with pytest.raises(ValueError, match="expected results of a2c-compiled bench, got other contents"):
        results.load(tmp_path / "results.json")


def test_the_report_has_machine_tables_and_failures(tmp_path):
    results.save(stored(), tmp_path / "results.json")
    lines = tables.markdown(results.load(tmp_path / "results.json"), {"scaling.png": "Time."}).splitlines()
    assert "A processor, 2 cores, 1 thread of torch, Linux; torch 2.13.0." in lines
    assert "Copying a large buffer reads and writes 20 GB/s. The run took 12 s." in lines
    assert "| us per call; environments x steps | 3x4 |" in lines
    assert f"| {OURS} compiled | **2.00 ±10%** |" in lines
    assert f"| {COPY} | 1.00 ±10% |" in lines, "the copy is not compared with the contenders"
    assert "| torchrl loop | 1,234 ±10% |" in lines
    assert "| rl-triton | - |" in lines
    assert "| speed-up over fastest peer | 1.50 |" in lines
    assert f"| {OURS} / {COPY} | 2.00 |" in lines
    assert f"| {OURS}, GB/s | 0.132 |" in lines
    assert f"| {OURS} / {PRODUCTS} | 1.25 |" in lines
    assert f"| {PRODUCTS}, GFLOP/s | 5.00 |" in lines
    assert f"| GAE | forward | {OURS} compiled | 0.8 |" in lines
    assert "- GAE, forward, [T, N]: rl-triton at 3x4, 1x100: ImportError: no / such name" in lines
    assert "![Time.](scaling.png)" in lines


def update_row(contender, milliseconds, shape=(64, 128)):
    return Row("A2C update", "whole", "[T, N]", shape, contender, timing=Timing(milliseconds * 1e-3, 0.0, 1.0))


def test_goals_stand_beside_what_the_run_measured():
    rows = [update_row(f"{OURS} compiled", 5.0), update_row(PRODUCTS, 4.0), update_row("SB3 A2C.train", 20.0)]
    rows += [update_row(f"{OURS} compiled", 0.11, (8, 5))]
    rows += [Row("GAE", "forward+backward", "[T, N]", (4096, 5), f"{OURS} eager", timing=Timing(1.0, 1.0, 1.0))]
    reached = goals.table(rows, threads=1)
    assert reached.lines == [
        ["update, 64x128: compiled / products alone", "1.25", "at most 1.15", "no"],
        ["update, 8x5: compiled, ms", "0.110", "at most 0.12", "yes"],
        ["update, 64x128: SB3 A2C.train / compiled", "4.00", "at least 4", "yes"],
    ]
    assert len(goals.table(rows, threads=2).lines) == 2, "the goal in milliseconds is for one thread"
    assert "| update, 8x5: compiled, ms | 0.110 | at most 0.12 | yes |" in tables.markdown(stored(), {}, reached)
    assert goals.table(stored().rows, threads=1) is None


def test_every_goal_is_measured_by_the_full_plan():
    """With rows for every case of the plan, every goal has a value: names and shapes agree."""

    class Asked(dict):
        def __missing__(self, key):
            asked.append(key)
            return 1.0

    asked = []
    for goal in goals.GOALS:
        goal.measured(Asked())
    plan = shapes.full(CPU)
    listed = {(case.subject, case.layout, case.shape) for subject in SUBJECTS.values() for case in subject(plan)}
    assert {key[:3] for key in asked} <= listed


@pytest.mark.slow
def test_the_first_training_step_of_a_process_is_measured():
    (case,) = bench_startup.cases(TINY._replace(startups=((2, 3),)))
    contenders = case.prepare()
    imports, *steps = (make() for make in contenders.contenders.values())
    assert imports.to_result(imports.call()) == []
    for step in steps:
        assert relative_error(step.to_result(step.call()), contenders.expected) < case.tolerance


def test_device_and_host_times_have_separate_tables():
    rows = [row._replace(device_seconds=1e-6, host_seconds=5e-6) for row in stored().rows]
    titles = [table.title for table in tables.tables(rows, [SHAPE])]
    full = "GAE, forward, [T, N]"
    assert titles == [full, f"{full}: GPU time", f"{full}: time until the call returns"]


def test_tables_fit_the_terminal():
    wide = [
        row._replace(shape=(8192, steps), timing=Timing(1.234567, 1.0, 1.5, 5))
        if row.timing
        else row._replace(shape=(8192, steps))
        for row in stored().rows
        for steps in (1, 65_536, 100_000, 200_000, 300_000, 400_000, 500_000, 1_000_000)
    ]
    wide += [wide[0]._replace(contender="copy", timing=Timing(1e-6, 1e-6, 1e-6))]
    texts = [table.plain() for table in tables.tables(wide)]
    assert len(texts) == 2
    assert max(len(line) for text in texts for line in text.splitlines()) <= 120


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (1234.5, "1,234"), (59.94, "59.9"), (0.8652, "0.865"), (0.00123, "0.00123"), (1_333_550.0, "1,333,550")],
)
def test_numbers_have_three_significant_digits(value, text):
    assert tables.number(value) == text


# Plans and pictures


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_quick_plan_is_smaller_than_the_full_one(device):
    quick, full = shapes.quick(torch.device(device)), shapes.full(torch.device(device))
    assert len(quick.estimators) < len(full.estimators)
    for name in ("over_steps", "over_envs"):
        swept = getattr(full, name)
        fixed = 0 if name == "over_steps" else 1
        assert len({shape[fixed] for shape in swept}) == 1
        assert len(swept) == len(set(swept)) >= 5


@of_tiny_run
def test_every_contender_has_its_own_style_in_the_figures(tiny_run):
    looks = [(style["color"], style["marker"], style["linestyle"]) for style in map(plot._style, plot._COLOURS)]
    assert len(set(looks)) == len(looks)
    drawn = {row.contender for row in tiny_run[0].rows if (row.subject, row.direction) == ("GAE", "forward")}
    assert drawn <= set(plot._COLOURS)


@pytest.mark.parametrize(("value", "text"), [(1e-6, "1 µs"), (1e-3, "1 ms"), (10.0, "10 s"), (1e-7, "100 ns")])
def test_ticks_of_time_have_units(value, text):
    assert plot._seconds(value, None) == text


# The command


def bench(*arguments):
    return cli.main(["bench", *map(str, arguments)])


def test_the_command_has_help(capsys):
    with pytest.raises(SystemExit, match="0"):
        bench("--help")
    text = " ".join(capsys.readouterr().out.split())
    assert "usage: a2c-compiled bench" in text
    subjects = "estimators, sweep, packed, loss, update, images, policy, startup, training, integrations"
    assert f"any of {subjects}, separated by commas (default: all)" in text


@pytest.mark.slow
def test_the_command_runs_the_chosen_subject(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(shapes, "quick", lambda device: TINY._replace(device=device))
    assert bench("--quick", "--device", "cpu", "--subject", "policy", "--out", tmp_path / "out") == 0
    out = capsys.readouterr().out
    assert "greedy policy, forward, [N, ...]" in out
    assert f"report, plots and results: {tmp_path / 'out'}/" in out
    assert {row.subject for row in results.load(tmp_path / "out" / "results.json").rows} == {"greedy policy"}


def test_a_wrong_result_of_this_package_is_exit_status_1(tmp_path, monkeypatch, capsys):
    wrong = Case("sum", "forward", "[T, N]", SHAPE, lambda: PreparedCase([torch.ones(1)], {f"{OURS} eager": answering(2.0)}))
    monkeypatch.setitem(SUBJECTS, "policy", lambda plan: [wrong])
    assert bench("--quick", "--device", "cpu", "--subject", "policy", "--out", tmp_path) == 1
    message = (
        "sum, forward, [T, N]: a2c_compiled eager at 3x4: wrong result: expected a relative error of at most 1e-04, got 1.0e+00"
    )
    assert f"a2c-compiled: {message}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--threads", "0"), "threads: expected at least 1, got 0"),
        (("--device", "cuda"), "device: expected cpu, since torch finds no GPU here, got cuda"),
    ],
    ids=["threads", "device"],
)
def test_an_invalid_option_is_exit_status_2(arguments, message, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert bench(*arguments) == 2
    assert capsys.readouterr().err.strip() == f"a2c-compiled: {message}"
