"""Hyperparameters as buffers: saved and moved with the module, exact in every dtype, assignable."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from a2c_compiled._hyperparameters import NOT_NEGATIVE, POSITIVE, UNIT, CoefficientModule


class Scaled(CoefficientModule):
    """Has a parameter and two coefficients, of which ``limit`` is optional."""

    def __init__(self, scale=0.99, limit=None):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))
        self.register_coefficient("scale", scale)
        self.register_coefficient("limit", limit, optional=True)

    def forward(self, x):
        return x * self.weight * self.scale.to(x.dtype)


def test_a_number_becomes_a_float64_scalar():
    module = Scaled(0.99)
    assert module.scale.dtype == torch.float64
    assert module.scale.shape == ()
    assert module.scale.item() == 0.99


def test_an_integer_is_kept_as_a_floating_number():
    for value in (1, torch.tensor(1), torch.tensor([1, 2])):
        module = Scaled(value)
        module.scale = 0.5
        assert module.scale.is_floating_point()
        assert (module.scale == 0.5).all()


def test_a_floating_tensor_keeps_shape_and_dtype():
    scale = torch.tensor([0.5, 0.25], dtype=torch.bfloat16)
    assert Scaled(scale).scale.dtype == torch.bfloat16
    assert Scaled(scale).scale.tolist() == [0.5, 0.25]


def test_an_optional_coefficient_of_none_is_not_saved():
    module = Scaled(limit=None)
    assert module.limit is None
    assert "limit" not in module.state_dict()


@pytest.mark.parametrize("value", [True, False, None, "0.9", [0.9], torch.tensor(True), {}], ids=repr)
def test_a_value_that_is_neither_number_nor_tensor_raises_an_error_that_names_it(value):
    with pytest.raises(TypeError, match=r"^scale: expected a number or a tensor\b.*, got"):
        Scaled(value)


@pytest.mark.parametrize(
    "convert",
    [nn.Module.half, nn.Module.bfloat16, nn.Module.float, nn.Module.double, lambda module: module.to(torch.bfloat16)],
    ids=["half", "bfloat16", "float", "double", "to"],
)
def test_conversion_to_another_dtype_keeps_the_value_exact(convert):
    module = convert(nn.Sequential(Scaled(0.99)))[0]
    assert module.scale.dtype == torch.float64
    assert module.scale.item() == 0.99
    assert module.weight.dtype != torch.float64 or convert is nn.Module.double


def test_conversion_to_another_device_moves_the_coefficient():
    module = Scaled(0.99).to("meta")
    assert module.scale.device.type == "meta"
    assert module.to_empty(device="cpu").scale.device.type == "cpu"


def test_assigning_a_number_writes_into_the_same_tensor():
    module = Scaled(0.99)
    tensor = module.scale
    for value in (0.5, 1):
        module.scale = value
        assert module.scale is tensor
        assert tensor.item() == value


def test_assigning_a_number_fills_a_tensor_of_several_entries():
    module = Scaled(torch.tensor([0.5, 0.25]))
    module.scale = 0.75
    assert module.scale.tolist() == [0.75, 0.75]


def test_assigning_a_number_to_a_coefficient_of_none_saves_it_and_assigning_none_removes_it():
    module = Scaled(limit=None)
    module.limit = 0.2
    assert module.limit.item() == 0.2
    assert module.limit.dtype == torch.float64
    assert "limit" in module.state_dict()
    module.limit = None
    assert "limit" not in module.state_dict()


def test_assigning_a_one_element_tensor_writes_into_the_coefficient():
    module = Scaled(0.99)
    before = module.scale
    module.scale = torch.tensor([0.5])
    assert module.scale is before
    assert module.scale.item() == 0.5


def test_assigning_a_longer_tensor_replaces_the_coefficient():
    module = Scaled(0.99)
    tensor = torch.tensor([0.5, 0.25])
    module.scale = tensor
    assert module.scale is tensor


def test_assigning_a_number_does_not_write_into_the_callers_tensor():
    given = torch.tensor(0.5)
    module = Scaled(given)
    module.scale = 0.1
    assert given.item() == 0.5


def test_a_tensor_that_requires_grad_is_kept():
    given = torch.tensor(0.5, requires_grad=True)
    assert Scaled(given).scale is given


@pytest.mark.parametrize("number", [np.float32(0.5), np.float64(0.5), np.int64(1)])
def test_numpy_numbers_are_accepted(number):
    module = Scaled(number)
    assert module.scale.item() == number
    module.scale = number / 2
    assert module.scale.item() == number / 2


@pytest.mark.parametrize(
    ("allowed", "right", "wrong", "message"),
    [
        (UNIT, 1.0, 1.5, "scale: expected a number from 0 to 1, got 1.5"),
        (NOT_NEGATIVE, 0.0, -0.5, "scale: expected a number of at least 0, got -0.5"),
        (POSITIVE, 0.5, 0.0, "scale: expected a positive number, got 0.0"),
        (UNIT, 0.5, float("nan"), "scale: expected a number from 0 to 1, got nan"),
    ],
)
def test_a_number_out_of_range_raises_at_registration_and_at_assignment(allowed, right, wrong, message):
    module = CoefficientModule()
    with pytest.raises(ValueError, match=message):
        module.register_coefficient("scale", wrong, allowed)
    module.register_coefficient("scale", right, allowed)
    with pytest.raises(ValueError, match=message):
        module.scale = wrong
    assert module.scale.item() == right


def test_a_scalar_coefficient_raises_for_a_longer_tensor():
    with pytest.raises(ValueError, match=r"scale: expected a number or a one-element tensor, got shape \[2\]"):
        CoefficientModule().register_coefficient("scale", torch.ones(2), scalar=True)


@pytest.mark.parametrize("value", [True, "0.5"])
def test_assigning_a_bool_or_a_string_raises(value):
    module = Scaled(0.99)
    with pytest.raises(TypeError, match="scale"):
        module.scale = value
    assert module.scale.item() == 0.99


def test_other_attributes_are_assigned_as_usual():
    module = Scaled()
    module.flag = True
    module.number = 0.5
    assert module.flag is True
    assert module.number == 0.5
    assert "number" not in module.state_dict()


def test_assignment_between_forward_and_backward_does_not_change_the_gradient():
    module = Scaled(0.5)
    result = module(torch.ones(2)).sum()
    module.scale = 0.25
    result.backward()
    assert module.weight.grad.tolist() == [0.5, 0.5]


def test_state_dict_round_trip_keeps_the_precision():
    module, other = Scaled(0.99), Scaled(0.5)
    other.load_state_dict(module.state_dict())
    assert other.scale.item() == 0.99
    assert Scaled(0.123).load_state_dict(other.bfloat16().state_dict()) is not None
    assert other.state_dict()["scale"].item() == 0.99


def test_a_deep_copy_has_coefficients_of_its_own():
    module = Scaled(0.99)
    twin = copy.deepcopy(module)
    twin.scale = 0.5
    assert module.scale.item() == 0.99
