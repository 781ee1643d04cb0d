"""Networks of kinds that people use, for the tests and the table of what is known to work. Each row of that table names some of them."""

import math
from typing import Any, Callable, Dict, Iterator, NamedTuple, Sequence, Tuple

import torch
import torch.nn.functional as F
from distribution_cases import CASES
from torch import Tensor, nn

from a2c_compiled import A2CLoss, distributions
from a2c_compiled.recurrent import MinGRU, Recurrent, hidden_size
from a2c_compiled.update import Rollout

CHOICES = 4
ENTITIES, FEATURES = 5, 6


class Network(NamedTuple):
    """A network to export.

    Attributes:
        make: returns a network with the given number of outputs.
        shape: shape of an observation.
        distribution: action distribution; the network has ``num_params`` outputs for it.
        structure: None: the network takes tensors. ``"tuple"`` or ``"dict"``: it takes two vectors of 5 and 3. ``"recurrent"``: it takes
            ``(x, hidden, start)``. The critic of such networks is another network of ``make``.
    """

    make: Callable[[int], nn.Module]
    shape: Tuple[int, ...] = (8,)
    distribution: distributions.Distribution = distributions.Categorical(CHOICES)
    structure: str = ""

    def observation(self, x: Tensor, hidden_width: int) -> Any:
        """Returns the network's observation from random numbers ``[T, N, *shape]``."""
        if self.structure == "recurrent":
            return x, torch.randn(*x.shape[:2], hidden_width), torch.rand(x.shape[:2]) < 0.2
        if not self.structure:
            return x
        position, goal = x.split([5, 3], -1)
        return (position, goal) if self.structure == "tuple" else {"position": position, "goal": goal}

    def loss(self, seed: int = 0) -> A2CLoss:
        """Returns a loss over the network and a critic."""
        torch.manual_seed(seed)
        dims, actor = len(self.shape), self.make(self.distribution.num_params)
        if self.structure:
            return A2CLoss(actor, self.make(1), self.distribution)
        critic = nn.Sequential(nn.Flatten(), nn.Linear(math.prod(self.shape), 1))
        loss = A2CLoss(Observations(actor, dims), Observations(critic, dims), self.distribution)
        for module in loss.modules():  # the factories of some networks share layers
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()
        return loss

    def rollout(self, loss: A2CLoss, seed: int = 0) -> Rollout:
        """Returns a rollout of 6 steps and 4 environments."""
        torch.manual_seed(seed)
        steps, envs = 6, 4
        width = hidden_size(loss) if self.structure == "recurrent" else 0
        observation, next_observation = (self.observation(x, width) for x in torch.randn(2, steps, envs, *self.shape))
        with torch.no_grad():
            action = self.distribution.sample(loss.actor_network(observation))
        done = torch.rand(steps, envs) < 0.2
        return Rollout(observation, action, torch.randn(steps, envs), next_observation, done, done)


def mlp(*layers: nn.Module) -> Callable[[int], nn.Module]:
    """Returns a factory of networks: a linear layer of 8 to 16, ``layers``, and a linear layer of 16 to the outputs."""
    return lambda outputs: nn.Sequential(nn.Linear(8, 16), *layers, nn.Linear(16, outputs))


def convolutional(*layers: nn.Module) -> Callable[[int], nn.Module]:
    """Returns a factory of networks of images ``[2, 12, 12]``: ``layers``, and a linear layer from however many numbers they return."""

    def make(outputs: int) -> nn.Module:
        body = nn.Sequential(*layers, nn.Flatten())
        with torch.no_grad():
            size = body.eval()(torch.zeros(2, 2, 12, 12)).shape[1]
        return nn.Sequential(body, nn.Linear(size, outputs))

    return make


class Observations(nn.Module):
    """Calls ``network`` with one leading dimension, and restores the leading dimensions of the observations in its output."""

    def __init__(self, network: nn.Module, event_dims: int) -> None:
        super().__init__()
        self.network, self.event_dims = network, event_dims

    def forward(self, x: Tensor) -> Tensor:
        leading = x.dim() - self.event_dims
        output = self.network(x.flatten(0, leading - 1))
        return output.view(x.shape[:leading] + output.shape[1:])


class Residual(nn.Module):
    """Adds the result of ``body`` to its input."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class OverEntities(nn.Module):
    """Attends over entities. The first feature of an entity tells whether it exists; a query over none gives 0."""

    def __init__(self, outputs: int, by_products: bool) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(FEATURES, 8), nn.Linear(8, outputs)
        self.by_products = by_products

    def forward(self, x: Tensor) -> Tensor:
        mask = (x[..., 0] > 0).unsqueeze(-2)
        entities = self.embed(x)
        if self.by_products:
            scores = (entities @ entities.transpose(-1, -2)).masked_fill(~mask, -1e9)
            return self.head((scores.softmax(-1) @ entities).mean(-2))
        return self.head(F.scaled_dot_product_attention(entities, entities, entities, attn_mask=mask).mean(-2))


class AttentionLayer(nn.Module):
    """Attends over all entities with torch's layer."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(FEATURES, 8), nn.Linear(8, outputs)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        entities = self.embed(x)
        return self.head(self.attention(entities, entities, entities, need_weights=False)[0].mean(-2))


class Pooled(nn.Module):
    """Embeds each entity, and takes the mean and the largest of those that exist (DeepSets)."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(FEATURES, 8), nn.Linear(16, outputs)

    def forward(self, x: Tensor) -> Tensor:
        exists = (x[..., :1] > 0).to(x.dtype)
        entities = self.embed(x).relu() * exists
        mean = entities.sum(-2) / exists.sum(-2).clamp_min(1.0)
        return self.head(torch.cat([mean, entities.amax(-2)], -1))


class Parts(nn.Module):
    """Reads an observation of several parts, each with an encoder of its own."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.position, self.goal, self.head = nn.Linear(5, 8), nn.Linear(3, 8), nn.Linear(16, outputs)

    def forward(self, x: Tensor) -> Tensor:
        position, goal = x.split([5, 3], -1)
        return self.head(torch.cat([self.position(position).tanh(), self.goal(goal).relu()], -1))


class SeveralInputs(nn.Module):
    """Reads a tuple of two vectors."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.parts = Parts(outputs)

    def forward(self, x: Tuple[Tensor, Tensor]) -> Tensor:
        return self.parts(torch.cat([x[0], x[1]], -1))


class Dictionary(SeveralInputs):
    """Reads a dictionary of two vectors."""

    def forward(self, x: Dict[str, Tensor]) -> Tensor:
        return self.parts(torch.cat([x["position"], x["goal"]], -1))


class LayerAndState(nn.Module):
    """Recurrent layers one above the other, and a head."""

    def __init__(self, head: nn.Module, *layers: nn.Module) -> None:
        super().__init__()
        self.layers, self.head = nn.ModuleList(layers), head

    def forward(self, observation: Tuple[Tensor, Tensor, Tensor]) -> Tensor:
        x, hidden, start = observation
        for layer in self.layers:
            x = layer((x, hidden, start))
        return self.head(x)


def recurrent(*layers: nn.Module) -> Network:
    """Returns a network over layers that actor and critic share."""
    return Network(lambda outputs: LayerAndState(nn.Linear(8, outputs), *layers), structure="recurrent")


class Peaked(nn.Module):
    """Logits so far apart that nearly all probability is on one choice."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.network = nn.Linear(8, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return 30.0 * self.network(x)


class Widened(Peaked):
    """Returns float64 from a computation in float32."""

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x).double()


class Masked(nn.Module):
    """Logits, and a mask that the observation determines. It always allows the first choice."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.network = nn.Linear(8, outputs // 2)

    def forward(self, x: Tensor) -> Tensor:
        logits = self.network(x)
        others = x[..., 1 : logits.size(-1)] > 0
        return torch.cat([logits, torch.ones_like(x[..., :1]), others.to(x.dtype)], -1)


class LearnedStd(nn.Module):
    """The mean, and a standard deviation that is a parameter."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.mean = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, outputs // 2))
        self.log_std = nn.Parameter(torch.zeros(outputs // 2))

    def forward(self, x: Tensor) -> Tensor:
        mean = self.mean(x)
        return torch.cat([mean, self.log_std.expand_as(mean)], -1)


class Experts(nn.Module):
    """A mixture of networks, weighted by a gate."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.gate = nn.Linear(8, 3)
        self.experts = nn.ModuleList([nn.Linear(8, outputs) for _ in range(3)])

    def forward(self, x: Tensor) -> Tensor:
        weights = self.gate(x).softmax(-1)
        outputs = torch.stack([expert(x) for expert in self.experts], -1)
        return (outputs * weights.unsqueeze(-2)).sum(-1)


class Steps(nn.Module):
    """A recurrent layer of torch over the frames of one observation."""

    def __init__(self, outputs: int, layer: nn.Module) -> None:
        super().__init__()
        self.layer, self.head = layer, nn.Linear(8, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(x)[0][:, -1])


class Dueling(nn.Module):
    """Two heads on one body, combined as in dueling networks."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.body, self.value, self.advantage = nn.Linear(8, 16), nn.Linear(16, 1), nn.Linear(16, outputs)

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.relu(self.body(x))
        advantage = self.advantage(hidden)
        return self.value(hidden) + advantage - advantage.mean(-1, keepdim=True)


def _networks() -> Iterator[Tuple[str, Network]]:
    activations = (
        *(nn.ReLU, nn.Tanh, nn.Sigmoid, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish, nn.LeakyReLU, nn.PReLU),
        *(nn.Softplus, nn.Softsign, nn.Hardtanh, nn.Hardswish, nn.Hardsigmoid, nn.ReLU6, nn.LogSigmoid),
    )
    for activation in activations:
        yield f"MLP {activation.__name__}", Network(mlp(activation()))
    yield "MLP GELU tanh", Network(mlp(nn.GELU("tanh")))
    yield "MLP GLU", Network(lambda n: nn.Sequential(nn.Linear(8, 32), nn.GLU(), nn.Linear(16, n)))
    for norm in (nn.LayerNorm(16), nn.RMSNorm(16), nn.BatchNorm1d(16).eval(), nn.GroupNorm(4, 16), nn.Dropout(0.1)):
        yield f"MLP {type(norm).__name__}", Network(mlp(norm, nn.ReLU()))
    yield "MLP weight norm", Network(lambda n: nn.utils.parametrizations.weight_norm(nn.Linear(8, n)))
    yield "MLP spectral norm", Network(lambda n: nn.utils.parametrizations.spectral_norm(nn.Linear(8, n)))
    yield "MLP residual", Network(mlp(nn.ReLU(), Residual(nn.Sequential(nn.LayerNorm(16), nn.Linear(16, 16), nn.GELU()))))
    image = (2, 12, 12)
    convolution = nn.Conv2d(2, 4, 3)
    bodies: Dict[str, Sequence[nn.Module]] = {
        "stride": (nn.Conv2d(2, 4, 4, 2), nn.ReLU(), nn.Conv2d(4, 8, 3), nn.ReLU()),
        "zero padding": (nn.Conv2d(2, 4, 3, padding=1), nn.ReLU()),
        "same padding": (nn.Conv2d(2, 4, 3, padding="same"), nn.ReLU()),
        "reflection": (nn.Conv2d(2, 4, 3, padding=1, padding_mode="reflect"), nn.ReLU()),
        "replication": (nn.ReplicationPad2d(1), convolution, nn.ReLU()),
        "constant padding": (nn.ZeroPad2d(2), convolution, nn.ReLU()),
        "circular": (nn.Conv2d(2, 4, 3, padding=1, padding_mode="circular"), nn.ReLU()),
        "max pooling": (convolution, nn.MaxPool2d(2), nn.ReLU()),
        "average pooling": (convolution, nn.AvgPool2d(2), nn.ReLU()),
        "adaptive average": (convolution, nn.AdaptiveAvgPool2d(1)),
        "adaptive max": (convolution, nn.AdaptiveMaxPool2d(1)),
        "batch norm": (convolution, nn.BatchNorm2d(4).eval(), nn.ReLU()),
        "instance norm": (convolution, nn.InstanceNorm2d(4), nn.ReLU()),
        "group norm": (convolution, nn.GroupNorm(4, 4), nn.ReLU()),
        "groups": (nn.Conv2d(2, 4, 3, groups=2), nn.ReLU()),
        "dilation": (nn.Conv2d(2, 4, 3, dilation=2), nn.ReLU()),
        "transposed": (nn.ConvTranspose2d(2, 4, 3), nn.ReLU()),
        "upsampling": (convolution, nn.Upsample(scale_factor=2), nn.ReLU()),
        "residual": (nn.Conv2d(2, 4, 3), Residual(nn.Sequential(nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1))), nn.ReLU()),
    }
    for name, body in bodies.items():
        yield f"convolution {name}", Network(convolutional(*body), image)
    entities = (ENTITIES, FEATURES)
    for name, by_products in (("masked", False), ("products", True)):
        yield f"attention {name}", Network(lambda n, by_products=by_products: OverEntities(n, by_products), entities)
    yield "attention module", Network(AttentionLayer, entities)
    yield "deep sets", Network(Pooled, entities)
    for layer in (nn.GRU, nn.LSTM):
        yield f"{layer.__name__} over frames", Network(lambda n, k=layer: Steps(n, k(FEATURES, 8, batch_first=True)), entities)
    yield "parts of an observation", Network(Parts)
    yield "mixture of experts", Network(Experts)
    yield "dueling heads", Network(Dueling)
    yield "learned std", Network(LearnedStd, distribution=distributions.Normal(2))
    yield "peaked logits", Network(Peaked)
    yield "float64 outputs", Network(Widened)
    yield "two inputs", Network(SeveralInputs, structure="tuple")
    yield "dictionary of inputs", Network(Dictionary, structure="dict")
    yield "recurrent GRU", recurrent(Recurrent(nn.GRUCell(8, 8)))
    yield "recurrent MinGRU over LSTM", recurrent(Recurrent(nn.LSTMCell(8, 8)), Recurrent(MinGRU(8, 8), offset=16))
    for case in CASES:
        make = Masked if str(case).startswith("Masked") else mlp(nn.Tanh())
        yield f"over {case}", Network(make, distribution=case.distribution)


NETWORKS = dict(_networks())
"""Networks by name."""
