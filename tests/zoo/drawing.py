"""Random arguments that many models take, for any number of rows."""

from __future__ import annotations

import torch
from torch import Tensor


def steps(rows: int) -> Tensor:
    """A timestep of 0..999 for each row."""
    return torch.randint(0, 1000, (rows,))


def unit(rows: int) -> Tensor:
    """A timestep (or sigma) in 0..1 for each row."""
    return torch.rand(rows)


def lengths_mask(rows: int, tokens: int, shortest: int) -> Tensor:
    """A mask of 1 for the tokens of each row and 0 for its padding, with random lengths."""
    lengths = torch.randint(shortest, tokens + 1, (rows, 1))
    return (torch.arange(tokens) < lengths).long()


def grid_ids(*sizes: int, axes: int = 3) -> Tensor:
    """Positions of a grid of patches, counted along the last axes: (patches, axes)."""
    grid = torch.stack(torch.meshgrid(*map(torch.arange, sizes), indexing="ij"), -1)
    flat = grid.reshape(-1, len(sizes))
    return torch.cat([flat.new_zeros(len(flat), axes - len(sizes)), flat], 1).float()
