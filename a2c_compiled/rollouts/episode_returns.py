"""Undiscounted returns and lengths of episodes, accumulated over rollouts."""

from collections import deque
from typing import Deque, List, Tuple

import torch
from torch import Tensor

from a2c_compiled.functional import reverse_scan


def running_return(reward: Tensor, done: Tensor, before: Tensor, gamma: float = 1.0) -> Tensor:
    r"""Computes the return of each episode from its start up to each step.

    .. math:: R_t = r_t + \gamma (1 - d_{t-1}) R_{t-1}

    Args:
        reward: ``[T, *B]``, floating point: :math:`r`. ``*B`` are any other dimensions.
        done: ``[T, *B]``, bool: :math:`d`, the episode terminated or was truncated at this step.
        before: ``[*B]``, floating point: the running return before the first step; 0 if the first step begins an episode.
        gamma: discount factor. Below 1, earlier rewards have a smaller weight.

    Returns:
        :math:`R`, shape and dtype of ``reward``.
    """
    x, decay = reward.clone(), torch.full_like(reward, gamma)
    x[0] += gamma * before
    decay[1:].masked_fill_(done[:-1], 0.0)
    # A scan forward in time is the reverse scan of the flipped tensors.
    return reverse_scan(x.flip(0), decay.flip(0), 0).flip(0)


class EpisodeReturns:
    """Undiscounted returns and lengths of the episodes that end in successive rollouts.

    Only :meth:`take` copies data to the host. It returns episodes of at most the last ``MAX_ROLLOUTS`` rollouts.

    Args:
        num_envs: ``N``, the number of environments.
        device: device of the rollouts.

    Attributes:
        running: ``[2, N]``, float64: return and length so far of the current episodes.
    """

    MAX_ROLLOUTS = 100

    def __init__(self, num_envs: int, device: torch.device) -> None:
        self.running = torch.zeros(2, num_envs, dtype=torch.float64, device=device)
        self._rollouts: Deque[Tuple[Tensor, Tensor]] = deque(maxlen=self.MAX_ROLLOUTS)

    def record(self, reward: Tensor, done: Tensor, counted: Tensor | None = None) -> None:
        """Adds a rollout.

        Args:
            reward: ``[T, N]``, floating point.
            done: ``[T, N]``, bool: the episode terminated or was truncated.
            counted: ``[T, N]``, bool: False at steps spent on a reset, which do not count in the length. None: all steps count.
        """
        steps = torch.ones_like(reward) if counted is None else counted
        reward_and_length = torch.stack((reward, steps), 1).double()
        values = running_return(reward_and_length, done.unsqueeze(1).expand_as(reward_and_length), self.running)
        self.running = values[-1].masked_fill(done[-1], 0.0)
        self._rollouts.append((values, done))

    def take(self) -> List[List[float]]:
        """Returns two lists, ordered by time: returns and lengths of the episodes that ended since the last call of this method."""
        taken = [values.transpose(0, 1)[:, done].cpu() for values, done in self._rollouts]
        self._rollouts.clear()
        return torch.cat(taken, 1).tolist() if taken else [[], []]
