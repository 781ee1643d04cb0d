"""What several files of tests share: an estimator as a program and as a package, because compiling a package takes 8 s of CPU time."""

import pytest
from export_cases import ENVS, STEPS, export_as, gae_inputs, one_operator_table

from a2c_compiled import estimators

__all__ = ["gae_files", "one_operator_table"]


@pytest.fixture(scope="session")
def gae_files(tmp_path_factory):
    """GAE as ``.pt2`` and ``.aot.pt2``. Tests that use it are in the group ``gae_files``, so that one process compiles it."""

    def make_inputs(steps, envs, ends):
        inputs = gae_inputs((steps, envs), ends, seed=steps)
        if (steps, envs) == (STEPS, ENVS):  # transposed in memory: the file must not require the strides of the example
            return {name: tensor.t().contiguous().t() for name, tensor in inputs.items()}
        return inputs

    return export_as([".pt2", ".aot.pt2"], tmp_path_factory.mktemp("gae"), estimators.GAE(gamma=0.97), make_inputs, ("T", "N"))
