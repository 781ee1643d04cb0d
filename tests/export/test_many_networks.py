"""A few of the networks of ``many_networks.py``, each as one graph in one format."""

import pytest
from many_networks import NETWORKS, outcome


def test_there_are_sixty_networks():
    assert len(NETWORKS) == 60


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "graph", "format"),
    [
        ("attention masked", "policy", "onnx"),
        ("MLP LogSigmoid", "policy", "onnx"),
        ("mixture of experts", "loss", "torchscript"),
        ("convolution group norm", "train_step", "onnx"),
    ],
)
def test_a_file_of_a_network_is_equal_to_eager_mode(name, graph, format, tmp_path):
    found = outcome(NETWORKS[name], tmp_path, [graph], [format])
    assert (len(found.equal), found.wrong, found.refused) == (1, [], [])
