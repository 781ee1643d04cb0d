"""The modules and names that are compared with the files in ``tests/fixtures``, which an earlier version wrote.

``fixtures/make.py`` wrote the files with the code of that version. ``test_earlier_files.py`` reads them with the current code.
"""

import contextlib
import io
import json
import re
import zipfile
from pathlib import Path
from typing import Any, Callable, Dict, List, Mapping, NamedTuple, Optional, Tuple

import onnx
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from a2c_compiled import A2CLoss, distributions, estimators
from a2c_compiled.cli import main
from a2c_compiled.losses import PercentileNorm
from a2c_compiled.recurrent import MinGRU, Recurrent
from a2c_compiled.update import Rollout, TrainStep

FIXTURES = Path(__file__).with_name("fixtures")
STEPS, ENVS, AGENTS, FEATURES, WIDTH, CHOICES, DIM = 5, 3, 2, 4, 8, 2, 2

Batch = Dict[str, Tensor]
"""The arguments of a loss by name. The parts of a tuple have the names ``name.0``, ``name.1``, ..."""


# Batches


def make_batch(action: Callable[[torch.Generator], Tensor], lead: Tuple[int, ...] = (STEPS, ENVS)) -> Batch:
    """Returns random steps. Shapes: ``[*lead, FEATURES]`` for observations, ``[*lead]`` for rewards and flags."""
    generator = torch.Generator().manual_seed(0)
    observation, next_observation = torch.randn(2, *lead, FEATURES, generator=generator)
    done = torch.rand(lead, generator=generator) < 0.3
    return {
        "observation": observation,
        "action": action(generator),
        "reward": torch.randn(lead, generator=generator),
        "next_observation": next_observation,
        "done": done,
        "terminated": done & (torch.rand(lead, generator=generator) < 0.5),
    }


def choice_batch() -> Batch:
    """A batch whose actions are choices."""
    return make_batch(lambda generator: torch.randint(CHOICES, (STEPS, ENVS), generator=generator))


def vector_batch() -> Batch:
    """A batch whose actions are vectors inside (-1, 1)."""
    return make_batch(lambda generator: torch.randn(STEPS, ENVS, DIM, generator=generator).tanh())


def composite_batch() -> Batch:
    """A batch whose actions are a choice followed by a vector."""
    batch = vector_batch()
    return {**batch, "action": torch.cat([choice_batch()["action"].unsqueeze(-1).float(), batch["action"]], -1)}


def batch_with(**drawn: float) -> Callable[[], Batch]:
    """Returns a function that makes a batch of choices with further entries, normally distributed with these means."""

    def make() -> Batch:
        generator = torch.Generator().manual_seed(1)
        further = {name: torch.randn(STEPS, ENVS, generator=generator) * 0.3 + mean for name, mean in drawn.items()}
        return {**choice_batch(), **further}

    return make


def agents_batch() -> Batch:
    """A batch of choices of several agents. Rewards and flags, ``[T, N, 1]``, belong to the team."""
    lead = (STEPS, ENVS, AGENTS)
    batch = make_batch(lambda generator: torch.randint(CHOICES, lead, generator=generator), lead)
    return {**batch, **{name: batch[name][:, :, :1] for name in ("reward", "done", "terminated")}}


def remembered_batch() -> Batch:
    """A batch of choices for a recurrent network, whose observation is a tuple of ``x``, ``hidden`` and ``start``."""
    batch, generator = choice_batch(), torch.Generator().manual_seed(2)
    hidden, next_hidden = torch.randn(2, STEPS, ENVS, WIDTH, generator=generator)
    start = torch.cat([torch.ones(1, ENVS, dtype=torch.bool), batch["done"][:-1]])
    parts = {
        "observation": (batch.pop("observation"), hidden.masked_fill(start.unsqueeze(-1), 0.0), start),
        "next_observation": (batch.pop("next_observation"), next_hidden, torch.ones_like(start)),
    }
    return {**batch, **{f"{name}.{i}": part for name, tensors in parts.items() for i, part in enumerate(tensors)}}


def arguments_of(batch: Batch) -> Dict[str, Any]:
    """Returns the arguments of a loss, with tuples made of the parts in the batch."""
    arguments: Dict[str, Any] = {name: tensor for name, tensor in batch.items() if "." not in name}
    for name in ("observation", "next_observation"):
        if f"{name}.0" in batch:
            arguments[name] = tuple(batch[f"{name}.{i}"] for i in range(3))
    return arguments


def rollout_of(batch: Batch) -> Rollout:
    """Returns the steps of the batch as the rollout of a training step."""
    return Rollout(**arguments_of(batch))


# Losses and training steps


def mlp(outputs: int) -> nn.Sequential:
    """Returns a network with one hidden layer."""
    return nn.Sequential(nn.Linear(FEATURES, WIDTH), nn.Tanh(), nn.Linear(WIDTH, outputs))


def plain_loss(**options: Any) -> A2CLoss:
    """Returns a loss with separate actor and critic, over choices."""
    return A2CLoss(mlp(CHOICES), mlp(1), distributions.Categorical(CHOICES), **options)


def shared_loss(trunk: nn.Module, **options: Any) -> A2CLoss:
    """Returns a loss whose actor and critic are one layer each on the same trunk."""
    actor, critic = (nn.Sequential(trunk, nn.Linear(WIDTH, outputs)) for outputs in (CHOICES, 1))
    return A2CLoss(actor, critic, distributions.Categorical(CHOICES), **options)


def shared_mlp_loss(**options: Any) -> A2CLoss:
    """Returns a loss whose networks share one layer."""
    return shared_loss(nn.Sequential(nn.Linear(FEATURES, WIDTH), nn.Tanh()), **options)


def loss_over(distribution: distributions.Distribution, **options: Any) -> A2CLoss:
    """Returns a loss over ``distribution``."""
    return A2CLoss(mlp(distribution.num_params), mlp(1), distribution, **options)


def scale_loss() -> A2CLoss:
    """Returns a loss over a normal distribution with a learnt scale that does not depend on the observation."""
    actor = nn.Sequential(mlp(DIM), distributions.AddStateIndependentNormalScale(DIM, -0.5))
    return A2CLoss(actor, mlp(1), distributions.Normal(DIM, "exp"))


class LossCase(NamedTuple):
    """Functions that make a loss and a batch for the loss."""

    make: Callable[[], A2CLoss]
    batch: Callable[[], Batch] = choice_batch


def loss_cases() -> Dict[str, LossCase]:
    """Returns cases by name: for each kind of entry in a ``state_dict``, each estimator, and several distributions."""
    composite = (distributions.Categorical(CHOICES), distributions.Normal(DIM))
    norm = {"rate": 0.5, "min_scale": 0.1}
    return {
        "default": LossCase(plain_loss),
        "clip_value": LossCase(lambda: plain_loss(clip_value=0.2), batch_with(state_value=0.0)),
        "separate_losses": LossCase(lambda: shared_mlp_loss(separate_losses=True)),
        "target_critic_network": LossCase(lambda: plain_loss(target_critic_network=mlp(1))),
        "percentile_norm": LossCase(lambda: plain_loss(advantage_norm=PercentileNorm(**norm))),
        "no_critic": LossCase(lambda: plain_loss(critic_coef=None, entropy_coef=0.0)),
        "shifted": LossCase(lambda: plain_loss(shifted=True, shifted_budget=2)),
        "diagnostics": LossCase(lambda: plain_loss(diagnostics=True), batch_with(sample_log_prob=-0.7)),
        "gae_standardised": LossCase(lambda: plain_loss(value_estimator=estimators.GAE(0.9, 0.8, average_gae=True))),
        "td0": LossCase(lambda: plain_loss(value_estimator="td0")),
        "td1": LossCase(lambda: plain_loss(value_estimator="td1")),
        "td_lambda": LossCase(lambda: plain_loss(value_estimator=estimators.TDLambdaEstimator(0.9, 0.8))),
        "n_step": LossCase(lambda: plain_loss(value_estimator=estimators.NStepEstimator(2))),
        "upgo": LossCase(lambda: plain_loss(value_estimator="upgo")),
        "vtrace": LossCase(
            lambda: plain_loss(value_estimator=estimators.VTrace(pg_rho_thresh=1.2)), batch_with(sample_log_prob=-0.7)
        ),
        "multi_agent_gae": LossCase(lambda: plain_loss(value_estimator="magae"), agents_batch),
        "tanh_normal": LossCase(
            lambda: loss_over(distributions.TanhNormal(DIM, -1.5, [1.0, 2.0]), samples_mc_entropy=2), vector_batch
        ),
        "beta": LossCase(lambda: loss_over(distributions.Beta(DIM)), vector_batch),
        "normal_scale": LossCase(scale_loss, vector_batch),
        "composite": LossCase(lambda: loss_over(distributions.Composite(*composite)), composite_batch),
        "min_gru": LossCase(lambda: shared_loss(Recurrent(MinGRU(FEATURES, WIDTH))), remembered_batch),
    }


LOSSES = loss_cases()
TRAIN_STEPS: Dict[str, Tuple[str, Dict[str, Any]]] = {
    "sgd": ("separate_losses", {"optimizer": "sgd", "momentum": 0.9}),
    "rmsprop": ("default", {"optimizer": "rmsprop"}),
    "rmsprop_centered": ("min_gru", {"optimizer": "rmsprop", "momentum": 0.9, "centered": True}),
    "adam": ("percentile_norm", {"optimizer": "adam"}),
    "adamw": ("target_critic_network", {"optimizer": "adamw"}),
}
"""For each training step, the name of its loss and its options."""


def make_loss(name: str, seed: int) -> A2CLoss:
    """Returns the loss of a case; ``seed`` initialises its networks."""
    torch.manual_seed(seed)
    return LOSSES[name].make()


def make_step(name: str, seed: int) -> TrainStep:
    """Returns a training step that is not compiled."""
    loss, options = TRAIN_STEPS[name]
    return TrainStep(make_loss(loss, seed), lr=1e-2, compile=False, **options)


def losses_and_gradients(loss: A2CLoss, batch: Batch) -> Tuple[Batch, Batch]:
    """Returns the outputs of the loss for a batch, and the gradients of the sum of its terms, both by name."""
    torch.manual_seed(0)  # an entropy may be estimated from samples
    outputs = {name: tensor for name, tensor in loss(**arguments_of(batch))._asdict().items() if tensor is not None}
    learnt = {name: parameter for name, parameter in loss.named_parameters() if parameter.requires_grad}
    total = sum(tensor for name, tensor in outputs.items() if name.startswith("loss_"))
    grads = torch.autograd.grad(total, list(learnt.values()), allow_unused=True, materialize_grads=True)
    return {name: tensor.detach() for name, tensor in outputs.items()}, dict(zip(learnt, grads, strict=True))


def metrics_of(step: TrainStep, batch: Batch) -> Batch:
    """Runs an update with ``step``, and returns its metrics by name."""
    torch.manual_seed(0)
    return {name: tensor for name, tensor in step(rollout_of(batch))._asdict().items() if tensor is not None}


# Files with groups of tensors, named group/name


def grouped(**groups: Mapping[str, Tensor]) -> Batch:
    """Merges groups of tensors into one dict of copies, because the format does not allow tensors to share memory."""
    named = {f"{group}/{name}": tensor for group, tensors in groups.items() for name, tensor in tensors.items()}
    return {name: tensor.detach().clone().contiguous() for name, tensor in named.items()}


def load_groups(path: Path) -> Dict[str, Batch]:
    """Reads a file of :func:`grouped` tensors."""
    groups: Dict[str, Batch] = {}
    for name, tensor in load_file(path).items():
        group, _, own = name.partition("/")
        groups.setdefault(group, {})[own] = tensor
    return groups


# Names


def graph_names(path: Path) -> Dict[str, Any]:
    """Returns the names in an exported file: its metadata, and for an ONNX file its inputs, outputs and parameters."""
    if path.suffix != ".onnx":
        with zipfile.ZipFile(path) as archive:
            extra = next(name for name in archive.namelist() if name.endswith("extra/a2c_compiled.json"))
            return {"metadata": sorted(json.loads(archive.read(extra)))}
    model = onnx.load(path)
    weights = sorted(tensor.name for tensor in model.graph.initializer)
    return {
        "inputs": {value.name: _described(value) for value in model.graph.input},
        "outputs": {value.name: _described(value) for value in model.graph.output},
        "parameters": [name for name in weights if name.startswith(("actor_network.", "critic_network."))],
        "metadata": sorted(entry.key for entry in model.metadata_props),
    }


def _described(value: onnx.ValueInfoProto) -> str:
    """Returns dtype and shape, such as ``float[N, 4]``, with names for sizes that may vary."""
    kind = value.type.tensor_type
    sizes = [size.dim_param or str(size.dim_value) for size in kind.shape.dim]
    return f"{onnx.TensorProto.DataType.Name(kind.elem_type).lower()}[{', '.join(sizes)}]"


def option_names(command: Optional[str]) -> List[str]:
    """Returns what ``--help`` of a command lists: options, ``option choice`` for each choice, commands and positional arguments."""
    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
        main([*([] if command is None else [command]), "--help"])
    listing = re.sub(r"\x1b\[[\d;]*m", "", text.getvalue()).partition("\nexamples:")[0]
    names = set()
    for entry in re.findall(r"^ {2,4}(\S+(?: \S+)*)", listing, re.MULTILINE):
        if not entry.startswith("-"):
            names.add(entry.split(" ")[0])
            continue
        options = re.findall(r"(?<![\w-])--?[a-z][\w-]*", entry)
        choices = re.search(r"{(.*?)}", entry)
        names |= {*options, *(f"{options[0]} {choice}" for choice in (choices[1].split(",") if choices else ()))}
    return sorted(names)


def tensor_names(run: Path) -> Dict[str, List[str]]:
    """Returns the names of the tensors in a run's checkpoint, by file."""
    return {path.name: sorted(load_file(path)) for path in run.glob("checkpoints/*/*.safetensors")}
