"""A few of the networks of ``many_networks.py``, each as one graph in one format."""

import pytest
from many_networks import EQUAL, REFUSED, outcomes
from network_cases import NETWORKS


def test_there_are_at_least_sixty_networks():
    assert len(NETWORKS) >= 60


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "graph", "format"),
    [
        ("attention masked", "policy", "onnx"),
        ("MLP LogSigmoid", "policy", "onnx"),
        ("mixture of experts", "loss", "torchscript"),
        ("peaked logits", "drawing", "onnx"),
        ("convolution group norm", "train_step", "onnx"),
    ],
)
def test_a_file_of_a_network_is_equal_to_eager_mode(name, graph, format, tmp_path):
    ((_, outcome),) = outcomes(NETWORKS[name], tmp_path, [graph], [format])
    assert outcome == (EQUAL, "")


@pytest.mark.parametrize("graph", ["loss", "train_step"])
def test_a_rollout_whose_observations_are_a_mapping_is_refused_with_a_remedy(graph, tmp_path):
    ((_, outcome),) = outcomes(NETWORKS["dictionary of inputs"], tmp_path, [graph], ["onnx"])
    assert outcome.word == REFUSED
    assert outcome.message == (
        "TypeError: observation: expected a torch.Tensor or a tuple of them, got dict; make a tuple of the mapping's tensors"
    )
