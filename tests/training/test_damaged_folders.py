"""Damaged run folders: a part of the campaign in campaigns/damaged_folders.py, and what a damaged checkpoint does to a run."""

import json
import random
import shutil
from pathlib import Path

import pytest
from damaged_folders import STEPS, campaign, make_run
from loops import loop_over
from safetensors.torch import load_file, save_file

from a2c_compiled.training import train
from a2c_compiled.training.checkpoint import check_counters
from a2c_compiled.training.config import load_config

ENDS = ("ran", "error")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("damaged") / "run"
    make_run(folder)
    return folder


def test_eval_of_a_damaged_folder_ends_well_or_with_an_error_in_one_line(run):
    cases = list(campaign(run, ("eval",), random.Random(0), 4, lambda i: i % 7 == 0))
    assert [case for case in cases if case[3] not in ENDS] == []
    assert {case[3] for case in cases} == set(ENDS)


def test_a_damaged_folder_is_resumed_or_refused_with_an_error_in_one_line(run):
    cases = list(campaign(run, ("resume",), random.Random(0), 4, lambda i: i % 83 == 0))
    assert [case for case in cases if case[3] not in ENDS] == []


@pytest.mark.slow
def test_resume_and_plot_of_a_damaged_folder_end_well_or_with_an_error_in_one_line(run):
    cases = list(campaign(run, ("resume", "plot"), random.Random(1), 4, lambda i: i % 31 == 0))
    assert [case for case in cases if case[3] not in ENDS] == []


COUNTERS = {"updates": 3, "episodes": 0, "seconds": 1.5, "returns": [1.0], "lengths": []}


@loop_over(
    ("wrong", "message"),
    [
        ({"updates": -1}, "updates: expected an integer of at least 0, got -1"),
        ({"updates": None}, "updates: expected an integer of at least 0, got None"),
        ({"episodes": 10**30}, f"episodes: expected an integer of at least 0, got {10**30}"),
        ({"seconds": 1e308}, "seconds: expected a number of seconds from 0 to 1e9, got 1e\\+308"),
        ({"seconds": float("nan")}, "seconds: expected a number of seconds from 0 to 1e9, got nan"),
        ({"returns": ["x"]}, "returns: expected a number or a tensor, got 'x'"),
        ({"lengths": 5}, "'int' object is not iterable"),
    ],
)
def test_counters_that_a_run_cannot_have_are_refused(wrong, message):
    check_counters(COUNTERS, Path("run"))
    with pytest.raises(ValueError, match=rf"^run: the checkpoint in run is not readable \({message}\)$"):
        check_counters({**COUNTERS, **wrong}, Path("run"))


def test_a_checkpoint_without_a_counter_is_refused():
    with pytest.raises(ValueError, match=r"^run: expected 'seconds' in .*checkpoint.json, found no such entry$"):
        check_counters({name: value for name, value in COUNTERS.items() if name != "seconds"}, Path("run"))


@pytest.mark.parametrize("name", ["random.cpu", "reward_scale.running", "collector.episodes.running"])
def test_a_run_without_a_part_of_the_state_of_its_environments_begins_new_episodes(run, name, tmp_path):
    folder = shutil.copytree(run, tmp_path / "run")
    updates = json.loads((folder / "checkpoint.json").read_text())["updates"]
    path = folder / "checkpoints" / str(updates) / "rank_0.safetensors"
    save_file({key: x for key, x in load_file(path).items() if key != name}, path)
    with pytest.warns(RuntimeWarning, match="the run goes on with new episodes .the checkpoint has no "):
        assert train(load_config(folder), progress=False, folder=folder, resume=True).steps == STEPS
