"""Lists of formats and graphs are complete and agree with each other; a disk that is full."""

from pathlib import Path

import pytest
import torch
from export_cases import ENVS, EXPORTERS, LOADERS, STEPS
from loss_cases import make_loss, make_rollout

from a2c_compiled import _export_names, export
from a2c_compiled.export import formats
from a2c_compiled.export.formats import ENDINGS, FORMATS, format_of
from a2c_compiled.export.formats.record import Format
from a2c_compiled.export.run import Job, jobs

OTHER_MODULES = {"__init__", "record"}


def test_each_format_is_a_module_and_has_a_name_in_the_list():
    modules = {path.stem for path in Path(formats.__file__).parent.glob("*.py")} - OTHER_MODULES
    assert modules == set(_export_names.FORMATS) == set(FORMATS)
    for name, format in FORMATS.items():
        assert isinstance(format, Format)
        assert format.name == name
    assert len(set(ENDINGS)) == len(FORMATS)


def test_every_format_has_a_public_exporter_and_a_loader_in_the_tests():
    public = {getattr(export, name) for name in export.__all__ if name.startswith("export_")}
    assert public == {*EXPORTERS.values(), export.export_train_step}
    assert set(LOADERS) == set(EXPORTERS) == set(ENDINGS)


@pytest.mark.parametrize("name", FORMATS)
def test_the_ending_of_a_file_determines_its_format(name):
    assert format_of(Path(f"folder.pt/policy.v1{FORMATS[name].ending}")) == FORMATS[name]
    assert format_of(Path(f"policy{FORMATS[name].ending}.cases.npz")) is None


def test_the_graphs_are_those_of_a_loss_and_the_training_step():
    graphs = export.graphs_of(make_loss(), make_rollout((STEPS, ENVS)))
    assert (*graphs, _export_names.TRAIN_STEP) == _export_names.GRAPHS


def test_every_graph_has_every_format_but_a_training_step_has_no_torchscript():
    every = {(graph, format) for graph in _export_names.GRAPHS for format in FORMATS}
    assert set(jobs()) == every - {("train_step", "torchscript")}
    assert jobs(["train_step", "loss"], ["torchscript"]) == [Job("loss", "torchscript")]
    with pytest.raises(ValueError, match=r"format: expected onnx, pt2 or aot for the training step, .*torchscript"):
        jobs(["train_step"], ["torchscript"])


@pytest.mark.slow
@pytest.mark.parametrize("ending", [".onnx", ".pt", ".pt2"])
def test_a_file_that_does_not_fit_on_the_disk_is_an_error_and_is_not_left(ending, tmp_path):
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
    try:
        with pytest.raises((OSError, export.ExportError), match="File too large"):
            EXPORTERS[ending](torch.nn.Linear(64, 64), (torch.zeros(2, 64),), tmp_path / f"layer{ending}", ("N",))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(tmp_path.iterdir()) == []
