"""Returns of episodes, as they are lived through."""

from collections import deque
from typing import Deque, List, Tuple

import torch
from torch import Tensor

from a2c_compiled.functional import reverse_scan


def running_return(reward: Tensor, done: Tensor, before: Tensor, gamma: float = 1.0) -> Tensor:
    r"""What each episode has returned up to and with each step: :math:`R_t = r_t + \gamma (1 - d_{t-1}) R_{t-1}`.

    Args:
        reward: ``[T, N]``.
        done: bool, ``[T, N]``: an episode ended with this step.
        before: ``[N]``: the running return before the first step; 0 where an episode begins with it.
        gamma: discount of what lies in the past.

    Returns:
        :math:`R`, ``[T, N]``.
    """
    x, decay = reward.clone(), torch.full_like(reward, gamma)
    x[0] += gamma * before
    decay[1:].masked_fill_(done[:-1], 0.0)
    # Forward in time is the reverse scan of what is turned round.
    return reverse_scan(x.flip(0), decay.flip(0), 0).flip(0)


class EpisodeReturns:
    """Undiscounted returns and lengths of the episodes that end in one rollout after another.

    Nothing is read on the host before :meth:`take`, and no more than the last ``KEPT`` rollouts are kept for it.

    Args:
        num_envs: environments side by side.
        device: of the rollouts.
    """

    KEPT = 100

    def __init__(self, num_envs: int, device: torch.device) -> None:
        self.running = torch.zeros(2, num_envs, dtype=torch.float64, device=device)
        self._rollouts: Deque[Tuple[Tensor, Tensor]] = deque(maxlen=self.KEPT)

    def record(self, reward: Tensor, done: Tensor, counted: Tensor | None = None) -> None:
        """Go on by a rollout; ``counted`` is False for steps that were spent on resets."""
        steps = torch.ones_like(reward) if counted is None else counted
        both = torch.stack((reward, steps), 1).double()
        values = running_return(both, done.unsqueeze(1).expand_as(both), self.running)
        self.running = values[-1].masked_fill(done[-1], 0.0)
        self._rollouts.append((values, done))

    def take(self) -> List[List[float]]:
        """Returns and lengths of the episodes that ended since the last call, in the order of their ends."""
        taken = [values.transpose(0, 1)[:, done].cpu() for values, done in self._rollouts]
        self._rollouts.clear()
        return torch.cat(taken, 1).tolist() if taken else [[], []]
