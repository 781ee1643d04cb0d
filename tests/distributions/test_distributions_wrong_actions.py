"""Actions that a discrete distribution lacks: an error or NaN in every mode, never a plausible log-probability."""

from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from a2c_compiled.distributions import (
    Bernoulli,
    Categorical,
    Composite,
    Distribution,
    MaskedCategorical,
    MaskedOneHotCategorical,
    MultiCategorical,
    Normal,
    OneHotCategorical,
    OneHotOrdinal,
    Ordinal,
)

NAN = float("nan")


class Wrong(NamedTuple):
    """An action that a distribution has, one that it lacks, and what the error says about the latter."""

    distribution: Distribution
    right: Any
    wrong: Any
    expected: str
    got: str

    def __str__(self) -> str:
        return f"{type(self.distribution).__name__}-{self.wrong}"

    @property
    def params(self) -> Tensor:
        """``[3, num_params]``; in a mask of three choices, the second is forbidden."""
        masks = isinstance(self.distribution, MaskedCategorical)
        row = [0.3, 2.0, -1.0, 1.0, 0.0, 1.0] if masks else [0.3, 2.0, -1.0, 0.5, 0.2][: self.distribution.num_params]
        return torch.tensor([row] * 3)

    @property
    def action(self) -> Tensor:
        """Three actions, of which the distribution lacks the second."""
        return torch.tensor([self.right, self.wrong, self.right])


ONE_HOT = "vectors with a positive and no negative entry"
ALLOWED = "choices that the mask in params allows"
WRONG = [
    *(Wrong(Categorical(2), 1, wrong, "choices from 0 to 1", str(wrong)) for wrong in (-1, -100, 2)),
    Wrong(MaskedCategorical(3), 2, -1, "choices from 0 to 2", "-1"),
    Wrong(MaskedCategorical(3), 2, 1, ALLOWED, "1"),
    Wrong(OneHotCategorical(3), [0, 1, 0], [0, 0, 0], ONE_HOT, "[0.0, 0.0, 0.0]"),
    Wrong(OneHotCategorical(3), [0, 1, 0], [-1, -1, -1], ONE_HOT, "[-1.0, -1.0, -1.0]"),
    Wrong(OneHotCategorical(3), [0.0, 1.0, 0.0], [0.0, NAN, 1.0], ONE_HOT, "[0.0, nan, 1.0]"),
    Wrong(MaskedOneHotCategorical(3), [0, 0, 1], [0, 1, 0], ALLOWED, "1"),
    Wrong(MultiCategorical([2, 3]), [1, 2], [2, 0], "choices from 0 to 1 and 2", "2"),
    Wrong(MultiCategorical([2, 3]), [1, 2], [0, -1], "choices from 0 to 1 and 2", "-1"),
    Wrong(Bernoulli(2), [0, 1], [0, -1], "entries of 0 or 1", "-1"),
    Wrong(Bernoulli(2), [0.0, 1.0], [NAN, 1.0], "entries of 0 or 1", "nan"),
    Wrong(Ordinal(3), 2, 3, "choices from 0 to 2", "3"),
    Wrong(OneHotOrdinal(3), [0, 0, 1], [0, 0, 0], ONE_HOT, "[0.0, 0.0, 0.0]"),
    Wrong(Composite(Categorical(2), Normal(1)), [1.0, 0.5], [-1.0, 0.5], "choices from 0 to 1", "-1"),
    Wrong(Composite(Categorical(2), Normal(1)), [1.0, 0.5], [NAN, 0.5], "choices from 0 to 1", "-1"),
    Wrong(Composite(OneHotCategorical(2), Categorical(2)), [0, 1, 1], [0, 0, 1], ONE_HOT, "[0.0, 0.0]"),
]
each = pytest.mark.parametrize("case", WRONG, ids=str)


class Scores(nn.Module):
    """Returns ``distribution.log_prob``."""

    def __init__(self, distribution: Distribution) -> None:
        super().__init__()
        self.distribution = distribution

    def forward(self, params: Tensor, action: Tensor) -> Tensor:
        return self.distribution.log_prob(params, action)


def assert_nan_at_the_second(log_prob: Tensor, case: Wrong) -> None:
    """The second log-probability is NaN, and the others are those of the right action."""
    expected = case.distribution.log_prob(case.params, torch.tensor([case.right] * 3))
    expected[1] = NAN
    torch.testing.assert_close(log_prob, expected, equal_nan=True)


@each
def test_eager_mode_and_torchscript_name_the_first_wrong_value(case: Wrong) -> None:
    module = Scores(case.distribution)
    with pytest.raises(ValueError, match="action") as raised:
        module(case.params, case.action)
    message = f"action: expected {case.expected}, got {case.got}"
    assert str(raised.value) == message
    with pytest.raises(torch.jit.Error) as raised_by_script:
        torch.jit.script(module)(case.params, case.action)
    # TorchScript writes 1.0 as "1.".
    assert f"ValueError: {message}".replace(".0", ".") in str(raised_by_script.value)


@each
def test_where_no_data_may_be_read_value_and_gradient_are_nan(case: Wrong) -> None:
    """In vmap, as on a GPU."""
    params = case.params.requires_grad_()
    log_prob = torch.vmap(case.distribution.log_prob)(params, case.action)
    assert_nan_at_the_second(log_prob, case)
    (gradient,) = torch.autograd.grad(log_prob.sum(), params)
    assert gradient[[0, 2]].isfinite().all()
    assert gradient[1].isnan().any()


def test_without_an_allowed_action_the_log_probability_is_nan() -> None:
    params = torch.tensor([[0.0, 1.0, 2.0, 0.0, 0.0, 0.0], [0.0, 1.0, 2.0, 1.0, 0.0, 0.0]])
    for distribution, action in (
        (MaskedCategorical(3), torch.tensor([0, 0])),
        (MaskedOneHotCategorical(3), torch.eye(3)[[0, 0]]),
    ):
        for log_prob in (distribution.log_prob(params, action), torch.vmap(distribution.log_prob)(params, action)):
            torch.testing.assert_close(log_prob, torch.tensor([NAN, 0.0]), equal_nan=True)


def test_impossible_logits_keep_minus_infinity() -> None:
    """An action in range whose logit is minus infinity is no wrong action: its probability is 0."""
    assert Categorical(2).log_prob(torch.tensor([0.0, -torch.inf]), torch.tensor(1)) == -torch.inf


@pytest.mark.slow
@each
def test_a_compiled_graph_raises_the_same_words(case: Wrong) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(Scores(case.distribution), fullgraph=True, backend="aot_eager")
    right = torch.tensor([case.right] * 3)
    torch.testing.assert_close(compiled(case.params, right), case.distribution.log_prob(case.params, right))
    with pytest.raises(RuntimeError, match=f"action: expected {case.expected}, got another value"):
        compiled(case.params, case.action)


@pytest.mark.slow
@pytest.mark.parametrize("case", [WRONG[0], WRONG[1], WRONG[4], WRONG[6], WRONG[7], WRONG[9], WRONG[14]], ids=str)
def test_an_exported_graph_returns_nan(case: Wrong, tmp_path: Any) -> None:
    """In torch.export's graph and in onnxruntime."""
    onnxruntime = pytest.importorskip("onnxruntime")
    from a2c_compiled import export

    module, path = Scores(case.distribution), tmp_path / "scores.onnx"
    inputs = {"params": case.params, "action": torch.tensor([case.right] * 3)}
    export.export_onnx(module, inputs, path, ("N",))
    program = torch.export.export(module, (), inputs).module()
    inputs["action"] = case.action
    assert_nan_at_the_second(program(**inputs), case)
    (output,) = onnxruntime.InferenceSession(str(path)).run(None, {name: tensor.numpy() for name, tensor in inputs.items()})
    assert_nan_at_the_second(torch.from_numpy(output), case)
