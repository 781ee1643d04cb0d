"""The networks of sb3-contrib's ``MaskablePPO``. The action mask is the last entry of the observation, a tuple."""

from typing import Any, List, Sequence, Tuple

import torch
from torch import Tensor, nn

from a2c_compiled._kinds import described
from a2c_compiled.distributions import Composite, Distribution, MaskedCategorical


class FeaturesAndMask(nn.Module):
    """Appends the action mask to the features of an observation.

    Args:
        features: maps an observation, or a tuple of several, to ``[*B, features]``.
        choices: number of entries of a mask.
    """

    def __init__(self, features: nn.Module, choices: int) -> None:
        super().__init__()
        self.features = features
        self.choices = choices

    def forward(self, observation: Tuple[Tensor, ...]) -> Tensor:
        """Returns ``[*B, features + choices]``, floating, for a tuple of observations and a mask, ``[*B, choices]``, of any dtype.

        Raises:
            TypeError: ``observation`` is not a tuple.
            ValueError: the last entry has not the shape of a mask.
        """
        if not isinstance(observation, tuple) or len(observation) < 2:
            raise TypeError(f"observation: expected a tuple that ends with the action mask, got {described(observation)}")
        mask = observation[-1]
        features: Tensor = self.features(observation[0] if len(observation) == 2 else observation[:-1])
        if list(mask.shape) != [*features.shape[:-1], self.choices]:
            raise ValueError(
                f"observation: expected {[*features.shape[:-1], self.choices]} for the action mask, got shape {list(mask.shape)}"
            )
        return torch.cat([features, (mask != 0).to(features.dtype)], -1)


class MaskedActorHead(nn.Module):
    """Maps features and a mask to the parameters of :func:`masked_distribution`: for each choice, its logits and its mask.

    Args:
        head: maps features to the logits of all choices.
        sizes: number of options of each choice.
    """

    order: Tensor

    def __init__(self, head: nn.Module, sizes: Sequence[int]) -> None:
        super().__init__()
        self.head = head
        self.choices = sum(sizes)
        logits = torch.arange(self.choices).split(list(sizes))
        order = torch.cat([torch.cat([part, part + self.choices]) for part in logits])
        self.register_buffer("order", order, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``[*B, features + choices]`` to ``[*B, 2 * choices]``."""
        features, mask = x.split([x.size(-1) - self.choices, self.choices], -1)
        return torch.cat([self.head(features), mask], -1).index_select(-1, self.order)


class CriticHead(nn.Module):
    """Maps features and a mask to a value, which does not depend on the mask. ``head``: maps features to the value."""

    def __init__(self, head: nn.Module, choices: int) -> None:
        super().__init__()
        self.head = head
        self.choices = choices

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``[*B, features + choices]`` to ``[*B, 1]``."""
        return self.head(x.narrow(-1, 0, x.size(-1) - self.choices))


class MaskedToModel(nn.Module):
    """Maps an observation of the environment and its action mask to the tuple that the networks take.

    Args:
        raw: maps an observation of the environment to one of the model's space, a tensor or a tuple of tensors.
    """

    def __init__(self, raw: nn.Module) -> None:
        super().__init__()
        self.raw = raw

    def forward(self, observation: Tuple[Any, Tensor]) -> Tuple[Tensor, ...]:
        """Returns the tensors of the observation and the mask.

        Raises:
            TypeError: ``observation`` is not a pair.
        """
        if not isinstance(observation, tuple) or len(observation) != 2:
            raise TypeError(f"observation: expected a pair of an observation and its action mask, got {described(observation)}")
        of_model = self.raw(observation[0])
        return (*of_model, observation[1]) if isinstance(of_model, tuple) else (of_model, observation[1])


def masked_distribution(sizes: List[int], is_single: bool) -> Distribution:
    """Returns the distribution of choices under a mask.

    Args:
        sizes: number of options of each choice.
        is_single: whether an action is one choice, ``[*B]``, not a vector of choices.
    """
    heads = [MaskedCategorical(size) for size in sizes]
    return heads[0] if is_single else Composite(*heads)
