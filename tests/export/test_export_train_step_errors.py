"""Training steps that cannot be exported, and invalid arguments: the error names the obstacle and a remedy."""

import copy

import pytest
import torch
from loss_cases import assert_same
from torch import nn
from train_step_cases import SMALL, export_update, with_layer

from a2c_compiled import distributions, export

# Networks that cannot be exported


class Bessel(nn.Module):
    def forward(self, x):
        return torch.special.bessel_j0(x)


class Branching(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


class BranchingOnSize(nn.Module):
    def forward(self, x):
        return x if x.shape[0] < 50 else -x


class Looping(nn.Module):
    """A moving average over the steps."""

    def forward(self, x):
        averages = [x[0]]
        for step in x[1:]:
            averages.append((averages[-1] + step) / 2)
        return torch.stack(averages)


class OverTime(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(8, 8)

    def forward(self, x):
        return self.lstm(x)[0]


class Normalized(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(8)

    def forward(self, x):
        return self.norm(x.flatten(0, -2)).reshape(x.shape)


class Counting(nn.Module):
    """Writes to a part of its buffer."""

    def __init__(self):
        super().__init__()
        self.register_buffer("seen", torch.zeros(2))

    def forward(self, x):
        self.seen[0].add_(1)
        return x


class Convolved(nn.Module):
    """Treats eight features as two channels of a row."""

    def __init__(self):
        super().__init__()
        self.convolution = nn.Conv1d(2, 2, 3, padding=1)

    def forward(self, x):
        return self.convolution(x.flatten(0, -2).unflatten(-1, (2, 4))).reshape(x.shape)


class Warped(nn.Module):
    """Reads one row of eight features at the positions of a grid."""

    def forward(self, x):
        rows = x.reshape(-1, 1, 1, 8)
        grid = torch.zeros(rows.shape[0], 1, 8, 2)
        return nn.functional.grid_sample(rows, grid, align_corners=False).reshape(x.shape)


LAYER = r"loss\.actor_network\.1"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("layer", "operation", "message"),
    [
        (Bessel(), "prims.bessel_j0", rf"\(in {LAYER}, Bessel\) has no translation to ONNX. Write it in other operations"),
        (
            nn.Dropout(),
            "aten.native_dropout",
            rf"\(in {LAYER}, Dropout\): draws random numbers .* Call \.eval\(\) on the module",
        ),
        (
            nn.Sequential(nn.Unflatten(-1, (2, 4)), nn.AdaptiveMaxPool2d((4, 2)), nn.Flatten(-2)),
            "aten.adaptive_max_pool2d",
            rf"\(in {LAYER}\.1, AdaptiveMaxPool2d\) has no translation to ONNX. Use nn\.MaxPool2d",
        ),
        (
            Warped(),
            "aten.grid_sampler_2d_backward",
            rf"\(in {LAYER}, Warped\) has no translation to ONNX. Freeze the layers before it",
        ),
        (
            nn.utils.parametrizations.orthogonal(nn.Linear(8, 8), orthogonal_map="cayley"),
            "aten._linalg_solve_ex",
            rf"\(in {LAYER}\.parametrizations\.weight\.0, _Orthogonal\) has no translation .*remove_parametrizations, or",
        ),
    ],
    ids=["no_translation", "dropout", "adaptive_max_pooling", "warped", "orthogonal"],
)
def test_an_operation_that_cannot_be_exported_is_named_with_its_module_and_a_remedy(layer, operation, message, tmp_path):
    with pytest.raises(
        export.ExportError, match=rf"^TrainStepGraph cannot be exported to ONNX: {operation} {message}"
    ) as raised:
        export.export_train_step(*with_layer(layer), tmp_path / "train_step.onnx")
    assert raised.value.operation == operation
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("layer", "buffer"),
    [
        (Normalized(), r"norm\.(running_mean|num_batches_tracked)"),
        (Counting(), "seen"),
        (nn.utils.parametrizations.spectral_norm(nn.Linear(8, 8)), r"parametrizations\.weight\.0\._u"),
    ],
    ids=["batch_norm", "part_of_a_buffer", "spectral_norm"],
)
def test_a_buffer_that_a_network_writes_to_is_named_with_a_remedy_and_not_changed(layer, buffer, tmp_path):
    before = copy.deepcopy(layer.state_dict())
    message = rf"^TrainStepGraph cannot be exported.* buffer actor_network\.1\.{buffer}, which a graph cannot update"
    with pytest.raises(export.ExportError, match=rf"{message}.* Call \.eval\(\) .* nn\.LayerNorm and nn\.GroupNorm"):
        export.export_train_step(*with_layer(layer), tmp_path / "train_step.onnx")
    assert_same(dict(layer.state_dict()), dict(before), 0)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (
            Branching(),
            rf'branches on values of tensors \(in {LAYER}, Branching, "return x if .*", .*_errors\.py:\d+\)\. .* torch\.where',
        ),
        (BranchingOnSize(), r"operations depend on the sizes \(.*T.*\).* does not read a size"),
        (
            Looping(),
            rf"only works for T = 5, the example's size \(in {LAYER}, Looping\); a loop over .* part of the observation, .* nn\.GRUCell",
        ),
        (
            OverTime(),
            rf"only works for T = 5, .* \(in {LAYER}\.lstm, LSTM\).* a recurrent network's state part .*, and use nn\.GRUCell",
        ),
        (
            nn.utils.parametrizations.orthogonal(nn.Linear(8, 8), orthogonal_map="householder"),
            rf"gradient writes to a part of a tensor \(in {LAYER}\.parametrizations\.weight\.0, _Orthogonal\).* plain weight.* to \.pt2$",
        ),
    ],
    ids=["branch", "branch_on_size", "loop", "lstm", "householder"],
)
def test_code_that_cannot_be_exported_is_named_with_a_remedy(layer, message, tmp_path):
    with pytest.raises(export.ExportError, match=rf"^TrainStepGraph cannot be exported to ONNX: .*{message}"):
        export.export_train_step(*with_layer(layer), tmp_path / "train_step.onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_an_operator_without_a_kernel_for_the_dtype_is_named_with_its_module(tmp_path):
    with pytest.raises(export.ExportError, match=rf"Conv \(in {LAYER}\.convolution, Conv1d\): .* export it in float32"):
        export.export_train_step(*with_layer(Convolved(), torch.float64), tmp_path / "train_step.onnx")
    assert not list(tmp_path.iterdir())


def test_a_distribution_that_draws_its_own_noise_is_named(tmp_path):
    distribution = distributions.TorchDistribution(
        lambda params: torch.distributions.Categorical(logits=params, validate_args=False)
    )
    with pytest.raises(export.ExportError, match=r"TorchDistribution draws its own .* Use one of a2c_compiled\.distributions"):
        export.export_train_step(*with_layer(nn.Identity(), distribution=distribution), tmp_path / "train_step.onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_batch_norm_and_dropout_in_evaluation_mode_can_be_exported(tmp_path):
    step, rollout = with_layer(nn.Sequential(Normalized(), nn.Dropout()).eval())
    path = export_update(step, rollout, tmp_path / "update.onnx")
    assert export.verify(path).passed


# Arguments

HALF = SMALL._replace(dtype=torch.bfloat16)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"step": SMALL.make_loss()}, TypeError, "step: expected a TrainStep, got A2CLoss"),
        ({"example_rollout": tuple(SMALL.example())}, TypeError, "example_rollout: expected a Rollout, got tuple"),
        ({"path": "train_step.pt"}, ValueError, r"path: expected a name ending in \.onnx, got .*train_step\.pt"),
        ({"path": "train_step"}, ValueError, r"path: expected a name ending in \.onnx, got .*train_step"),
        (
            {"step": SMALL._replace(loss={"value_estimator": "vtrace"}).make_step()},
            ValueError,
            "rollout: expected a log_prob, which the value estimator needs, got None",
        ),
        ({"opset": 17}, ValueError, r"opset: expected 18 to \d+, the newest that the installed onnx supports, got 17"),
        ({"opset": 1000}, ValueError, r"opset: expected 18 to \d+, the newest that the installed onnx supports, got 1000"),
        (
            {"example_rollout": SMALL.example()._replace(done=SMALL.example().done.float())},
            TypeError,
            r"done: expected dtype torch\.bool, got torch\.float32",
        ),
        (
            {"step": HALF.make_step(), "example_rollout": HALF.example()},
            ValueError,
            r"step: expected parameters of float32 or float64, got torch\.bfloat16 for actor_network\.network\.weight",
        ),
    ],
    ids=[
        "step",
        "rollout",
        "pt",
        "no_ending",
        "log_prob",
        "opset",
        "newer_opset",
        "flag",
        "bfloat16",
    ],
)
def test_an_invalid_argument_is_named_and_nothing_is_written(change, error, message, tmp_path):
    arguments = {"step": SMALL.make_step(), "example_rollout": SMALL.example(), "path": "train_step.onnx", **change}
    arguments["path"] = tmp_path / "new" / arguments["path"]
    with pytest.raises(error, match=f"^{message}"):
        export.export_train_step(**arguments)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
