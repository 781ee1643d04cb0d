"""The installed package: its metadata, its files, from the tree and from the sdist, and the modules that import without the extras."""

import os
import re
import runpy
import subprocess
import sys
import sysconfig
import tarfile
import zipfile

import dist
import pytest
import setuptools
from test_architecture import MODULES, ROOMS, ROOT, room_of

import a2c_compiled
from a2c_compiled.benchmarks.gpu import prepare
from a2c_compiled.kernels import cpu_scan

PYTHON_FILES = {f"a2c_compiled/{module.place}.py" for module in MODULES.values()}
ON_DEVICE = ROOT / "export" / "on_device"
OF_PAGES = {
    f"a2c_compiled/{path.relative_to(ROOT)}" for path in (*ON_DEVICE.glob("runtime.*s"), *(ON_DEVICE / "web").iterdir())
}
FILES = PYTHON_FILES | OF_PAGES | {"a2c_compiled/py.typed"}
CPP = {f"a2c_compiled/kernels/cpu/{name}" for name in ("vectors.h", "copies.h", "forms.h", "scan.h", "module.cpp")}

# Packages beside torch that the modules may import: extras, peers, and Triton, which a CPU does not need.
EXTRAS = (
    *("gymnasium", "onnx", "onnxscript", "onnxruntime", "safetensors", "matplotlib", "tensorboard", "tqdm"),
    *("torchrl", "tensordict", "stable_baselines3", "numba", "triton", "numpy"),
)
# Rooms below ``a2c_compiled/__init__.py`` that need gymnasium or Triton.
ON_EXTRAS = ("networks", "environments", "kernels/triton", "kernels/triton_scan")
TORCH_ALONE = sorted(
    name
    for name, module in MODULES.items()
    if room_of(module.place) >= ROOMS.index("__init__") and not module.place.startswith(ON_EXTRAS)
)

HIDE = """
import importlib, sys, traceback

class Without:
    # Hides packages as if they were not installed, from `import` and from `find_spec`.
    def __init__(self, finder, packages):
        self.finder, self.packages = finder, packages

    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] in self.packages else self.finder.find_spec(name, path, target)

    def __getattr__(self, name):
        return getattr(self.finder, name)  # find_distributions, for importlib.metadata

site, blocked, *names = sys.argv[1:]
sys.meta_path[:] = [Without(finder, blocked.split(",")) for finder in sys.meta_path]
"""
IMPORT_ALL = f"""{HIDE}
for name in names:
    try:
        module = importlib.import_module(name)
    except BaseException:
        sys.exit(f"{{name}} cannot be imported:\\n{{traceback.format_exc()}}")
    if not module.__file__.startswith(site):
        sys.exit(f"{{name}}: expected from {{site}}, got {{module.__file__}}")
print("imported", len(names))
"""


def run(command, cwd, **environment):
    done = subprocess.run(command, cwd=cwd, env={**os.environ, **environment}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command[:6]}:\n{done.stdout[-3000:]}{done.stderr[-5000:]}"
    return done.stdout


def pip(*arguments, cwd, **environment):
    return run([sys.executable, "-m", "pip", "--disable-pip-version-check", *map(str, arguments)], cwd, **environment)


def files_below(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file() and path.suffix != ".pyc"}


def building(test):
    """Marks a test that uses the sdist, the wheel or the installation, which are built once."""
    return pytest.mark.slow(pytest.mark.xdist_group("package")(test))


@pytest.fixture(scope="module")
def sdist(tmp_path_factory):
    """The sdist, unpacked."""
    folder = tmp_path_factory.mktemp("sdist")
    sources = prepare.copy_sources(folder / "sources")
    run([sys.executable, "-c", f"from setuptools import build_meta; build_meta.build_sdist({str(folder)!r})"], sources)
    (archive,) = folder.glob("*.tar.gz")
    with tarfile.open(archive) as opened:
        opened.extractall(folder / "unpacked", filter="data")
    return folder / "unpacked" / archive.name.removesuffix(".tar.gz")


@pytest.fixture(scope="module")
def wheel(sdist, tmp_path_factory):
    """The wheel, built from the sdist with the C++ kernels. They are not optimised, because that takes half a minute."""
    folder = tmp_path_factory.mktemp("wheel")
    compiler = folder / "c++"
    compiler.write_text(f'#!/bin/sh\nexec {sysconfig.get_config_var("CXX") or "c++"} "$@" -O0\n')
    compiler.chmod(0o755)
    compilers = {"CC": str(compiler), "CXX": str(compiler)}
    pip("wheel", "-q", "--no-deps", "--no-build-isolation", "-w", folder, sdist, cwd=folder, **compilers)
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def site(wheel, tmp_path_factory):
    """A folder with nothing but the installed wheel."""
    folder = tmp_path_factory.mktemp("site")
    pip("install", "-q", "--no-deps", "--no-index", "--no-compile", "--target", folder, wheel, cwd=folder)
    return folder


@building
def test_the_sdist_has_every_source_as_a_regular_file(sdist):
    found = {name for name in files_below(sdist) if name.startswith("a2c_compiled/")}
    assert found == FILES | CPP
    others = {name for name in files_below(sdist) if not name.startswith(("a2c_compiled/", "a2c_compiled.egg-info/"))}
    assert others == dist.AT_THE_TOP | dist.EXAMPLES
    assert [path for path in sdist.rglob("*") if path.is_symlink()] == []


@building
def test_the_wheel_has_every_module_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert names - dist.KERNEL_FILES == FILES
    assert "a2c_compiled/kernels/_cpu.abi3.so" in names


@building
def test_the_wheel_is_for_every_python_from_3_11_on(wheel):
    assert f"-{dist.TAG}-" in wheel.name


@pytest.mark.slow
def test_the_tree_with_its_links_installs_the_same_files_as_the_sdist(tmp_path):
    sources = prepare.copy_sources(tmp_path / "sources")
    assert (sources / "a2c_compiled" / "export").is_symlink()
    # Without the C++ kernels, which the test of the wheel builds.
    options = ("-q", "--no-deps", "--no-build-isolation", "--target", tmp_path / "site")
    pip("install", *options, ".", cwd=sources, CC="false", CXX="false")
    assert files_below(tmp_path / "site" / "a2c_compiled") == {name.removeprefix("a2c_compiled/") for name in FILES}


@building
@pytest.mark.parametrize(
    ("blocked", "names"), [("", sorted(MODULES)), (",".join(EXTRAS), TORCH_ALONE)], ids=["every_module", "torch_alone"]
)
def test_installed_modules_import_in_an_empty_folder(site, tmp_path, blocked, names):
    if not blocked:
        for package in EXTRAS:
            pytest.importorskip(package)
    command = [sys.executable, "-W", "ignore", "-c", IMPORT_ALL, str(site), blocked, *names]
    printed = run(command, tmp_path, PYTHONPATH=str(site), PYTHONSAFEPATH="1")
    assert printed.splitlines()[-1] == f"imported {len(names)}"
    assert list(tmp_path.iterdir()) == []


@building
def test_without_the_extras_every_module_imports_or_names_the_extra_that_it_needs(site, tmp_path):
    code = f"{HIDE}\nimport dist_trials\ndist_trials.modules()"
    hidden = {*EXTRAS, "PIL", "imageio", "onnx_ir", "packaging", "sb3_contrib"} - {"triton"}
    path = os.pathsep.join([str(site), os.path.dirname(dist.TRIALS)])
    command = [sys.executable, "-W", "ignore", "-c", code, "", ",".join(hidden)]
    printed = run(command, tmp_path, PYTHONPATH=path, PYTHONSAFEPATH="1", TRITON_INTERPRET="0")
    assert int(printed.partition(" of ")[0]) >= len(TORCH_ALONE)


def test_the_version_and_the_extras_are_documented_and_each_extra_has_a_trial():
    project = dist.PROJECT["project"]
    assert project["version"] == a2c_compiled.__version__
    page = (ROOT / "docs" / "install.md").read_text()
    assert re.findall(r"^\| `(\w+)` \| ", page, re.MULTILINE) == dist.EXTRAS
    assert all(f"\ndef {extra}(" in dist.TRIALS.read_text() for extra in dist.EXTRAS)
    versions = {f"3.{minor}" for minor in range(11, 14)}
    assert {name.rpartition(" ")[2] for name in project["classifiers"] if "Python :: 3." in name} == versions
    assert project["requires-python"] == ">=3.11,<3.14"


def test_the_page_says_which_kernels_are_in_use(capsys):
    (block,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "install.md").read_text(), re.DOTALL)
    exec(compile(block, "install.md", "exec"), {})
    assert capsys.readouterr().out == f"{cpu_scan.build_in_use()}\n"
    assert cpu_scan.build_in_use() in dist.KERNELS


@pytest.mark.parametrize("free_threaded", [None, 0, 1])
def test_the_wheel_of_a_free_threaded_python_has_no_stable_abi(free_threaded, monkeypatch):
    passed = {}
    monkeypatch.setattr(setuptools, "setup", passed.update)
    monkeypatch.setattr(sysconfig, "get_config_var", {"Py_GIL_DISABLED": free_threaded}.get)
    runpy.run_path(str(ROOT / "setup.py"))
    assert passed["options"].get("bdist_wheel", {}) == ({} if free_threaded else {"py_limited_api": "cp311"})


@pytest.mark.slow
@pytest.mark.parametrize(
    "code", ["import a2c_compiled", "from a2c_compiled.cli import main; main(['--help'])"], ids=["import", "help"]
)
def test_importing_the_package_loads_nothing_slow_beside_torch(code):
    before_and_after = (
        "import sys, torch; before = set(sys.modules)\ntry:\n  {}\nexcept SystemExit: pass\nprint(*set(sys.modules) - before)"
    )
    loaded = run([sys.executable, "-c", before_and_after.format(code)], ROOT).splitlines()[-1].split()
    packages = {name.partition(".")[0] for name in loaded} - set(sys.stdlib_module_names)
    assert packages == {"a2c_compiled"}  # and no further module of torch, such as torch._dynamo, which takes a second


def test_the_documented_packages_need_no_extra():
    rooms = {MODULES[name].place.split("/")[0] for name in TORCH_ALONE}
    assert rooms >= {"__init__", "distributions", "estimators", "functional", "kernels", "losses", "ops", "recurrent", "update"}


def git(*arguments, cwd=ROOT):
    done = subprocess.run(["git", *map(str, arguments)], cwd=cwd, capture_output=True, text=True, check=False)
    if done.returncode not in (0, 1):
        pytest.skip(f"this is no git checkout: {done.stderr.strip()}")
    return done.stdout.splitlines()


def test_git_ignores_build_outputs_and_no_source():
    built = [
        "build/lib/x.py",
        "dist/x.whl",
        "runs/x.py",
        ".gpu/first.py",
        "a2c_compiled.egg-info/x",
        "a2c_compiled/kernels/_cpu.abi3.so",
    ]
    sources = [str(module.path.relative_to(ROOT)) for module in MODULES.values()]
    not_built = ["a2c_compiled/build/x.py", "export/dist/x.py", "a2c_compiled/training/runs/x.py", "tests/build/x.py"]
    assert git("check-ignore", "--no-index", *built) == built
    assert git("check-ignore", "--no-index", *sources, *not_built) == []


def test_a_clone_carries_the_links(tmp_path):
    git("clone", "-q", "--depth", "1", ROOT.as_uri(), tmp_path / "clone")
    for name in ("export", "benchmarks"):
        link = tmp_path / "clone" / "a2c_compiled" / name
        assert link.is_symlink()
        assert os.readlink(link) == f"../{name}"
        assert (link / "__init__.py").is_file()
