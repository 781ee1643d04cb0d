"""Settings of every test."""

import os

import pytest
import torch

if not torch.cuda.is_available():
    # Triton reads it once, when it is imported; nothing here has done so yet.
    os.environ.setdefault("TRITON_INTERPRET", "1")


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    """The data is small, and the tests run several processes at once."""
    torch.set_num_threads(1)
