"""Frozen settings and the presets that bundle them.

- `paper`: AdaDiff (arXiv 2309.17074, eq. 7-12). Own output layer per exit, uncertainty against the
  error of the noise, whole model trained.
- `official`: the code released with it. The backbone's own tail shared by all exits, certainty
  without timestep, batch-mean decisions, whole model trained.
- `relative`: this project. Own tail after a translator, uncertainty against the gap to the full
  model, backbone frozen.
- `carried`: this project. The rest of the row's last full steps, corrected; backbone frozen.
- `completion`: this project. A forecast in place of the whole backbone, scalars by step; frozen.
- `berxit`, `calm`, `pabee`, `branchynet`: rivals of the article, with the heads, losses and policies
  of their own papers; the whole model is trained, as there.

`paper` follows the article where the released code differs from it, `official` follows the code.
"""

from exitkit.config.fields import (
    ExitConfig,
    LossConfig,
    OutputConfig,
    UncertaintyConfig,
    parse_config,
)
from exitkit.config.presets import PRESETS, resolve_config

__all__ = [
    "PRESETS",
    "ExitConfig",
    "LossConfig",
    "OutputConfig",
    "UncertaintyConfig",
    "parse_config",
    "resolve_config",
]
