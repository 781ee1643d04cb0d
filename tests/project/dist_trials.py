"""The trials of ``make dist``: ``python -P dist_trials.py TRIAL ...`` runs one in an environment with the installed package.

A trial prints a line for each thing that it tried. It raises an error if something is wrong.
"""

import importlib
import importlib.machinery
import importlib.util
import itertools
import re
import resource
import subprocess
import sys
import warnings
from collections import Counter
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from a2c_compiled import A2CLoss, Rollout

SCRIPTS = Path(sys.executable).parent
# torch alone warns about missing numpy when it is imported. Any other warning is an error.
STRICT = ("-W", "error", "-W", "ignore:Failed to initialize NumPy:UserWarning")


def core(*names: str) -> None:
    """Torch and nothing else: every module, the kernels, the loss, the training step, the command line."""
    modules()
    kernels(*names)
    python("-P", *STRICT, __file__, "learning")
    print("loss and training step in eager mode: finite, the parameters change")
    command_line()


def modules(*installed: str) -> None:
    """Imports every module. A module that needs other packages must name extras that are not all ``installed``."""
    import a2c_compiled

    folder = Path(a2c_compiled.__file__).parent
    extras = set(metadata.metadata("a2c-compiled").get_all("Provides-Extra") or ())
    refused: Counter[str] = Counter()
    paths = sorted(folder.rglob("*.py"))
    for path in paths:
        name = ".".join(("a2c_compiled", *path.relative_to(folder).with_suffix("").parts)).removesuffix(".__init__")
        before = set(sys.modules)
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            for left in set(sys.modules) - before:  # Python removes the package that failed, but not the packages in it
                if left.startswith("a2c_compiled."):
                    del sys.modules[left]
            if path.parent.name == "on_device" and error.name == "gymnasium":
                refused["gymnasium"] += 1  # a script for devices, which have no extras
                continue
            named = extras_in(error)
            if not named or not set(named) <= extras or set(named) <= set(installed):
                raise AssertionError(
                    f"{name}: with {installed}, expected to import or to name an extra, got {error}"
                ) from error
            refused[",".join(named)] += 1
    counts = ", ".join(f"{count} need [{extra}]" for extra, count in refused.items())
    print(f"{len(paths) - refused.total()} of {len(paths)} modules import; {counts}")


def extras_in(error: Exception) -> list[str]:
    """Returns the extras that an error message tells the user to install."""
    command = re.search(r"pip install 'a2c-compiled\[([\w,]+)\]'$", str(error))
    return command[1].split(",") if command else []


def kernels(*names: str) -> None:
    """Runs each build of the C++ kernels in a process of its own, and compares it with a loop in float64."""
    for name in names:
        print(python("-P", *STRICT, __file__, "kernel", name, *(other for other in names if other != name)).strip())


def kernel(name: str, *others: str) -> None:
    """Runs one build. The package chooses it because the ``others`` cannot be imported."""
    sys.modules.update({f"a2c_compiled.kernels.{other}": None for other in others})
    from a2c_compiled.kernels import cpu_scan

    if cpu_scan.build_in_use() is None:
        print(f"{name}: not run, this processor lacks its instructions")
        return
    assert cpu_scan.build_in_use() == name, f"build: expected {name}, got {cpu_scan.build_in_use()}"
    print(f"{name}: {compare_with_loop()}")


def compare_with_loop() -> str:
    """Compares GAE and its gradient with a loop over time. Returns the largest errors."""
    import torch

    sys.path.append(str(Path(__file__).parents[1]))
    import oracle

    from a2c_compiled import functional

    torch.manual_seed(0)
    shape, errors = (37, 19), []
    done = torch.rand(shape) < 0.1
    terminated = done & (torch.rand(shape) < 0.5)
    for dtype, largest in ((torch.float32, 1e-4), (torch.float64, 1e-12)):
        for time_dim in (-2, -1):
            steps = [torch.randn(shape, dtype=dtype, requires_grad=True) for _ in range(3)]
            results = [
                estimate(0.99, 0.95, *steps, done, terminated, time_dim=time_dim)[0]
                for estimate in (functional.generalized_advantage_estimate, oracle.generalized_advantage_estimate)
            ]
            gradients = [torch.autograd.grad(result.square().sum(), steps) for result in results]
            without_gradient = [step.detach() for step in steps]  # takes another way to the kernel
            direct = functional.generalized_advantage_estimate(
                0.99, 0.95, *without_gradient, done, terminated, time_dim=time_dim
            )
            pairs = [results, (direct[0], results[1]), *zip(*gradients, strict=True)]
            errors.append(max(((ours - theirs).abs().max() / theirs.abs().max()).item() for ours, theirs in pairs))
            assert errors[-1] < largest, f"error: expected at most {largest}, got {errors[-1]}"
    return f"GAE and its gradient differ from a loop by {max(errors[:2]):.0e} in float32 and {max(errors[2:]):.0e} in float64"


def loss_and_rollout() -> tuple["A2CLoss", "Rollout"]:
    """Returns an A2CLoss, and a rollout for it."""
    import torch
    from torch import nn

    from a2c_compiled import A2CLoss, Rollout, distributions, estimators

    torch.manual_seed(0)
    networks = [nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, outputs)) for outputs in (2, 1)]
    loss = A2CLoss(*networks, distributions.Categorical(2), estimators.GAE(gamma=0.99, lmbda=0.95))
    observation, next_observation = torch.randn(2, 16, 8, 4)
    done = torch.rand(16, 8) < 0.1
    return loss, Rollout(observation, torch.randint(2, (16, 8)), torch.randn(16, 8), next_observation, done, done)


def learning() -> None:
    """Takes a step of training in eager mode."""
    import torch

    from a2c_compiled import TrainStep

    loss, rollout = loss_and_rollout()
    before = [parameter.clone() for parameter in loss.parameters()]
    metrics = TrainStep(loss, compile=False)(rollout)
    assert all(value.isfinite() for value in metrics if value is not None)
    assert not any(torch.equal(old, new) for old, new in zip(before, loss.parameters(), strict=True))


def command_line() -> None:
    """The command line names the extra of a command, and starts quickly."""
    for command in ("train", "bench", "verify x.onnx"):
        done = subprocess.run([SCRIPTS / "a2c-compiled", *command.split()], capture_output=True, text=True, check=False)
        assert done.returncode == 2, f"a2c-compiled {command}: expected status 2, got {done.returncode}:\n{done.stderr}"
        last = done.stderr.splitlines()[-1]
        assert re.fullmatch(r"a2c-compiled: expected .+: pip install 'a2c-compiled\[.+\]'", last), done.stderr
    torch_alone = least_seconds(sys.executable, "-c", "import torch")
    times = {option: least_seconds(SCRIPTS / "a2c-compiled", option) - torch_alone for option in ("--help", "--version")}
    figures = ", ".join(f"{option} {seconds:+.2f} s" for option, seconds in times.items())
    print(f"a2c-compiled, beside the {torch_alone:.2f} s of `import torch` (processor time, least of 7): {figures}")


def least_seconds(program: object, *arguments: object) -> float:
    """Returns the processor time of a command in seconds, the least of seven: other processes delay it less than the clock's time."""
    times = [processor_time()]
    for _ in range(7):
        python(*arguments, program=program)
        times.append(processor_time())
    return min(after - before for before, after in itertools.pairwise(times))


def processor_time() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def fallback() -> None:
    """Without the C++ kernels, plain torch computes the same, and one warning says so."""
    from a2c_compiled.kernels import cpu_scan

    assert cpu_scan.build_in_use() is None
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        compared = compare_with_loop()
        loss, rollout = loss_and_rollout()
        for _ in range(2):
            loss(
                *rollout[:2], reward=rollout.reward, next_observation=rollout.next_observation, done=rollout.done
            ).total.backward()
    said = [str(warning.message) for warning in caught if "a2c_compiled" in str(warning.message)]
    assert len(said) == 1, f"warnings: expected one, got {said}"
    print(f"without kernels: {compared}; one warning: {said[0]!r}")


def export() -> None:
    """A policy and a training step in each format that needs no compiler."""
    import torch

    from a2c_compiled import TrainStep, export

    loss, rollout = loss_and_rollout()
    policy = export.GreedyPolicy(loss.actor_network, loss.distribution)
    writers = {"onnx": export.export_onnx, "pt": export.export_torchscript, "pt2": export.export_pt2}
    for ending, write in writers.items():
        write(policy, {"observation": torch.randn(8, 4)}, f"policy.{ending}", dynamic_axes=("N",))
    export.export_train_step(TrainStep(loss, compile=False), rollout, "train_step.onnx")
    files = [*(f"policy.{ending}" for ending in writers), "train_step.onnx"]
    for file in files:
        report = export.verify(file)
        assert report.passed, report
    print(f"written and verified: {', '.join(files)}")


def train() -> None:
    """A short run: training, evaluation, plot."""
    program = SCRIPTS / "a2c-compiled"
    options = ("--env", "CartPole-v1", "--total-steps", "2048", "--num-envs", "8", "--no-compile", "--out", "run")
    print(python("train", *options, program=program).splitlines()[-1])
    python("eval", "run", "--episodes", "2", program=program)
    python("plot", "run", program=program)
    done = subprocess.run([program, "export", "run"], capture_output=True, text=True, check=False)
    assert done.returncode == 2, f"a2c-compiled export: expected status 2, got {done.returncode}:\n{done.stderr}"
    assert "a2c-compiled[train,export]" in done.stderr, done.stderr
    print("eval and plot read the run; export names the extra that it needs")


def environments(*names: str) -> None:
    """Steps environments of each package of the extra."""
    import torch

    from a2c_compiled.environments import make_environments

    names = names or ("LunarLander-v3", "HalfCheetah-v5", "MinAtar/Breakout-v1", "CartPole-v1")
    for name in names:
        envs = make_environments(name, 2)
        envs.reset(seed=0)
        space = envs.action_space
        action = torch.zeros((2, *space.shape), dtype=torch.float32 if space.shape else torch.int64)
        for _ in range(3):
            assert envs.step(action).reward.shape == (2,), name
        envs.close()
    print(f"reset and stepped: {', '.join(names)}")


def envpool() -> None:
    environments("envpool:CartPole-v1")


def peers() -> None:
    """Conversions and accelerations of both integrations."""
    from stable_baselines3 import A2C
    from torchrl.objectives.value.functional import generalized_advantage_estimate

    from a2c_compiled.integrations import stable_baselines3, torchrl

    _, rollout = loss_and_rollout()
    steps = [
        tensor.t().unsqueeze(-1) for tensor in (rollout.reward, rollout.reward, rollout.reward, rollout.done, rollout.done)
    ]
    expected = generalized_advantage_estimate(0.99, 0.95, *steps)[0]
    with torchrl.accelerate() as acceleration:
        from torchrl.objectives.value import functional

        computed = functional.generalized_advantage_estimate(0.99, 0.95, *steps)[0]
    assert acceleration.calls == 1, acceleration
    assert (computed - expected).abs().max() < 1e-5
    model = A2C("MlpPolicy", "CartPole-v1", n_steps=8, device="cpu")
    with stable_baselines3.accelerate() as acceleration:
        model.learn(64)
    assert acceleration.calls == 8, acceleration
    stable_baselines3.from_sb3(model)
    print("TorchRL and Stable-Baselines3: accelerated; a model converted")


def docs() -> None:
    """A page with a formula and a docstring."""
    extensions = ["sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.mathjax", "myst_parser"]
    Path("conf.py").write_text(f"extensions = {extensions}\nhtml_theme = 'furo'\n")
    Path("index.md").write_text("# Page\n\n```{eval-rst}\n.. autofunction:: a2c_compiled.functional.reward2go\n```\n")
    python("-m", "sphinx", "--fail-on-warning", "--quiet", ".", "site")
    assert "next_state_value" in Path("site", "index.html").read_text()
    print("Sphinx makes a page with a docstring")


def loaded(*names: str) -> None:
    """Loads the kernels in a Python without torch."""
    spec = importlib.util.find_spec("a2c_compiled")
    assert spec is not None
    assert spec.origin is not None
    for name in names:
        file = Path(spec.origin).with_name("kernels") / f"{name}.abi3.so"
        loader = importlib.machinery.ExtensionFileLoader(name, str(file))
        module = importlib.util.module_from_spec(importlib.machinery.ModuleSpec(name, loader, origin=str(file)))
        loader.exec_module(module)
        assert "gae" in module.forms(), name
    print(f"the wheel installs, and {', '.join(names)} load")


def python(*arguments: object, program: object = sys.executable) -> str:
    """Runs a program and returns what it printed."""
    done = subprocess.run([str(word) for word in (program, *arguments)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{program} {arguments}: status {done.returncode}\n{done.stdout[-2000:]}{done.stderr[-4000:]}"
    return done.stdout


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
