"""Every campaign in short, and that a campaign notices faults."""

import ctypes
import os
import signal
import time
from pathlib import Path

import forks
import full_disks
import guard_pages
import memory
import pytest
import run
import signals
import soak
import threads
import torch
import wrong_options
from campaign import ENDLESS, Summary, in_processes, is_crash

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("campaigns")]


def test_run_starts_every_script():
    others = {"campaign", "calls", "run", "test_campaigns"}
    scripts = {path.stem for path in Path(run.__file__).parent.glob("*.py")} - others
    assert {name.partition(",")[0] for name in run.CAMPAIGNS} == scripts


def ending(cases):
    for case in cases:
        if case == "dies":
            os.kill(os.getpid(), signal.SIGSEGV)
        if case == "hangs":
            time.sleep(60)
        yield case


def test_a_process_that_dies_or_hangs_costs_one_case():
    cases = ["one", "dies", "two", "hangs", "three"]
    results = [result for _, result, _ in in_processes(ending, cases, seconds=3)]
    assert results == ["one", "crash with exit status -11", "two", ENDLESS, "three"]


# Kernels


def touching(cases):
    """Reads or writes a byte before or after an operand."""
    for place, offset, write in cases:
        operand = guard_pages.Operand((5,), (1,), torch.float32, place)
        address = operand.tensor.data_ptr() + (offset if offset < 0 else operand.tensor.nbytes)
        if write:
            ctypes.memset(address, 0, 1)
        else:
            ctypes.string_at(address, 1)
        yield "alive"


def test_one_byte_beside_an_operand_ends_the_process():
    deadly = [("after a page", -1), ("before a page", 0)]
    harmless = [("after a page", 0), ("before a page", -1), ("one element after", -1), ("one element before", 0)]
    cases = [(place, offset, write) for place, offset in deadly + harmless for write in (False, True)]
    results = [result for _, result, _ in in_processes(touching, cases)]
    assert [is_crash(result) for result in results] == [True] * 4 + [False] * 8


def test_bytes_between_the_elements_of_an_output_are_noticed():
    for size in (4, 8):
        dtype = {4: torch.float32, 8: torch.float64}[size]
        for wrong in (False, True):
            operand = guard_pages.Operand((3, 4), (9, 2), dtype, "one element after")
            operand.tensor.fill_(1.0)
            if wrong:
                operand.tensor.as_strided((1,), (1,), operand.tensor.storage_offset() + 1).fill_(1.0)
            assert operand.only_the_tensor_is_written() != wrong


def changing(cases):
    """Reads an operand that may not be written, and writes it in some cases."""
    for write in cases:
        operand = guard_pages.Operand((3,), (1,), torch.float32, "after a page")
        operand.pages.forbid_writing()
        operand.tensor.sum()
        if write:
            operand.tensor.zero_()
        yield "alive"


def test_a_written_input_ends_the_process():
    assert [is_crash(result) for _, result, _ in in_processes(changing, [False, True, False])] == [False, True, False]


def test_kernels_touch_no_byte_outside_their_operands():
    results = list(guard_pages.campaign([f"1:{i}" for i in range(600)]))
    assert [(name, result) for name, result, _ in results if result != "right"] == []


def test_triton_kernels_touch_no_byte_outside_their_operands():
    pytest.importorskip("triton")
    if torch.cuda.is_available():
        pytest.skip("the interpreter runs where there is no GPU")
    results = list(guard_pages.campaign([f"1:{i}" for i in range(8)], "triton"))
    assert [(name, result) for name, result, _ in results if result != "right"] == []


# Processes


def cases_of(campaign, *arguments, **options):
    """Runs a campaign, which must find nothing; returns its number of cases."""
    summary = Summary()
    campaign(*arguments, summary=summary, **options)
    assert summary.wrong == []
    return sum(summary.counts.values())


def test_threads_get_the_results_of_one_thread():
    assert cases_of(threads.campaign, threads=4, rounds=2, exports=0, compiled=False, seed=0) > 300


def test_forked_children_get_the_results_of_their_parent():
    kinds = [kind for kind in forks.KINDS if kind not in forks.ANEW]
    assert cases_of(forks.campaign, times=1, compiled=False, seed=0, kinds=kinds) == len(kinds) + 1


def test_the_memory_does_not_grow():
    subjects = ["functions", "loss", "refused calls"]
    assert cases_of(memory.campaign, subjects=subjects, times=400, most=memory.MOST_MIB) == 3


def test_a_growing_memory_is_noticed(monkeypatch):
    assert memory.fault({"half": 1.0, "all": 9.0, "alive": 0, "left": 0}, 8) == "memory grew by 9.0 MiB, 8 allowed"
    assert "2 objects" in memory.fault({"half": 0.0, "all": 0.0, "alive": 2, "left": 0}, 8)
    kept = []
    monkeypatch.setitem(memory.SUBJECTS, "kept", lambda folder: (lambda i: kept.append(torch.ones(10_000)), []))
    result = memory.measured("kept", 2000)
    assert result["all"] > result["half"] > 20.0


def test_a_run_stays_as_it_was():
    options = ["--no-compile", "--hidden", "8", "--log-interval", "20"]
    # Eight seconds on a busy machine say little about the speed, so a tenth of it is enough here.
    assert cases_of(soak.campaign, seconds=8, options=options, lowest_speed=0.1) == 6


def test_a_run_that_slows_down_is_noticed():
    rows = [{"time": t / 2, "cpu": t if t < 24 else 2 * t - 24, "steps": 1000 * (t // 2)} for t in range(34)]
    second, last = soak.quarters(rows)
    assert (second[0]["steps"], second[-1]["steps"]) == (5000, 9000)
    assert (last[0]["steps"], last[-1]["steps"]) == (13000, 16000)
    assert soak.speed(second) == [pytest.approx(500.0), pytest.approx(1000.0)]
    assert soak.speed(last) == [pytest.approx(250.0), pytest.approx(1000.0)]


def test_runs_that_get_signals_end_with_the_tensors_of_an_uninterrupted_run():
    assert cases_of(signals.campaign, kinds=["sync"], times=1, steps=6400, seed=0) >= len(signals.SIGNALS) + 1


def test_a_full_disk_leaves_a_run_that_resumes():
    assert cases_of(full_disks.campaign, times=1, seed=0, exports=False) in (1, 2)


def test_wrong_options_are_refused_in_one_line():
    results = list(wrong_options.campaign(wrong_options.cases()[::30]))
    assert [(case, result) for case, result, _ in results if wrong_options.is_wrong(result)] == []
    assert sum(result == "refused" for _, result, _ in results) > 20
