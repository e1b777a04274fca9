"""Cosmos 3, which packs the text and all it generates into one sequence without a batch axis.

Each block takes two streams and returns both: the text, which never sees what is generated, and the
noisy tokens. Exits look at the second. The text goes on from the exit as it is, for nothing behind
the blocks reads it. Of several videos in one call, heads of kind `output` predict the first.
"""

from __future__ import annotations

from exitkit.surgery.adapter import Adapter

COSMOS3 = Adapter(
    name="cosmos3",
    matches="diffusers.models.transformers.transformer_cosmos3.Cosmos3OmniTransformer",
    noisy="vision_tokens[0]",
    timestep="vision_timesteps",
    batched=False,
)
