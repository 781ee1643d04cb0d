"""TorchRL's loss and data over the same networks and steps as this library's, and the comparison of the two.

TorchRL's batch is ``[B, T]`` with rewards ``[B, T, 1]``. This library's loss reads the same tensors, with its default ``time_dim=-2``.
"""

import pytest
import torch
from loss_cases import CHOICES, assert_same, copies, gradients, make_loss, make_networks, of
from torch import nn

pytest.importorskip("torchrl")

from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torchrl.modules import (
    IndependentNormal,
    MaskedCategorical,
    NormalParamExtractor,
    OneHotCategorical,
    ProbabilisticActor,
    TanhNormal,
    ValueOperator,
)
from torchrl.objectives import A2CLoss, ValueEstimators

TORCHRL_NAMES = {"entropy_coef": "entropy_coeff", "critic_coef": "critic_coeff"}
TORCHRL_CLASSES = {
    "Categorical": (torch.distributions.Categorical, ["logits"]),
    "OneHotCategorical": (OneHotCategorical, ["logits"]),
    "MaskedCategorical": (MaskedCategorical, ["logits", "mask"]),
    "Normal": (IndependentNormal, ["loc", "scale"]),
    "TanhNormal": (TanhNormal, ["loc", "scale"]),
}


class LogitsAndMask(nn.Module):
    """Splits the actor's output into logits and a bool mask, the arguments of TorchRL's MaskedCategorical."""

    def forward(self, params):
        logits, mask = params.split(CHOICES, -1)
        return logits, mask > 0


def torchrl_loss(networks, distribution="Categorical", estimator=None, **options):
    """Returns TorchRL's loss over ``networks``, actor and critic."""
    actor, critic = networks
    kind, keys = TORCHRL_CLASSES[distribution]
    if keys == ["loc", "scale"]:
        actor = nn.Sequential(actor, NormalParamExtractor())
    elif keys == ["logits", "mask"]:
        actor = nn.Sequential(actor, LogitsAndMask())
    loss = A2CLoss(
        ProbabilisticActor(TensorDictModule(actor, ["observation"], keys), in_keys=keys, distribution_class=kind),
        ValueOperator(critic, in_keys=["observation"]),
        **{TORCHRL_NAMES.get(name, name): value for name, value in options.items()},
    )
    if estimator is not None:
        looped = {"vectorized": False} if estimator in ("GAE", "TDLambda") else {}
        loss.make_value_estimator(getattr(ValueEstimators, estimator), **looped)
    return loss


def torchrl_data(steps, *names):
    """Returns TorchRL's TensorDict with observation, action and the fields ``names`` of ``steps``."""
    keys = {
        "next_observation": ("next", "observation"),
        "reward": ("next", "reward"),
        "done": ("next", "done"),
        "terminated": ("next", "terminated"),
        "sample_log_prob": "action_log_prob",
        "mask": ("collector", "mask"),
    }
    data = TensorDict({}, steps.observation.shape[:2])
    for name in ("observation", "action", *names):
        value = getattr(steps, name)
        data[keys.get(name, name)] = value.squeeze(-1) if name == "sample_log_prob" else value
    return data


def assert_equals_torchrl(steps, names, distribution="Categorical", estimator=None, shared=False, ours=None, **options):
    """Asserts that both losses have the same outputs, and the same gradients of every parameter of both networks."""
    mine, theirs = copies(make_networks(distribution, shared))
    loss = make_loss(distribution, networks=mine, value_estimator=estimator, **options)
    expected_loss = torchrl_loss(theirs, distribution, estimator, **options)
    # Both losses draw the noise of the sampled entropy from torch's generator, once and in the same order.
    torch.manual_seed(0)
    outputs = loss(**of(steps, *names))
    torch.manual_seed(0)
    expected = expected_loss(torchrl_data(steps, *names))
    given = {name: value for name, value in outputs._asdict().items() if value is not None}
    assert_same(given, {name: expected[name] for name in expected.keys()})  # noqa: SIM118 - iterating a TensorDict unbinds it
    assert tuple(given) == loss.out_keys
    assert_same(gradients(outputs, mine), gradients(expected, theirs))
