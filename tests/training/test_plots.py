"""Pictures of runs: lines, bands, panels and legends."""

import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure

from a2c_compiled.cli import main
from a2c_compiled.training.log import RunLog, load_progress
from a2c_compiled.training.plots import plot_learning_curves, plot_returns, plot_runs
from a2c_compiled.training.run_folder import group_runs

GOAL = 475.0


@pytest.fixture
def figures(monkeypatch):
    """Collects figures instead of saving them, because saving takes long."""
    saved = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *arguments, **options: saved.append(figure))
    return saved


def make_run(folder, seed=0, rows=5, height=100.0, **config):
    """A folder as training leaves it; the return rises to ``height``."""
    with RunLog(folder, 100, progress=False, tensorboard=False) as log:
        for i in range(1, rows + 1):
            log.write({"steps": 10 * i, "seconds": float(i), "return": height * i / rows, "entropy": 0.5})
    (Path(folder) / "config.json").write_text(json.dumps({"env": "CartPole-v1", "solved_return": GOAL, "seed": seed, **config}))
    return folder


def panels(figure):
    return [axis.get_ylabel() for axis in figure.axes]


def names(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


# What is drawn


def test_runs_and_pictures_may_be_named_by_strings_and_what_is_no_path_is_named(tmp_path, figures):
    folder, path = str(make_run(str(tmp_path / "a"))), str(tmp_path / "curves.png")
    plot_runs([folder], path)
    plot_returns([folder], path)
    plot_learning_curves({"a": load_progress(folder)}, path, "a")
    assert len(figures) == 3
    wrong_calls = [
        (lambda: plot_runs([folder], 3), "path: expected a path, got 3"),
        (lambda: plot_returns([3], path), "folders: expected a path, got 3"),
        (lambda: plot_runs(folder, path), f"folders: expected a sequence of paths, got '{folder}'"),
        (lambda: plot_returns(tmp_path, path), "folders: expected a sequence of paths, got "),
        (lambda: load_progress(None), "folder: expected a path, got None"),
    ]
    for call, message in wrong_calls:
        with pytest.raises(TypeError, match=message):
            call()


def test_the_picture_is_written_without_temporary_files(tmp_path):
    make_run(tmp_path / "a", seed=0, rows=3)
    make_run(tmp_path / "b", seed=1)
    make_run(tmp_path / "c", lr=0.1, rows=1)
    path = tmp_path / "pictures" / "curves.png"
    plot_runs([tmp_path / name for name in "abc"], path)
    assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert [file.name for file in path.parent.iterdir()] == ["curves.png"]


@pytest.mark.parametrize("without", [(), ("entropy",), ("loss_critic", "entropy")], ids=len)
def test_there_is_a_panel_for_each_known_column_with_numbers(tmp_path, figures, without):
    columns = {
        "return": [math.nan, 20.0, 30.0],
        "entropy": [0.6, 0.5, 0.4],
        "loss_critic": [9.0, 5.0, 2.0],
        "kl_approx": [math.nan] * 3,
        "grad_norm": [1.0] * 3,
        "unheard_of": [1.0] * 3,
    }
    progress = {"steps": [10.0, 20.0, 30.0], **{name: column for name, column in columns.items() if name not in without}}
    plot_learning_curves({"seed 0": progress, "seed 1": progress}, tmp_path / "curves.png", "A2C", GOAL)
    labels = {"return": "return, mean of 100 episodes", "entropy": "entropy, nats", "loss_critic": "critic loss"}
    labels["grad_norm"] = "gradient norm"
    assert panels(figures[0]) == [label for column, label in labels.items() if column not in without]
    assert names(figures[0]) == ["seed 0", "seed 1", "solved: 475"]
    assert figures[0].axes[0].lines[0].get_xydata().tolist() == [[20.0, 20.0], [30.0, 30.0]]


def test_losses_and_gradients_have_logarithmic_axes_unless_all_are_zero(tmp_path, figures):
    progress = {"steps": [10.0, 20.0], "loss_critic": [0.0, 0.0], "grad_norm": [0.0, 2.0], "entropy": [0.5, 0.4]}
    plot_learning_curves({"seed 0": progress}, tmp_path / "curves.png", "A2C")
    assert {axis.get_ylabel(): axis.get_yscale() for axis in figures[0].axes} == {
        "entropy, nats": "linear",
        "critic loss": "linear",
        "gradient norm": "log",
    }


def test_a_single_row_is_a_visible_point(tmp_path, figures):
    plot_learning_curves({"seed 0": {"steps": [10.0], "return": [5.0]}}, tmp_path / "curves.png", "A2C")
    (line,) = figures[0].axes[0].lines
    assert line.get_marker() == "o"


def test_several_seeds_are_a_mean_and_a_band_up_to_the_shortest_run(tmp_path, figures):
    short = {"steps": [0.0, 10.0], "return": [0.0, 10.0]}
    long = {"steps": [0.0, 20.0], "return": [0.0, 60.0]}
    plot_learning_curves({"ours": [short, long]}, tmp_path / "curves.png", "A2C")
    (axis,) = figures[0].axes
    mean, *tails = axis.lines
    assert names(figures[0]) == ["ours", "mean, min and max of seeds", "seed that ran longer"]
    x, y = mean.get_data()
    assert (x[0], x[-1]) == (0.0, 10.0)
    np.testing.assert_allclose(y, 2 * x)
    low, high = axis.collections[0].get_paths()[0].get_extents().intervaly
    assert (low, high) == (0.0, 30.0)
    assert [tail.get_xydata().tolist() for tail in tails] == [[[20.0, 60.0]]]


def test_the_band_of_five_seeds_lies_between_the_quartiles(tmp_path, figures):
    seeds = [{"steps": [0.0, 10.0], "return": [height, height]} for height in (0.0, 10.0, 20.0, 30.0, 1000.0)]
    plot_learning_curves({"ours": seeds}, tmp_path / "curves.png", "A2C")
    (axis,) = figures[0].axes
    assert axis.collections[0].get_paths()[0].get_extents().intervaly.tolist() == [10.0, 30.0]
    assert axis.lines[0].get_ydata()[0] == 212.0
    assert names(figures[0]) == ["ours", "mean and quartiles of seeds"]


def test_seeds_without_common_steps_are_separate_lines(tmp_path, figures):
    seeds = [{"steps": [0.0, 10.0], "return": [1.0, 2.0]}, {"steps": [20.0], "return": [3.0]}]
    plot_learning_curves({"ours": seeds}, tmp_path / "curves.png", "A2C")
    assert len(figures[0].axes[0].lines) == 2
    assert names(figures[0]) == ["ours"]


@pytest.mark.parametrize(
    ("smooth", "expected"),
    [(1, [0.0, 3.0, 0.0, 3.0, 0.0]), (3, [1.5, 1.0, 2.0, 1.0, 1.5]), (100, [1.2] * 5)],
)
def test_smoothing_takes_means_of_neighbours(tmp_path, figures, smooth, expected):
    progress = {"steps": [1.0, 2.0, 3.0, 4.0, 5.0], "return": [0.0, 3.0, 0.0, 3.0, 0.0]}
    plot_learning_curves({"ours": progress}, tmp_path / "curves.png", "A2C", smooth=smooth)
    y = figures[0].axes[0].lines[0].get_ydata()
    if smooth == 100:
        assert y[2] == pytest.approx(1.2)
    else:
        np.testing.assert_allclose(y, expected)


def test_importing_plots_does_not_change_the_matplotlib_backend():
    import importlib

    import matplotlib

    from a2c_compiled.training import plots

    before = matplotlib.rcParams._get("backend")
    importlib.reload(plots)
    assert matplotlib.rcParams._get("backend") == before


def test_the_last_evaluation_of_each_greedy_policy_is_marked(tmp_path, figures):
    for seed, greedy in ((0, {10: (300.0, 50.0), 30: (480.0, 20.0)}), (1, {})):
        with RunLog(tmp_path / str(seed), 100, progress=False, tensorboard=False) as log:
            for steps in (10, 20, 30):
                log.write({"steps": steps, "seconds": float(steps), "return": steps * 2.0})
                for mean, std in filter(None, [greedy.get(steps)]):
                    log.write({"steps": steps, "greedy_return": mean, "greedy_return_std": std, "greedy_episodes": 100})
    plot_runs([tmp_path / "0", tmp_path / "1"], tmp_path / "curves.png")
    plot_returns([tmp_path / "0", tmp_path / "1"], tmp_path / "returns.png")
    for figure in figures:
        (bars,) = [one for one in figure.axes[0].containers if isinstance(one, ErrorbarContainer)]
        assert bars.lines[0].get_xydata().tolist() == [[30.0, 480.0]]
        assert bars.lines[2][0].get_segments()[0].tolist() == [[30.0, 460.0], [30.0, 500.0]]
        assert names(figure)[-1] == "greedy policy: mean ± std"
        assert [axis.get_ylabel() for axis in figure.axes if "greedy" in axis.get_ylabel()] == []


def test_a_logarithmic_axis_has_at_least_two_ticks(figures, tmp_path):
    generator = np.random.default_rng(0)
    for ratio in 10 ** generator.uniform(0.01, 8, 40):
        low = 10 ** generator.uniform(-4, 4)
        progress = {"steps": [10.0, 20.0], "loss_critic": [low, low * ratio]}
        plot_learning_curves({"seed 0": progress}, tmp_path / "curves.png", "A2C")
        axis = figures[-1].axes[0].yaxis
        bottom, top = axis.get_view_interval()
        assert sum(bottom <= tick <= top for tick in axis.get_majorticklocs()) >= 2, (low, ratio)


# Runs in folders


def test_seeds_of_one_configuration_are_a_group(tmp_path):
    folders = [make_run(tmp_path / f"{lr}_{seed}", seed, lr=lr) for lr in (0.1, 0.2) for seed in (0, 1)]
    assert [group.folders for group in group_runs(folders)] == [folders[:2], folders[2:]]
    assert group_runs(folders)[1].config == {"env": "CartPole-v1", "solved_return": GOAL, "lr": 0.2}


def test_folders_without_a_configuration_are_groups_of_one(tmp_path):
    folders = [make_run(tmp_path / name) for name in ("one", "other")]
    for folder in folders:
        (folder / "config.json").unlink()
    assert [group.folders for group in group_runs(folders)] == [[folders[0]], [folders[1]]]


@pytest.mark.parametrize(
    ("runs", "expected"),
    [
        ({"only": {}}, ["only"]),
        ({"mine/a": {"seed": 0}, "mine/b": {"seed": 1}}, ["mine (2 seeds)"]),
        ({"a": {"lr": 0.1}, "b": {"lr": 0.2, "seed": 1}, "c": {"lr": 0.2}}, ["lr=0.1", "lr=0.2 (2 seeds)"]),
        ({"a": {"lr": 0.1, "gamma": 0.9}, "b": {"lr": 0.2, "gamma": 0.8}}, ["gamma=0.9, lr=0.1", "gamma=0.8, lr=0.2"]),
        ({"a": dict.fromkeys("stuv", 1), "b": dict.fromkeys("stuv", 2)}, ["a", "b"]),
        ({"a/run": dict.fromkeys("stuv", 1), "b/run": dict.fromkeys("stuv", 2)}, ["{}/a/run", "{}/b/run"]),
        ({"old": {}, "new": {"lr": 0.2}}, ["old", "new"]),
        (
            {
                f"{name}/{seed}": {**dict.fromkeys("stuv", value), "seed": seed}
                for value, name in enumerate("pq")
                for seed in (0, 1)
            },
            ["p (2 seeds)", "q (2 seeds)"],
        ),
        (
            {
                f"{name}{seed}": {**dict.fromkeys("stuv", value), "seed": seed}
                for value, name in enumerate("pq")
                for seed in (0, 1)
            },
            ["{0}/p0, {0}/p1 (2 seeds)", "{0}/q0, {0}/q1 (2 seeds)"],
        ),
    ],
    ids=[
        "one",
        "seeds",
        "one_field",
        "two_fields",
        "many_fields",
        "same_name",
        "a_field_that_one_lacks",
        "folders_of_seeds",
        "one_folder_for_all",
    ],
)
def test_the_legend_names_the_options_in_which_runs_differ(tmp_path, figures, runs, expected):
    plot_runs([make_run(tmp_path / name, **config) for name, config in runs.items()], tmp_path / "curves.png")
    expected = [name.format(tmp_path).replace("/", os.sep) for name in expected]
    band = ["mean, min and max of seeds"] if any("seeds)" in name for name in expected) else []
    assert names(figures[0]) == [*expected, "solved: 475", *band]
    assert figures[0].get_suptitle() == "A2C on CartPole-v1"


def test_the_x_axis_may_be_wall_time(tmp_path, figures):
    plot_runs([make_run(tmp_path / "run")], tmp_path / "curves.png", x="seconds", smooth=2)
    assert figures[0].axes[0].lines[0].get_xdata().tolist() == [1.0, 2.0, 3.0, 4.0, 5.0]
    assert figures[0].axes[0].get_xlabel() == "wall time, s"
    assert figures[0].get_suptitle() == "A2C on CartPole-v1, means of 2 rows"


@pytest.mark.parametrize(
    ("configs", "expected"),
    [
        ([{"solved_return": 100.0}, {"solved_return": 100.0, "lr": 0.1}], ["solved: 100"]),
        ([{"solved_return": 100.0}, {"solved_return": 200.0}], []),
        ([{"solved_return": 100.0}, {"solved_return": math.inf}], ["solved: 100"]),
        ([{"env": "Acrobot-v1", "solved_return": None}], ["solved: -100"]),
        ([{"env": "module:Unheard-v0", "solved_return": None}], []),
    ],
    ids=["same", "different", "none", "gymnasium's", "unknown"],
)
def test_the_goal_is_drawn_if_all_runs_have_the_same(tmp_path, figures, configs, expected):
    plot_runs([make_run(tmp_path / f"run{i}", **config) for i, config in enumerate(configs)], tmp_path / "curves.png")
    assert [name for name in names(figures[0]) if name.startswith("solved: ")] == expected


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        (None, {}, "run: expected a folder that training wrote"),
        ("", {}, "run: expected at least one run with a logged row"),
        ("steps,return\n10,nan\n", {}, "run: expected at least one run with a logged row"),
        ("steps,return\n10,1\n", {"x": "updates"}, "x: expected 'steps' or 'seconds', got 'updates'"),
        ("steps,return\n10,1\n", {"smooth": 0}, "smooth: expected at least 1, got 0"),
        ("steps,return\n10,1\n", {"config": "[1"}, r"run: .*config\.json is not readable"),
    ],
)
def test_runs_and_options_that_cannot_be_drawn_are_named(tmp_path, content, options, message):
    folder = tmp_path / "run"
    folder.mkdir()
    (Path(folder) / "config.json").write_text(options.pop("config", "{}"))
    if content is not None:
        (folder / "progress.csv").write_text(content)
    with pytest.raises(ValueError, match=message):
        plot_runs([folder], tmp_path / "curves.png", **options)
    assert not (tmp_path / "curves.png").exists()


@pytest.mark.parametrize("name", ["curves", "curves.", "curves.xyz", ".png"])
def test_a_picture_of_an_unknown_kind_is_refused(tmp_path, name):
    folders = [make_run(tmp_path / "run")]
    for plot in (plot_runs, plot_returns):
        with pytest.raises(ValueError, match=rf"^path: expected a file ending in \.png, \.svg or \.pdf, got .*{name}$"):
            plot(folders, tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


# The command


def test_plot_writes_the_picture_to_the_chosen_file(tmp_path, monkeypatch, capsys, figures):
    monkeypatch.chdir(tmp_path)
    make_run(tmp_path / "a")
    make_run(tmp_path / "b", seed=1)
    assert main(["plot", "a"]) == 0
    assert main(["plot", "a", "b"]) == 0
    assert main(["plot", "a", "b", "--out", "new/both.png", "--x", "seconds", "--smooth", "3"]) == 0
    assert capsys.readouterr().out.split() == [
        os.path.join("a", "learning_curve.png"),
        "learning_curves.png",
        os.path.join("new", "both.png"),
    ]
    assert (tmp_path / "new" / "both.png").is_file()
    assert figures[2].axes[0].get_xlabel() == "wall time, s"
    assert figures[2].get_suptitle().endswith("means of 3 rows")


def test_plot_of_a_folder_without_a_run_is_an_error(tmp_path, capsys):
    assert main(["plot", str(tmp_path)]) == 2
    assert "a2c-compiled: run: expected a folder that training wrote" in capsys.readouterr().err
