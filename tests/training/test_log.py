"""The log of a run: rows in progress.csv and TensorBoard, with interruptions, resumption and full disks."""

import errno
import io
import itertools
import math
import os
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from a2c_compiled.training.log import COLUMNS, RunLog, load_progress
from a2c_compiled.update import TrainMetrics


def row(steps, **columns):
    return {"steps": steps, "return": steps / 10, "loss_critic": 0.1, **columns}


def logged(folder, rows, **options):
    with RunLog(folder, 1000, **{"progress": False, "tensorboard": False, **options}) as log:
        for one in rows:
            log.write(one)
    return folder


def test_rows_are_read_back_as_they_were_written(tmp_path):
    rows = [row(64, lr=1 / 3), row(128, lr=1e-9)]
    progress = load_progress(logged(tmp_path / "new" / "run", rows))
    assert list(progress) == list(rows[0])
    assert progress == {name: [one[name] for one in rows] for name in rows[0]}


def writing_with(patch, write):
    """Replaces writes to files by ``write``, whose arguments are the original function and the bytes."""

    class File(io.FileIO):
        def write(self, data):
            return write(super().write, bytes(data))

    def opened(path, mode="r", *options, **named):
        if mode == "r" or "b" in mode:
            return open(path, mode, *options, **named)
        return io.TextIOWrapper(io.BufferedWriter(File(path, mode)), **named)

    patch.setattr(Path, "open", opened)


def test_every_row_is_flushed_in_one_write(tmp_path, monkeypatch):
    written = []
    with RunLog(tmp_path, 1000, progress=False, tensorboard=False) as log:
        log.write(row(1))
        writing_with(monkeypatch, lambda write, line: written.append(line) or write(line))
        for steps in range(2, 5):
            log.write(row(steps))
            assert load_progress(tmp_path)["steps"] == list(range(1, steps + 1))
    assert written == [b"2,0.2,0.1\n", b"3,0.3,0.1\n", b"4,0.4,0.1\n"]


def test_columns_may_be_added_later_and_left_out(tmp_path):
    progress = load_progress(logged(tmp_path, [row(1), row(2, kl_approx=0.5), row(3), {"steps": 4, "entropy": 0.6}]))
    nan = math.nan
    expected = {
        "steps": [1, 2, 3, 4],
        "return": [0.1, 0.2, 0.3, nan],
        "loss_critic": [0.1, 0.1, 0.1, nan],
        "kl_approx": [nan, 0.5, nan, nan],
        "entropy": [nan, nan, nan, 0.6],
    }
    assert list(progress) == list(expected)
    for name, column in progress.items():
        assert column == pytest.approx(expected[name], nan_ok=True), name
    assert [file.name for file in tmp_path.iterdir()] == ["progress.csv"]


def test_a_row_with_the_steps_of_the_last_row_adds_columns_to_it(tmp_path):
    greedy = {"steps": 2, "greedy_return": 9.5}
    logged(tmp_path, [row(1), row(2), greedy, {**greedy, "greedy_return": 10.5}, row(3)])
    progress = load_progress(tmp_path)
    assert progress["steps"] == [1, 2, 3]
    assert progress["return"] == [0.1, 0.2, 0.3]
    assert progress["greedy_return"] == pytest.approx([math.nan, 10.5, math.nan], nan_ok=True)
    logged(tmp_path, [{"steps": 3, "greedy_return": 11.5}], resume_at=3)
    assert load_progress(tmp_path)["greedy_return"] == pytest.approx([math.nan, 10.5, 11.5], nan_ok=True)


def test_an_incomplete_last_line_is_ignored(tmp_path):
    logged(tmp_path, [row(1), row(2)])
    with (tmp_path / "progress.csv").open("a") as file:
        file.write("3,0.")
    assert load_progress(tmp_path)["steps"] == [1, 2]


def test_a_run_without_rows_has_no_columns(tmp_path):
    assert load_progress(logged(tmp_path, [])) == {}


@pytest.mark.parametrize("torn", ["", "4,0.", "4"])
def test_resuming_drops_later_rows(tmp_path, torn):
    logged(tmp_path, [row(1), row(2), row(3)])
    with (tmp_path / "progress.csv").open("a") as file:
        file.write(torn)
    logged(tmp_path, [row(3, entropy=0.5)], resume_at=2)
    assert load_progress(tmp_path)["steps"] == [1, 2, 3]
    assert load_progress(tmp_path)["entropy"] == pytest.approx([math.nan, math.nan, 0.5], nan_ok=True)


def test_resuming_does_not_change_earlier_rows(tmp_path):
    rows = [{**row(number), "episodes": number, "return": 20.0} for number in (1, 2)]
    path = logged(tmp_path, rows) / "progress.csv"
    before = path.read_bytes()
    logged(tmp_path, [], resume_at=2)
    assert path.read_bytes() == before


def test_resuming_without_a_log_starts_a_file(tmp_path):
    assert load_progress(logged(tmp_path, [row(3)], resume_at=2))["steps"] == [3]


def test_a_new_run_in_the_same_folder_replaces_the_log(tmp_path):
    logged(tmp_path, [row(1), row(2, entropy=0.5)])
    assert "entropy" not in load_progress(logged(tmp_path, [row(7)]))
    assert load_progress(tmp_path)["steps"] == [7]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"expected a folder that training wrote, found no .*progress\.csv"),
        (b"steps,return\n1,2\n3\n", r"progress\.csv is not readable"),
        (b"steps\nmany\n", r"progress\.csv is not readable .*'many'"),
        (b"\xff\xfe\n", r"progress\.csv is not readable"),
    ],
)
def test_an_unreadable_progress_file_is_an_error(tmp_path, content, message):
    if content is not None:
        (tmp_path / "progress.csv").write_bytes(content)
    with pytest.raises(ValueError, match=f"run: .*{message}"):
        load_progress(tmp_path)


def full(*_):
    raise OSError(errno.ENOSPC, "No space left on device")


def half(write, line):
    return write(line[: len(line) // 2]) if line.endswith(b"2,0.2,0.1\n") else full()


@pytest.mark.parametrize("fails", [full, half], ids=["none_of_it", "half_of_it"])
def test_a_full_disk_is_warned_about_once_and_leaves_whole_lines(tmp_path, monkeypatch, fails):
    with RunLog(tmp_path, 1000, progress=False, tensorboard=False) as log:
        log.write(row(1))
        with monkeypatch.context() as patch:
            writing_with(patch, fails)
            with pytest.warns(RuntimeWarning, match="its log is incomplete: .*No space left"):
                log.write(row(2))
            assert load_progress(tmp_path)["steps"] == [1]
            assert (tmp_path / "progress.csv").read_bytes().endswith(b"2,0.2" if fails is half else b"1,0.1,0.1\n")
            log.write(row(3))  # would raise what it warns of
        log.write(row(4))
    assert load_progress(tmp_path)["steps"] == [1, 4]


def test_a_full_disk_when_a_column_is_added_keeps_the_rows_before(tmp_path, monkeypatch):
    with RunLog(tmp_path, 1000, progress=False, tensorboard=False) as log:
        log.write(row(1))
        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", full)
            with pytest.warns(RuntimeWarning, match="incomplete"):
                log.write(row(2, entropy=0.5))
        log.write(row(3, entropy=0.5))
    assert load_progress(tmp_path)["steps"] == [1, 3]
    assert [file.name for file in tmp_path.iterdir()] == ["progress.csv"]


def test_a_disabled_log_writes_nothing(tmp_path, capsys):
    logged(tmp_path / "rank1", [row(1)], enabled=False, progress=True, tensorboard=True)
    assert not (tmp_path / "rank1").exists()
    assert capsys.readouterr().err == ""


def test_without_a_folder_only_the_progress_bar_is_shown(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    logged(None, [row(500)], progress=True, tensorboard=True)
    assert "500/1.00k" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_the_progress_bar_shows_steps_and_return(tmp_path, capsys):
    with RunLog(tmp_path / "seed_7", 1000, progress=True, tensorboard=False, resume_at=200) as log:
        log.say("compiling the update")
        log.tell("compiled in 3 s")
        log.write(row(400, **{"return": 123.456}, episode_length=17.0))
        log.write(row(600, **{"return": -0.5}))
    shown = capsys.readouterr().err
    assert "seed_7:  20%" in shown
    assert "compiling the update" in shown
    assert "\rcompiled in 3 s" in shown, "in a line of its own, above the bar"
    assert "600/1.00k" in shown
    assert "return=-0.5, critic=0.1" in shown
    logged(None, [row(400), {"steps": 400, "greedy_return": 7.0}], progress=True)
    assert "return=40, critic=0.1, greedy=7" in capsys.readouterr().err


class Gone(io.StringIO):
    """A stream whose reader goes away after some writes."""

    def __init__(self, writes):
        super().__init__()
        self.writes = writes

    def write(self, text):
        self.writes -= 1
        if self.writes < 0:
            raise BrokenPipeError(errno.EPIPE, "Broken pipe")
        return super().write(text)


@pytest.mark.parametrize("writes", [0, 1, 2])
def test_a_run_goes_on_without_its_bar_when_stderr_has_no_reader(tmp_path, monkeypatch, caplog, writes):
    monkeypatch.setattr(sys, "stderr", Gone(writes))
    logged(tmp_path, [row(steps) for steps in range(100, 1001, 100)], progress=True)
    assert load_progress(tmp_path)["steps"] == list(range(100, 1001, 100))
    assert [record.getMessage() for record in caplog.records] == [
        "training goes on without its progress bar: [Errno 32] Broken pipe"
    ]


def test_every_logged_column_is_a_metric_of_the_training_step_or_of_the_run():
    of_the_run = {"return", "episode_length", "episodes", "lr", "updates", "skipped", "seconds", "steps_per_second"}
    of_the_run |= {"greedy_return", "greedy_return_std", "greedy_episodes"}
    assert COLUMNS.keys() - of_the_run <= set(TrainMetrics._fields)


# TensorBoard


def scalars(folder):
    """Steps and values of each tag, as TensorBoard shows them."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_tensorboard_groups_the_columns(tmp_path):
    rows = [
        row(1, episode_length=5, lr=0.5, grad_norm=2.0, steps_per_second=100.0, entropy=0.5),
        {"steps": 2, "return": math.nan, "lr": 0.25},
    ]
    assert scalars(logged(tmp_path, rows, tensorboard=True)) == {
        "episode/return": [(1, pytest.approx(0.1))],
        "episode/length": [(1, 5.0)],
        "loss/critic": [(1, pytest.approx(0.1))],
        "loss/entropy": [(1, 0.5)],
        "optimizer/lr": [(1, 0.5), (2, 0.25)],
        "optimizer/grad_norm": [(1, 2.0)],
        "speed/steps_per_second": [(1, 100.0)],
    }


def test_tensorboard_shows_the_configuration_and_the_greedy_return(tmp_path):
    config = {"env": "CartPole-v1", "lr": 0.1, "hidden": (64, 64)}
    greedy = {"steps": 2, "greedy_return": 9.5, "greedy_return_std": 1.5, "greedy_episodes": 100}
    logged(tmp_path, [row(2), greedy], tensorboard=True, config=config)
    tags = scalars(tmp_path)
    assert (tags["greedy/return"], tags["greedy/return_std"], tags["greedy/episodes"]) == ([(2, 9.5)], [(2, 1.5)], [(2, 100.0)])
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    (text,) = events.Tensors("config/text_summary")
    table = text.tensor_proto.string_val[0].decode()
    assert table.splitlines()[2:] == ["| env | CartPole-v1 |", "| lr | 0.1 |", "| hidden | (64, 64) |"]


def test_tensorboard_on_a_full_disk_is_warned_about_once_without_a_traceback(tmp_path, monkeypatch, capsys):
    writer = pytest.importorskip("tensorboard.summary.writer.record_writer").RecordWriter
    rows = [row(steps) for steps in range(1, 50)]
    monkeypatch.setattr(writer, "write", full)
    with pytest.warns(RuntimeWarning, match="log is incomplete") as warned:
        logged(tmp_path, (time.sleep(0.001) or one for one in rows), tensorboard=True)
    assert len(warned) == 1
    assert "Traceback" not in capsys.readouterr().err
    assert len(load_progress(tmp_path)["steps"]) == 49


def test_tensorboard_drops_events_after_the_resumed_step(tmp_path, monkeypatch):
    # TensorBoard reads the files of a folder in the order of their names, which begin with the second of their creation.
    writer = pytest.importorskip("tensorboard.summary.writer.event_file_writer")
    seconds = itertools.count(1_000_000_000)
    monkeypatch.setattr(writer, "time", SimpleNamespace(time=lambda: next(seconds)))
    logged(tmp_path, [row(1), row(2), row(3)], tensorboard=True)
    logged(tmp_path, [row(3, **{"return": 7.0}), row(4)], tensorboard=True, resume_at=2)
    returns = scalars(tmp_path)["episode/return"]
    assert [step for step, _ in returns] == [1, 2, 3, 4]
    assert returns[2] == (3, 7.0)
    logged(tmp_path, [row(9)], tensorboard=True)
    assert [step for step, _ in scalars(tmp_path)["episode/return"]] == [9]


def test_a_disk_too_full_for_tensorboard_does_not_end_training(tmp_path, monkeypatch):
    writer = pytest.importorskip("torch.utils.tensorboard").FileWriter
    with RunLog(tmp_path, 1000, progress=False) as log:
        with monkeypatch.context() as patch:
            patch.setattr(writer, "add_summary", full)
            with pytest.warns(RuntimeWarning, match="incomplete"):
                log.write(row(1))
        log.write(row(2))
    assert load_progress(tmp_path)["steps"] == [1, 2]
