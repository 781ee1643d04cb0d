"""Draws random cases: shapes, strides, dtypes, ends of episodes, masks, packed sequences and coefficients."""

import zlib
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Sequence, Tuple

import cases
import numpy as np
import torch
from masked_oracle import pieces_of
from torch import Tensor

COEFFICIENTS = ("gamma", "lmbda", "rho_thresh", "c_thresh", "pg_rho_thresh")
HALF = (torch.bfloat16, torch.float16)
DTYPES = (torch.float32, torch.float64, *HALF)
JUNK = (float("nan"), float("inf"), -float("inf"), -1.0, 1e4, 0.0)
VIEWS = (
    cases.contiguous,
    cases.contiguous,
    cases.transposed,
    cases.padded,
    cases.interleaved,
    lambda x: x[..., :1].expand(x.shape),
)
SHORT = (1, 1, 2, 3, 4, 5, 6, 7, 8, 9, 13, 16)
MIDDLE = (31, 32, 33, 48)
LONG = (64, 100, 257, 300)
VERY_LONG = (1000, 2048)
ROWS = (1, 1, 2, 3, 4, 5, 7, 8, 9, 17)
WIDE = (33, 64, 65, 130)


class Layout(NamedTuple):
    """Where the steps are in a tensor, and which of them belong together."""

    shape: Tuple[int, ...]
    time_dim: int
    mask: Optional[Tensor] = None
    skip_masked: bool = False
    starts: Tuple[int, ...] = ()

    def time_first(self, x: Any) -> Any:
        """Returns ``x``, which broadcasts to the steps, with the shape ``[T * rows]``, step by step."""
        return x.expand(self.shape).movedim(self.time_dim, 0).reshape(-1)

    def callers_order(self, x: Any) -> Any:
        """The inverse of :meth:`time_first`."""
        dim = self.time_dim % len(self.shape)
        moved = (self.shape[dim], *self.shape[:dim], *self.shape[dim + 1 :])
        return x.reshape(moved).movedim(0, dim)

    def columns(self) -> np.ndarray:
        """Cuts the steps into pieces that the oracle computes alone, and makes each piece a column that ends in the last row.

        Returns:
            For each entry of the columns, ``[L, P]``, the index of its step in :meth:`time_first`, or -1 before the first step of a piece.
        """
        length = self.shape[self.time_dim]
        rows = int(np.prod(self.shape)) // length
        if self.mask is None and not self.starts:
            return np.arange(length * rows).reshape(length, rows)
        mask = np.ones((rows, length), bool)
        if self.mask is not None:
            mask = self.mask.movedim(self.time_dim, -1).reshape(rows, length).numpy()
        pieces = [
            [t * rows + row for t in piece]
            for row, flags in enumerate(mask.tolist())
            for piece in pieces_of(flags, self.starts, self.skip_masked)
        ]
        longest = max(map(len, pieces), default=1)
        return np.array([[-1] * (longest - len(piece)) + piece for piece in pieces], int).reshape(-1, longest).T


class Case(NamedTuple):
    """One call of the library, and how the oracle computes the same.

    Attributes:
        family, seed: what the case was drawn from.
        call: the library: from ``arguments`` to the results, a tuple.
        arguments: by name. The tensors that require grad are the variables.
        layout: the steps of the case.
        constants: further arguments of ``before`` and ``after``.
        scan, options: the oracle's function, and those of its arguments that are neither tensors nor coefficients. The oracle runs on
            columns, see :meth:`Layout.columns`, of many cases at once. None: ``after`` computes everything.
        before: from ``arguments`` and ``constants``, in float64, to the per-step arguments of ``scan``.
        after: from the results of ``scan``, a tuple, ``arguments`` and ``constants`` to the expected results.
    """

    family: str
    seed: int
    call: Callable[..., Tuple[Tensor, ...]]
    arguments: Dict[str, Any]
    layout: Layout
    dtype: torch.dtype
    constants: Dict[str, Any] = {}
    scan: Optional[str] = None
    options: Tuple[Tuple[str, Any], ...] = ()
    before: Callable[..., Dict[str, Any]] = lambda **arguments: arguments
    after: Callable[..., Tuple[Any, ...]] = lambda results, **arguments: results

    @property
    def name(self) -> str:
        return f"{self.family}:{self.seed}"

    @property
    def working_dtype(self) -> torch.dtype:
        """The dtype in which the library computes."""
        return torch.promote_types(self.dtype, torch.float32)

    @property
    def size(self) -> int:
        return sum(x.numel() for x in self.arguments.values() if isinstance(x, Tensor))


class Draw:
    """Random choices of one case."""

    def __init__(self, family: str, seed: int, longest: int) -> None:
        self.generator = np.random.default_rng((zlib.crc32(family.encode()), seed))
        self.longest = longest
        self.dtype = DTYPES[self.number((0.4, 0.2, 0.2, 0.2))]

    def number(self, weights: Sequence[float]) -> int:
        return int(np.searchsorted(np.cumsum(weights), self.generator.random() * sum(weights)))

    def one_of(self, choices: Sequence[Any]) -> Any:
        return choices[int(self.generator.integers(len(choices)))]

    def chance(self, probability: float) -> bool:
        return bool(self.generator.random() < probability)

    def flags(self, shape: Sequence[int], probability: float) -> Tensor:
        return torch.from_numpy(np.asarray(self.generator.random(tuple(shape)) < probability))

    def integers(self, low: int, high: int, shape: Sequence[int]) -> Tensor:
        return torch.from_numpy(np.asarray(self.generator.integers(low, high, tuple(shape))))

    def uniform(self, shape: Sequence[int], low: float, high: float) -> Tensor:
        return torch.from_numpy(np.asarray(self.generator.uniform(low, high, tuple(shape))))

    def normal(self, shape: Sequence[int], scale: float = 1.0, dtype: Optional[torch.dtype] = None) -> Tensor:
        x = torch.from_numpy(np.asarray(self.generator.standard_normal(tuple(shape)))) * scale
        return x.to(self.dtype if dtype is None else dtype)

    def values(self, shape: Sequence[int]) -> Tensor:
        """Rewards or values: of several orders of magnitude, integers, mostly zeros, or equal."""
        kind = self.number((0.6, 0.15, 0.1, 0.1, 0.05))
        if kind == 0:
            return self.normal(shape, self.one_of((1.0, 1.0, 0.1, 10.0)))
        if kind == 1:
            return self.integers(-3, 4, shape).to(self.dtype)
        if kind == 2:
            return self.normal(shape) * self.flags(shape, 0.2)
        if kind == 3:
            return self.normal(shape) + self.one_of((-5.0, 5.0))
        return torch.full(tuple(shape), self.one_of((0.0, 1.0, -0.1)), dtype=self.dtype)

    def layout(self, dimensions: Sequence[int] = (1, 2, 2, 2, 3, 3, 4), mask: bool = True) -> Layout:
        """Draws shape, time dimension, mask and packed sequences."""
        kind = self.number((0.87, 0.1, 0.025, 0.005))
        length = min(self.one_of((SHORT, MIDDLE, LONG, VERY_LONG)[kind]), self.longest)
        rank = self.one_of(dimensions)
        rows = self.one_of(ROWS[:5] if length > 16 else ROWS if self.chance(0.97) else WIDE)
        others = {1: [], 2: [rows], 3: [rows, self.one_of((1, 1, 2, 3))], 4: [self.one_of(ROWS[:5]), 2, self.one_of((1, 3))]}[
            rank
        ]
        place = self.one_of(range(rank))
        shape = (*others[:place], length, *others[place:])
        time_dim = place if self.chance(0.3) else place - rank
        starts = ()
        if self.chance(0.2):
            starts = tuple(sorted({0, *self.generator.integers(0, length, int(self.generator.integers(1, 5))).tolist()}))
        flags = self.mask(shape, time_dim) if mask and self.chance(0.5) else None
        return Layout(shape, time_dim, flags, flags is not None and self.chance(0.5), starts)

    def mask(self, shape: Sequence[int], time_dim: int) -> Tensor:
        """Right padding, holes, left padding, whole rows, or no padding at all. Some masks exclude every step."""
        length, rows = shape[time_dim], int(np.prod(shape)) // shape[time_dim]
        kind = self.number((0.3, 0.5, 0.05, 0.1, 0.05))
        lengths = self.integers(0, length + 1, (rows, 1))
        steps = torch.arange(length)
        if kind == 1:
            mask = self.flags((rows, length), self.one_of((0.1, 0.5, 0.5, 0.8, 0.8)))
        elif kind == 4:
            mask = torch.full((rows, length), self.chance(0.7))
        else:
            mask = (
                (steps < lengths) if kind == 0 else (steps >= lengths) if kind == 2 else (lengths > length // 2) & (steps >= 0)
            )
        dim = time_dim % len(shape)
        return mask.reshape(*shape[:dim], *shape[dim + 1 :], length).movedim(-1, dim).contiguous()

    def cu_seqlens(self, layout: Layout) -> Optional[Tensor]:
        """The start of each sequence, then T. Some sequences are empty."""
        if not layout.starts:
            return None
        starts = [*layout.starts, layout.shape[layout.time_dim]]
        if self.chance(0.1):
            starts.insert(1, starts[1])
        return torch.tensor(starts, dtype=self.one_of((torch.int32, torch.int64)))

    def ends(self, shape: Sequence[int]) -> Tuple[Tensor, Optional[Tensor]]:
        """Flags ``done`` and ``terminated``. Some steps are terminated and not done."""
        done = self.flags(shape, self.one_of((0.0, 0.0, 0.05, 0.05, 0.2, 0.2, 0.5, 1.0)))
        kind = self.number((0.15, 0.45, 0.2, 0.2))
        if kind == 0:
            return done, None
        terminated = self.flags(shape, self.one_of((0.0, 0.5, 1.0)))
        return done, done & terminated if kind == 1 else self.flags(shape, 0.2) if kind == 2 else done & self.flags(shape, 0.5)

    def coefficient(self, shape: Sequence[int], numbers: Sequence[float], low: float, high: float) -> Any:
        """A number, a one-element tensor, or a tensor that broadcasts to the data."""
        kind = self.number((0.4, 0.1, 0.1, 0.2, 0.2))
        if kind == 0:
            number = self.one_of(numbers)
            return int(number) if number in (0.0, 1.0) and self.chance(0.5) else number
        dtype = self.one_of((torch.float64, torch.float32))
        if kind in (1, 2):
            return torch.full((1,) * self.one_of((0, 1, len(shape))), self.one_of(numbers), dtype=dtype)
        sizes = list(shape)
        if kind == 4:
            sizes = [size if self.chance(0.5) else 1 for size in shape][self.one_of(range(len(shape))) :]
        x = self.uniform(sizes, low, high)
        return (x * self.flags(sizes, 0.8) if self.chance(0.3) else x).to(dtype)

    def discount(self, shape: Sequence[int]) -> Any:
        return self.coefficient(shape, (0.0, 0.5, 0.9, 0.97, 0.99, 0.999, 1.0), 0.3, 1.0)

    def with_junk(self, x: Any, mask: Optional[Tensor]) -> Any:
        """Returns ``x`` with junk at the excluded steps, if it has one entry for each step."""
        if mask is None or not isinstance(x, Tensor) or x.shape != mask.shape:
            return x
        if x.dtype == torch.bool:
            return torch.where(mask, x, self.flags(mask.shape, 0.5))
        return x.masked_fill(~mask, self.one_of(JUNK) if x.is_floating_point() else self.one_of((-1, -100, 1000)))

    def laid_out(self, arguments: Dict[str, Any], layout: Layout, variables: bool = True) -> Dict[str, Any]:
        """Puts junk at excluded steps, chooses strides, and makes most floating tensors variables."""
        result = {}
        for name, x in arguments.items():
            if isinstance(x, Tensor):
                # A coefficient with one element is a number for all steps.
                x = x if x.numel() == 1 and name in COEFFICIENTS else self.with_junk(x, layout.mask)
                if x.shape == layout.shape:
                    # An expanded tensor has one value for all entries of the last dimension, so not where the mask differs.
                    views: List[Any] = list(VIEWS[: -1 if layout.mask is not None else None])
                    x = self.one_of(views)(x) if self.chance(0.6) else x
                x = x.detach()
                if variables and x.is_floating_point() and self.chance(0.85):
                    x.requires_grad_()
            result[name] = x
        return result


def with_zero(x: Any) -> Any:
    """Returns the flattened ``x`` and a zero, which excluded steps take."""
    return torch.cat([x.reshape(-1), torch.zeros(1, dtype=torch.float64)])
