"""Heads: small networks that exits carry, on hidden states in canonical layout (rows first).

| head | from | to | untrained |
| --- | --- | --- | --- |
| `UncertaintyHead` | hidden | uncertainty in [0, 1] | 0.5, read as 1: never leave |
| `TailHead` | hidden | hidden, for the backbone's tail | identity |
| `SharedHead` | hidden | hidden, for the backbone's tail | identity |
| `OwnOutputHead` | hidden (and noisy input) | prediction | near zero |
| `CarriedHead` | hidden and the row's last full steps | hidden where the row lands | plain reuse |
| `CompletionHead` | noisy input and the row's last full steps | prediction | never used |

`CompletionHead` is at no boundary: it stands for the whole backbone (kind `completion`). The four before
it are the kinds `tail`, `shared`, `output` and `carried` of `OutputConfig` (kinds.py).
"""

from exitkit.heads.carried.head import CarriedHead
from exitkit.heads.carried.kind import Carried
from exitkit.heads.carried.state import CarriedState, FullStep, Window
from exitkit.heads.carried.time_maps import TimeMaps
from exitkit.heads.completion.head import CompletionHead
from exitkit.heads.completion.kind import Completion
from exitkit.heads.completion.state import CompletionState
from exitkit.heads.embedding import TimestepEmbedding
from exitkit.heads.grid import Grid, token_grid, unpatchify
from exitkit.heads.kinds import OutputHead, OutputKind, Site, output_kind
from exitkit.heads.own_output import OwnOutput, OwnOutputHead
from exitkit.heads.shared import Shared, SharedHead
from exitkit.heads.tail import Tail, TailHead
from exitkit.heads.uncertainty import Reduction, TimestepShifts, UncertaintyHead, reduce

__all__ = [
    "Carried",
    "CarriedHead",
    "CarriedState",
    "Completion",
    "CompletionHead",
    "CompletionState",
    "FullStep",
    "Grid",
    "OutputHead",
    "OutputKind",
    "OwnOutput",
    "OwnOutputHead",
    "Reduction",
    "Shared",
    "SharedHead",
    "Site",
    "Tail",
    "TailHead",
    "TimeMaps",
    "TimestepShifts",
    "TimestepEmbedding",
    "UncertaintyHead",
    "Window",
    "output_kind",
    "reduce",
    "token_grid",
    "unpatchify",
]
