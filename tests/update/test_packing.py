"""Small parameters are updated as one tensor: the same results, with few operations."""

import copy

import pytest
import torch
from loss_cases import assert_same, make_loss, make_rollout
from torch_step import parameters_of

from a2c_compiled import TrainStep
from a2c_compiled.update import packing
from a2c_compiled.update.packing import Packing


def tensors():
    image = torch.randn(4, 3, 5, 5).contiguous(memory_format=torch.channels_last)
    large = torch.randn(packing.LARGEST + 1)
    return [torch.randn(3, 4), torch.randn(()), large, torch.randn(2).double(), image, torch.randn(0), torch.randn(7).double()]


def test_small_contiguous_tensors_of_one_dtype_are_joined():
    given = tensors()
    pack = Packing(given)
    packed = pack.packed(given)
    assert [tensor.numel() for tensor in packed] == [12 + 1 + 0, packing.LARGEST + 1, 2 + 7, 300]
    assert packed[1] is given[2]
    assert packed[3] is given[4]
    for before, after in zip(given, pack.unpacked(packed), strict=True):
        assert torch.equal(before, after)
        assert before.dtype == after.dtype
        assert before.stride() == after.stride()


@pytest.mark.parametrize("max_grad_norm", [0.05, None])
@pytest.mark.parametrize(
    ("optimizer", "options"),
    [
        ("sgd", {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1}),
        ("rmsprop", {"centered": True, "momentum": 0.5, "weight_decay": 0.1}),
        ("adam", {"weight_decay": 0.1}),
        ("adamw", {}),
    ],
)
@pytest.mark.parametrize("unused", [False, True])
def test_the_results_are_those_of_an_update_of_each_parameter(optimizer, options, max_grad_norm, unused, monkeypatch):
    loss = make_loss(critic_coef=None if unused else 1.0)  # without a critic loss, the critic's parameters have no gradient
    packed, apart = (
        TrainStep(copy.deepcopy(loss), optimizer, lr=0.05, compile=False, max_grad_norm=max_grad_norm, **options)
        for _ in range(2)
    )
    for seed in range(3):
        rollout = make_rollout(seed=seed)
        metrics = packed(rollout)
        with monkeypatch.context() as patch:
            patch.setattr(packing, "LARGEST", -1)
            assert_same(metrics, apart(rollout), 0.0)
    assert_same(parameters_of(packed.loss), parameters_of(apart.loss), 1e-7)
    assert_same(dict(packed.named_buffers()), dict(apart.named_buffers()), 1e-7)


def test_an_update_that_is_not_finite_changes_no_joined_tensor():
    step = TrainStep(make_loss(), "adam", compile=False)
    step(make_rollout())
    before = copy.deepcopy({name: value for name, value in step.state_dict().items() if "skipped" not in name})
    rollout = make_rollout()
    step(rollout._replace(reward=rollout.reward * float("nan")))
    assert_same({name: step.state_dict()[name] for name in before}, before, 0.0)
    assert step.skipped == 1
