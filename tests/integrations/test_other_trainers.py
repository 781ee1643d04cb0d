"""The functions of docs/other_trainers.md, on results that the trainers' own functions computed."""

import numpy as np
import other_trainers
import pytest
import torch
from loops import loop_over
from other_trainers import GAMMA, LMBDA, RECORDS, TRAINERS, functions_of_the_page, largest_difference, one_step_late

from a2c_compiled import functional as F

PAGE = functions_of_the_page()


def recorded(name):
    """Returns the rollout and the trainer's results in a record."""
    with np.load(RECORDS / f"{name}.npz") as record:
        arrays = {key: torch.from_numpy(record[key]) for key in record.files if key != "version"}
    rollout = {key.removeprefix("rollout."): array for key, array in arrays.items() if key.startswith("rollout.")}
    return rollout, [arrays[f"result.{i}"] for i in range(len(arrays) - len(rollout))]


@loop_over("name", TRAINERS)
def test_a_function_of_the_page_gives_the_recorded_results_of_the_trainer(name):
    rollout, results = recorded(name)
    assert rollout["terminated"].any()
    assert rollout["truncated"].any()
    assert largest_difference(name, TRAINERS[name].arguments(rollout)(PAGE[TRAINERS[name].ours]), results) < 1e-6


def test_each_record_names_the_version_that_the_page_names():
    for name in TRAINERS:
        with np.load(RECORDS / f"{name}.npz") as record:
            assert f"{record['version']}." in other_trainers.PAGE.read_text(), name


def test_a_result_that_differs_from_the_trainer_is_an_error():
    for wrong in (
        torch.tensor([1.0, 2.1]),
        torch.tensor([1.0, float("nan")]),
        torch.tensor([[1.0, 2.0]]),
        torch.ones(2).double(),
    ):
        with pytest.raises(ValueError, match="skrl: expected"):
            largest_difference("skrl", [wrong], [torch.tensor([1.0, 2.0])])


def test_the_time_outs_of_the_trainers_are_what_the_page_says():
    def value_target(name, next_value, done, terminated):
        rollout, results = recorded(name)
        next_value, ends = next_value(rollout), rollout["terminated"] | rollout["truncated"]
        done, terminated = (ends if flag == "ends" else rollout["terminated"] for flag in (done, terminated))
        target = F.generalized_advantage_estimate(
            GAMMA, LMBDA, rollout["value"], next_value, rollout["reward"], done, terminated
        ).value_target
        return target, results

    def of_next_row(rollout):
        return torch.cat([rollout["value"][1:], rollout["last_value"].unsqueeze(0)])

    def of_same_row(rollout):
        return torch.where(rollout["truncated"], rollout["value"], of_next_row(rollout))

    target, results = value_target("skrl_bootstrap", lambda rollout: rollout["next_value"], "ends", "terminated")
    torch.testing.assert_close(results[0].squeeze(-1), target)
    target, results = value_target("rsl_rl", of_same_row, "ends", "terminated")
    torch.testing.assert_close(results[1].squeeze(-1), target)
    target, results = value_target("cleanrl", of_next_row, "ends", "ends")
    torch.testing.assert_close(results[1], target)
    target, results = value_target("skrl", of_next_row, "terminated", "terminated")
    torch.testing.assert_close(results[0].squeeze(-1), target)


def test_the_advantage_of_pufferlib_is_gae_if_all_ratios_are_one():
    rollout, _ = recorded("pufferlib")
    value, reward, done = (rollout[name].t() for name in ("value", "reward", "terminated"))
    late = [one_step_late(rollout[name]).t().float() for name in ("reward", "terminated")]
    advantages = torch.full_like(value, 7.0)
    result = PAGE["compute_puff_advantage"](value, *late, torch.ones_like(value), advantages, GAMMA, LMBDA, 1.0, 1.0)
    steps = [tensor[:, :-1] for tensor in (value, torch.roll(value, -1, 1), reward, done)]
    torch.testing.assert_close(result[:, :-1], F.generalized_advantage_estimate(GAMMA, LMBDA, *steps, time_dim=-1).advantage)
    assert (result[:, -1] == 7.0).all()


def test_rllibs_vtrace_without_thresholds_does_not_clip():
    rollout, _ = recorded("rllib_vtrace")
    call = TRAINERS["rllib_vtrace"].arguments(rollout)
    open_thresholds = {"clip_rho_threshold": None, "clip_pg_rho_threshold": None}
    huge_thresholds = {"clip_rho_threshold": 1e9, "clip_pg_rho_threshold": 1e9}
    results = [
        call(lambda t=t, **arguments: PAGE["vtrace_torch"](**arguments, **t)) for t in (open_thresholds, huge_thresholds)
    ]
    for result, expected in zip(*results, strict=True):
        torch.testing.assert_close(result, expected, rtol=0, atol=0)
    with_one_clip = call(lambda **arguments: PAGE["vtrace_torch"](**arguments, clip_pg_rho_threshold=None))
    assert not torch.equal(with_one_clip[1], call(PAGE["vtrace_torch"])[1])


def test_the_loss_of_the_page_is_the_formula_of_skrl_and_tianshou():
    log_prob, advantage, entropy, value, returns = torch.randn(5, 12, 1)
    loss = PAGE["actor_critic_loss"](log_prob, advantage, entropy, value, returns, 0.5, 0.01)
    expected = -(log_prob * advantage).mean() + 0.5 * torch.nn.functional.mse_loss(returns, value) - 0.01 * entropy.mean()
    torch.testing.assert_close(loss, expected)
