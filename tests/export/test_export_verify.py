"""``verify``: the cases on which it runs a file, which differences it accepts, and its errors for files that it cannot read."""

import hashlib
import io
import json
import shutil
import zipfile
from typing import NamedTuple

import numpy as np
import onnx
import onnx.reference
import pytest
import torch
from export_cases import EXPORTERS, PLAIN, UNCOMPILED, gae_inputs, loss_inputs
from loss_cases import make_loss
from torch import nn

from a2c_compiled import distributions, estimators, export
from a2c_compiled.export.checking import onnx_file, reference_cases

NAN, INF = float("nan"), float("inf")
SIZES = ["T=1 N=1", "T=67 N=5", "T=1 N=7", "T=11 N=1", "T=3 N=2", "T=128 N=19"]
ENDS = ["some steps end", "every step ends", "every step is cut short", "no step ends"]
EXTREMES = [f"T=9 N=4, {what}" for what in (*ENDS, "large numbers")]
CASES = SIZES + EXTREMES

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("verify")]


@pytest.fixture(scope="module")
def gae_files(tmp_path_factory):
    """A folder with ``gae`` and ``other`` in three formats: estimators with different discounts, exported with the same data."""
    folder = tmp_path_factory.mktemp("gae")
    for name, gamma in (("gae", 0.99), ("other", 0.9)):
        for ending in UNCOMPILED:
            EXPORTERS[ending](estimators.GAE(gamma=gamma), gae_inputs(), folder / f"{name}{ending}")
    return folder


@pytest.fixture
def folder(gae_files, tmp_path):
    """A copy that the test may change: without the digests, which would tell."""
    return shutil.copytree(gae_files, tmp_path / "files", ignore=shutil.ignore_patterns("*.sha256"))


@pytest.fixture(params=UNCOMPILED)
def ending(request):
    return request.param


def cases_of(path):
    return path.with_name(f"{path.name}.cases.npz")


def recorded_arrays(path):
    with np.load(cases_of(path)) as loaded:
        return {key: loaded[key] for key in loaded.files}


def altered_cases(path, alter):
    """Changes the reference cases beside an exported file."""
    np.savez(cases_of(path), **(alter(recorded_arrays(path)) or {}))


# The cases


def test_a_file_is_run_at_several_sizes_and_on_extreme_data(gae_files, ending):
    report = export.verify(gae_files / f"gae{ending}")
    assert report.passed, str(report)
    assert report.cases == CASES


def test_cases_have_the_sizes_and_episode_ends_in_their_names(gae_files):
    arrays = recorded_arrays(gae_files / "gae.pt")
    for case, shape in zip(SIZES, [(1, 1), (67, 5), (1, 7), (11, 1), (3, 2), (128, 19)], strict=True):
        assert arrays[f"{case}/inputs/reward"].shape == arrays[f"{case}/outputs/advantage"].shape == shape
    some, every, cut_short, none, large = EXTREMES
    flags = {case: {name: arrays[f"{case}/inputs/{name}"] for name in ("done", "terminated")} for case in EXTREMES}
    assert flags[every]["done"].all()
    assert flags[every]["terminated"].all()
    assert flags[cut_short]["done"].all()
    assert not flags[cut_short]["terminated"].any()
    assert not flags[none]["done"].any()
    assert not flags[none]["terminated"].any()
    assert 0 < flags[some]["terminated"].sum() < flags[some]["done"].sum() < flags[some]["done"].size
    for name in ("reward", "state_value", "next_state_value"):
        assert np.allclose(arrays[f"{large}/inputs/{name}"], reference_cases._SCALE * arrays[f"{none}/inputs/{name}"])
    assert reference_cases._SCALE >= 100


def test_a_mask_leaves_some_steps_out(tmp_path):
    loss = make_loss()
    path = export.export_torchscript(loss, loss_inputs(inputs=(*PLAIN, "mask")), tmp_path / "loss.pt")
    assert "T=9 N=4, some steps count" in export.verify(path).cases
    mask = recorded_arrays(path)["T=9 N=4, some steps count/inputs/mask"]
    assert 0 < mask.sum() < mask.size


def test_inputs_of_a_case_are_consistent(tmp_path):
    loss = make_loss("MaskedCategorical", value_estimator="GAE", reduction="none")
    path = export.export_torchscript(loss, loss_inputs(distribution="MaskedCategorical"), tmp_path / "loss.pt")
    arrays = recorded_arrays(path)
    for case in CASES:
        assert np.isfinite(arrays[f"{case}/outputs/loss_objective"]).all(), "no action that its observation forbids"
        assert (arrays[f"{case}/inputs/terminated"] <= arrays[f"{case}/inputs/done"]).all()


class Weighted(nn.Module):
    def forward(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return x @ weight


@pytest.mark.parametrize(
    ("axes", "cases"),
    [
        (("N",), ["N=1", "N=67", "N=11", "N=3", "N=128"]),
        ((), ["fixed sizes"]),
        ({"x": (None, "B")}, ["B=1", "B=67", "B=11", "B=3", "B=128"]),
        (
            {"x": ("N", "T", "B")},
            ["N=1 T=1 B=3", "N=67 T=5 B=3", "N=1 T=7 B=3", "N=11 T=1 B=3", "N=3 T=2 B=3", "N=128 T=19 B=3"],
        ),
    ],
    ids=["one", "none", "second", "three"],
)
def test_cases_are_named_after_the_dimensions_that_vary(axes, cases, tmp_path):
    axes = axes if isinstance(axes, dict) else {"x": axes}
    path = export.export_torchscript(Weighted(), [torch.randn(5, 4, 2, 3), torch.randn(3, 2)], tmp_path / "weighted.pt", axes)
    assert export.verify(path).cases == cases


def test_inputs_that_all_cases_share_are_stored_once(tmp_path):
    weight = torch.randn(4, 2)
    path = export.export_torchscript(Weighted(), [torch.randn(3, 4), weight], tmp_path / "weighted.pt", {"x": ("N",)})
    arrays = recorded_arrays(path)
    assert [key for key in arrays if key.endswith("weight")] == ["every case/inputs/weight"]
    assert np.array_equal(arrays["every case/inputs/weight"], weight.numpy())
    assert export.verify(path).passed
    altered_cases(path, lambda arrays: {**arrays, "every case/inputs/weight": 2 * weight.numpy()})
    assert not export.verify(path).passed


def test_large_modules_have_only_two_cases(tmp_path, monkeypatch):
    monkeypatch.setattr(reference_cases, "_MAX_BYTES", 0)
    path = export.export_torchscript(estimators.GAE(), gae_inputs(), tmp_path / "gae.pt")
    assert export.verify(path).cases == SIZES[:2]


def test_inputs_that_a_module_does_not_read_are_not_inputs_of_the_graph(tmp_path):
    path = export.export_onnx(estimators.TD0Estimator(), gae_inputs(), tmp_path / "td0.onnx")
    assert "done" not in [value.name for value in onnx.load(path).graph.input]
    assert export.verify(path).passed


# Which files pass


def test_a_report_contains_errors_cases_and_checks(gae_files):
    path = gae_files / "gae.onnx"
    report = export.verify(path)
    assert (report.path, report.size, report.random) == (path, path.stat().st_size, [])
    assert report.checks == dict.fromkeys(("onnx.checker", "strict shape inference", "reference evaluator"), "passed")
    assert report.worst == max(error.relative for error in report.outputs.values()) < 1e-5
    first, *lines = str(report).splitlines()
    assert first == f"{path}: equal to eager in {len(CASES)} cases"
    assert [line.split()[0] for line in lines] == ["advantage", "value_target", "onnx.checker", "strict", "reference"]
    assert export.verify(str(path)) == report


def test_only_onnx_files_have_further_checks(gae_files):
    assert export.verify(gae_files / "gae.pt").checks == export.verify(gae_files / "gae.pt2").checks == {}


def test_a_file_with_other_coefficients_does_not_pass(folder, ending):
    shutil.copy(folder / f"other{ending}", folder / f"gae{ending}")
    report = export.verify(folder / f"gae{ending}")
    assert not report.passed
    assert f"DIFFERS FROM EAGER in {len(CASES)} cases" in str(report)
    assert report.worst == max(report.outputs["advantage"].relative, report.outputs["value_target"].relative) > 1e-3


@pytest.mark.parametrize("case", [SIZES[0], SIZES[4], EXTREMES[1], EXTREMES[4]])
@pytest.mark.parametrize("wrong", [0.5, NAN, INF])
def test_one_entry_that_differs_does_not_pass(folder, case, wrong):
    def alter(arrays):
        arrays[f"{case}/outputs/advantage"][0, 0] *= 1 + wrong
        return arrays

    altered_cases(folder / "gae.pt", alter)
    report = export.verify(folder / "gae.pt")
    assert (report.passed, report.outputs["advantage"].passed, report.outputs["value_target"].passed) == (False, False, True)
    lines = str(report).splitlines()
    assert lines[1].startswith("  advantage")
    assert [line.endswith("!") for line in lines] == [False, True, False]


class NotFinite(nn.Module):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return torch.full_like(x, NAN), torch.full_like(x, INF), torch.full_like(x, -INF), (x * 0.0).log()


def test_values_that_are_not_finite_have_to_be_the_same_in_the_file(tmp_path):
    path = export.export_onnx(NotFinite(), [torch.rand(3, 2)], tmp_path / "not_finite.onnx")
    report = export.verify(path)
    assert report.passed
    assert report.checks["reference evaluator"] == "passed", (
        "the logarithm of zero raises no warning, which would be an error here"
    )
    altered_cases(path, lambda arrays: {key: np.ones_like(x) if "/outputs/" in key else x for key, x in arrays.items()})
    assert [error.absolute for error in export.verify(path).outputs.values()] == [INF] * 4


@pytest.mark.parametrize("kind", ["outputs", "random"])
@pytest.mark.parametrize("change", [lambda x: x[:-1], lambda x: x.astype(np.float64)], ids=["shape", "dtype"])
def test_an_output_of_another_shape_or_dtype_does_not_pass(folder, kind, change):
    def alter(arrays):
        return {
            key.replace("outputs/value_target", f"{kind}/value_target"): change(x) if "value_target" in key else x
            for key, x in arrays.items()
        }

    altered_cases(folder / "gae.pt", alter)
    report = export.verify(folder / "gae.pt")
    assert (report.passed, report.outputs["advantage"].passed) == (False, True)
    assert report.outputs["value_target"].relative == INF


def test_integer_outputs_have_to_be_equal(tmp_path):
    policy = export.GreedyPolicy(nn.Linear(3, 4), distributions.Categorical(4))
    path = export.export_torchscript(policy, [torch.randn(8, 3)], tmp_path / "policy.pt", ("N",))
    assert export.verify(path).passed

    def alter(arrays):
        arrays["N=67/outputs/action"] += 1
        return arrays

    altered_cases(path, alter)
    report = export.verify(path)
    assert (report.passed, report.outputs["action"].absolute) == (False, 1.0)


class Moves(nn.Module):
    def forward(self, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return weight + 1e-3, weight + 1e-3


def test_the_error_of_a_new_weight_is_relative_to_how_far_it_moved(tmp_path):
    names = ("new.weight", "moved")
    path = export.export_onnx(Moves(), [0.5 + torch.rand(3, 2)], tmp_path / "moves.onnx", output_names=names)
    assert export.verify(path).passed
    exact = cases_of(path).read_bytes()
    for error, passes in ((1e-6, True), (1e-4, False)):
        cases_of(path).write_bytes(exact)
        altered_cases(path, lambda arrays, e=error: {key: x + e if "/outputs/" in key else x for key, x in arrays.items()})
        report = export.verify(path)
        assert (report.outputs["new.weight"].passed, report.outputs["moved"].passed, report.passed) == (passes,) * 3
        assert report.outputs["new.weight"].relative == pytest.approx(error / (1e-3 + error), rel=0.2)


class Summed(NamedTuple):
    x: torch.Tensor


class Sums(nn.Module):
    def forward(self, x: torch.Tensor) -> Summed:
        return Summed(x.sum(-1))


def test_an_output_may_have_the_name_of_an_input_that_it_does_not_replace(tmp_path):
    path = export.export_torchscript(Sums(), [torch.rand(3, 4)], tmp_path / "sums.pt", ("N",))
    assert export.verify(path).passed


# The reference evaluator


def spoiling(spoil):
    """Returns onnx's reference evaluator with ``spoil`` applied to its outputs."""

    class Evaluator(onnx.reference.ReferenceEvaluator):
        def run(self, *arguments, **options):
            return [spoil(output) for output in super().run(*arguments, **options)]

    return Evaluator


def test_a_graph_that_differs_in_the_reference_evaluator_does_not_pass(folder, monkeypatch):
    monkeypatch.setattr(onnx_file, "ReferenceEvaluator", spoiling(lambda output: output + 1))
    report = export.verify(folder / "gae.onnx")
    assert all(error.passed for error in report.outputs.values())
    assert (report.passed, report.checks["reference evaluator"]) == (False, "differs in advantage, value_target")
    assert str(report).splitlines()[-1].split() == ["reference", "evaluator", "differs", "in", "advantage,", "value_target"]


def test_a_graph_that_the_reference_evaluator_cannot_run_passes(folder, monkeypatch):
    def fail(output):
        raise NotImplementedError("no such operator\nand more")

    monkeypatch.setattr(onnx_file, "ReferenceEvaluator", spoiling(fail))
    report = export.verify(folder / "gae.onnx")
    assert (report.passed, report.checks["reference evaluator"]) == (True, "not run: no such operator")


# Reports as JSON


@pytest.mark.parametrize("passes", [True, False])
def test_a_report_is_json(folder, ending, passes):
    path = folder / f"gae{ending}"
    if not passes:
        altered_cases(path, lambda arrays: {key: x[:-1] if "outputs/advantage" in key else x for key, x in arrays.items()})
    report = export.verify(path)
    read = json.loads(json.dumps(report.as_json(), allow_nan=False))
    assert read == report.as_json()
    assert set(read) == {"path", "size", "cases", "outputs", "random", "checks", "passed"}
    assert (read["path"], read["passed"], read["cases"]) == (str(path), passes, CASES)
    assert read["outputs"]["value_target"] == report.outputs["value_target"]._asdict()
    expected = report.outputs["advantage"]._asdict() if passes else {"absolute": None, "relative": None, "passed": False}
    assert read["outputs"]["advantage"] == expected


# Files that cannot be verified


def test_a_file_that_changed_since_its_export_is_refused(gae_files, tmp_path, ending):
    folder = shutil.copytree(gae_files, tmp_path / "files")
    path = folder / f"gae{ending}"
    assert (folder / f"gae{ending}.sha256").read_text() == f"{hashlib.sha256(path.read_bytes()).hexdigest()}  gae{ending}\n"
    shutil.copy(folder / f"other{ending}", path)
    with pytest.raises(ValueError, match=rf"path: expected the .*gae\{ending} that was exported, got one with another SHA-256"):
        export.verify(path)
    assert not export.verify(path, check=False).passed
    (folder / f"gae{ending}.sha256").unlink()
    assert not export.verify(path).passed


@pytest.mark.parametrize("ending", EXPORTERS)
def test_a_missing_file_is_named(ending, tmp_path):
    with pytest.raises(ValueError, match=rf"path: expected an exported file, found nothing at .*none\{ending}"):
        export.verify(tmp_path / f"none{ending}")


@pytest.mark.parametrize("name", ["model.bin", "model", "model.pt3", "model.onnx.cases.npz"])
def test_a_file_of_another_kind_is_refused(name, tmp_path):
    (tmp_path / name).write_text("")
    with pytest.raises(ValueError, match=rf"expected a file ending in \.onnx, \.pt, \.pt2, \.aot\.pt2, got .*{name}"):
        export.verify(tmp_path / name)


@pytest.mark.parametrize("ending", EXPORTERS)
def test_a_file_without_its_cases_is_refused(folder, ending):
    path = folder / f"foreign{ending}"
    shutil.copy(folder / "gae.pt2", path)
    with pytest.raises(ValueError, match=rf"expected foreign\{ending}\.cases\.npz beside it"):
        export.verify(path)


SPOILT = {
    "truncated": lambda data: data[: len(data) // 2],
    "text": lambda data: b"an exported file, once",
    "empty": lambda data: b"",
}


@pytest.mark.parametrize("ending", EXPORTERS)
@pytest.mark.parametrize("spoil", SPOILT)
def test_a_spoilt_file_is_refused(folder, ending, spoil):
    path = folder / f"spoilt{ending}"
    content = (folder / (f"gae{ending}" if ending in UNCOMPILED else "gae.pt2")).read_bytes()
    path.write_bytes(SPOILT[spoil](content))
    shutil.copy(cases_of(folder / "gae.pt"), cases_of(path))
    with pytest.raises(ValueError, match=rf"spoilt\{ending}: does not run \(.+\)"):
        export.verify(path)


@pytest.mark.parametrize(("real", "ending"), [(real, ending) for real in UNCOMPILED for ending in EXPORTERS if real != ending])
def test_a_file_of_one_kind_under_the_name_of_another_is_refused(folder, real, ending):
    path = folder / f"renamed{ending}"
    shutil.copy(folder / f"gae{real}", path)
    shutil.copy(cases_of(folder / f"gae{real}"), cases_of(path))
    with pytest.raises(ValueError, match=rf"renamed\{ending}: does not run \(.+\)"):
        export.verify(path)


def test_a_state_dict_is_not_an_exported_file(folder):
    torch.save(nn.Linear(2, 2).state_dict(), folder / "gae.pt")
    with pytest.raises(ValueError, match="does not run"):
        export.verify(folder / "gae.pt")


def test_a_graph_that_declares_wrong_sizes_is_refused(folder):
    model = onnx.load(folder / "gae.onnx")
    model.graph.output[0].type.tensor_type.shape.dim[0].dim_value = 5
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 3
    model.graph.output[0].type.tensor_type.shape.dim.add().dim_value = 2
    onnx.save(model, folder / "gae.onnx")
    with pytest.raises(ValueError, match="does not run"):
        export.verify(folder / "gae.onnx")


def with_an_entry_that_is_no_array(data):
    """np.load returns the bytes of such an entry."""
    file = io.BytesIO(data)
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr("T=1 N=1/outputs/advantage", b"0.1")
    return file.getvalue()


@pytest.mark.parametrize("spoil", [*SPOILT.values(), with_an_entry_that_is_no_array], ids=[*SPOILT, "other"])
def test_spoilt_cases_are_refused(folder, spoil):
    cases = cases_of(folder / "gae.pt")
    cases.write_bytes(spoil(cases.read_bytes()))
    with pytest.raises(ValueError, match=r"^path: expected an \.npz file of arrays, got .*gae\.pt\.cases\.npz \("):
        export.verify(folder / "gae.pt")


def without(*names):
    return lambda arrays: {key: x for key, x in arrays.items() if not key.endswith(names)}


@pytest.mark.parametrize(
    ("alter", "message"),
    [
        (lambda arrays: {}, "expected at least one case, found none"),
        (lambda arrays: {"every case/inputs/reward": np.ones((2, 2))}, "expected at least one case, found none"),
        (lambda arrays: {**arrays, "seven": np.ones(1)}, "expected arrays of reference cases, got one with the name 'seven'"),
        (lambda arrays: {**arrays, "T=1 N=1/other/advantage": np.ones(1)}, "expected arrays of reference cases, got one with"),
        (without("outputs/advantage", "outputs/value_target"), "expected outputs"),
        (without("outputs/advantage"), r"expected outputs \['value_target'\], got \['advantage', 'value_target'\]"),
        (without("inputs/reward"), "does not run"),
    ],
    ids=["none", "shared_alone", "stray_array", "stray_kind", "no_outputs", "other_outputs", "no_reward"],
)
def test_cases_that_do_not_match_the_file_are_refused(folder, alter, message):
    altered_cases(folder / "gae.pt", alter)
    with pytest.raises(ValueError, match=message):
        export.verify(folder / "gae.pt")


def test_cases_of_other_inputs_are_refused(folder, ending):
    altered_cases(folder / f"gae{ending}", lambda arrays: {key.replace("/reward", "/rewards"): x for key, x in arrays.items()})
    with pytest.raises(ValueError, match="does not run"):
        export.verify(folder / f"gae{ending}")
