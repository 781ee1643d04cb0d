"""Layers of convolutional networks in the exported training step: its updates equal those of eager mode and of torch.optim."""

import re

import pytest
import torch
from torch import nn
from torch.nn import functional
from train_step_cases import (
    IMAGE,
    NETWORKS,
    TD0,
    InOnnxruntime,
    InTorch,
    Layers,
    assert_trained_the_same,
    case,
    export_update,
    train_all,
)

from a2c_compiled import export
from a2c_compiled.export.tracing import gradients

pytestmark = pytest.mark.slow


class Function(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


class Attention(nn.Module):
    """Two heads. ``options`` are those of ``scaled_dot_product_attention``."""

    def __init__(self, **options):
        super().__init__()
        self.options = options

    def forward(self, x):
        heads = x.unflatten(-1, (2, x.size(-1) // 2)).transpose(1, 2)
        return functional.scaled_dot_product_attention(heads, heads, heads, **self.options).transpose(1, 2).flatten(-2)


def first(channels=4, **options):
    """A convolution with parameters whose gradients pass through the layers behind it, and their activation."""
    return nn.Conv2d(2, channels, 3, padding=1, **options), nn.Tanh()


def rows(length=27):
    """The same for layers of one dimension."""
    return nn.Flatten(2), nn.Conv1d(2, 4, 5, stride=81 // length, padding=2), nn.Tanh()


def older_weight_norm(layer, **options):
    with pytest.warns(FutureWarning, match="weight_norm"):
        return nn.utils.weight_norm(layer, **options)


weight_norm = nn.utils.parametrizations.weight_norm
NO_ROW_AND_FIRST = torch.tensor([[False, False], [True, False]])

# By name, layers on [N, 2, 9, 9].
LAYERS = {
    "padding_modes": lambda: [
        *first(padding_mode="reflect"),
        nn.Conv2d(4, 4, 3, padding=2, padding_mode="reflect"),
        nn.Conv2d(4, 4, 3, padding="same", padding_mode="replicate"),
        nn.Conv2d(4, 4, 3, padding=(1, 2), padding_mode="circular", bias=False),
        nn.Conv2d(4, 2, (5, 3), padding="same"),
    ],
    "padding_layers": lambda: [
        *first(),
        nn.ReflectionPad2d((2, 1, 0, 3)),
        nn.ReplicationPad2d((0, 3, 2, 1)),
        nn.CircularPad2d((1, 0, 2, 2)),
        nn.ConstantPad2d((2, -1, 0, -3), 0.5),
        nn.ZeroPad2d((-2, 1, 0, 1)),
    ],
    "average_pooling": lambda: [
        *first(),
        nn.AvgPool2d(2, 1, padding=1),
        nn.AvgPool2d((3, 2), (1, 2), padding=(1, 0), ceil_mode=True, count_include_pad=False),
        nn.AvgPool2d(2, 2, padding=1, ceil_mode=True),
        nn.AvgPool2d((2, 1), 1, divisor_override=3),
    ],
    "adaptive_average_pooling": lambda: [
        *first(),
        nn.AdaptiveAvgPool2d((6, 8)),
        nn.AdaptiveAvgPool2d((3, None)),
        nn.AdaptiveAvgPool2d((4, 3)),
    ],
    "pooling_to_one": lambda: [*first(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 4)],
    "adaptive_max_pooling": lambda: [
        *first(),
        nn.AdaptiveMaxPool2d((6, 8)),
        nn.MaxPool2d(2, 1, padding=1, dilation=2, ceil_mode=True),
    ],
    "resizing_nearest": lambda: [
        *first(),
        nn.Upsample(scale_factor=2),
        nn.Upsample(size=(7, 20)),
        nn.Upsample(size=(8, 9), mode="nearest-exact"),
    ],
    "resizing_linear": lambda: [
        *first(),
        nn.Upsample(scale_factor=(2, 1.5), mode="bilinear"),
        nn.Upsample(size=(7, 10), mode="bilinear", align_corners=True),
        nn.Upsample(size=(9, 8), mode="bicubic"),
    ],
    "grouped_convolutions": lambda: [
        *first(),
        nn.Conv2d(4, 6, 3, groups=2, stride=2, padding=2),
        nn.Conv2d(6, 12, 3, groups=6, dilation=2, padding=2, bias=False),
        nn.Conv2d(12, 4, 1),
    ],
    "transposed_convolutions": lambda: [
        *first(),
        nn.ConvTranspose2d(4, 4, 3, stride=2, padding=1, output_padding=1),
        nn.ConvTranspose2d(4, 6, (2, 3), groups=2, dilation=(3, 1), output_padding=(1, 0), stride=(1, 2)),
    ],
    "weight_norm": lambda: [
        weight_norm(nn.Conv2d(2, 4, 3, groups=2)),
        nn.Tanh(),
        weight_norm(nn.ConvTranspose2d(4, 2, 3), dim=1),
        older_weight_norm(nn.Conv2d(2, 2, 2, padding_mode="replicate", padding=1)),
        nn.Flatten(),
        older_weight_norm(nn.Linear(200, 6), dim=None),
    ],
    "one_dimension": lambda: [
        *rows(),
        nn.ReplicationPad1d((2, 1)),
        nn.AvgPool1d(3, 2, padding=1),
        nn.Conv1d(4, 4, 3, groups=2, padding=2, padding_mode="reflect"),
        nn.AdaptiveAvgPool1d(7),
        nn.Upsample(scale_factor=2, mode="linear"),
        nn.ConvTranspose1d(4, 4, 4, stride=2, groups=4),
        nn.MaxPool1d(2),
        nn.AdaptiveMaxPool1d(5),
    ],
    "three_dimensions": lambda: [
        nn.Unflatten(1, (1, 2)),
        nn.Conv3d(1, 4, (2, 3, 3), padding=(1, 0, 0)),
        nn.Tanh(),
        nn.ReplicationPad3d(1),
        nn.Conv3d(4, 4, 2, groups=2),
        nn.AvgPool3d((1, 2, 2), 1, padding=(0, 1, 0)),
        nn.MaxPool3d((2, 2, 1), 1),
        nn.ConvTranspose3d(4, 2, 2),
        nn.AdaptiveAvgPool3d((2, 4, 3)),
    ],
    "attention": lambda: [
        nn.Flatten(2),
        nn.Linear(81, 8),
        Attention(),
        nn.Linear(8, 8),
        Attention(attn_mask=NO_ROW_AND_FIRST),
        nn.TransformerEncoderLayer(8, 2, 8, dropout=0.0, batch_first=True),
        Attention(is_causal=True, scale=0.7),
    ],
    "activations_and_norms": lambda: [
        *first(),
        nn.LocalResponseNorm(2),
        nn.GroupNorm(2, 4),
        nn.Hardshrink(0.1),
        nn.PReLU(4),
        nn.GLU(1),
        nn.Softshrink(0.05),
        nn.Flatten(),
        nn.Linear(162, 8),
        nn.RMSNorm(8),
        Function(lambda x: torch.einsum("ni,nj->nij", x, x)),
    ],
}
# Several kinds in one network, because an export to ONNX takes seconds.
EXPORTED = {
    "image": lambda: [
        *first(),
        nn.Conv2d(4, 8, 3, groups=2, padding=2, padding_mode="reflect", stride=2, dilation=2),
        nn.Tanh(),
        nn.AvgPool2d(3, 1, padding=1, ceil_mode=True, count_include_pad=False),
        nn.ReplicationPad2d((2, 1, 0, 3)),
        nn.Upsample(scale_factor=2, mode="bilinear"),
        nn.AdaptiveAvgPool2d((5, 7)),
        weight_norm(nn.Conv2d(8, 4, 3, padding="same")),
    ],
    "depthwise": lambda: [
        *first(),
        nn.AdaptiveMaxPool2d((3, 9)),
        nn.Conv2d(4, 4, 3, groups=4, padding=1, padding_mode="circular"),
        nn.ConstantPad2d((2, -1, 0, 1), 0.5),
        nn.ConvTranspose2d(4, 4, 3, stride=2, groups=2, output_padding=1),
        nn.Tanh(),
        nn.Upsample(size=(10, 9)),
        nn.AvgPool2d(2),
        nn.AdaptiveAvgPool2d(2),
    ],
    "row": lambda: [
        *rows(),
        nn.MaxPool1d(3, 2),
        nn.AdaptiveAvgPool1d(5),
        nn.Upsample(scale_factor=2, mode="linear"),
        nn.ReplicationPad1d(2),
        older_weight_norm(nn.ConvTranspose1d(4, 2, 4, stride=2)),
    ],
    "attention": LAYERS["attention"],
}


def layers_case(layers, monkeypatch):
    """Returns a training step whose actor has ``layers``."""
    monkeypatch.setitem(NETWORKS, "layers", lambda shape, outputs: Layers(shape, outputs, layers()))
    loss = {**TD0, "entropy_coef": 0.1, "reduction": "sum"}
    return case("Categorical layers linear sgd", options={"max_grad_norm": 5.0}, loss=loss, shape=IMAGE, updates=40)


@pytest.mark.parametrize("layers", LAYERS.values(), ids=LAYERS)
def test_layers_with_gradients_written_out_learn_as_in_eager_mode(layers, monkeypatch):
    monkeypatch.setattr(gradients, "_OTHER_SIZES", ())  # the exported networks compare the operations at several sizes
    learnt = layers_case(layers, monkeypatch)
    runner = InTorch(learnt.make_step(), learnt.example())
    backward = [node for node in runner.graph.graph.graph.nodes if re.search("backward|flash", str(node.target))]
    assert not backward
    assert_trained_the_same(train_all(learnt, runner))


@pytest.mark.parametrize("layers", EXPORTED.values(), ids=EXPORTED)
def test_layers_learn_in_onnxruntime_as_in_eager_mode(layers, monkeypatch, tmp_path):
    learnt = layers_case(layers, monkeypatch)
    step = learnt.make_step()
    path = export_update(step, learnt.example(), tmp_path / "update.onnx")
    graph = export.TrainStepGraph(step, learnt.example())
    state = {name: graph.example_inputs[name].numpy() for name in graph.state_names}
    assert export.verify(path).passed
    assert_trained_the_same(train_all(learnt, InOnnxruntime(path, state)))
