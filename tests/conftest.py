"""Settings of every test."""

import pytest
import torch


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    """The data is small, and the tests run several processes at once."""
    torch.set_num_threads(1)
