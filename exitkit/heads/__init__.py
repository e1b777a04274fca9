"""Heads: small networks that exits carry, on hidden states in canonical layout (rows first).

| head | from | to | untrained |
| --- | --- | --- | --- |
| `UncertaintyHead` | hidden | uncertainty in [0, 1] | 0.998: never leave |
| `TailTranslator` | hidden | hidden, for the backbone's tail | identity |
| `SharedTail` | hidden | hidden, for the backbone's tail | identity |
| `AttachedHead` | hidden (and noisy input) | prediction | near zero |
| `CarriedHead` | hidden and the row's last full steps | hidden where the row lands | plain reuse |
"""

from exitkit.heads.carried.head import CarriedHead, CarriedState
from exitkit.heads.carried.time_maps import MapSolver, TimeMaps
from exitkit.heads.embedding import TimestepEmbedding
from exitkit.heads.grid import Grid, token_grid, unpatchify
from exitkit.heads.own_output import AttachedHead
from exitkit.heads.tail import SharedTail, TailTranslator
from exitkit.heads.uncertainty import Reduction, UncertaintyHead, reduce

__all__ = [
    "AttachedHead",
    "CarriedHead",
    "CarriedState",
    "Grid",
    "MapSolver",
    "Reduction",
    "SharedTail",
    "TailTranslator",
    "TimeMaps",
    "TimestepEmbedding",
    "UncertaintyHead",
    "reduce",
    "token_grid",
    "unpatchify",
]
