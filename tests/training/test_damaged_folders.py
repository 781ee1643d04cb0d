"""Damaged run folders: a part of the campaign in damaged_folders.py, and what a damaged checkpoint does to a run."""

import random

import pytest
from damaged_folders import campaign, make_run

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
