"""Networks of ``[B, ...]`` for observations of ``[T, N, ...]``, and the errors that say what a network does not accept."""

import re
from typing import Any, Callable, Optional, TypeVar

import torch
from torch import Tensor, nn

from a2c_compiled._hyperparameters import positive_int
from a2c_compiled._kinds import check_tensor

Result = TypeVar("Result")

_BATCH_LAYERS = (
    *(nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d),
    *(
        nn.AdaptiveAvgPool1d,
        nn.AdaptiveAvgPool2d,
        nn.AdaptiveMaxPool2d,
        nn.BatchNorm1d,
        nn.BatchNorm2d,
        nn.BatchNorm3d,
        nn.GroupNorm,
    ),
    nn.Flatten,
)
"""Layers that expect one leading dimension, the batch."""

_SIZES = re.compile(r"shapes cannot be multiplied|size mismatch|expected input\[|must have same reduction dim")
"""Errors of torch about the sizes of the input of a linear or convolutional layer, also on fake tensors."""


class BatchApply(nn.Module):
    """Runs a network of ``[B, *event]`` on observations with any leading dimensions, which it joins to one and restores afterwards.

    Losses call networks on ``[T, N, *event]``, rollouts on ``[N, *event]``. Convolutions and ``nn.Flatten`` expect ``[B, *event]``:

    >>> cnn = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 6 * 6, 4))
    >>> actor = BatchApply(cnn, event_dims=3)  # [T, N, 3, 8, 8] to [T, N, 4]

    Args:
        network: maps ``[B, *event]`` to ``[B, ...]``.
        event_dims: number of dimensions of one observation: 3 for an image ``[C, H, W]``.

    Raises:
        TypeError: ``network`` is not a module, or ``event_dims`` is not an integer.
        ValueError: ``event_dims`` is less than 1.

    Source: Haiku's ``BatchApply``, which takes the number of leading dimensions instead.
    """

    def __init__(self, network: nn.Module, event_dims: int) -> None:
        super().__init__()
        if not isinstance(network, nn.Module):
            raise TypeError(f"network: expected a module, got {type(network).__name__}")
        self.network = network
        self.event_dims = positive_int("event_dims", event_dims)

    def forward(self, observation: Tensor) -> Tensor:
        """Computes the network's output for each observation.

        Args:
            observation: ``[*B, *event]``, any dtype that the network accepts.

        Returns:
            ``[*B, ...]``: the output of the network, with the leading dimensions of ``observation``.

        Raises:
            TypeError: ``observation`` is not a tensor.
            ValueError: ``observation`` has fewer than ``event_dims`` dimensions.
        """
        check_tensor("observation", observation)
        if observation.dim() < self.event_dims:
            raise ValueError(
                f"observation: expected at least {self.event_dims} dimensions, got shape {list(observation.shape)}"
            )
        leading = list(observation.shape[: observation.dim() - self.event_dims])
        # The extra dimension serves an observation without leading dimensions.
        output = self.network(observation.unsqueeze(0).flatten(0, len(leading)))
        return output.reshape(leading + list(output.shape[1:]))


def explained(
    name: str,
    network: nn.Module,
    call: Callable[[Any], Result],
    observation: Any,
    argument: str = "observation",
    leading_dims: int = 2,
) -> Result:
    """Returns ``call(observation)``.

    If it raises a RuntimeError with a known reason, raises a ValueError that names network, observation and remedy.

    Args:
        name: name of the network in the loss, for the message.
        network: the network that ``call`` runs.
        call: the network, or a function that runs it.
        observation: ``[*B, ...]``, a tensor or a tuple of tensors.
        argument: name of the observation, for the message.
        leading_dims: number of dimensions in ``[*B]``: 2 in losses, 1 in rollouts.
    """
    try:
        return call(observation)
    except RuntimeError as error:
        parts = observation if isinstance(observation, tuple) else (observation,)
        message = _wrong_dtype(name, network, parts, argument, str(error), leading_dims)
        if message is None and leading_dims > 1:
            message = _wrong_dims(name, network, parts, leading_dims)
        if message is None:
            message = _wrong_size(name, network, parts, argument, str(error))
        if message is None:
            raise
        raise ValueError(message) from error


def _wrong_dtype(name: str, network: nn.Module, parts: Any, argument: str, error: str, leading_dims: int) -> Optional[str]:
    """Returns the message if the error of torch is about dtypes, and an observation has another one than the network's parameters.

    In a rollout, the environments make the observation, so that only the networks can change.
    """
    named = [(key, parameter) for key, parameter in network.named_parameters() if parameter.is_floating_point()]
    if not named or not re.search("type", error, re.IGNORECASE):
        return None
    key, expected = named[0][0], named[0][1].dtype
    for i, part in enumerate(parts):
        if part.dtype != expected and part.dtype != torch.bool:
            which = argument if len(parts) == 1 else f"{argument}[{i}]"
            is_real = part.is_floating_point()
            remedies = [f"it with {which}.to({expected})"] if leading_dims > 1 else []
            remedies += [f"the networks with loss.to({part.dtype})"] if is_real else []
            remedy = f"convert {', or '.join(remedies)}" if remedies else f"convert it in the first layer of {name}"
            if leading_dims == 1 and is_real and expected in (torch.bfloat16, torch.float16):
                remedy += f"; TrainStep(loss, autocast={expected}) computes in {expected}"
            return f"{which}: expected {expected}, the dtype of {name}.{key}, got {part.dtype} ({remedy})"
    return None


def _wrong_size(name: str, network: nn.Module, parts: Any, argument: str, error: str) -> Optional[str]:
    """Returns the message if the error of torch is about the sizes of a layer's input.

    If the first layer with parameters is linear and has refused the observation, the message has the size that it expects.
    """
    if not _SIZES.search(error):
        return None
    first = next(((key, layer) for key, layer in network.named_modules() if [*layer.parameters(recurse=False)]), None)
    if len(parts) == 1 and first is not None and isinstance(first[1], nn.Linear):
        key, layer, size = *first, parts[0].shape[-1]
        refused = (
            f"x{size} and {layer.in_features}x{layer.out_features})",
            f", {size}] X [{layer.in_features}, {layer.out_features}]",  # of fake tensors
        )
        if any(shapes in error for shapes in refused):
            return (
                f"{argument}: expected {layer.in_features} numbers in the last dimension, as {f'{name}.{key}'.rstrip('.')} takes,"
                f" got shape {list(parts[0].shape)}"
            )
    shapes = " and ".join(str(list(part.shape)) for part in parts)
    return f"{name}: expected a network that accepts observations of shape {shapes}, got an error ({error.splitlines()[0]})"


def _wrong_dims(name: str, network: nn.Module, parts: Any, leading_dims: int) -> Optional[str]:
    """Returns the message if the network has layers that expect one leading dimension, and the observation has more."""
    if len(parts) != 1 or parts[0].dim() <= leading_dims or any(isinstance(module, BatchApply) for module in network.modules()):
        return None
    if parts[0].dim() < leading_dims + 3 and not any(isinstance(module, _BATCH_LAYERS) for module in network.modules()):
        return None
    wrapped = f"networks.BatchApply({name}, {parts[0].dim() - leading_dims})"
    return (
        f"{name}: expected a network that accepts observations of shape {list(parts[0].shape)}, with steps and environments first, got an"
        f" error (use {wrapped} if the network accepts [B, ...], as convolutions do)"
    )
