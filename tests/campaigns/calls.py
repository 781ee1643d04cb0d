"""Calls of the library for the campaigns on threads, forks and memory: every call of a name must give equal results."""

import copy
import tempfile
from pathlib import Path

import campaign  # noqa: F401 - makes the modules of tests/ importable
import torch
from cases import CLASSES, FUNCTIONS, as_tuple, call_arguments, make_steps
from torch import nn

from a2c_compiled import A2CLoss, Rollout, TrainStep, distributions, estimators, export, functional
from a2c_compiled.export.on_device.runtime import Learner, Policy

STEPS, ENVS, FEATURES = 8, 4, 3
FILES = ("policy.onnx", "policy.pt", "policy.pt2", "train_step.onnx")


def make_loss(estimator=None):
    """A loss whose networks have fixed random weights."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        actor = nn.Sequential(nn.Linear(FEATURES, 8), nn.Tanh(), nn.Linear(8, 2))
        critic = nn.Sequential(nn.Linear(FEATURES, 8), nn.Tanh(), nn.Linear(8, 1))
    return A2CLoss(actor, critic, distributions.Categorical(2), estimator)


def make_rollout():
    """A fixed random rollout."""
    generator = torch.Generator().manual_seed(1)
    observation, next_observation = torch.randn(2, STEPS, ENVS, FEATURES, generator=generator)
    action = torch.randint(2, (STEPS, ENVS), generator=generator)
    reward, done = torch.randn(STEPS, ENVS, generator=generator), torch.rand(STEPS, ENVS, generator=generator) < 0.2
    return Rollout(observation, action, reward, next_observation, done, done)


def inputs_of(rollout):
    return {name: x for name, x in rollout._asdict().items() if x is not None}


def function_calls():
    """Every function of ``functional``: results, and the gradient of their sum in the floating arguments."""
    calls = {}
    for name in FUNCTIONS:
        arguments = call_arguments(name, make_steps((STEPS, ENVS), torch.float32))
        function = getattr(functional, name)

        def results(function=function, arguments=arguments):
            return [x for x in as_tuple(function(**arguments)) if isinstance(x, torch.Tensor)]

        def gradients(function=function, arguments=arguments):
            variables = {k: x.clone().requires_grad_() for k, x in arguments.items() if is_floating(x)}
            outputs = [x for x in as_tuple(function(**{**arguments, **variables})) if is_floating(x)]
            return list(torch.autograd.grad(sum(x.sum() for x in outputs), list(variables.values()), allow_unused=True))

        calls[f"functional.{name}"], calls[f"functional.{name} backward"] = results, gradients
    return calls


def is_floating(x):
    return isinstance(x, torch.Tensor) and x.is_floating_point()


def loss_calls():
    """The loss with each estimator: losses and the gradients of the parameters. One module serves all threads."""
    calls, inputs = {}, inputs_of(make_rollout())
    inputs["sample_log_prob"] = -torch.rand(STEPS, ENVS, generator=torch.Generator().manual_seed(2))  # V-trace reads it
    for kind in CLASSES:
        loss = make_loss(kind())

        def results(loss=loss):
            losses = loss(**inputs)
            total = losses.loss_objective + losses.loss_critic + losses.loss_entropy
            return [total.detach(), *torch.autograd.grad(total, list(loss.parameters()))]

        calls[f"loss with {kind.__name__}"] = results
    return calls


def step_calls(compiled=False):
    """Training steps that no other thread uses: the parameters after three steps from one state."""
    calls, rollout = {}, make_rollout()
    for optimizer in ("sgd", "rmsprop", "adam"):
        step = TrainStep(make_loss(estimators.GAE(average_gae=True)), optimizer, compile=compiled)
        before = copy.deepcopy(step.state_dict())

        def results(step=step, before=before):
            step.load_state_dict(copy.deepcopy(before))
            for _ in range(3):
                step(rollout)
            return [x.detach().clone() for x in step.state_dict().values()]

        calls[f"{'compiled' if compiled else 'eager'} TrainStep with {optimizer}"] = results
    return calls


def write_files(folder):
    """Exports a policy in three formats and a training step to ``folder``."""
    loss, rollout, folder = make_loss(), make_rollout(), Path(folder)
    policy, x = export.SampledPolicy(loss.actor_network, loss.critic_network, loss.distribution), torch.zeros(5, FEATURES)
    inputs = x, torch.zeros(5, 2)
    export.export_onnx(policy, inputs, folder / "policy.onnx", ("N",))
    export.export_torchscript(policy, inputs, folder / "policy.pt", ("N",))
    export.export_pt2(policy, inputs, folder / "policy.pt2", ("N",))
    export.export_train_step(TrainStep(loss, "adam", compile=False), rollout, folder / "train_step.onnx")


def file_calls(folder):
    """Loads the files of :func:`write_files`, and runs them; also a policy that stays loaded."""
    rollout, folder = make_rollout(), Path(folder)
    observation, noise = rollout.observation[0], torch.zeros(ENVS, 2)
    resident = Policy.load(folder / "policy.onnx", provider="cpu")

    def act(policy):
        output = policy.act(observation.numpy(), noise.numpy())
        return [torch.from_numpy(x) for x in (output.action, output.log_prob, output.state_value)]

    def learn():
        learner = Learner.load(folder / "train_step.onnx", provider="cpu")
        for _ in range(3):
            learner.step({name: x.numpy() for name, x in inputs_of(rollout).items()})
        return [torch.from_numpy(x) for x in learner.parameters.values()]

    return {
        "Policy.act": lambda: act(resident),
        "Policy.load": lambda: act(Policy.load(folder / "policy.onnx", provider="cpu")),
        "Learner.load": learn,
        **{f"verify {name}": lambda name=name: [torch.tensor(export.verify(folder / name).passed)] for name in FILES},
    }


def export_calls():
    """Exports a policy in each format, and verifies the file."""
    loss = make_loss()
    policy = export.SampledPolicy(loss.actor_network, loss.critic_network, loss.distribution)
    inputs = torch.zeros(5, FEATURES), torch.zeros(5, 2)
    exports = {"policy.pt": export.export_torchscript, "policy.pt2": export.export_pt2, "policy.onnx": export.export_onnx}

    def exported(name):
        with tempfile.TemporaryDirectory() as folder:
            return [torch.tensor(export.verify(exports[name](policy, inputs, Path(folder) / name, ("N",))).passed)]

    return {f"export of {name}": lambda name=name: exported(name) for name in exports}


def differs(actual, expected):
    """Whether results are not bit for bit equal."""
    return len(actual) != len(expected) or not all(
        (x is None and y is None) or (x is not None and y is not None and torch.equal(x, y))
        for x, y in zip(actual, expected, strict=True)
    )
