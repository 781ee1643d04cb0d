"""The distribution of several independent choices."""

from typing import Iterable, Sequence

import torch
from torch import Tensor

from a2c_compiled._hyperparameters import positive_int
from a2c_compiled._kinds import check_tensor
from a2c_compiled._precision import widen
from a2c_compiled.distributions.base import check_action_shape, check_integer, draw, join_noise_kinds, require
from a2c_compiled.distributions.categorical import Categorical, entropy_from_log_probs, entry_at


class MultiCategorical(Categorical):
    r"""Several independent choices, for gymnasium's ``MultiDiscrete`` space. Choice ``i`` selects one of ``nvec[i]`` options.

    .. math:: \log p(a) = \sum_i \log p_i(a_i)

    * ``params``: ``[*B, sum(nvec)]``, floating dtype; the logits of all choices, concatenated.
    * action: ``[*B, len(nvec)]``, integer dtype, entry ``i`` from 0 to ``nvec[i] - 1``. Samples are int64.
    * noise: ``[*B, sum(nvec)]``, standard Gumbel.

    The entropy is the sum of the choices' entropies.

    Args:
        nvec: number of options of each choice.

    Raises:
        ValueError: ``nvec`` is empty, or a number is less than 1.
        TypeError: ``nvec`` is not a sequence of integers.

    Source: independent ``torch.distributions.Categorical`` distributions, one for each choice.
    """

    places: Tensor
    missing: Tensor
    last: Tensor  # [len(nvec)]: the last option of each choice

    def __init__(self, nvec: Sequence[int]) -> None:
        if not isinstance(nvec, Iterable):
            raise TypeError(f"nvec: expected a sequence of integers, got {nvec!r}")
        sizes = [positive_int("nvec", n) for n in nvec]
        if not sizes:
            raise ValueError("nvec: expected at least one choice, got none")
        super().__init__(max(sizes))
        self.num_choices = len(sizes)
        self.num_params = sum(sizes)
        self.noise_kind = join_noise_kinds(("gumbel", n) for n in sizes)
        # places, [len(nvec) * max(nvec)]: the index in params of each option's logit. Options that a choice lacks repeat its last logit.
        # missing, [len(nvec), max(nvec)]: True for options that a choice lacks.
        starts = [sum(sizes[:i]) for i in range(len(sizes))]
        places = [[start + min(k, n - 1) for k in range(self.n)] for start, n in zip(starts, sizes, strict=True)]
        missing = [[k >= n for k in range(self.n)] for n in sizes]
        self.register_buffer("last", torch.tensor(sizes) - 1, persistent=False)
        self._expected = "choices from 0 to " + " and ".join(str(n - 1) for n in sizes)
        self.register_buffer("places", torch.tensor(places).flatten(), persistent=False)
        self.register_buffer("missing", torch.tensor(missing), persistent=False)

    def log_probs(self, params: Tensor) -> Tensor:
        """Computes the log-probabilities of all options of each choice.

        Returns:
            ``[*B, len(nvec), max(nvec)]``, float64 for float64 ``params``, otherwise float32; minus infinity for options that a
            choice lacks.
        """
        self.check_params(params)
        return self._table(widen(params)).masked_fill(self.missing, -float("inf")).log_softmax(-1)

    def log_prob(self, params: Tensor, action: Tensor) -> Tensor:
        """Computes the log-probability of ``action``: ``[*B]``, dtype of ``params``.

        ``action`` is ``[*B, len(nvec)]``, integer dtype.
        """
        check_action_shape(action, params, [self.num_choices])
        check_integer(action)
        choice = action.long()
        nearest = torch.minimum(choice.clamp_min(0), self.last)  # gather must not read outside of log_probs
        log_prob = require(nearest == choice, choice, self._expected, entry_at(self.log_probs(params), nearest))
        return log_prob.sum(-1).to(params.dtype)

    def entropy(self, params: Tensor) -> Tensor:
        """Computes the sum of the choices' entropies: ``[*B]``, dtype of ``params``."""
        return entropy_from_log_probs(self.log_probs(params)).sum(-1).to(params.dtype)

    def noise(self, params: Tensor) -> Tensor:
        """Draws standard Gumbel noise: ``[*B, sum(nvec)]``, float64 for float64 ``params``, otherwise float32."""
        self.check_params(params)
        return draw("gumbel", widen(params))

    def sample_from(self, params: Tensor, noise: Tensor) -> Tensor:
        """Returns for each choice the argmax of ``log_probs + noise`` (the Gumbel-max trick): ``[*B, len(nvec)]``, int64.

        ``noise`` is ``[*B, sum(nvec)]``.
        """
        check_tensor("noise", noise)
        return (self.log_probs(params) + self._table(noise)).argmax(-1)

    def _table(self, row: Tensor) -> Tensor:
        """Arranges ``[*B, sum(nvec)]`` as ``[*B, len(nvec), max(nvec)]``."""
        return row.index_select(-1, self.places).unflatten(-1, [self.num_choices, self.n])
