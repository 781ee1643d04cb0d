"""What a mask means: the oracle on the data without the steps that the mask excludes."""

import torch


def pieces_of(mask, starts, skip_masked):
    """Returns lists of the steps of one row that belong together.

    Args:
        mask: list of bool, one for each step.
        starts: the steps at which a packed sequence starts.
        skip_masked: False: a step that does not count ends a piece.
    """
    pieces, piece = [], []
    for t, counts in enumerate(mask):
        if piece and (t in starts or not (counts or skip_masked)):
            pieces.append(piece)
            piece = []
        if counts:
            piece.append(t)
    return [*pieces, piece] if piece else pieces


def on_pieces(function, arguments, mask, time_dim, skip_masked=False, starts=()):
    """Calls ``function`` for each row and piece alone, and puts the results where the steps are, with 0 elsewhere."""
    shape = mask.shape
    dim = time_dim % len(shape)

    def rows(tensor):
        """``[rows, T]``."""
        return tensor.expand(shape).movedim(dim, -1).reshape(-1, shape[dim])

    per_step = {k: rows(v) for k, v in arguments.items() if isinstance(v, torch.Tensor) and v.dim() > 0}
    others = {k: v for k, v in arguments.items() if k not in per_step}
    flags = rows(mask).tolist()
    columns = None
    for row, row_mask in enumerate(flags):
        for piece in pieces_of(row_mask, starts, skip_masked):
            results = function(**{k: v[row, piece] for k, v in per_step.items()}, **others)
            results = results if isinstance(results, tuple) else (results,)
            if columns is None:
                columns = [[[torch.zeros((), dtype=torch.float64)] * shape[dim] for _ in flags] for _ in results]
            for column, result in zip(columns, results, strict=True):
                for t, value in zip(piece, result, strict=True):
                    column[row][t] = value
    moved = mask.movedim(dim, -1).shape
    stacked = [torch.stack([torch.stack(row) for row in column]).reshape(moved).movedim(-1, dim) for column in columns]
    return tuple(stacked) if len(stacked) > 1 else stacked[0]
